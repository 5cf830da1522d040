"""OAKINK2: which images there are. Ids, names, missing parts, clips, splits, and whole conversions."""

import json
import re

import numpy as np
import pytest
from fake_oakink2 import KEY_A, KEY_B, SERIALS, annotation_of, write_annotation
from oakink2_tree import copy_tree, open_oakink2, written_tree  # noqa: F401

from pam_aug.build.config import BuildConfig
from pam_aug.build.run import plan, run_build
from pam_aug.config import resolve
from pam_aug.converters.oakink2_index import hashed_split, read_list, whole_clips
from pam_aug.converters.oakink2_program import read_programme, read_task_targets, seq_key_of
from pam_aug.errors import AssetMissing, ConfigError, SourceError
from pam_aug.rollouts.scene import LeftOut
from pam_aug.schema import sample_from_json, sample_to_json
from pam_aug.shards.reader import read_marker
from pam_aug.shards.writer import is_committed

pytestmark = pytest.mark.filterwarnings("ignore:oakink2")


def test_04_ids_are_neither_contiguous_nor_zero_based(tree):
    """Pitfall 4: the image of frame 21 is absent; 49 and 57 are images whose frame is not annotated."""
    root, _, _ = tree
    source = open_oakink2(root, sequences=[KEY_A], cameras=["allocentric_top"])
    frames = [9, 13, 17, 25, 29, 33, 37, 41, 45, 49, 53, 57]
    assert source.index.tracks[0].frame_ids.tolist() == frames
    for k, frame in enumerate(frames):
        if frame in (49, 57):
            with pytest.raises(LeftOut, match=rf"frame {frame} is not among the annotated") as caught:
                source.item(k)
            assert caught.value.reason == "the frame is not annotated"
        else:
            assert source.item(k).sample.source.name == f"{KEY_A}/104422071041/{frame:06d}"


def test_04_frame_lists_leave_out_what_is_not_annotated(tree, tmp_path, monkeypatch):
    """Pitfall 4, and what it costs: annotation files are read once, then again only where they changed."""
    from pam_aug.converters import oakink2_lists

    root = copy_tree(tree[0], tmp_path)
    reads = []
    load = oakink2_lists.load_tensor_pickle
    monkeypatch.setattr(oakink2_lists, "load_tensor_pickle", lambda path: reads.append(path) or load(path))
    table = tmp_path / "lists" / "frames.npz"
    source = open_oakink2(root, frame_lists=str(table))
    assert len(reads) == 2
    assert source.index.tracks[0].frame_ids.tolist() == [9, 13, 17, 25, 29, 33, 37, 41, 45, 53]
    assert [source.item(i).sample.source.dataset for i in range(len(source))] == ["oakink2"] * (4 * 10 + 2 * 3)
    assert len(open_oakink2(root, frame_lists=str(table))) == len(source)
    assert len(reads) == 2
    annotation = annotation_of(tree[1], as_torch=True)
    del annotation["cam_extr"]["allocentric_top"]
    del annotation["raw_mano"][53]
    write_annotation(next((root / "anno_preview").glob("scene_01*")), annotation)
    again = open_oakink2(root, sequences=[KEY_A], frame_lists=str(table))
    assert {t.serial: len(t.frame_ids) for t in again.index.tracks} == {s: 9 for s in SERIALS if s != "104422071041"}
    next((root / "anno_preview").glob("scene_02*")).write_bytes(b"broken")
    again = open_oakink2(root, frame_lists=str(table))
    assert "not a readable pickle" in again.index.left_out[KEY_B]
    table.write_bytes(b"PK broken")
    with pytest.raises(SourceError, match=r"frames\.npz.*remove it"):
        open_oakink2(root, frame_lists=str(table))


def test_08_names_with_plus_signs_slashes_and_browser_escapes(tree):
    """Pitfalls 7 and 8."""
    root, _, _ = tree
    token = KEY_B.replace("/", "++")
    for spelling in (KEY_B, token, token.replace("+", "%2B")):
        assert seq_key_of(spelling) == KEY_B
        source = open_oakink2(root, sequences=[spelling])
        assert len(source) == 6
        assert source.item(0).sample.key == f"oakink2/{KEY_B.lower()}/allocentric_left/000100"
        assert source.item(0).sample.source.group == KEY_B


def test_14_missing_cameras_are_warned_about_and_counted(tree):
    """Pitfall 14."""
    root, _, _ = tree
    with pytest.warns(UserWarning, match=r"oakink2: 1 sequences have no images of some cameras .*egocentric"):
        source = open_oakink2(root)
    assert source.index.missing_cameras == {KEY_B: ("104422070904", "104422070969")}
    assert len(source) == 4 * 12 + 2 * 3


def test_15_a_sequence_is_read_once_and_forgotten(tree, monkeypatch):
    """Pitfall 15: annotation files are opened one by one, when an item needs them, never all at opening."""
    from pam_aug.converters import oakink2

    root, _, _ = tree
    reads = []
    read = oakink2.read_annotation
    monkeypatch.setattr(oakink2, "read_annotation", lambda path: reads.append(path) or read(path))
    source = open_oakink2(root)
    assert reads == []
    for i in (0, 5, len(source) - 1, 1):
        source.item(i)
    assert len(reads) == 2


def test_15_images_go_to_workers_by_sequence(tree):
    """Pitfall 15: with several workers, an annotation file is one worker's, seams between shards excepted."""
    source = open_oakink2(tree[0])
    assert source.group_starts.tolist() == [0, 4 * 12]
    assert open_oakink2(tree[0], sequences=[KEY_B]).group_starts.tolist() == [0]
    section = {"converter": "oakink2", "root": str(tree[0]), "mano_dir": str(tree[0] / "mano"), "crop": "hand"}
    assert list(plan(resolve(BuildConfig, {"source": section}), ("real",)).real_groups) == [0, 4 * 12]


@pytest.mark.slow
def test_15_shards_are_the_same_however_many_workers_share_the_sequences(tree, tmp_path):
    section = {"converter": "oakink2", "root": str(tree[0]), "mano_dir": str(tree[0] / "mano")}
    config = resolve(BuildConfig, {"source": section, "shards": {"samples_per_shard": 8}})
    for workers in (0, 2, 3):
        run_build(config, tmp_path / str(workers), ("real",), workers)
    one, two, three = ([p.read_bytes() for p in sorted((tmp_path / n / "shards").glob("*.tar"))] for n in "023")
    assert len(one) == 7
    assert one == two == three


def test_items_are_the_same_in_any_order_and_process(tree):
    root, _, _ = tree
    one, other = open_oakink2(root), open_oakink2(root)
    picks = [0, len(one) - 1, 3, 20, 1]
    forwards = {i: one.item(i) for i in picks}
    for i in reversed(picks):
        again = other.item(i)
        assert sample_to_json(again.sample) == sample_to_json(forwards[i].sample)
        assert again.image == forwards[i].image
        assert sample_from_json(sample_to_json(again.sample)) == again.sample
    with pytest.raises(SourceError, match="item"):
        one.item(len(one))


def test_sequences_without_annotation_or_images_are_left_out_with_the_reason(tree, tmp_path):
    root = copy_tree(tree[0], tmp_path)
    (root / "data" / "scene_03__A001++seq__x" / "104422071041").mkdir(parents=True)
    write_annotation(root / "anno_preview" / "scene_03__A001++seq__x.pkl", {})
    next((root / "anno_preview").glob("scene_02*")).unlink()
    with pytest.warns(UserWarning, match="2 sequences are left out"):
        source = open_oakink2(root)
    assert source.index.left_out == {KEY_B: "no annotation file", "scene_03__A001/seq__x": "no images"}


def test_clips_are_whole_and_gap_free(tree):
    ids = np.array([1, 5, 9, 13, 21, 25, 29, 33, 37])
    assert whole_clips(ids, 2).tolist() == [1, 5, 9, 13, 21, 25, 29, 33]
    assert whole_clips(ids, 4).tolist() == [1, 5, 9, 13, 21, 25, 29, 33]
    assert whole_clips(ids, 49).tolist() == []
    assert whole_clips(np.arange(3, 3 + 4 * 100, 4), 49).tolist() == list(range(3, 3 + 4 * 98, 4))
    assert whole_clips(np.array([], np.int64), 49).tolist() == []
    root, _, _ = tree
    source = open_oakink2(root, sequences=[KEY_A], cameras=["egocentric"], clip_frames=3)
    assert source.index.tracks[0].frame_ids.tolist() == [9, 13, 17, 25, 29, 33, 37, 41, 45, 49, 53, 57][:12]
    assert "clip: 1, frame 1 of 3" in source.item(4).sample.source.notes
    with pytest.raises(ConfigError, match="no image is left"):
        open_oakink2(root, clip_frames=49)


def test_splits_go_by_sequence(tree, tmp_path):
    root, _, _ = tree
    names = [f"scene_01__A001/seq__{i:020x}__2023-04-27-20-38-16" for i in range(4000)]
    shares = {s: sum(hashed_split(n) == s for n in names) / len(names) for s in ("train", "val", "test")}
    assert shares["train"] == pytest.approx(0.69, abs=0.025)
    assert shares["val"] == pytest.approx(0.06, abs=0.015)
    assert hashed_split(KEY_A) == hashed_split(seq_key_of(KEY_A.replace("/", "++")))
    (tmp_path / "lists.json").write_text(json.dumps({"train": [KEY_A], "test": [KEY_B.replace("/", "++")]}))
    train = open_oakink2(root, split="train", split_list=str(tmp_path / "lists.json"))
    test = open_oakink2(root, split="test", split_list=str(tmp_path / "lists.json"))
    assert {t.seq_key for t in train.index.tracks} == {KEY_A}
    assert {t.seq_key for t in test.index.tracks} == {KEY_B}
    assert test.item(0).sample.source.split == "test"
    (tmp_path / "list.txt").write_text(f"# mine\n{KEY_B.replace('/', '++')}\n\n")
    assert read_list(tmp_path / "list.txt", "all") == {KEY_B}
    with pytest.raises(ConfigError, match="no list 'val', only train, test"):
        read_list(tmp_path / "lists.json", "val")
    whole = [len(_open_or_none(root, split)) for split in ("train", "val", "test")]
    assert sum(whole) == len(open_oakink2(root))


def _open_or_none(root, split):
    try:
        return open_oakink2(root, split=split)
    except ConfigError:
        return ()


def test_options_that_make_no_sense_are_named(tree):
    root, _, _ = tree
    with pytest.raises(ConfigError) as caught:
        open_oakink2(root, split="trian", cameras=["egocentrc"], clip_frames=49, every=2)
    assert "did you mean 'train'" in str(caught.value)
    assert "did you mean 'egocentric'" in str(caught.value)
    assert "cannot be joined" in str(caught.value)
    with pytest.raises(AssetMissing, match=r"no such folder.*huggingface"):
        open_oakink2(root / "nowhere")


def test_images_without_annotation_are_left_out_and_counted(tree, tmp_path):
    root, out = tree[0], tmp_path / "out"
    section = {"converter": "oakink2", "root": str(root), "mano_dir": str(root / "mano"), "sequences": [KEY_A]}
    result = run_build(resolve(BuildConfig, {"source": section}), out, ("real",), workers=0)
    assert (result.summary.real_images, result.summary.real_failed) == (40, 0)
    assert "8 images left out: the frame is not annotated" in result.as_text()
    marker = read_marker(out / "shards" / "real-00000.tar")
    assert marker is not None
    assert marker["counts"] == {"hands": 80, "left out: the frame is not annotated": 8, "samples": 40}


def test_a_conversion_without_any_hand_label_says_so_and_ends_with_2(tree, tmp_path, monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)
    section = {"converter": "oakink2", "root": str(tree[0]), "sequences": [KEY_B]}
    with pytest.raises(ConfigError, match=r"6 real images were converted and none has a hand label.*MANO") as caught:
        run_build(resolve(BuildConfig, {"source": section}), tmp_path / "out", ("real",), workers=0)
    assert caught.value.exit_code == 2
    assert is_committed(tmp_path / "out" / "shards" / "real-00000.tar")


@pytest.mark.realdata
def test_the_real_programme_files_are_read(real_data):
    folder = real_data / "noncommercial" / "oakink2_program"
    tasks = read_task_targets(folder)
    assert len(tasks) == 627
    assert all(re.fullmatch(r"scene_0[1-4]__[AO]\d{3}/seq__[0-9a-f]{20}__[\d-]{19}", key) for key in tasks)
    tokens = sorted({path.stem for path in folder.glob("*/*.json")})
    programmes = {t: read_programme(folder, t, tasks[seq_key_of(t)]) for t in tokens}
    assert len(programmes) == 6
    assert all(p.unknown == () for p in programmes.values())
    weigh = programmes["scene_01__A001++seq__0b3d183d6b2e90eefd66__2023-04-27-20-38-16"]
    assert [p.intervals for p in weigh.primitives] == [
        {"right": (1095, 1467)}, {"left": (1595, 2340)}, {"right": (2336, 2840)}, {"right": (3228, 5634)}]  # fmt: skip
    assert weigh.order == ((0, 1), (1, 2), (2, 3))
    assert weigh.text(2338) == "Place the bowl onto the platform of the scale. Press the button on the scale."
    assert weigh.text(0) == weigh.task == "Weigh something with scale by pouring it into the bowl."
    assert not weigh.active("left", 2340)
    assert weigh.active("left", 2339)[0].hand_objects == {"left": ("C12001",)}
    drinks = programmes["scene_01__A001++seq__5ad66440a8b11dd306f3__2023-04-27-19-41-45"]
    assert not drinks.known
    assert len(drinks.initial_condition) == 5
    assert len(drinks.recipe) == 1
