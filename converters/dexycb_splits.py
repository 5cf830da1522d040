"""DexYCB's subjects, cameras and official splits, which go by a sequence's position among its subject's 100.

The rules are those of the benchmark of Chao et al., "DexYCB" (CVPR 2021), setups s0 to s3. A position is only known
from a complete listing: a folder with more or fewer than 100 sequences is refused unless a table gives the positions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pam_aug.errors import ConfigError, SourceError

__all__ = [
    "SEQUENCES_PER_SUBJECT",
    "SERIALS",
    "SETUPS",
    "SUBJECTS",
    "SplitRule",
    "list_sequences",
    "read_sequence_table",
    "split_rule",
]

SUBJECTS: Final = (
    "20200709-subject-01",
    "20200813-subject-02",
    "20200820-subject-03",
    "20200903-subject-04",
    "20200908-subject-05",
    "20200918-subject-06",
    "20200928-subject-07",
    "20201002-subject-08",
    "20201015-subject-09",
    "20201022-subject-10",
)
"""Subject folders, by subject index 0 to 9."""

SERIALS: Final = (
    "836212060125",
    "839512060362",
    "840412060917",
    "841412060263",
    "932122060857",
    "932122060861",
    "932122061900",
    "932122062010",
)
"""Camera serials, by camera index 0 to 7. The world is the frame of the third, the master camera."""

SEQUENCES_PER_SUBJECT: Final = 100
SETUPS: Final = ("s0", "s1", "s2", "s3")
_SPLITS: Final = ("train", "val", "test")
_EVERY: Final = tuple(range(SEQUENCES_PER_SUBJECT))
_SEQUENCE_NAME = re.compile(r"\d{8}_\d{6}")
_MAX_TABLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Which subject indices, camera indices and sequence positions (0 to 99, for every subject) a split has."""

    subjects: tuple[int, ...]
    cameras: tuple[int, ...]
    positions: tuple[int, ...]


def split_rule(setup: str, split: str) -> SplitRule:
    """The rule of a setup and a split. Raises ConfigError for a name that is none of them."""
    if setup not in SETUPS or split not in _SPLITS:
        raise ConfigError(
            f"dexycb: setup {setup!r} and split {split!r}: setups are {', '.join(SETUPS)}, splits train, val, test",
            setup=setup,
            split=split,
        )
    subjects, cameras, positions = tuple(range(10)), tuple(range(8)), _EVERY
    if setup == "s0":  # all seen: every fifth sequence, the last trial of a grasp, is held out
        subjects = {"train": subjects, "val": (0, 1), "test": tuple(range(2, 10))}[split]
        positions = tuple(i for i in _EVERY if (i % 5 == 4) == (split != "train"))
    elif setup == "s1":  # unseen subjects
        subjects = {"train": (0, 1, 2, 3, 4, 5, 9), "val": (6,), "test": (7, 8)}[split]
    elif setup == "s2":  # unseen views
        cameras = {"train": tuple(range(6)), "val": (6,), "test": (7,)}[split]
    else:  # unseen objects: five trials of a grasped object stand together
        held_out = {"val": (3, 19), "test": (7, 11, 15)}
        kept = held_out.get(split, tuple(set(range(20)) - {3, 7, 11, 15, 19}))
        positions = tuple(i for i in _EVERY if i // 5 in kept)
    return SplitRule(subjects, cameras, positions)


def list_sequences(root: Path, subject: int, table: Mapping[tuple[int, str], int] | None = None) -> dict[int, str]:
    """Position → folder name of a subject's sequences on disk, in order of position.

    Names that are not of a sequence's form (`YYYYMMDD_HHMMSS`) and files are no sequences and take no position. With a
    `table` of (subject index, name) → position, any part of the sequences may be on disk.

    Raises ConfigError where the positions are unknown: no folder, not 100 sequences, one that the table lacks.
    """
    folder = root / SUBJECTS[subject]
    try:
        names = sorted(p.name for p in folder.iterdir() if _SEQUENCE_NAME.fullmatch(p.name) and p.is_dir())
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be listed ({error.strerror}), and the split has sequences of it. Unpack this subject's "
            "archive here, or name the subjects that you have: --subjects '[1, 2]'",
            path=str(folder),
        ) from error
    if table is None:
        if len(names) != SEQUENCES_PER_SUBJECT:
            raise ConfigError(
                f"{folder}: holds {len(names)} sequences, a complete subject has {SEQUENCES_PER_SUBJECT}. Splits go by "
                "a sequence's position in the complete listing, so a part of it would silently get other sequences. "
                "Unpack the whole archive, leave the subject out (--subjects), or give the positions "
                "(--sequence-table FILE, lines of `subject-folder/sequence position`)",
                path=str(folder),
                found=len(names),
            )
        return dict(enumerate(names))
    unknown = [name for name in names if (subject, name) not in table]
    if unknown:
        raise ConfigError(
            f"{folder}: {len(unknown)} sequences are not in the sequence table (the first: {unknown[0]}); add them",
            path=str(folder),
            unknown=unknown,
        )
    return dict(sorted((table[subject, name], name) for name in names))


def read_sequence_table(path: str | Path) -> dict[tuple[int, str], int]:
    """(subject index, sequence name) → position, from lines of `20200709-subject-01/20200709_141754 0`.

    Empty lines and lines that start with # are left out. Raises SourceError naming the line that does not fit.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        text = raw[: _MAX_TABLE_BYTES + 1].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: not a readable sequence table ({error})", path=str(path)) from error
    if len(raw) > _MAX_TABLE_BYTES:
        raise SourceError(f"{path}: {len(raw)} bytes is no sequence table (1,000 lines)", path=str(path))
    table: dict[tuple[int, str], int] = {}
    taken: set[tuple[int, int]] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*(\S+)/(\d{8}_\d{6})\s+(\d{1,2})\s*", line)
        if match is None or match[1] not in SUBJECTS:
            raise SourceError(
                f"{path}, line {number}: {line.strip()[:80]!r} is not `subject-folder/sequence position` with a "
                "position of 0 to 99",
                path=str(path),
                line=number,
            )
        subject, name, position = SUBJECTS.index(match[1]), match[2], int(match[3])
        if (subject, name) in table or (subject, position) in taken:
            raise SourceError(f"{path}, line {number}: the sequence or its position stands there twice", path=str(path))
        table[subject, name] = position
        taken.add((subject, position))
    return table
