"""Trajectories in a world frame: hands, objects, where their meshes are, and what labels say of them.

What every source of trajectories is brought to before `rollout_frames` makes samples of it.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float

from pam_aug.errors import SourceError
from pam_aug.hand import HandAssets, HandLayer, Side, load_hand
from pam_aug.rollouts.scene import Mesh, load_mesh
from pam_aug.schema import Camera

__all__ = ["MANO_J0_M", "SPLITS", "HandTrack", "Hands", "MeshFile", "ObjectTrack", "Trajectory", "split_of"]

SPLITS = ("train", "val", "test")
MANO_J0_M: Final[dict[Side, tuple[float, float, float]]] = {
    "right": (0.09566994, 0.00638343, 0.0061863),
    "left": (-0.09566994, 0.00638343, 0.0061863),
}
"""MANO's wrist in its rest pose at betas 0, metres: smplx's translation is the wrist minus it."""


def split_of(object_id: str) -> str:
    """The split of everything that shows an object: train (80 %), val (10 %) or test (10 %), by a hash of its id.

    Never by file: an object's other trajectories would leak from one split into another.
    """
    digest = blake2b(f"split\0{object_id}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "little") / 2.0**64
    return "train" if place < 0.8 else "val" if place < 0.9 else "test"


@dataclass(frozen=True, slots=True)
class MeshFile:
    """A mesh on disk: `name` stands in labels, `scale` takes its units to metres."""

    path: Path
    name: str
    scale: float = 1.0

    def load(self) -> Mesh:
        mesh = load_mesh(self.path, self.name, self.scale)
        size = float(np.ptp(mesh.vertices_m, axis=0).max())
        if not 0.003 < size < 3.0:
            raise SourceError(
                f"{self.path}: the object is {size:.4g} m across; a mesh in millimetres needs the scale 0.001",
                size_m=size,
            )
        return mesh


@dataclass(frozen=True, slots=True, eq=False)
class HandTrack:
    """One hand over T frames, in the world: absolute axis-angle poses, `transl` as the hand model in use takes it."""

    side: Side
    global_orient: Float[np.ndarray, "t 3"]
    hand_pose: Float[np.ndarray, "t 45"]
    betas: Float[np.ndarray, "t 10"]
    transl: Float[np.ndarray, "t 3"]
    valid: Bool[np.ndarray, "t"]
    pose_mean: str = "exact"


@dataclass(frozen=True, slots=True, eq=False)
class ObjectTrack:
    """One rigid object over T frames."""

    id: str
    mesh: MeshFile
    T_world_obj: Float[np.ndarray, "t 4 4"]
    valid: Bool[np.ndarray, "t"]


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """A rollout: tracks of equal length, and what its labels say of it. `cameras` are the source's own, per camera."""

    dataset: str
    subject: str  # second part of the key
    sequence: str  # third part
    name: str  # the source's own
    licence: str
    group: str
    split: str
    hands: tuple[HandTrack, ...]
    objects: tuple[ObjectTrack, ...]
    up: Float[np.ndarray, "3"]
    times_s: Float[np.ndarray, "t"]
    notes: tuple[str, ...] = ()
    text: str = ""
    cameras: tuple[tuple[str, Callable[[int], Camera]], ...] = ()


class Hands:
    """The hand models of a source: the user's MANO (`mano_dir` or $MANO_DIR), else the bundled open hand."""

    def __init__(self, mano_dir: str = "") -> None:
        self._folder = mano_dir or os.environ.get("MANO_DIR", "")
        self.model = "mano" if self._folder else "open_hand"
        self._layers: dict[Side, HandLayer] = {}
        self._warned = False

    def layer(self, side: Side) -> HandLayer:
        """The float64 layer of a side. Raises AssetMissing where `mano_dir` lacks its file."""
        if side not in self._layers:
            self._layers[side] = HandLayer(load_hand(side, self._folder or None), dtype=torch.float64)
        return self._layers[side]

    def assets(self, side: Side) -> HandAssets:
        return self.layer(side).assets

    def mean_pose(self, side: Side, source: str) -> tuple[Float[np.ndarray, "45"], str]:
        """The mean pose to add to a pose that is relative to MANO's, and what the label says of it.

        With the user's MANO that is its own mean ("exact"). Without, the open hand's mean stands in ("open_hand"), and
        one warning says what that costs.
        """
        mean = self.assets(side).hands_mean.astype(np.float64)
        if self.model == "mano":
            return mean, "exact"
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{source}: poses are relative to MANO's mean pose, and no MANO file is given. The open hand's mean "
                "stands in for it, so fingers bend by some degrees otherwise than in the simulator and may miss or "
                "enter the object; labels and images still agree. Give mano_dir (or $MANO_DIR) for the exact pose.",
                stacklevel=2,
            )
        return mean, "open_hand"
