"""Which frames of DexYCB a conversion has, in a few numbers per sequence and per frame.

Order and numbering are the official ones: subject, sequence, camera, frame, all frames of one camera before the next
camera's. Whether a frame has a hand is the same in all views, so a sequence needs one list of frame numbers.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pam_aug.errors import ConfigError

from .dexycb_calibration import SequenceMeta, read_meta
from .dexycb_labels import read_hand_frames
from .dexycb_splits import SUBJECTS, list_sequences, read_sequence_table, split_rule

__all__ = ["Frame", "Index", "build_index"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One image. `subject` and `camera` are indices; `sample_index` is -1 where the official number is unknown."""

    subject: int
    position: int
    sequence: str
    camera: int
    number: int
    sample_index: int
    meta: SequenceMeta


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """`places` (n,2): subject index and position of each sequence. `kept` joins the sequences' frame numbers.

    Sequence s has the frames `kept[kept_start[s]:kept_start[s + 1]]` in each of `cameras`; its images start at
    `image_start[s]` among those converted and at `official_start[s]` in the official split (-1: unknown).
    """

    metas: tuple[SequenceMeta, ...]
    names: tuple[str, ...]
    places: np.ndarray
    cameras: tuple[int, ...]
    kept: np.ndarray
    kept_start: np.ndarray
    image_start: np.ndarray
    official_start: np.ndarray
    counts: dict[str, int]

    def __len__(self) -> int:
        return int(self.image_start[-1])

    def __getitem__(self, index: int) -> Frame:
        s = int(self.image_start.searchsorted(index, "right")) - 1
        first, end = int(self.kept_start[s]), int(self.kept_start[s + 1])
        view, at = divmod(index - int(self.image_start[s]), end - first)
        number, official = int(self.kept[first + at]), int(self.official_start[s])
        if official >= 0:
            official += view * self.metas[s].frames + number
        subject, position = self.places[s].tolist()
        return Frame(subject, position, self.names[s], self.cameras[view], number, official, self.metas[s])


def build_index(
    root: Path,
    setup: str,
    split: str,
    *,
    subjects: Sequence[int] = (),
    sequence_table: str = "",
    side: str = "both",
    stride: int = 1,
    keep: Callable[[Frame], bool] | None = None,
) -> Index:
    """The index of a split under `root`, from directory listings, `meta.yml` and `pose.npz` of each sequence.

    `subjects` are numbers from 1. `keep` decides on a frame as its first camera sees it. `counts` says how many
    images the split has and how many are left out, and why. Raises ConfigError for a listing that leaves positions
    unknown, SourceError for a damaged `meta.yml` or `pose.npz`.
    """
    rule = split_rule(setup, split)
    wanted = [s for s in rule.subjects if not subjects or s + 1 in subjects]
    if not wanted:
        has = ", ".join(str(s + 1) for s in rule.subjects)
        raise ConfigError(f"dexycb: {setup}/{split} has only the subjects {has}", subjects=list(subjects))
    table = read_sequence_table(sequence_table) if sequence_table else None
    complete = table is None and len(wanted) == len(rule.subjects)
    metas: list[SequenceMeta] = []
    names: list[str] = []
    places: list[tuple[int, int]] = []
    kept: list[np.ndarray] = []
    official: list[int] = []
    counts, views, images = Counter(images=0), len(rule.cameras), 0
    for subject in wanted:
        for position, name in list_sequences(root, subject, table).items():
            if position not in rule.positions:
                continue
            folder = root / SUBJECTS[subject] / name
            meta = read_meta(folder / "meta.yml")
            first_image, images = images, images + meta.frames * views
            if side not in ("both", meta.side):
                counts[f"not of a {side} hand"] += meta.frames * views
                continue
            has_hand = read_hand_frames(folder / "pose.npz", meta.frames)
            numbers = np.flatnonzero(has_hand)
            counts["without a hand label"] += (meta.frames - len(numbers)) * views
            on_stride = numbers[numbers % stride == 0]
            counts["between strides"] += (len(numbers) - len(on_stride)) * views
            if keep is not None:
                seen = [Frame(subject, position, name, rule.cameras[0], int(n), -1, meta) for n in on_stride]
                near = on_stride[[keep(frame) for frame in seen]] if seen else on_stride
                counts["with the hand not near the object"] += (len(on_stride) - len(near)) * views
                on_stride = near
            if len(on_stride):
                metas.append(meta)
                names.append(name)
                places.append((subject, position))
                kept.append(on_stride.astype(np.uint16))
                official.append(first_image if complete else -1)
    counts["images"] = images
    lengths = np.array([len(k) for k in kept], np.int64)
    return Index(
        metas=tuple(metas),
        names=tuple(names),
        places=np.array(places, np.uint8).reshape(-1, 2),
        cameras=rule.cameras,
        kept=np.concatenate(kept) if kept else np.zeros(0, np.uint16),
        kept_start=np.concatenate([[0], np.cumsum(lengths)]),
        image_start=np.concatenate([[0], np.cumsum(lengths * views)]),
        official_start=np.array(official, np.int64),
        counts=dict(counts),
    )
