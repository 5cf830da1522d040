"""HaMeR's training tars: an image and a pickled list of its hands' labels per sample, and the entry of its data config.

HaMeR (Pavlakos et al., CVPR 2024) trains from WebDataset tars with `<key>.jpg` (or png) and `<key>.data.pyd`, which its
loader *unpickles*. The pickle is written here because that loader asks for it, and never read by this library. It
names one function, `numpy.array`, so that it reads under any numpy version, and a reader can allow that alone.

A hand is a dict of float32 arrays: `keypoints_2d` (21,3) pixels and confidence, `keypoints_3d` (21,4) metres in the
camera frame and confidence, `center` (2) and `scale` (2) of the box (pixels; pixels / 200, twice the joints' box, the
padding that HaMeR is run with), `hand_pose` (48) global turn and absolute axis-angle pose, `betas` (10),
`has_hand_pose`, `has_betas`, `right`; with `personid` and `extra_info`. Left hands stay left hands: its loader mirrors.

HaMeR supervises pose and shape in MANO's own space, where the open hand and fitted hands have other shape directions.
So both flags are set for labels made with MANO only; the other hands teach by their keypoints.
"""

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pam_aug.errors import ConfigError
from pam_aug.estimators.base import tight_box
from pam_aug.export.items import new_folder, pictures
from pam_aug.schema import Hand
from pam_aug.shards.atomic import write_atomic

__all__ = ["HamerExport", "export_hamer", "hamer_label"]

CONFIG_NAME = "datasets_tar.yaml"
_PER_TAR = 1000
_PADDING = 2.0


@dataclass(frozen=True, slots=True)
class HamerExport:
    """What was written. `without_mano` of the hands teach by keypoints only; `out_of_view` ones were left out."""

    out: str
    config_file: str
    tars: int
    images: int
    hands: int
    without_mano: int
    out_of_view: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        return (
            f"{self.hands} hands in {self.images} images, {self.tars} tars, {self.config_file}; "
            f"{self.without_mano} hands have no MANO parameters, {self.out_of_view} outside their images are left out\n"
            "The labels in the tars are pickles, as HaMeR's loader wants them: let nobody load them from strangers."
        )


def export_hamer(folder: Path, out: Path, progress: Callable[[int], None] | None = None) -> HamerExport:
    """Writes the hands of a build's mix, each once, into `000000.tar` … of the new folder `out`; its config entry last.

    Images keep their bytes. The same build gives the same bytes. Raises ConfigError for a folder without a mix or
    without hands in view, or an `out` that is not empty.
    """
    out = new_folder(out)
    counts = dict.fromkeys(("tars", "images", "hands", "without_mano", "out_of_view"), 0)
    members: list[tuple[str, bytes]] = []
    for picture in pictures(Path(folder), progress):
        seen = [hand for hand in picture.sample.hands if hand.in_view.any()]
        counts["out_of_view"] += len(picture.sample.hands) - len(seen)
        if seen:
            labels = [hamer_label(hand) for hand in seen]
            members += [(f"{picture.sample.key}.{picture.suffix}", picture.image)]
            members += [(f"{picture.sample.key}.data.pyd", _pickled(labels))]
            counts["images"] += 1
            counts["hands"] += len(seen)
            counts["without_mano"] += sum(not label["has_hand_pose"] for label in labels)
        if len(members) == 2 * _PER_TAR:
            counts["tars"] = _flush(out, counts["tars"], members)
    counts["tars"] = _flush(out, counts["tars"], members)
    if not counts["hands"]:
        raise ConfigError(f"{folder}: its mix has no hand in view to export", path=str(folder))
    last = f"{counts['tars'] - 1:06d}"
    urls = f"{out}/{{000000..{last}}}.tar"
    entry = ["PAM-AUG-TRAIN:", "  TYPE: ImageDataset", f"  URLS: '{urls}'", f"  epoch_size: {counts['images']}", ""]
    write_atomic(out / CONFIG_NAME, "\n".join(entry).encode())
    return HamerExport(str(out), str(out / CONFIG_NAME), **counts)


def hamer_label(hand: Hand) -> dict[str, Any]:
    """A hand as HaMeR's loader takes it: float32 arrays, flags and confidences 0 or 1."""
    mano = hand.mano_valid and hand.hand_model in ("mano", "mano_as_file")
    seen = hand.in_view.astype(np.float32)[:, None]
    x0, y0, x1, y1 = tight_box(hand.joints_px).tolist()
    numbers = {
        "keypoints_2d": np.concatenate([hand.joints_px, seen], axis=1),
        "keypoints_3d": np.concatenate([hand.joints_cam_m, np.ones((21, 1))], axis=1),
        "center": [(x0 + x1) / 2, (y0 + y1) / 2],
        "scale": [_PADDING * (x1 - x0) / 200, _PADDING * (y1 - y0) / 200],
        "hand_pose": np.concatenate([hand.global_orient, hand.hand_pose]) if mano else np.zeros(48),
        "betas": hand.betas if mano else np.zeros(10),
        "has_hand_pose": float(mano),
        "has_betas": float(mano),
        "right": float(hand.side == "right"),
    }
    return {**{name: np.asarray(value, np.float32) for name, value in numbers.items()}, "personid": 0, "extra_info": {}}


class _Pickler(pickle.Pickler):
    """Writes arrays as calls of `numpy.array`: numpy's own form names modules that moved between its versions."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return np.array, (obj.tolist(), obj.dtype.name)
        return NotImplemented


def _pickled(labels: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=4).dump(labels)
    return buffer.getvalue()


def _flush(out: Path, number: int, members: list[tuple[str, bytes]]) -> int:
    """Writes the members as tar `number`, empties the list, and returns the next number."""
    if not members:
        return number
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o444
            tar.addfile(info, io.BytesIO(data))
    write_atomic(out / f"{number:06d}.tar", buffer.getvalue())
    members.clear()
    return number + 1
