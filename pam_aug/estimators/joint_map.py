"""Joints as a fixed linear map of the vertices, so that a mesh estimator and the labels mean the same joints.

MANO's own regressor on a posed mesh misses the kinematic joints, which labels hold, by 4 mm on average: an estimator
that is perfect in its vertices would be scored 4 mm. So a map is fitted to the kinematic joints instead, and the same
one is used in training and in scoring.
"""

from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float

from pam_aug.hand import HandAssets, HandLayer
from pam_aug.hand.joints import MANO16_TO_21, TIP_SETS

__all__ = ["JOINT_DEFINITIONS", "JointDefinition", "fit_joint_map"]

JointDefinition = Literal["kinematic_fit", "regressor"]

_TIPS = "; fingertips are its vertices of the labels' set"
JOINT_DEFINITIONS: Final = {
    "kinematic": f"16 kinematic joints of the posed hand{_TIPS}",
    "kinematic_fit": f"16 kinematic joints, by a linear map fitted to the mesh{_TIPS}",
    "regressor": f"16 joints by the hand model's regressor on the posed mesh{_TIPS}",
}
"""How an estimator's 21 joints follow from its hand, in words, for its `joint_definition`."""

_POSES, _VERTEX_NOISE_M = 1500, 1e-3


def fit_joint_map(
    assets: HandAssets, definition: JointDefinition = "kinematic_fit", tips: str = "smplx", seed: int = 0
) -> Float[np.ndarray, "21 778"]:
    """The map M of `joints21 = M @ verts`, rows summing to one; tips are single vertices.

    "regressor" is the model's own; "kinematic_fit" the least-squares map to the kinematic joints over random poses and
    shapes, with vertices assumed to carry 1 mm of independent noise (a ridge term), about 1 s. The same arguments give
    the same map.
    """
    rows16 = np.asarray(assets.J_regressor, np.float64) if definition == "regressor" else _fit(assets, seed)
    tip_rows = np.eye(778)[list(TIP_SETS[tips][assets.side])]
    return np.concatenate([rows16, tip_rows])[list(MANO16_TO_21)]


def _fit(assets: HandAssets, seed: int) -> Float[np.ndarray, "16 778"]:
    rng = np.random.default_rng(seed)
    layer = HandLayer(assets, dtype=torch.float64)
    coefficients = rng.normal(0.0, 1.0, (_POSES, 45))
    pose = np.asarray(assets.hands_mean, np.float64) + coefficients @ np.asarray(assets.hands_components, np.float64)
    pose += rng.normal(0.0, 0.1, pose.shape)
    turn = rng.normal(0.0, 1.0, (_POSES, 3)) * 2.0
    betas = rng.normal(0.0, 1.0, (_POSES, 10))
    with torch.no_grad():
        out = layer(*(torch.from_numpy(a) for a in (turn, pose, betas)))
    verts, joints = out.verts.numpy(), out.joints16.numpy()
    middle = verts.mean(1, keepdims=True)
    # One row per pose and axis: the map is the same for x, y and z, hence turns with the hand.
    X = (verts - middle).transpose(0, 2, 1).reshape(-1, 778)
    Y = (joints - middle).transpose(0, 2, 1).reshape(-1, 16)
    normal = X.T @ X + len(X) * _VERTEX_NOISE_M**2 * np.eye(778)
    W = np.linalg.solve(normal, X.T @ Y).T
    return W + (1.0 - W.sum(1, keepdims=True)) / 778
