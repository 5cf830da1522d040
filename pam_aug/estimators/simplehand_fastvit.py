"""The `simplehand-fastvit` backend: the SimpleHand that its authors released, FastViT-MA36 through timm.

Zhou et al., "A Simple Baseline for Efficient Hand Mesh Reconstruction" (CVPR 2024). Its weights (`epoch_200*`) were
trained on FreiHAND only. It has the mesh head of `simplehand_net`, published widths, and its own forms: BGR pixels less
a half, crops whose principal point is half their size, vertices relative to the middle finger's base.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pam_aug.checkpoint import check_entries, read_state
from pam_aug.errors import AssetMissing, BackendError, ConfigError, SchemaError
from pam_aug.estimators.base import Estimates, HandQuery
from pam_aug.estimators.crop import PerspectiveCrop, perspective_crop
from pam_aug.estimators.joint_map import JOINT_DEFINITIONS, fit_joint_map
from pam_aug.estimators.simplehand_net import MeshHead, NetConfig, normalise_pixels
from pam_aug.estimators.weights import WEIGHTS, file_sha256
from pam_aug.hand import HandAssets, load_mano
from pam_aug.hand.joints import TIP_SETS, TIPS_21

__all__ = ["FastViTSimpleHand", "SimpleHandFastViTEstimator", "SimpleHandFastViTOptions", "published_crop"]

INPUT_PX: Final = 224
ENLARGE: Final = 1.25
"""Crop side over the box's longer side in the published evaluation."""
_WIDTH: Final = 1216
_HEAD: Final = NetConfig(input_px=INPUT_PX, dims=(256, 128, 64), heads=4, widths=(76, 152, 304, _WIDTH))
_PUBLISHED, _MANO = (next(w for w in WEIGHTS if w.name == name) for name in ("simplehand-fastvit", "mano-right"))


class FastViTSimpleHand(nn.Module):
    """Crops to image positions (crop units) and vertices (metres), under the published checkpoint's names.

    `backbone.forward_features` gives (n,1216,7,7); the backbone keeps its classifier, which the checkpoint has and
    nothing uses.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.keypoints_2d_head = nn.Linear(_WIDTH, 42)
        self.mesh_head = MeshHead(_WIDTH, _HEAD)

    def forward(self, x: Float[Tensor, "n 3 224 224"]) -> tuple[Float[Tensor, "n 21 2"], Float[Tensor, "n 778 3"]]:
        feature = self.backbone.forward_features(x)  # type: ignore[operator]
        uv = self.keypoints_2d_head(feature.mean((2, 3))).view(-1, 21, 2)
        return uv, self.mesh_head(self.mesh_head.deconv(feature), uv)


def make_backbone() -> nn.Module:
    """timm's FastViT-MA36 with untrained weights. Raises AssetMissing where timm or torchvision does not work."""
    try:
        import timm  # type: ignore[import-not-found]
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
        raise AssetMissing(
            f"simplehand-fastvit needs timm and a torchvision that fits this torch ({error}); "
            "install `pip install pam_aug[backbones]`"
        ) from error
    return timm.create_model("fastvit_ma36", pretrained=False)


def published_crop(K_px: Float[np.ndarray, "3 3"], box_px: Float[np.ndarray, "4"], *, flip: bool) -> PerspectiveCrop:
    """The perspective crop in the published form: the camera's axis meets the crop at 112, not at 111.5."""
    crop = perspective_crop(K_px, box_px, INPUT_PX, flip=flip, enlarge=ENLARGE)
    K_crop = crop.K_crop_px.copy()
    K_crop[:2, 2] = INPUT_PX / 2
    return replace(crop, K_crop_px=K_crop)


@dataclass(frozen=True)
class SimpleHandFastViTOptions:
    """`weights` is a released checkpoint; "" looks where `pam-aug fetch-weights` says. `mano` is the user's MANO file
    or folder; "" means `$MANO_DIR`, else the weights folder's.

    `joints` is how joints follow from vertices: "kinematic_fit" meets the joints that labels hold, "regressor" is the
    published definition (see `joint_map`). `batch` crops are run at a time.
    """

    weights: str = ""
    mano: str = ""
    joints: str = "kinematic_fit"
    batch: int = 30

    def __post_init__(self) -> None:
        if self.joints not in ("kinematic_fit", "regressor"):
            raise ConfigError(f"joints {self.joints!r}: choose kinematic_fit or regressor")
        if self.batch < 1:
            raise ConfigError(f"batch {self.batch}: at least 1")


class SimpleHandFastViTEstimator:
    """Root-relative hands from label boxes, fingertips from the label's own tip set.

    The network was trained on mirrored hands too; left hands are shown mirrored all the same, so that both sides get
    the same treatment.
    """

    name: ClassVar[str] = "simplehand-fastvit"
    Options: ClassVar[type] = SimpleHandFastViTOptions

    def __init__(self, options: SimpleHandFastViTOptions | None = None) -> None:
        self.options = options or SimpleHandFastViTOptions()
        self.weights = Path(self.options.weights) if self.options.weights else _PUBLISHED.path
        self.mano = Path(self.options.mano) if self.options.mano else _MANO.path

    @cached_property
    def version(self) -> str:
        """The checkpoint's hash and the joint definition, for provenance."""
        return f"{file_sha256(self.weights)[:12]}-{self.options.joints}"

    @property
    def joint_definition(self) -> str:
        """How its joints follow from its mesh, in words: as its options say."""
        return JOINT_DEFINITIONS[self.options.joints]

    def requires(self) -> list[str]:
        """The files and packages that are missing; [] where the estimator is ready."""
        missing = [] if self.weights.is_file() else [_PUBLISHED.instruction(self.weights)]
        if not self.mano.exists():
            missing.append(_MANO.instruction(self.mano))
        try:
            make_backbone()
        except AssetMissing as error:
            missing.append(str(error))
        return missing

    @cached_property
    def net(self) -> FastViTSimpleHand:
        """The network, loaded strictly at the first use. Raises SchemaError for a checkpoint of another network."""
        state = read_state(self.weights, self.name)
        net = FastViTSimpleHand(make_backbone())
        advice = "Give one of SimpleHand's own checkpoints (epoch_200_rerun1 or epoch_200_rerun2)."
        check_entries(state, net.state_dict(), where=str(self.weights), advice=advice)
        net.load_state_dict(state, strict=True)
        return net.eval().requires_grad_(False)

    @cached_property
    def joint_map(self) -> Float[np.ndarray, "21 778"]:
        """Vertices to joints for the user's MANO; the tips' rows are replaced by each label's own."""
        return fit_joint_map(self.assets, self.options.joints)  # type: ignore[arg-type]

    @cached_property
    def assets(self) -> HandAssets:
        """The user's right hand, whose vertices the network gives."""
        return load_mano(self.mano, "right")

    def estimate(self, images: Sequence[np.ndarray], queries: Sequence[HandQuery]) -> Estimates:
        """Hands in RGB images, one query each. A box that makes no crop gives a row that is not valid."""
        if len(images) != len(queries):
            raise BackendError(f"{len(images)} images and {len(queries)} hand boxes; give one box per image")
        crops: list[PerspectiveCrop | None] = []
        reasons: list[str] = []
        for image, query in zip(images, queries, strict=True):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise BackendError(f"an image of {image.dtype} {image.shape}; {self.name} reads (h, w, 3) uint8 RGB")
            if query.tips not in TIP_SETS:
                raise BackendError(f"a label with the tip set {query.tips!r}; known are {', '.join(TIP_SETS)}")
            try:
                crops.append(published_crop(query.K_px, query.box_px, flip=query.side == "left"))
                reasons.append("")
            except SchemaError as error:
                crops.append(None)
                reasons.append(str(error))
        n = len(images)
        valid = np.array([crop is not None for crop in crops], bool)
        joints, px, verts = np.zeros((n, 21, 3)), np.zeros((n, 21, 2)), np.zeros((n, 778, 3))
        blank = np.zeros((INPUT_PX, INPUT_PX, 3), np.uint8)  # keeps the others' places in the block
        for start in range(0, n, self.options.batch):
            rows = range(start, min(start + self.options.batch, n))
            views = np.stack([crop.image(images[i]) if (crop := crops[i]) else blank for i in rows])
            uv, mesh = self._run(views)
            for row, i in enumerate(rows):
                crop, query = crops[i], queries[i]
                if crop is None:
                    continue
                found = self.joint_map @ mesh[row]
                found[list(TIPS_21)] = mesh[row, list(TIP_SETS[query.tips][query.side])]
                joints[i] = crop.vectors_to_camera(found - found[0])
                verts[i] = crop.vectors_to_camera(mesh[row] - found[0])
                px[i] = crop.points_to_image(uv[row] * INPUT_PX)
        return Estimates(joints, px, verts, valid, tuple(reasons), self.assets.f)

    def _run(self, views: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            out: Any = self.net(normalise_pixels(torch.from_numpy(views), "legacy_bgr_half"))
        return tuple(t.double().numpy() for t in out)
