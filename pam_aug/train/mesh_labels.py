"""From a batch of labels to what the network should say: vertices by the hand models that made the labels, joints, and
both relative to the root in the view's axes."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pam_aug.errors import AssetMissing
from pam_aug.estimators.simplehand_net import normalise_pixels
from pam_aug.hand import HandLayer
from pam_aug.hand.joints import TIP_SETS, TIPS_21
from pam_aug.shards.hand_models import BuildHands
from pam_aug.shards.index import SIDES
from pam_aug.train.augment_geometry import warp
from pam_aug.train.crops import Batch
from pam_aug.train.nets import NetSpec

__all__ = ["Targets"]


class Targets:
    """Makes a raw batch ready on a device: `targets(raw)` is (network input, `Batch`).

    Vertices are computed from each label by the model that made it. A label without a mesh, or whose MANO file is not
    there, trains joints alone; that is warned of once. Joints are the label's own; where there are vertices the tips
    are those of the network's tip set, and under the joint definition "regressor" all joints come from the vertices:
    labels hold kinematic joints, which MANO's regressor misses by 4 mm; two losses that disagree would both be missed.
    """

    def __init__(
        self, spec: NetSpec, joint_map: Float[Tensor, "21 778"], device: torch.device, mano_dir: str = ""
    ) -> None:
        self.spec, self.device = spec, device
        self.joint_map = joint_map.to(device)  # once, not at every step
        self._hands = BuildHands(Path(mano_dir) if mano_dir else None)
        self._layers: dict[tuple[str, str, str], HandLayer | None] = {}

    def __call__(self, raw: dict[str, Any]) -> tuple[Float[Tensor, "n 3 s s"], Batch]:
        device, spec = self.device, self.spec
        images = raw["image"].to(device, non_blocking=True)
        crops = warp(images, raw["H_px"].to(device), spec.input_px)
        verts, meshed = self.vertices_cam_m(raw)
        joints = self._joints_cam_m(raw, verts, meshed)
        root = joints[:, spec.root_index, None]
        turned = raw["turned"].to(device).float().transpose(1, 2)
        valid = raw["valid"].to(device)
        joints_valid = valid & meshed if spec.joints == "regressor" else valid
        batch = Batch(
            crops=crops,
            uv=raw["uv"].to(device),
            joints_m=(joints - root) @ turned,
            verts_m=(verts - root) @ turned,
            uv_valid=valid,
            joints_valid=joints_valid,
            verts_valid=valid & meshed,
        )
        return normalise_pixels(crops, spec.pixels), batch

    def vertices_cam_m(self, raw: dict[str, Any]) -> tuple[Float[Tensor, "n 778 3"], Bool[Tensor, "n"]]:
        """Vertices in metres, camera frame, in their own side's order (a left hand's are the mirror images of a right
        one's), and which hands have them; the others' are zero."""
        n = len(raw["models"])
        verts = torch.zeros(n, 778, 3, device=self.device)
        has_mesh, side = raw["mano_valid"].numpy(), raw["side"].numpy()
        names = [(build, model, SIDES[s]) for (build, model, _), s in zip(raw["models"], side)]
        meshed = np.zeros(n, bool)
        for name in sorted({name for name, has in zip(names, has_mesh) if has}):
            layer = self._layer(*name)
            if layer is None:
                continue
            rows = np.array([i for i in range(n) if has_mesh[i] and names[i] == name])
            pose = [raw[field][rows].to(self.device) for field in ("global_orient", "hand_pose", "betas", "transl")]
            with torch.no_grad():
                verts[torch.from_numpy(rows).to(self.device)] = layer(*pose).verts
            meshed[rows] = True
        return verts, torch.from_numpy(meshed).to(self.device)

    def _joints_cam_m(self, raw: dict[str, Any], verts: Tensor, meshed: Tensor) -> Float[Tensor, "n 21 3"]:
        joints = raw["joints_cam_m"].to(self.device).clone()
        if self.spec.joints == "regressor":
            return torch.where(meshed[:, None, None], self.joint_map @ verts, joints)
        # Vertex i of a left hand is the mirror image of vertex i of a right one, so the right hand's ids serve both.
        tips = verts[:, list(TIP_SETS[self.spec.tips]["right"])]
        places = list(TIPS_21)
        joints[:, places] = torch.where(meshed[:, None, None], tips, joints[:, places])
        return joints

    def _layer(self, build: str, model: str, side: str) -> HandLayer | None:
        key = (build, model, side)
        if key not in self._layers:
            try:
                assets = self._hands.assets(Path(build), model, side)  # type: ignore[arg-type]
                self._layers[key] = HandLayer(assets).to(self.device)
            except AssetMissing as error:
                warnings.warn(f"{error} Until then these hands train joints alone.", stacklevel=2)
                self._layers[key] = None
        return self._layers[key]
