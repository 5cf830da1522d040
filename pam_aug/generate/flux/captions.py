"""Captions of inputs: PAM's `descriptions.json` and caption lists, and which of their texts is an input's.

A caption belongs to a video, a frame of one, or to whatever else a file names. Names are compared part by part from
their end, in a key's spelling, so that a list made on another machine still fits: `../data/videos/subject_01/take/
840412060917/video.mp4` is the video of the input `subject_01/take/840412060917/color_000012.jpg`.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pam_aug.errors import ConfigError, SourceError
from pam_aug.schema import Sample

__all__ = ["CaptionBook", "Captions", "read_captions"]

_DESCRIPTIONS = "descriptions.json"
_VIDEO_FILE = re.compile(r"[^/]*\.(?:mp4|avi|mov|mkv|webm)", re.IGNORECASE)
_CLIP_NOTE = re.compile(r"clip: (\d+), frame (\d+) of \d+")
Name = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Captions:
    """Texts by name: by frame number, as `descriptions.json` has them, or by video path, as PAM's JSONL lists do."""

    texts: Mapping[str, str]

    def of(self, name: str) -> str | None:
        """The text of a frame or video; of a frame number between two captions, the earlier one's."""
        if name in self.texts or not name.isdigit():
            return self.texts.get(name)
        earlier = [int(key) for key in self.texts if key.isdigit() and int(key) <= int(name)]
        return self.texts[str(max(earlier))] if earlier else None


class CaptionBook:
    """The captions of a build's inputs, from one of

    * a list of lines {"video_path": …, "response": …} (`.jsonl`), or a JSON object of texts by name. A name is a
      video's or its folder's path, an input's key or its source's own name, a sequence, or an object;
    * `descriptions.json`: one video's texts by frame, for a source of that one video;
    * a folder of them: `<folder>/…/<subject>/<sequence>/<camera>/descriptions.json`, as PAM lays them beside videos.

    The first name of an input that is there decides: key, source's name, video, sequence, object. An OAKINK2 video is a
    clip, so its images need their place in one (`source.clip_frames=49`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frames: Captions | None = None
        self._entries: dict[Name, list[str | Path]] = {}
        if path.is_dir():
            files = sorted(path.rglob(_DESCRIPTIONS))
            if not files:
                raise ConfigError(f"{path}: holds no {_DESCRIPTIONS}; give the folder of the videos", path=str(path))
            for file in files:
                self._add(_parts(str(file.relative_to(path).parent)), file)
            return
        captions = read_captions(path)
        if captions.texts and all(name.isdigit() for name in captions.texts):
            self._frames = captions
        for name, text in captions.texts.items():
            self._add(_parts(_video_folder(name)), text)

    def of(self, sample: Sample) -> str:
        """The caption of an input. Raises SourceError where there is none, or where several fit."""
        frame = _frame(sample)
        if self._frames is not None:
            text = self._frames.of(str(frame))
            if text is None:
                raise self._error(sample, f"it has no caption of frame {frame} or one before")
            return text
        names = [name for name in _names(sample) if name]
        for name in names:
            found = self._entries.get(name, [])
            if len(set(found)) > 1:
                raise self._error(sample, f"{len(found)} captions fit {'/'.join(name)}; give longer paths there")
            if found:
                return self._text(sample, found[0], frame)
        looked = ", ".join("/".join(name) for name in dict.fromkeys(names))
        raise self._error(sample, f"it has no caption of this input (looked for {looked})")

    def _text(self, sample: Sample, entry: str | Path, frame: int) -> str:
        if isinstance(entry, str):
            return entry
        text = _descriptions(entry).of(str(frame))
        if text is None:
            raise self._error(sample, f"{entry} has no caption of frame {frame} or one before")
        return text

    def _add(self, name: Name, entry: str | Path) -> None:
        """Under the whole name and its ends of two parts and more: a single part may be anything."""
        for start in range(max(1, len(name) - 1)):
            self._entries.setdefault(name[start:], []).append(entry)

    def _error(self, sample: Sample, what: str) -> SourceError:
        return SourceError(
            f"{sample.key}: {self._path}: {what}; add one, or set generate.options.missing_caption=prompt",
            path=str(self._path),
            key=sample.key,
        )


def read_captions(path: Path) -> Captions:
    """`descriptions.json` ({"0": text, "8": text, …}), texts by other names, or lines of {"video_path": …,
    "response": …}.

    Raises SourceError for a file of another form, with the line.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); give descriptions.json or a caption list", path=str(path)
        ) from error
    if path.suffix == ".jsonl":
        texts = {}
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                video, text = _caption_line(path, number, line)
                texts[video] = text
        return Captions(texts)
    try:
        tree = json.loads(content)
    except ValueError as error:
        raise SourceError(f"{path}: not JSON ({error})", path=str(path)) from error
    if not isinstance(tree, dict) or not all(isinstance(v, str) for v in tree.values()):
        raise SourceError(f'{path}: expected {{"0": text, "8": text, …}}', path=str(path))
    return Captions(tree)


@functools.lru_cache(maxsize=64)
def _descriptions(path: Path) -> Captions:
    return read_captions(path)


def _caption_line(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        video, text = row["video_path"], row["response"]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f'{path}, line {number}: expected {{"video_path": …, "response": …}} ({error})', path=str(path), line=number
        ) from error
    if not (isinstance(video, str) and isinstance(text, str)):
        raise SourceError(f"{path}, line {number}: video_path and response are texts", path=str(path), line=number)
    return video, text


def _names(sample: Sample) -> Iterator[Name]:
    """What an input may be called, the most particular first."""
    own = _parts(sample.source.name)
    clip = _clip(sample)
    yield _parts(sample.key)
    yield own
    yield own[:-1] + ((str(clip[0]),) if clip else ())
    yield _parts(sample.key)[1:-1]
    yield _parts(sample.source.group)
    yield _parts(sample.key)[1:-2]
    for thing in sample.objects:
        yield _parts(thing.id)
        yield _parts(thing.mesh)


def _frame(sample: Sample) -> int:
    """The number of an input's frame within its video; 0 where its name has none."""
    clip = _clip(sample)
    if clip:
        return clip[1]
    number = re.search(r"(\d+)\D*$", sample.source.name.rpartition("/")[2])
    return int(number[1]) if number else 0


def _clip(sample: Sample) -> tuple[int, int] | None:
    """The clip, and the frame in it, that a source cut into clips notes."""
    for note in sample.source.notes:
        if found := _CLIP_NOTE.fullmatch(note):
            return int(found[1]), int(found[2])
    return None


def _video_folder(path: str) -> str:
    head, _, last = path.replace("\\", "/").rpartition("/")
    return head if _VIDEO_FILE.fullmatch(last) else path


def _parts(path: str) -> Name:
    """A path's parts in a key's spelling; OAKINK2's folder `scene++sequence` is `scene/sequence`."""
    path = re.sub(r"%2b", "+", path, flags=re.IGNORECASE).replace("\\", "/").replace("++", "/")
    return tuple(re.sub(r"[^a-z0-9_-]", "-", part.lower()) for part in path.split("/") if part not in ("", ".", ".."))
