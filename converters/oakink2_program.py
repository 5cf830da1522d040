"""OAKINK2's programme annotation: which hand does what from when to when, and the sentences that tell it.

Files are JSON. The keys of a sequence are Python text, `((1595, 2340), None)`: the left hand's interval and the right
hand's, in motion-capture frame ids, the end not included; None is a hand that takes no part. Hands are annotated at
every frame whether they do anything or not, so these intervals are all that tells an idle hand.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pam_aug.errors import SourceError
from pam_aug.hand.joints import SIDES, Side

__all__ = ["Primitive", "Programme", "read_programme", "read_task_targets", "seq_key_of"]

_INTERVAL = r"(?:None|\((\d{1,9}), ?(\d{1,9})\))"
_KEY = re.compile(rf"\({_INTERVAL}, ?{_INTERVAL}\)")
_MODES = ("lh_main", "rh_main", "bh_main")
_UNKNOWN = "(unk)"
_MAX_BYTES = 16 << 20

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Primitive:
    """One primitive task. `intervals`, `names` and `objects` have an entry for each side that takes part."""

    name: str
    mode: str
    objects: tuple[str, ...]
    intervals: Mapping[Side, Interval]
    names: Mapping[Side, str]
    hand_objects: Mapping[Side, tuple[str, ...]]
    text: str

    def acts(self, side: Side, frame_id: int) -> bool:
        """Whether `side` is at work in this primitive at a frame."""
        start, end = self.intervals.get(side, (0, 0))
        return start <= frame_id < end


@dataclass(frozen=True, slots=True)
class Programme:
    """A sequence's primitives in order of their start, its task in one sentence, and the entries that say nothing.

    `unknown` are the keys of the entries that the annotators left open ("?(unk)") or that are not of the known form.
    `order` are the edges of the dependency graph, as pairs of positions in `primitives`.
    """

    seq_key: str
    task: str
    primitives: tuple[Primitive, ...]
    initial_condition: tuple[str, ...]
    recipe: tuple[str, ...]
    order: tuple[tuple[int, int], ...]
    unknown: tuple[str, ...]

    @property
    def known(self) -> bool:
        """Whether the sequence's intervals are annotated at all; without them no hand can be called idle."""
        return bool(self.primitives)

    def at(self, frame_id: int) -> tuple[Primitive, ...]:
        """The primitives in which a hand is at work at a frame."""
        return tuple(p for p in self.primitives if any(p.acts(side, frame_id) for side in SIDES))

    def active(self, side: Side, frame_id: int) -> tuple[Primitive, ...]:
        """The primitives in which `side` is at work at a frame; none of them is an idle hand."""
        return tuple(p for p in self.primitives if p.acts(side, frame_id))

    def text(self, frame_id: int) -> str:
        """The sentences of what goes on at a frame, else the task's."""
        sentences = dict.fromkeys(p.text for p in self.at(frame_id) if p.text)
        return " ".join(sentences) or self.task

    def notes(self, frame_id: int) -> tuple[str, ...]:
        """The task, and what each hand is doing at a frame; without intervals, a hand cannot be called idle."""
        task = (f"task: {self.task}",) if self.task else ()
        if not self.known:
            return (*task, "programme: none, idle hands are not known")
        notes: list[str] = []
        for side in SIDES:
            active = self.active(side, frame_id)
            doing = [" ".join((p.names[side] or p.name or "unnamed", *p.hand_objects[side])) for p in active]
            notes.append(f"{side} hand: {', '.join(doing) or 'idle'}")
        return (*task, *notes)


def seq_key_of(token: str) -> str:
    """A sequence's name with its slash, from a file name (`++`, or `%2B%2B` as browsers save it)."""
    return token.replace("%2B", "+").replace("%2b", "+").replace("++", "/")


def read_task_targets(folder: str | Path) -> dict[str, str]:
    """The task of every sequence in one sentence, by sequence name; empty where the table is not there."""
    table = _read(Path(folder) / "task_target.json")
    return {seq_key_of(str(key)): str(text) for key, text in table.items()}


def read_programme(folder: str | Path, seq_key: str, task: str = "") -> Programme:
    """The programme of a sequence from the folder that holds `program_info`; parts that are not there are empty.

    Raises SourceError for a file that is not JSON or not of the known form.
    """
    folder, seq_key = Path(folder), seq_key_of(seq_key)
    info, described, start, graph = (
        _read(_existing(folder / part, seq_key))
        for part in ("program_info", "desc_info", "initial_condition_info", "pdg")
    )
    found: dict[str, Primitive] = {}
    unknown: list[str] = []
    for key in dict.fromkeys((*info, *described)):
        primitive = _primitive(key, info.get(key, {}), described.get(key, {}))
        if primitive is None:
            unknown.append(key)
        else:
            found[key] = primitive
    keys = sorted(found, key=lambda k: sorted(found[k].intervals.values()))
    return Programme(
        seq_key=seq_key,
        task=task,
        primitives=tuple(found[k] for k in keys),
        initial_condition=_texts(start.get("initial_condition")),
        recipe=_texts(start.get("recipe")),
        order=_edges(graph, {k: i for i, k in enumerate(keys)}),
        unknown=tuple(unknown),
    )


def _primitive(key: str, info: Any, described: Any) -> Primitive | None:
    match = _KEY.fullmatch(key)
    if match is None or not isinstance(info, dict) or not isinstance(described, dict):
        return None
    intervals: dict[Side, Interval] = {}
    for side, start, end in zip(SIDES, match.groups()[::2], match.groups()[1::2]):  # left before right
        if start is not None:
            intervals[side] = (int(start), int(end))
    name, mode = str(info.get("primitive") or ""), str(info.get("interaction_mode") or "")
    names: dict[Side, str] = {s: str(info.get(f"primitive_{h}") or "") for s, h in _hands(intervals)}
    if not intervals or any(_UNKNOWN in text for text in (name, mode, *names.values())):
        return None
    if any(end <= start for start, end in intervals.values()) or mode not in ("", *_MODES):
        return None
    return Primitive(
        name=name,
        mode=mode,
        objects=_texts(info.get("obj_list")),
        intervals=intervals,
        names=names,
        hand_objects={s: _texts(info.get(f"obj_list_{h}")) for s, h in _hands(intervals)},
        text=str(described.get("seg_desc") or ""),
    )


def _hands(intervals: Mapping[Side, Interval]) -> list[tuple[Side, str]]:
    return [(side, {"left": "lh", "right": "rh"}[side]) for side in intervals]


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(v) for v in value) if isinstance(value, list) else ()


def _edges(graph: Mapping[str, Any], position: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    """The graph's edges in terms of `position`; edges at entries that were left out are left out."""
    numbers = graph.get("id_map")
    pairs = graph.get("e")
    if not isinstance(numbers, dict) or not isinstance(pairs, list):
        return ()
    place = {str(number): position[key] for key, number in numbers.items() if key in position}
    ends = [tuple(map(str, pair)) for pair in pairs if isinstance(pair, list) and len(pair) == 2]
    return tuple((place[a], place[b]) for a, b in ends if a in place and b in place)


def _existing(folder: Path, seq_key: str) -> Path:
    token = seq_key.replace("/", "++")
    names = (f"{token}.json", f"{token.replace('+', '%2B')}.json")
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_BYTES:
        raise SourceError(f"{path}: over {_MAX_BYTES >> 20} MB is no programme annotation", path=str(path))
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not JSON ({error}); unpack program.tar again", path=str(path)) from error
    if not isinstance(data, dict):
        raise SourceError(f"{path}: holds a {type(data).__name__}, expected an object", path=str(path))
    return data
