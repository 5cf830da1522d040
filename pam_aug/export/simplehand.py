"""SimpleHand's training data: a picture and a label file per hand, and the list of the pictures.

SimpleHand (Zhou et al., CVPR 2024) reads FreiHAND-like files: beside `<image>.jpg` an `<image>.json` with `xyz` (21,3)
and `vertices` (778,3) in metres, camera frame, `uv` (21,2) in pixels, `K` (3,3) and `image_path`, and one JSON list of
absolute image paths.

It knows right hands only: its own augmentation mirrors half of the images and keeps the right hand's mesh. So a **left
hand is written mirrored**: the image flipped (u' = W-1-u, pixel centres at integers), x negated in `xyz` and
`vertices`, cx' = W-1-cx. Vertex i of a left model is the mirror image of vertex i of the right one, so the mesh is a
right hand's. Mirrored images and PNG ones are encoded as JPEG, quality 95 without chroma subsampling; all others keep
their bytes.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import simplejpeg

from pam_aug.errors import ConfigError
from pam_aug.export.items import HandModels, Picture, new_folder, pictures, put
from pam_aug.schema import Hand
from pam_aug.shards.atomic import write_atomic
from pam_aug.shards.images import decode_image

__all__ = ["SimpleHandExport", "export_simplehand", "simplehand_label"]

LIST_NAME = "list.json"
_FEWEST_IN_VIEW = 2  # SimpleHand's crop is the box of the joints in the image: one joint has no extent


@dataclass(frozen=True, slots=True)
class SimpleHandExport:
    """What was written, and why hands were left out."""

    out: str
    list_file: str
    hands: int
    mirrored: int
    without_model: int
    out_of_view: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        return (
            f"{self.hands} hands, {self.mirrored} of them left ones mirrored, in {self.list_file}\n"
            f"left out: {self.without_model} whose label has joints but no mesh, {self.out_of_view} outside the image"
        )


def export_simplehand(
    folder: Path, out: Path, mano_dir: Path | None = None, progress: Callable[[int], None] | None = None
) -> SimpleHandExport:
    """Writes the hands of a build's mix, each once, into the new folder `out`; the list `list.json` last.

    Files are named by the sample's key and the hand's side, `<key>-r.jpg`. Hands without a mesh or with fewer than two
    joints in the image are left out and counted. Raises ConfigError for a folder without a build, an `out` that is not
    empty, or a build none of whose hands can be written; AssetMissing and SchemaError for hand models.
    """
    found = pictures(Path(folder), progress)
    first = next(found, None)
    models = HandModels(mano_dir)
    if first is not None and first.sample.hands[0].mano_valid:
        models.vertices_cam_m(first, first.sample.hands[0])  # a missing model is told before anything is written
    out = new_folder(out)
    paths: list[str] = []
    counts = dict.fromkeys(("mirrored", "without_model", "out_of_view"), 0)
    for picture in itertools.chain([first] if first else [], found):
        for number, hand in enumerate(picture.sample.hands):
            if not hand.mano_valid:
                counts["without_model"] += 1
            elif np.count_nonzero(hand.in_view) < _FEWEST_IN_VIEW:
                counts["out_of_view"] += 1
            else:
                path = out / "images" / f"{_name(picture, number)}.jpg"
                put(path, _jpeg(picture, hand))
                label = simplehand_label(picture, hand, models.vertices_cam_m(picture, hand))
                content = {**label, "image_path": str(path)}
                put(path.with_suffix(".json"), orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
                counts["mirrored"] += hand.side == "left"
                paths.append(str(path))
    if not paths:
        raise ConfigError(f"{folder}: none of its hands has a mesh and lies in its image: {counts}", counts=counts)
    write_atomic(out / LIST_NAME, orjson.dumps(paths))
    return SimpleHandExport(str(out), str(out / LIST_NAME), len(paths), **counts)


def simplehand_label(picture: Picture, hand: Hand, vertices_cam_m: np.ndarray) -> dict[str, np.ndarray]:
    """`xyz`, `uv`, `K` and `vertices` of a hand as a right one, float32."""
    xyz, vertices = np.array(hand.joints_cam_m), np.array(vertices_cam_m, np.float32)
    uv, K = np.array(hand.joints_px), np.array(picture.sample.camera.K_px)
    if hand.side == "left":
        last = np.float32(picture.sample.camera.width - 1)
        xyz[:, 0], vertices[:, 0] = -xyz[:, 0], -vertices[:, 0]
        uv[:, 0] = last - uv[:, 0]
        K[0, 2], K[0, 1] = last - K[0, 2], -K[0, 1]
    return {"xyz": xyz, "uv": uv, "K": K, "vertices": vertices}


def _jpeg(picture: Picture, hand: Hand) -> bytes:
    if hand.side == "right" and picture.suffix == "jpg":
        return picture.image
    image = decode_image(picture.image, picture.suffix, f"{picture.shard}:{picture.sample.key}")
    if hand.side == "left":
        image = image[:, ::-1]
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=95, colorsubsampling="444")


def _name(picture: Picture, number: int) -> str:
    """`<key>-r`; a second hand of the same side gets its number as well."""
    sides = [hand.side for hand in picture.sample.hands]
    again = f"{number}" if sides.index(sides[number]) != number else ""
    return f"{picture.sample.key}-{sides[number][0]}{again}"
