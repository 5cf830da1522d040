"""What the filter removed: by pose, object, camera and error, for one to see whom a rule leaves out.

A cut within each input takes the same share of every group by construction, so it shows nothing there; a gate, or one
cut over the whole build, keeps what the judge handles already and may empty an object or a pose. So each group has
both: what the rule took, and what the same share of the whole build would take. `report/removed.csv` has one row per
group; the page shows them.
"""

import csv
import io
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist

from pam_aug.hand.joints import Side
from pam_aug.schema import Candidate, Sample
from pam_aug.select import SelectConfig, select
from pam_aug.shards.atomic import write_atomic
from pam_aug.shards.reader import ShardReader

__all__ = ["PoseClusters", "RemovedGroup", "cluster_poses", "palm_joints", "read_inputs", "removed_groups", "write_csv"]

_CLUSTERS, _QUANTILES = 8, 10
_SAME_POSE = 0.02  # distance of all joints together, in lengths of the middle finger's metacarpal
_UNKNOWN: Final = "unknown"
_WRIST, _INDEX, _MIDDLE, _LITTLE = 0, 5, 9, 17


@dataclass(frozen=True, slots=True)
class RemovedGroup:
    """Counts of one group's candidates. `kind` is pose, object, camera or error; `err_mm` is the median of the scored
    ones, -1 where none was; `removed_share` is of all its candidates, and `one_cut_share` what the rule would take of
    them as one cut over the whole build."""

    kind: str
    group: str
    inputs: int
    candidates: int
    kept: int
    rejected: int
    failed: int
    removed_share: float
    one_cut_share: float
    err_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class PoseClusters:
    """Groups of like poses, the largest first: each pose's group, and the pose nearest to each group's centre."""

    label: Int[np.ndarray, "n"]
    middle: tuple[int, ...]


def palm_joints(joints_m: Float[np.ndarray, "21 3"], side: Side) -> Float[np.ndarray, "21 3"]:
    """A hand's joints without place, turn, side and size: what is left is how its fingers stand.

    The wrist is at the origin, the middle finger's base at (0, 1, 0), x points across the palm towards the index, and z
    completes a right hand; a left hand is mirrored first.
    """
    joints = np.asarray(joints_m, np.float64) - joints_m[_WRIST]
    joints = joints * [-1.0, 1.0, 1.0] if side == "left" else joints
    along = joints[_MIDDLE] / max(float(np.linalg.norm(joints[_MIDDLE])), 1e-9)
    across = joints[_INDEX] - joints[_LITTLE]
    across = across - (across @ along) * along
    across = across / max(float(np.linalg.norm(across)), 1e-9)
    frame = np.stack([across, along, np.cross(across, along)])
    return joints @ frame.T / max(float(np.linalg.norm(joints[_MIDDLE])), 1e-9)


def cluster_poses(poses: Float[np.ndarray, "n 21 3"]) -> PoseClusters:
    """k-means (Lloyd) over `palm_joints`, about one cluster per five poses, at most 8; nothing is drawn at random.

    It starts from the pose nearest to the mean and, one by one, the pose farthest from those chosen. Numbered by size,
    ties by their first pose.
    """
    points = np.asarray(poses, np.float64).reshape(len(poses), -1)
    chosen = [int(np.linalg.norm(points - points.mean(0), axis=1).argmin())]
    for _ in range(min(len(points) // 5, _CLUSTERS) - 1):
        gap = cdist(points, points[chosen]).min(1)
        if gap.max() < _SAME_POSE:
            break
        chosen.append(int(gap.argmax()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a cluster that runs empty is left out below
        centres, label = kmeans2(points, points[chosen], iter=50, minit="matrix")
    sizes = sorted((-int(np.sum(label == c)), int(np.argmax(label == c)), c) for c in set(label.tolist()))
    number = {c: i for i, (_, _, c) in enumerate(sizes)}
    label = np.array([number[c] for c in label])
    distance = cdist(points, centres[list(number)])
    middle = [int(np.where(label == i, distance[:, i], np.inf).argmin()) for i in range(len(number))]
    return PoseClusters(label, tuple(middle))


def read_inputs(folder: Path) -> dict[str, Sample]:
    """One label per input of a build, from its shards and its rejected samples; an input with neither is missing."""
    found: dict[str, Sample] = {}
    for path in [*sorted((folder / "shards").glob("syn-*.tar")), *sorted((folder / "rejected").glob("*.tar"))]:
        with ShardReader(path) as reader:
            for i, key in enumerate(reader.keys):
                if key[:-3] not in found:
                    found[key[:-3]] = reader.sample(i)
    return found


def removed_groups(
    rows: Sequence[Candidate], inputs: Mapping[str, Sample], rule: SelectConfig | None = None
) -> tuple[list[RemovedGroup], list[str]]:
    """The groups by pose, object, camera and error, and for each pose cluster the input in its middle.

    `rule` is what the rows' verdicts are by.

    Poses are those of an input's first hand. An input whose label is not at hand (failed, or rejected and not stored)
    stands in "unknown". Errors are cut into tenths of the scored candidates, equal errors never apart.
    """
    keys = sorted(key for key, sample in inputs.items() if sample.hands)
    posed = [palm_joints(inputs[key].hands[0].joints_cam_m, inputs[key].hands[0].side) for key in keys]
    clusters = cluster_poses(np.stack(posed)) if posed else PoseClusters(np.zeros(0, int), ())
    pose = {key: f"pose {c + 1}" for key, c in zip(keys, clusters.label)}

    def objects(row: Candidate) -> str:
        sample = inputs.get(row.input_key)
        names = sorted({o.id for o in sample.objects if o.valid}) if sample else [_UNKNOWN]
        return ", ".join(names) or "none"

    one_cut = select(rows, replace(rule or SelectConfig(), scope="build"))
    cut = {row.key for row, verdict in zip(rows, one_cut, strict=True) if not verdict.kept}
    groups: list[RemovedGroup] = []
    groups += _grouped("pose", rows, cut, lambda row: pose.get(row.input_key, _UNKNOWN))
    groups += _grouped("object", rows, cut, objects)
    groups += _grouped("camera", rows, cut, lambda row: row.input_key.split("/")[3])
    groups += _grouped("error", rows, cut, _error_bins([row.err_mm for row in rows]), ordered=True)
    return groups, [keys[i] for i in clusters.middle]


def _grouped(
    kind: str,
    rows: Sequence[Candidate],
    one_cut: Set[str],
    group_of: Callable[[Candidate], str],
    ordered: bool = False,
) -> list[RemovedGroup]:
    members: dict[str, list[Candidate]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.err_mm) if ordered else rows:
        members[group_of(row)].append(row)
    names = list(members) if ordered else sorted(members, key=_natural)
    made = []
    for name in names:
        mine = members[name]
        kept = sum(row.verdict.kept for row in mine)
        errors = [row.err_mm for row in mine if np.isfinite(row.err_mm)]
        made.append(
            RemovedGroup(
                kind=kind,
                group=name,
                inputs=len({row.input_key for row in mine}),
                candidates=len(mine),
                kept=kept,
                rejected=len(mine) - kept,
                failed=sum(bool(row.failure) for row in mine),
                removed_share=(len(mine) - kept) / len(mine),
                one_cut_share=sum(row.key in one_cut for row in mine) / len(mine),
                err_mm=float(np.median(errors)) if errors else -1.0,
            )
        )
    return made


def _natural(name: str) -> tuple[bool, int, str]:
    """ "pose 2" before "pose 10", "unknown" last."""
    return name == _UNKNOWN, len(name) if name.startswith("pose ") else 0, name


def _error_bins(errors_mm: Sequence[float]) -> Callable[[Candidate], str]:
    """The tenth of the scored errors that a candidate's falls into, named by its bounds; "not scored" beside them."""
    finite = np.sort([e for e in errors_mm if np.isfinite(e)])
    if not len(finite):
        return lambda row: "not scored"
    edges = np.unique(np.quantile(finite, np.arange(1, _QUANTILES + 1) / _QUANTILES, method="inverted_cdf"))
    lows = np.concatenate([finite[:1], edges[:-1]])

    def name(row: Candidate) -> str:
        if not np.isfinite(row.err_mm):
            return "not scored"
        i = int(np.searchsorted(edges, row.err_mm))
        return f"{lows[i]:.1f} to {edges[i]:.1f} mm"

    return name


def write_csv(path: Path, groups: Sequence[RemovedGroup]) -> None:
    """The groups as a table, atomically."""
    names = [f.name for f in fields(RemovedGroup)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[getattr(group, name) for name in names] for group in groups])
    write_atomic(path, text.getvalue().encode())
