"""Caption files of both official forms, and which text an input gets."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pam_aug.errors import ConfigError, SourceError
from pam_aug.generate.flux.captions import CaptionBook, read_captions
from pam_aug.schema import Camera, Object, Sample, Source

CAMERA = Camera(width=8, height=8, K_px=np.eye(3), T_world_cam=np.eye(4))
MUG = Object(id="ycb/025_mug", mesh="025_mug", seg_id=16, T_cam_obj=np.eye(4))
DEXYCB = Sample(
    key="dexycb/20200709-subject-01/20200709_141754/836212060125/000012",
    camera=CAMERA,
    hands=(),
    objects=(MUG,),
    source=Source(
        dataset="dexycb",
        name="20200709-subject-01/20200709_141754/836212060125/color_000012.jpg",
        licence="",
        converter="dexycb",
        group="dexycb/20200709-subject-01/20200709_141754",
    ),
)
OAKINK2 = replace(
    DEXYCB,
    key="oakink2/scene_01__a001/seq__7b1c/egocentric/001512",
    source=Source(
        dataset="oakink2",
        name="scene_01__A001/seq__7b1c/104422070969/001512",
        licence="",
        converter="oakink2",
        group="scene_01__A001/seq__7b1c",
        notes=("hand: right", "clip: 3, frame 11 of 49"),
    ),
)


def lines(path, texts):
    path.write_text("".join(json.dumps({"video_path": v, "response": t}) + "\n" for v, t in texts.items()))
    return CaptionBook(path)


def test_caption_files_of_both_forms(tmp_path):
    frames = tmp_path / "descriptions.json"
    frames.write_text(json.dumps({"0": "first", "8": "second"}))
    captions = read_captions(frames)
    assert [captions.of(name) for name in ("0", "7", "8", "48")] == ["first", "first", "second", "second"]
    lines = tmp_path / "prompt.jsonl"
    lines.write_text('{"video_path": "a/video.mp4", "response": "a man"}\n\n{"video_path": "b", "response": "c"}\n')
    assert read_captions(lines).of("a/video.mp4") == "a man"
    assert read_captions(lines).of("none") is None
    lines.write_text('{"video_path": "a"}\n')
    with pytest.raises(SourceError, match="line 1"):
        read_captions(lines)
    frames.write_text("[1]")
    with pytest.raises(SourceError, match="expected"):
        read_captions(frames)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_captions(tmp_path / "none.json")


def test_a_list_names_videos_by_path(tmp_path):
    head = "../data/dexycb_videos/20200709-subject-01/20200709_141754"
    book = lines(
        tmp_path / "dexycb_prompt.jsonl",
        {f"{head}/836212060125/video.mp4": "the first", f"{head}/839512060362/video.mp4": "the second"},
    )
    assert book.of(DEXYCB) == "the first"
    with pytest.raises(SourceError, match="no caption of this input") as caught:
        book.of(OAKINK2)
    assert "oakink2/scene_01__a001/seq__7b1c" in str(caught.value)
    assert "missing_caption=prompt" in str(caught.value)


def test_oakink2s_videos_are_clips(tmp_path):
    head = "/mnt/a/videos/scene_01__A001++seq__7b1c/104422070969"
    book = lines(tmp_path / "p.jsonl", {f"{head}/2/video.mp4": "before", f"{head}/3/video.mp4": "here"})
    assert book.of(OAKINK2) == "here"
    whole = replace(OAKINK2, source=replace(OAKINK2.source, notes=()))
    with pytest.raises(SourceError, match="no caption"):
        book.of(whole)


def test_a_folder_of_descriptions_tells_them_by_frame(tmp_path):
    for name, texts in (
        ("20200709-subject-01/20200709_141754/836212060125", {"0": "zero", "8": "eight", "16": "sixteen"}),
        ("20200709-subject-01/20200709_141754/839512060362", {"0": "another camera"}),
        ("scene_01__A001++seq__7b1c/104422070969/3", {"8": "clip three"}),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "descriptions.json").write_text(json.dumps(texts))
    book = CaptionBook(tmp_path)
    assert book.of(DEXYCB) == "eight"
    assert book.of(OAKINK2) == "clip three"  # frame 11 of the clip
    early = replace(OAKINK2, source=replace(OAKINK2.source, notes=("clip: 3, frame 7 of 49",)))
    with pytest.raises(SourceError, match="no caption of frame 7 or one before"):
        book.of(early)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no descriptions\.json"):
        CaptionBook(tmp_path / "empty")


def test_one_videos_descriptions_serve_by_frame_alone(tmp_path):
    path = tmp_path / "descriptions.json"
    path.write_text(json.dumps({"0": "zero", "8": "eight"}))
    assert CaptionBook(path).of(DEXYCB) == "eight"
    path.write_text(json.dumps({"16": "late"}))
    with pytest.raises(SourceError, match="frame 12"):
        CaptionBook(path).of(DEXYCB)


def test_the_most_particular_name_decides(tmp_path):
    path = tmp_path / "captions.json"
    texts = {
        "025_mug": "a mug",
        "dexycb/20200709-subject-01/20200709_141754": "a take",
        "20200709-subject-01/20200709_141754/836212060125": "a video",
        DEXYCB.key: "a frame",
    }
    while texts:
        path.write_text(json.dumps(texts))
        assert CaptionBook(path).of(DEXYCB) == list(texts.values())[-1]
        texts.popitem()
    path.write_text(json.dumps({"5": "a clip's number", "other": "x"}))
    with pytest.raises(SourceError, match="no caption"):
        CaptionBook(path).of(DEXYCB)


def test_two_texts_that_fit_are_refused(tmp_path):
    end = "20200709-subject-01/20200709_141754/836212060125/video.mp4"
    path = tmp_path / "p.jsonl"
    with pytest.raises(SourceError, match="2 captions fit"):
        lines(path, {f"a/{end}": "one", f"b/{end}": "two"}).of(DEXYCB)
    assert lines(path, {f"a/{end}": "same", f"b/{end}": "same"}).of(DEXYCB) == "same"
