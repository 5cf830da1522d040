"""The MANO layer: pose, shape and translation to vertices and joints, batched, in torch.

Written from the equations of Romero, Tzionas and Black, "Embodied Hands" (SIGGRAPH Asia 2017), and Loper et al., "SMPL"
(SIGGRAPH Asia 2015): shape blend shapes, pose blend shapes on the 15 joint rotations, a kinematic chain, linear blend
skinning. Poses are *absolute*: the mean pose is already in them (`HandLayer.pose_from_pca` adds it).
"""

from typing import Final, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pam_aug.errors import ConfigError, SchemaError
from pam_aug.geometry import axis_angle_to_matrix, matrix_to_axis_angle
from pam_aug.hand.assets import HandAssets
from pam_aug.hand.joints import MANO16_TO_21, TIP_SETS

__all__ = ["HandLayer", "HandOutput", "JointDefinition", "mirror_params"]

JointDefinition = Literal["kinematic", "regressor"]
"""Where joints come from: "kinematic", the transforms of the chain (smplx, manopth, DexYCB), or "regressor", MANO's
regressor on the posed mesh (FreiHAND, SimpleHand). The two differ by 4 mm on average on real poses."""

# Skinning needs 12 floats of scratch per vertex; those of this many, of 32 meshes, stay in a core's cache.
_VERTICES_PER_BLOCK: Final = 32 * 778


class HandOutput(NamedTuple):
    """Vertices and joints in metres, in the frame of the given `global_orient` and `transl`."""

    verts: Float[Tensor, "b 778 3"]
    joints16: Float[Tensor, "b 16 3"]
    """MANO's kinematic joints, in MANO's order."""
    joints21: Float[Tensor, "b 21 3"]
    """Wrist, thumb, index, middle, ring, little, base to tip."""


def _check_choice(what: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        raise ConfigError(f"'{value}' is not a {what}. Choose one of {', '.join(choices)}.")


class HandLayer(torch.nn.Module):
    """A hand model as a differentiable function.

    `tips` names the vertices that stand for the fingertips (`joints.TIP_SETS`), `joints` the joint definition; both can
    be given again at each call. Buffers are not saved in state dicts: the model file is the user's.
    """

    def __init__(
        self,
        assets: HandAssets,
        dtype: torch.dtype = torch.float32,
        *,
        tips: str = "smplx",
        joints: str = "kinematic",
    ) -> None:
        super().__init__()
        _check_choice("tip set", tips, list(TIP_SETS))
        _check_choice("joint definition", joints, ["kinematic", "regressor"])
        self.assets = assets
        self.side = assets.side
        self.tips = tips
        self.joints = joints

        def double(array) -> Tensor:
            return torch.from_numpy(array.astype("float64"))

        template, shapedirs = double(assets.v_template), double(assets.shapedirs)
        regressor, posedirs = double(assets.J_regressor), double(assets.posedirs)
        # Coordinate-major bases: one matrix product makes x, y and z rows of 778, which skinning then streams through.
        blend = torch.cat([shapedirs, posedirs], dim=2).permute(2, 1, 0).reshape(145, 3 * 778)
        buffers = {
            "template": template.T.reshape(1, 3 * 778),
            "blend_basis": blend,
            "joint_template": regressor @ template,
            "joint_shapedirs": torch.einsum("jv,vck->kjc", regressor, shapedirs).reshape(10, 48),
            "J_regressor": regressor,
            "weights_T": double(assets.weights).T.contiguous(),
            "hands_mean": double(assets.hands_mean),
            "hands_components": double(assets.hands_components),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.to(dtype), persistent=False)
        self.register_buffer("faces", torch.from_numpy(assets.f.astype("int64")), persistent=False)
        self.register_buffer("to_21", torch.tensor(MANO16_TO_21), persistent=False)
        for name, sides in TIP_SETS.items():
            self.register_buffer(f"tip_ids_{name}", torch.tensor(sides[assets.side]), persistent=False)

    # Declared for type checkers; `register_buffer` makes them.
    template: Tensor
    blend_basis: Tensor
    joint_template: Tensor
    joint_shapedirs: Tensor
    J_regressor: Tensor
    weights_T: Tensor
    hands_mean: Tensor
    hands_components: Tensor
    faces: Tensor
    to_21: Tensor

    def forward(
        self,
        global_orient: Tensor,
        hand_pose: Tensor,
        betas: Tensor | None = None,
        transl: Tensor | None = None,
        *,
        tips: str | None = None,
        joints: str | None = None,
    ) -> HandOutput:
        """Pose the hand.

        Rotations are axis-angle (radians), (b,3) and (b,45), or matrices, (b,3,3) and (b,15,3,3), each argument by its
        own shape; `hand_pose` is absolute, in MANO's joint order. `betas` (b,10) and `transl` (b,3, metres) default to
        zero, and one row serves all hands; the wrist lands at `transl + J0(betas)`. Raises
        `SchemaError` for other shapes, `ConfigError` for an unknown name.
        """
        joints = self.joints if joints is None else joints
        _check_choice("joint definition", joints, ["kinematic", "regressor"])
        tip_ids = self._tip_ids(tips)
        feature, transforms, posed_joints = self._bones(global_orient, hand_pose, betas, transl)
        rest_verts = torch.addmm(self.template, feature, self.blend_basis).view(-1, 3, 778)
        verts = _skin(rest_verts, transforms, self.weights_T)
        joints16 = posed_joints if joints == "kinematic" else self.J_regressor @ verts
        joints21 = torch.cat([joints16, verts[:, tip_ids]], dim=1)[:, self.to_21]
        return HandOutput(verts, joints16, joints21)

    def kinematic_joints21(
        self,
        global_orient: Tensor,
        hand_pose: Tensor,
        betas: Tensor | None = None,
        transl: Tensor | None = None,
        *,
        tips: str | None = None,
    ) -> Float[Tensor, "b 21 3"]:
        """The kinematic `joints21` of `forward`, which takes the same, in a twentieth of its time.

        Of the mesh, only the tips' vertices are made.
        """
        ids = self._tip_ids(tips)
        feature, transforms, posed_joints = self._bones(global_orient, hand_pose, betas, transl)
        template, basis = (a.view(-1, 3, 778)[..., ids].flatten(1) for a in (self.template, self.blend_basis))
        rest_tips = torch.addmm(template, feature, basis).view(-1, 3, len(ids))
        tip_verts = _skin(rest_tips, transforms, self.weights_T[:, ids])
        return torch.cat([posed_joints, tip_verts], dim=1)[:, self.to_21]

    def _tip_ids(self, tips: str | None) -> Tensor:
        tips = self.tips if tips is None else tips
        _check_choice("tip set", tips, list(TIP_SETS))
        return getattr(self, f"tip_ids_{tips}")

    def _bones(
        self, global_orient: Tensor, hand_pose: Tensor, betas: Tensor | None, transl: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the blend shapes are weighted by (b,145), the bones' transforms (b,16,3,4), and the joints (b,16,3)."""
        rotations = self._rotations(global_orient, hand_pose)
        batch = rotations.shape[0]
        betas = rotations.new_zeros(1, 10) if betas is None else betas
        if betas.ndim != 2 or betas.shape[-1] != 10:
            raise SchemaError(f"betas has shape {tuple(betas.shape)}, expected (batch, 10).")
        identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
        pose_feature = (rotations[:, 1:] - identity).reshape(batch, 135)
        feature = torch.cat([betas.expand(batch, 10), pose_feature], dim=1)
        rest_joints = self.rest_joints(betas).expand(batch, 16, 3)
        turn, posed_joints = _chain(rotations, rest_joints)
        if transl is not None:
            posed_joints = posed_joints + transl[:, None]
        shift = posed_joints[..., None] - turn @ rest_joints[..., None]
        return feature, torch.cat([turn, shift], dim=3), posed_joints

    def _rotations(self, global_orient: Tensor, hand_pose: Tensor) -> Tensor:
        batch = hand_pose.shape[0] if hand_pose.ndim else 0
        if tuple(global_orient.shape[1:]) not in ((3,), (3, 3)) or tuple(hand_pose.shape[1:]) not in (
            (45,),
            (15, 3, 3),
        ):
            raise SchemaError(
                f"global_orient {tuple(global_orient.shape)} and hand_pose {tuple(hand_pose.shape)} must be axis-angle "
                "(batch, 3) and (batch, 45), or matrices (batch, 3, 3) and (batch, 15, 3, 3)."
            )
        if global_orient.shape[0] != batch:
            raise SchemaError(f"global_orient has {global_orient.shape[0]} hands and hand_pose {batch}.")
        if global_orient.ndim == 2 and hand_pose.ndim == 2:
            return axis_angle_to_matrix(torch.cat([global_orient, hand_pose], dim=1).view(batch, 16, 3))
        root = axis_angle_to_matrix(global_orient) if global_orient.ndim == 2 else global_orient
        fingers = axis_angle_to_matrix(hand_pose.reshape(batch, 15, 3)) if hand_pose.ndim == 2 else hand_pose
        return torch.cat([root[:, None], fingers], dim=1)

    # --- shape and translation -------------------------------------------------------------------------------------

    def rest_joints(self, betas: Float[Tensor, "b 10"]) -> Float[Tensor, "b 16 3"]:
        """Joints (metres) of the shaped hand in the rest pose, J(betas); row 0 is J0."""
        return self.joint_template + (betas @ self.joint_shapedirs).view(-1, 16, 3)

    def wrist_from_transl(self, transl: Float[Tensor, "b 3"], betas: Float[Tensor, "#b 10"]) -> Float[Tensor, "b 3"]:
        """The wrist joint (metres): transl + J0(betas), whatever the global rotation."""
        return transl + self.rest_joints(betas)[:, 0]

    def transl_from_wrist(self, wrist: Float[Tensor, "b 3"], betas: Float[Tensor, "#b 10"]) -> Float[Tensor, "b 3"]:
        """The translation that puts the wrist joint at `wrist` (metres)."""
        return wrist - self.rest_joints(betas)[:, 0]

    def transform_pose(
        self,
        R: Float[Tensor, "*#c 3 3"],
        T: Float[Tensor, "*#c 3"],
        global_orient: Float[Tensor, "b 3"],
        transl: Float[Tensor, "b 3"],
        betas: Float[Tensor, "#b 10"],
    ) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b 3"]]:
        """`global_orient` and `transl` of the same hand in the frame x' = R x + T (say, another camera's).

        The model turns about its wrist, not about the origin: t' = R (J0 + t) + T - J0.
        """
        wrist = self.wrist_from_transl(transl, betas)
        moved = (R @ wrist[..., None])[..., 0] + T
        return matrix_to_axis_angle(R @ axis_angle_to_matrix(global_orient)), self.transl_from_wrist(moved, betas)

    # --- pose coefficients -----------------------------------------------------------------------------------------

    def pose_from_pca(self, coeffs: Float[Tensor, "b n"], mean: bool = True) -> Float[Tensor, "b 45"]:
        """Absolute pose of the first n <= 45 coefficients, in units of one standard deviation each.

        `mean=False` is for coefficients taken without MANO's mean pose (`flat_hand_mean=True` elsewhere). Raises
        `SchemaError` for more than 45 coefficients.
        """
        if coeffs.shape[-1] > 45:
            raise SchemaError(f"{coeffs.shape[-1]} pose coefficients were given; a hand has 45.")
        pose = coeffs @ self.hands_components[: coeffs.shape[-1]]
        return pose + self.hands_mean if mean else pose

    def pose_to_pca(self, pose: Float[Tensor, "b 45"], mean: bool = True) -> Float[Tensor, "b 45"]:
        """The 45 coefficients of an absolute pose; exact inverse of `pose_from_pca`.

        The components are orthogonal but scaled, so each projection is divided by its row's squared norm.
        """
        centred = pose - self.hands_mean if mean else pose
        return centred @ self.hands_components.T / self.hands_components.square().sum(1)


def _skin(rest_verts: Tensor, transforms: Tensor, weights_T: Tensor) -> Tensor:
    """Linear blend skinning: (b,3,v) rest vertices, (b,16,3,4) transforms and (16,v) weights to (b,v,3)."""
    batch, _, count = rest_verts.shape
    columns = transforms.permute(0, 3, 2, 1).reshape(batch, 12, 16)  # (b, column, row) by joint
    blocks, hands = [], _VERTICES_PER_BLOCK // count
    for start in range(0, batch, hands):
        part = slice(start, start + hands)
        blended = (columns[part] @ weights_T).view(-1, 4, 3, count)
        x, y, z = rest_verts[part, :, None].unbind(1)
        rows = torch.addcmul(blended[:, 3], blended[:, 0], x)
        rows = torch.addcmul(torch.addcmul(rows, blended[:, 1], y), blended[:, 2], z)
        blocks.append(rows.transpose(1, 2))
    if not blocks:
        return rest_verts.transpose(1, 2)
    return blocks[0].contiguous() if len(blocks) == 1 else torch.cat(blocks)


def _chain(rotations: Tensor, rest_joints: Tensor) -> tuple[Tensor, Tensor]:
    """World rotations (b,16,3,3) and positions (b,16,3) of the joints, one level of all five fingers at a time."""
    batch = rotations.shape[0]
    local = rotations[:, 1:].reshape(batch, 5, 3, 3, 3)
    root = rotations[:, :1]
    turns, places = [], []
    turn, place = root, rest_joints[:, :1]
    parent_rest = rest_joints[:, :1]
    finger_rest = rest_joints[:, 1:].reshape(batch, 5, 3, 3)
    for level in range(3):
        offset = finger_rest[:, :, level] - parent_rest
        place = place + (turn @ offset[..., None])[..., 0]
        turn = turn @ local[:, :, level]
        turns.append(turn)
        places.append(place)
        parent_rest = finger_rest[:, :, level]
    turn_all = torch.cat([root, torch.stack(turns, dim=2).reshape(batch, 15, 3, 3)], dim=1)
    place_all = torch.cat([rest_joints[:, :1], torch.stack(places, dim=2).reshape(batch, 15, 3)], dim=1)
    return turn_all, place_all


def mirror_params(
    global_orient: Float[Tensor, "b 3"], hand_pose: Float[Tensor, "b 45"], transl: Float[Tensor, "b 3"]
) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b 45"], Float[Tensor, "b 3"]]:
    """Axis-angle parameters of the other side's hand that is this one reflected in x; betas stay as they are.

    Exact for `HandAssets.mirrored()` of the same model (shape directions fixed).
    """
    turn = global_orient.new_tensor([1.0, -1.0, -1.0])
    flip = global_orient.new_tensor([-1.0, 1.0, 1.0])
    return global_orient * turn, (hand_pose.view(-1, 15, 3) * turn).view(-1, 45), transl * flip
