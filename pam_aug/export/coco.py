"""COCO's keypoint format: the images of a build, and one JSON file of their hands' 21 keypoints in pixels.

A hand is an annotation of the category `hand`: `keypoints` holds x, y, v for each joint, with v 2 where the joint lies
in the image (whether something hides it is not known) and 0, with x and y 0, where it does not. `bbox` is the joints'
box, clipped to the image. Beyond COCO's fields, an annotation names its `side` and an image whether it is `synthetic`.
Coordinates stay as the labels have them: pixel centres at integers. Left hands stay left hands.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pam_aug.errors import ConfigError
from pam_aug.estimators.base import tight_box
from pam_aug.export.items import new_folder, pictures, put
from pam_aug.hand.joints import BONES, JOINT_NAMES_21
from pam_aug.schema import Camera, Hand
from pam_aug.shards.atomic import write_atomic

__all__ = ["CocoExport", "export_coco", "keypoint_annotation"]

JSON_NAME = "keypoints.json"


@dataclass(frozen=True, slots=True)
class CocoExport:
    """What was written. `out_of_view` hands, with no joint in the image, have no annotation."""

    out: str
    json_file: str
    images: int
    hands: int
    out_of_view: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        return f"{self.images} images with {self.hands} hands ({self.out_of_view} outside theirs) in {self.json_file}"


def export_coco(folder: Path, out: Path, progress: Callable[[int], None] | None = None) -> CocoExport:
    """Writes the images of a build's mix, bytes as they are, into the new folder `out`, and `keypoints.json` last.

    `progress` is told the number of hands done. Raises ConfigError for a folder without a mix or without images, or an
    `out` that is not empty.
    """
    found = pictures(Path(folder), progress)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    licences: dict[str, int] = {}
    out_of_view = 0
    for picture in found:
        if not images:
            out = new_folder(out)
        sample, number = picture.sample, len(images) + 1
        name = f"images/{sample.key}.{picture.suffix}"
        put(out / name, picture.image)
        licence = licences.setdefault(sample.source.licence, len(licences) + 1)
        size = {"width": sample.camera.width, "height": sample.camera.height}
        images.append({"id": number, "file_name": name, **size, "license": licence, "synthetic": sample.synthetic})
        for hand in sample.hands:
            if hand.in_view.any():
                made = keypoint_annotation(hand, sample.camera)
                annotations.append({"id": len(annotations) + 1, "image_id": number, **made})
            else:
                out_of_view += 1
    if not images:
        raise ConfigError(f"{folder}: its mix has no image to export", path=str(folder))
    category = {
        **{"id": 1, "name": "hand", "supercategory": "person", "keypoints": list(JOINT_NAMES_21)},
        "skeleton": [[parent + 1, joint + 1] for joint, parent in enumerate(BONES) if parent >= 0],
    }
    tree = {
        "info": {"description": "hand keypoints; pixel centres are at integers", "version": "1"},
        "licenses": [{"id": number, "name": name, "url": ""} for name, number in licences.items()],
        **{"categories": [category], "images": images, "annotations": annotations},
    }
    write_atomic(out / JSON_NAME, orjson.dumps(tree, option=orjson.OPT_SERIALIZE_NUMPY))
    return CocoExport(str(out), str(out / JSON_NAME), len(images), len(annotations), out_of_view)


def keypoint_annotation(hand: Hand, camera: Camera) -> dict[str, Any]:
    """A hand's COCO annotation without its ids; at least one joint lies in the image."""
    keypoints = np.zeros((21, 3), np.float32)
    keypoints[hand.in_view, :2], keypoints[hand.in_view, 2] = hand.joints_px[hand.in_view], 2
    # A joint outside the image still says how far the hand reaches, as far as the image's edge.
    edge = np.array([camera.width, camera.height, camera.width, camera.height]) - 0.5
    x0, y0, x1, y1 = np.clip(tight_box(hand.joints_px), -0.5, edge).tolist()
    return {
        "category_id": 1,
        "keypoints": keypoints.ravel(),
        "num_keypoints": int(np.count_nonzero(hand.in_view)),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "side": hand.side,
    }
