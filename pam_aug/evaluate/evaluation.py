"""An estimator, or a result file, against the labels of shards: means over all hands and over groups of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pam_aug.errors import ConfigError
from pam_aug.estimators.base import Estimator, HandQuery
from pam_aug.evaluate.hand_set import ALIGNMENTS, Alignment, HandScores, Means, group_rows, mean_scores, score_hands
from pam_aug.evaluate.labels import LabelledHand, LabelMeshes, hand_blocks
from pam_aug.evaluate.result_files import read_predictions, write_dexycb, write_freihand
from pam_aug.hand.joints import JOINT_NAMES_21

__all__ = ["Evaluation", "EvaluationOptions", "evaluate_estimator", "evaluate_predictions"]

_BLOCK = 64
_COLUMNS = (
    ("hands", "hands", "d"),
    ("failed", "failed", "d"),
    ("mpjpe_mm", "MPJPE", ".2f"),
    ("pa_mpjpe_mm", "PA-MPJPE", ".2f"),
    ("auc", "AUC", ".3f"),
    ("pa_auc", "PA-AUC", ".3f"),
    ("abs_mpjpe_mm", "absolute", ".1f"),
    ("mpvpe_mm", "MPVPE", ".2f"),
    ("pa_mpvpe_mm", "PA-MPVPE", ".2f"),
    ("f5", "F@5", ".3f"),
    ("f15", "F@15", ".3f"),
    ("pa_f5", "PA-F@5", ".3f"),
    ("pa_f15", "PA-F@15", ".3f"),
)

_UNKNOWN_JOINTS = "as the estimator gives them; how it defines its joints is not known"


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """`part` "all", "real" or "synthetic" shards; `limit` the first hands only (-1 all). See `score_hands` for `root`
    and `alignment`. `freihand` and `dexycb` name result files to be written."""

    part: str = "all"
    limit: int = -1
    root: int = 0
    alignment: str = "proper"
    mano_dir: Path | None = None
    freihand: Path | None = None
    dexycb: Path | None = None

    def __post_init__(self) -> None:
        if self.alignment not in ALIGNMENTS:
            raise ConfigError(f"alignment {self.alignment!r}: choose one of {', '.join(ALIGNMENTS)}")
        if not 0 <= self.root <= 20:
            raise ConfigError(f"root {self.root}: a joint from 0 (the wrist) to 20; 9 is the middle finger's base")
        if self.limit == 0 or self.limit < -1:
            raise ConfigError(f"limit {self.limit}: a positive number, or -1 for all hands")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The means, with everything that a reader needs to know what they are means of."""

    folder: str
    predicted_by: str
    joints: str
    root: str
    alignment: str
    overall: Means
    groups: Mapping[str, Mapping[str, Means]]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        columns = [c for c in _COLUMNS if c[2] == "d" or getattr(self.overall, c[0]) >= 0]
        rows = [("all", self.overall)]
        rows += [(f"{group}: {name}", m) for group, means in self.groups.items() for name, m in means.items()]
        width = max(len(name) for name, _ in rows)
        lines = [
            f"{self.predicted_by} on {self.folder}",
            f"joints: {self.joints}",
            f"root: {self.root}; alignment: {self.alignment}; mm, areas and F-scores 0 to 1",
            " ".join([" " * width, *(f"{title:>8}" for _, title, _ in columns)]),
        ]
        for name, means in rows:
            values = [_cell(getattr(means, field), form) for field, _, form in columns]
            lines.append(" ".join([f"{name:{width}}", *values]))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _cell(value: float, form: str) -> str:
    return f"{value:>8{form}}" if value >= 0 else f"{'-':>8}"


def evaluate_estimator(
    folder: Path, estimator: Estimator, options: EvaluationOptions, progress: Callable[[int], None] | None = None
) -> Evaluation:
    """Runs `estimator` on the labels' boxes (no detector) and scores what it finds, wrist at the origin.

    Raises ConfigError for a folder without shards or a result file that cannot be made of it.
    """
    collected = _Collected(options, absolute=False)
    meshes = LabelMeshes(options.mano_dir)
    for block in hand_blocks(folder, options.part, _BLOCK, options.limit):
        queries = [HandQuery.of(h.hand, h.sample.camera) for h in block]
        found = estimator.estimate([h.image() for h in block], queries)
        absent = ~np.asarray(found.valid, bool)
        joints = np.array(found.joints_m, np.float64)
        joints[absent] = np.nan
        pred_verts = None if found.verts_m is None else np.array(found.verts_m, np.float64)
        gt_verts = None
        if pred_verts is not None:
            pred_verts[absent] = np.nan
            gt_verts = meshes.vertices_cam_m(block, getattr(found, "faces", None))
        collected.add(block, joints, pred_verts, gt_verts)
        if progress is not None:
            progress(len(block))
    made_by = f"{estimator.name} {estimator.version}"
    definition = getattr(estimator, "joint_definition", "") or _UNKNOWN_JOINTS
    return collected.result(str(folder), made_by, f"predicted: {definition}", meshes.missing)


def evaluate_predictions(folder: Path, file: Path, form: str, options: EvaluationOptions) -> Evaluation:
    """Scores a result file (see `read_predictions`) against the labels of shards.

    Vertices are compared where the file has them, which takes vertex i of the file for vertex i of the label's model.
    Raises ConfigError or SchemaError for a file that does not fit the labels.
    """
    predictions = read_predictions(file, form)
    blocks = list(hand_blocks(folder, options.part, _BLOCK, options.limit))
    rows = predictions.rows_for([h.sample_index for block in blocks for h in block], str(file))
    collected = _Collected(options, absolute=True)
    meshes = LabelMeshes(options.mano_dir)
    start = 0
    for block in blocks:
        part = rows[start : start + len(block)]
        start += len(block)
        pred_verts = None if predictions.verts_m is None else predictions.verts_m[part]
        gt_verts = None if pred_verts is None else meshes.vertices_cam_m(block)
        collected.add(block, predictions.joints_m[part], pred_verts, gt_verts)
    return collected.result(str(folder), str(file), "predicted: the file's", meshes.missing)


class _Collected:
    """Scores block by block, so that meshes of a whole test set are never in memory at once."""

    def __init__(self, options: EvaluationOptions, absolute: bool) -> None:
        self._options, self._absolute = options, absolute
        self._alignment: Alignment = "freihand" if options.alignment == "freihand" else "proper"
        self._scores: list[HandScores] = []
        self._hands: list[tuple[str, Mapping[str, str], str, int]] = []
        self._joints: list[np.ndarray] = []
        self._verts: list[np.ndarray] = []

    def add(
        self, block: Sequence[LabelledHand], joints: np.ndarray, verts: np.ndarray | None, gt_verts: np.ndarray | None
    ) -> None:
        gt = np.stack([h.hand.joints_cam_m for h in block]).astype(np.float64)
        o = self._options
        scores = score_hands(joints, gt, verts, gt_verts, root=o.root, alignment=self._alignment)
        self._scores.append(scores)
        self._hands += [(h.name, h.groups, h.hand.tips, h.sample_index) for h in block]
        self._joints.append(joints)
        if o.freihand is not None:
            if verts is None:
                raise ConfigError(f"{o.freihand}: FreiHAND's result file needs vertices, and none are predicted")
            self._verts.append(verts.astype(np.float32))

    def result(self, folder: str, made_by: str, definition: str, missing: Mapping[str, str]) -> Evaluation:
        if not self._scores:
            raise ConfigError(f"{folder}: its shards hold no labelled hand", path=folder)
        o = self._options
        names = [name for name, *_ in self._hands]
        index = [number for *_, number in self._hands]
        joints = np.concatenate(self._joints)
        if o.freihand is not None:
            write_freihand(o.freihand, joints, np.concatenate(self._verts), names)
        if o.dexycb is not None:
            write_dexycb(o.dexycb, joints, index)
        columns = {f.name: np.concatenate([getattr(s, f.name) for s in self._scores]) for f in fields(HandScores)}
        if not self._absolute:
            columns["abs_mpjpe_mm"] = np.full(len(names), np.nan)
        scores = HandScores(**columns)
        overall = mean_scores(scores)
        groups: dict[str, dict[str, Means]] = {}
        for group in self._hands[0][1]:
            rows = group_rows([of_hand[group] for _, of_hand, *_ in self._hands])
            groups[group] = {name: mean_scores(scores, numbers) for name, numbers in rows.items()}
        notes = [f"{overall.failed} hands were not found and are in no mean"] if overall.failed else []
        without = overall.hands - overall.failed - overall.meshes
        if without and (missing or overall.meshes):
            reasons = "; ".join(sorted(set(missing.values())))
            notes.append(f"vertices of {without} hands were not compared: {reasons}")
        if (o.freihand or o.dexycb) and not self._absolute:
            notes.append("result files hold hands with the wrist at the origin: absolute errors of them mean nothing")
        tips = ", ".join(sorted({tips for *_, tips, _ in self._hands}))
        alignment = "rotation and scale" if o.alignment == "proper" else "FreiHAND's: reflection allowed, and scale"
        return Evaluation(
            folder=folder,
            predicted_by=made_by,
            joints=f"21, the labels' own (fingertips: {tips}); {definition}",
            root=f"{o.root} ({JOINT_NAMES_21[o.root]})",
            alignment=alignment,
            overall=overall,
            groups={group: means for group, means in groups.items() if len(means) > 1},
            notes=tuple(notes),
        )
