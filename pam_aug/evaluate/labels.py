"""The labelled hands of shards, in a fixed order and in blocks, with what results are grouped by."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from pam_aug.errors import AssetMissing, ConfigError
from pam_aug.hand import HandAssets, HandLayer
from pam_aug.schema import SEG_LEFT_HAND, SEG_RIGHT_HAND, Hand, Sample
from pam_aug.shards.hand_models import BuildHands
from pam_aug.shards.images import decode_plane
from pam_aug.shards.reader import ShardReader, read_marker

__all__ = ["PARTS", "LabelMeshes", "LabelledHand", "count_hands", "hand_blocks", "shard_paths"]

PARTS = {"all": ("real", "syn", "mixed"), "real": ("real",), "synthetic": ("syn",)}

_SAMPLE_INDEX = re.compile(r"sample (\d+) of the official split")
_HIDDEN_BINS = ((0.25, "0-25 % hidden"), (0.5, "25-50 % hidden"), (0.75, "50-75 % hidden"), (np.inf, "75-100 % hidden"))


@dataclass(frozen=True, slots=True, eq=False)
class LabelledHand:
    """A hand of a sample, number `ordinal` of its shard.

    `groups` holds "side", "object" (the first one of the label, which is the grasped one where the source says it),
    "view" ("whole": all 21 joints in the image, or "cut") and "occlusion": the share of the joints in the image whose
    pixel shows something else than this hand, from the shard's segmentation, "unknown" without one.
    `sample_index` is DexYCB's number of the frame in its official split, -1 where the label has none.
    """

    reader: ShardReader
    ordinal: int
    sample: Sample
    hand: Hand
    groups: Mapping[str, str]
    sample_index: int

    @property
    def name(self) -> str:
        """The sample's key and the hand's side, unique in a build."""
        return f"{self.sample.key}/{self.hand.side}"

    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """The decoded RGB image."""
        return self.reader.image(self.ordinal)


def shard_paths(folder: Path, part: str = "all") -> list[Path]:
    """The shards of a build's or a conversion's folder, or of their `shards/`, by name.

    Raises ConfigError where there is none of that part ("all", "real" or "synthetic").
    """
    folder = Path(folder)
    if part not in PARTS:
        raise ConfigError(f"part {part!r}: choose one of {', '.join(PARTS)}", part=part)
    inside = folder / "shards" if (folder / "shards").is_dir() else folder
    paths = sorted(p for kind in PARTS[part] for p in inside.glob(f"{kind}-*.tar"))
    if not paths:
        raise ConfigError(
            f"{folder}: no {'' if part == 'all' else part + ' '}shards (*.tar); give a build's or conversion's folder",
            path=str(folder),
        )
    return paths


def count_hands(folder: Path, part: str = "all", limit: int = -1) -> int:
    """How many hands `hand_blocks` gives, from the shards' commit markers (0 for a shard without one)."""
    markers = [read_marker(path) for path in shard_paths(folder, part)]
    hands = sum(marker["counts"].get("hands", 0) for marker in markers if marker)
    return min(hands, limit) if limit > 0 else hands


def hand_blocks(folder: Path, part: str = "all", size: int = 64, limit: int = -1) -> Iterator[list[LabelledHand]]:
    """The hands by shard, sample and place in the label, `size` at a time; the first `limit`, -1 all.

    Raises ConfigError for a folder without shards, ShardDamaged for one that cannot be read.
    """
    if size < 1 or limit == 0 or limit < -1:
        raise ConfigError(f"hands: size {size} and limit {limit}; give positive numbers (limit -1: all)")
    block: list[LabelledHand] = []
    left = limit
    for path in shard_paths(folder, part):
        with ShardReader(path) as reader:
            for ordinal in range(len(reader)):
                for hand in _hands(reader, ordinal):
                    block.append(hand)
                    left -= 1
                    if len(block) == size or left == 0:
                        yield block
                        block = []
                    if left == 0:
                        return
            if block:  # before its shard is closed, because images are read on demand
                yield block
                block = []


def _hands(reader: ShardReader, ordinal: int) -> Iterator[LabelledHand]:
    sample = reader.sample(ordinal)
    seg = None
    if "seg.png" in reader.extras(ordinal):
        seg = decode_plane(reader.extra(ordinal, "seg.png"), np.uint8, f"{reader.path}:{sample.key}")
    found = [match for note in sample.source.notes if (match := _SAMPLE_INDEX.fullmatch(note))]
    for hand in sample.hands:
        groups = {
            "side": hand.side,
            "object": sample.objects[0].id if sample.objects else "none",
            "view": "whole" if bool(hand.in_view.all()) else "cut",
            "occlusion": _occlusion(hand, seg),
        }
        yield LabelledHand(reader, ordinal, sample, hand, groups, int(found[0][1]) if found else -1)


def _occlusion(hand: Hand, seg: UInt8[np.ndarray, "h w"] | None) -> str:
    if seg is None or not hand.in_view.any():
        return "unknown"
    own = SEG_RIGHT_HAND if hand.side == "right" else SEG_LEFT_HAND
    px = np.rint(hand.joints_px[hand.in_view]).astype(int)
    px = px.clip(0, np.array(seg.shape[::-1]) - 1)
    hidden = float((seg[px[:, 1], px[:, 0]] != own).mean())
    return next(name for edge, name in _HIDDEN_BINS if hidden < edge)


class LabelMeshes:
    """Vertices of labelled hands, posed by the very models that made the labels (see `BuildHands`).

    `missing` says why some labels have no mesh here: their model's files are not at hand, or the source gives joints.
    """

    def __init__(self, mano_dir: Path | None = None) -> None:
        self._models = BuildHands(mano_dir)
        self._layers: dict[str, HandLayer] = {}
        self.missing: dict[str, str] = {}

    def assets(self, labelled: LabelledHand) -> HandAssets | None:
        """The model of a hand, None where there is none."""
        hand = labelled.hand
        name = f"{hand.hand_model}/{hand.side}"
        if not hand.mano_valid:
            self.missing.setdefault("", "labels with joints only")
            return None
        if name in self.missing:
            return None
        try:
            return self._models.assets(labelled.reader.path.resolve().parent.parent, hand.hand_model, hand.side)
        except (AssetMissing, ConfigError) as error:
            self.missing[name] = str(error)
            return None

    def vertices_cam_m(
        self, hands: Sequence[LabelledHand], faces: Int[np.ndarray, "f 3"] | None = None
    ) -> Float[np.ndarray, "n 778 3"]:
        """Vertices in metres, camera frame, float64; NaN for a hand without a mesh.

        With `faces`, the triangles of the mesh that they are compared with, also NaN where the label's model has other
        ones: then vertex i of the one is not vertex i of the other.
        """
        out = np.full((len(hands), 778, 3), np.nan)
        rows: dict[str, tuple[HandAssets, list[int]]] = {}
        for i, labelled in enumerate(hands):
            assets = self.assets(labelled)
            if assets is None:
                continue
            if faces is not None and not _same_surface(faces, assets.f):
                self.missing.setdefault("faces", "labels whose mesh has other triangles than the estimator's")
                continue
            rows.setdefault(assets.sha256 + labelled.hand.side, (assets, []))[1].append(i)
        for name, (assets, numbers) in rows.items():
            layer = self._layers.setdefault(name, HandLayer(assets, dtype=torch.float64))
            labels = [hands[i].hand for i in numbers]
            fields = [[getattr(h, f) for h in labels] for f in ("global_orient", "hand_pose", "betas", "transl")]
            with torch.no_grad():
                posed = layer(*(torch.from_numpy(np.array(f, np.float64)) for f in fields))
            out[numbers] = posed.verts.numpy()
        return out


def _same_surface(a: Int[np.ndarray, "f 3"], b: Int[np.ndarray, "g 3"]) -> bool:
    """Whether two lists hold the same triangles, whatever their order and winding (left hands are wound otherwise)."""

    def canonical(faces: np.ndarray) -> np.ndarray:
        each = np.sort(np.asarray(faces, np.int64), axis=1)
        return each[np.lexsort(each.T[::-1])]

    return a.shape == b.shape and bool(np.array_equal(canonical(a), canonical(b)))
