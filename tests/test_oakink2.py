"""OAKINK2: a small tree of our own making against slow computations from what its files say, and hostile files."""

import hashlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fake_oakink2 import (
    HEIGHT,
    KEY_A,
    KEY_B,
    PARTS,
    SERIALS,
    WIDTH,
    annotation_of,
    write_annotation,
    write_tree,
)
from scipy.spatial.transform import Rotation

from pam_aug.build.config import BuildConfig
from pam_aug.build.run import run_build
from pam_aug.config import resolve
from pam_aug.converters.oakink2 import OakInk2
from pam_aug.converters.oakink2_annotation import read_annotation
from pam_aug.converters.oakink2_index import hashed_split, read_list, whole_clips
from pam_aug.converters.oakink2_program import read_programme, read_task_targets, seq_key_of
from pam_aug.converters.oakink2_tensors import load_tensor_pickle, to_array
from pam_aug.errors import AssetMissing, ConfigError, SourceError, UnsafeInput
from pam_aug.hand import load_open_hand
from pam_aug.hand.joints import TIP_SETS
from pam_aug.rollouts.scene import LeftOut, build_scene
from pam_aug.schema import sample_from_json, sample_to_json
from pam_aug.shards.reader import read_marker
from pam_aug.shards.writer import is_committed

pytestmark = pytest.mark.filterwarnings("ignore:oakink2")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("oakink2")
    return root, *write_tree(root)


def _open(root: Path, **options) -> OakInk2:
    given = {"root": str(root), "mano_dir": str(root / "mano"), **options}
    return OakInk2(resolve(OakInk2.Options, given))


def _by_name(source: OakInk2) -> dict[tuple[str, int], int]:
    """Item numbers by (serial, frame) of all sequences."""
    return {
        (t.serial, int(i)): int(source.index.ends[n]) - len(t.frame_ids) + k
        for n, t in enumerate(source.index.tracks)
        for k, i in enumerate(t.frame_ids)
    }


def _slow_joints(hand, quats, betas, wrist):
    """21 joints in the world, joint by joint, the model centred on its wrist and moved there."""
    shaped = hand.v_template + hand.shapedirs @ betas
    J = hand.J_regressor @ shaped
    R = [Rotation.from_quat(q[[1, 2, 3, 0]]).as_matrix() for q in quats]
    posed = shaped + hand.posedirs @ np.concatenate([(r - np.eye(3)).ravel() for r in R[1:]])
    turn, at = [R[0]], [J[0]]
    for k in range(1, 16):
        p = int(hand.parents[k])
        turn.append(turn[p] @ R[k])
        at.append(at[p] + turn[p] @ (J[k] - J[p]))
    tips = [
        sum(hand.weights[v, k] * (turn[k] @ (posed[v] - J[k]) + at[k]) for k in range(16))
        for v in TIP_SETS["smplx"][hand.side]
    ]
    order = [13, 14, 15, 1, 2, 3, 4, 5, 6, 10, 11, 12, 7, 8, 9]  # thumb, index, middle, ring, little of MANO's joints
    rows = [at[0]]
    for f in range(5):
        rows += [at[k] for k in order[3 * f : 3 * f + 3]] + [tips[f]]
    return np.array(rows) - at[0] + wrist


# ------------------------------------------------------------------------------------------------ conventions, exactly


@pytest.mark.parametrize(("name", "frame"), [("allocentric_top", 13), ("egocentric", 33), ("allocentric_left", 45)])
def test_labels_are_what_the_files_say(tree, name, frame):
    """Pitfalls 1 to 6: world→camera, wxyz, wrist translation, ids, names and serials, a head camera that moves."""
    root, a, _ = tree
    source = _open(root, sequences=[KEY_A])
    serial = next(s for s, n in SERIALS.items() if n == name)
    sample = source.item(_by_name(source)[serial, frame]).sample
    E, K = a.E[name][frame], a.K[name]
    np.testing.assert_allclose(sample.camera.T_world_cam, np.linalg.inv(E), atol=1e-6)
    np.testing.assert_allclose(sample.camera.K_px, K, rtol=1e-6)
    assert (sample.camera.width, sample.camera.height) == (WIDTH, HEIGHT)
    assert sorted(h.side for h in sample.hands) == ["left", "right"]
    for hand in sample.hands:
        prefix = hand.side[0] + "h"
        assets = load_open_hand("right") if hand.side == "right" else load_open_hand("right").mirrored("as_file")
        world = _slow_joints(assets, a.quats[prefix][frame], a.betas[prefix], a.tsl[prefix][frame])
        cam = world @ E[:3, :3].T + E[:3, 3]
        np.testing.assert_allclose(hand.joints_cam_m, cam, atol=1e-5)
        np.testing.assert_allclose(hand.joints_cam_m[0], E[:3, :3] @ a.tsl[prefix][frame] + E[:3, 3], atol=1e-6)
        px = (cam @ K.T)[:, :2] / cam[:, 2:]
        np.testing.assert_allclose(hand.joints_px, px, atol=0.02)
        inside = (px[:, 0] > -0.5) & (px[:, 0] < WIDTH - 0.5) & (px[:, 1] > -0.5) & (px[:, 1] < HEIGHT - 0.5)
        np.testing.assert_array_equal(hand.in_view, inside)
        turns = Rotation.from_quat(a.quats[prefix][frame][:, [1, 2, 3, 0]]).as_rotvec()
        np.testing.assert_allclose(hand.hand_pose, turns[1:].ravel(), atol=1e-5)  # absolute: no mean pose enters
        in_camera = Rotation.from_matrix(E[:3, :3]) * Rotation.from_rotvec(turns[0])
        np.testing.assert_allclose(
            Rotation.from_rotvec(hand.global_orient).as_matrix(), in_camera.as_matrix(), atol=1e-5
        )
        assert (hand.hand_model, hand.pose_mean) == ("mano_as_file" if hand.side == "left" else "mano", "exact")


def test_world_joints_agree_between_the_four_views(tree):
    root, _, _ = tree
    source = _open(root, sequences=[KEY_A])
    worlds = []
    for serial in SERIALS:
        sample = source.item(_by_name(source)[serial, 29]).sample
        T = np.asarray(sample.camera.T_world_cam, np.float64)
        worlds.append([np.asarray(h.joints_cam_m, np.float64) @ T[:3, :3].T + T[:3, 3] for h in sample.hands])
    assert np.ptp(np.array(worlds), axis=0).max() <= 1e-6


def _at(source: OakInk2, name: str, frame: int):
    serial = next(s for s, n in SERIALS.items() if n == name)
    return source.item(_by_name(source)[serial, frame]).sample


def test_01_extrinsics_go_from_world_to_camera(tree):
    root, a, _ = tree
    sample, E = _at(_open(root, sequences=[KEY_A]), "allocentric_top", 17), a.E["allocentric_top"][17]
    np.testing.assert_allclose(sample.camera.T_world_cam @ E, np.eye(4), atol=1e-6)
    assert np.abs(sample.camera.T_world_cam - E).max() > 0.1  # the other direction would have shown


def test_02_quaternions_have_w_first(tree):
    root, a, _ = tree
    for hand in _at(_open(root, sequences=[KEY_A]), "allocentric_left", 25).hands:
        quats = a.quats[hand.side[0] + "h"][25]
        turns = Rotation.from_quat(np.roll(quats, -1, axis=1)).as_matrix()[1:]
        np.testing.assert_allclose(Rotation.from_rotvec(hand.hand_pose.reshape(15, 3)).as_matrix(), turns, atol=1e-6)
        assert np.abs(Rotation.from_quat(quats).as_matrix()[1:] - turns).max() > 0.1


def test_03_tsl_is_the_wrist(tree):
    root, a, _ = tree
    sample = _at(_open(root, sequences=[KEY_A]), "allocentric_right", 37)
    for hand in sample.hands:
        wrist_world = sample.camera.T_world_cam.astype(float) @ [*hand.joints_cam_m[0], 1.0]
        np.testing.assert_allclose(wrist_world[:3], a.tsl[hand.side[0] + "h"][37], atol=1e-6)
        assert np.linalg.norm(hand.transl - hand.joints_cam_m[0]) > 0.02  # smplx's translation is another point


def test_06_the_head_camera_moves_and_the_others_do_not(tree):
    root, a, _ = tree
    source = _open(root, sequences=[KEY_A])
    for name in SERIALS.values():
        first, later = (_at(source, name, f).camera.T_world_cam for f in (9, 45))
        assert (np.abs(first - later).max() > 1e-3) == (name == "egocentric")
        np.testing.assert_allclose(later, np.linalg.inv(a.E[name][45]), atol=1e-6)


def test_13_intervals_are_the_text_of_python_tuples(tree):
    programme = read_programme(tree[0] / "program", KEY_A)
    assert [dict(p.intervals) for p in programme.primitives] == [
        {"left": (9, 20)},
        {"left": (17, 29), "right": (25, 37)},
    ]
    assert programme.active("left", 9)
    assert not programme.active("left", 29)  # ends are left out


def test_10_the_world_with_y_up_is_kept(tree):
    """Pitfall 10: no axis is swapped on the way; a point above another in the file's y is above it in ours."""
    root, a, _ = tree
    sample = _open(root, sequences=[KEY_A]).item(0).sample
    T = np.asarray(sample.camera.T_world_cam, np.float64)
    wrists = {h.side: T[:3, :3] @ h.joints_cam_m[0] + T[:3, 3] for h in sample.hands}
    np.testing.assert_allclose(wrists["left"][1] - wrists["right"][1], a.tsl["lh"][9][1] - a.tsl["rh"][9][1], atol=1e-6)


def test_12_parts_are_objects_with_poses_of_their_own(tree):
    """Pitfall 12."""
    root, a, _ = tree
    source = _open(root, sequences=[KEY_A], meshes="repair")
    item = source.item(_by_name(source)["104422070969", 17])
    assert [o.id for o in item.sample.objects] == list(PARTS)
    assert [o.seg_id for o in item.sample.objects] == [16, 17, 18]
    for o in item.sample.objects:
        np.testing.assert_allclose(o.T_cam_obj, a.E["egocentric"][17] @ a.poses[o.id][17], atol=1e-6)
        assert o.mesh == f"object_repair/align_ds/{o.id}/{o.id}.obj"
        assert o.valid
    scene = build_scene(item, source.hand_assets())
    assert [m.mesh.vertices_m.shape for m in scene.objects] == [(4, 3)] * 3
    np.testing.assert_allclose(scene.hands[0].joints_cam_m, item.sample.hands[0].joints_cam_m, atol=1e-6)


def test_a_missing_mesh_is_named_when_it_is_drawn_only(tree, tmp_path):
    root = _copy(tree[0], tmp_path)
    shutil.rmtree(root / "object_raw" / "align_ds" / "C12001")
    source = _open(root, sequences=[KEY_A])
    item = source.item(0)
    with pytest.raises(AssetMissing, match="C12001"):
        build_scene(item, source.hand_assets())


# ----------------------------------------------------------------------------------------------------------- the index


def test_04_ids_are_neither_contiguous_nor_zero_based(tree):
    """Pitfall 4: the image of frame 21 is absent; 49 and 57 are images whose frame is not annotated."""
    root, _, _ = tree
    source = _open(root, sequences=[KEY_A], cameras=["allocentric_top"])
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

    root = _copy(tree[0], tmp_path)
    reads = []
    load = oakink2_lists.load_tensor_pickle
    monkeypatch.setattr(oakink2_lists, "load_tensor_pickle", lambda path: reads.append(path) or load(path))
    table = tmp_path / "lists" / "frames.npz"
    source = _open(root, frame_lists=str(table))
    assert len(reads) == 2
    assert source.index.tracks[0].frame_ids.tolist() == [9, 13, 17, 25, 29, 33, 37, 41, 45, 53]
    assert [source.item(i).sample.source.dataset for i in range(len(source))] == ["oakink2"] * (4 * 10 + 2 * 3)
    assert len(_open(root, frame_lists=str(table))) == len(source)
    assert len(reads) == 2
    annotation = annotation_of(tree[1], as_torch=True)
    del annotation["cam_extr"]["allocentric_top"]
    del annotation["raw_mano"][53]
    write_annotation(next((root / "anno_preview").glob("scene_01*")), annotation)
    again = _open(root, sequences=[KEY_A], frame_lists=str(table))
    assert {t.serial: len(t.frame_ids) for t in again.index.tracks} == {s: 9 for s in SERIALS if s != "104422071041"}
    next((root / "anno_preview").glob("scene_02*")).write_bytes(b"broken")
    again = _open(root, frame_lists=str(table))
    assert "not a readable pickle" in again.index.left_out[KEY_B]
    table.write_bytes(b"PK broken")
    with pytest.raises(SourceError, match=r"frames\.npz.*remove it"):
        _open(root, frame_lists=str(table))


def test_08_names_with_plus_signs_slashes_and_browser_escapes(tree):
    """Pitfalls 7 and 8."""
    root, _, _ = tree
    token = KEY_B.replace("/", "++")
    for spelling in (KEY_B, token, token.replace("+", "%2B")):
        assert seq_key_of(spelling) == KEY_B
        source = _open(root, sequences=[spelling])
        assert len(source) == 6
        assert source.item(0).sample.key == f"oakink2/{KEY_B.lower()}/allocentric_left/000100"
        assert source.item(0).sample.source.group == KEY_B


def test_items_are_the_same_in_any_order_and_process(tree):
    root, _, _ = tree
    one, other = _open(root), _open(root)
    picks = [0, len(one) - 1, 3, 20, 1]
    forwards = {i: one.item(i) for i in picks}
    for i in reversed(picks):
        again = other.item(i)
        assert sample_to_json(again.sample) == sample_to_json(forwards[i].sample)
        assert again.image == forwards[i].image
        assert sample_from_json(sample_to_json(again.sample)) == again.sample
    with pytest.raises(SourceError, match="item"):
        one.item(len(one))


def test_14_missing_cameras_are_warned_about_and_counted(tree):
    """Pitfall 14."""
    root, _, _ = tree
    with pytest.warns(UserWarning, match=r"oakink2: 1 sequences have no images of some cameras .*egocentric"):
        source = _open(root)
    assert source.index.missing_cameras == {KEY_B: ("104422070904", "104422070969")}
    assert len(source) == 4 * 12 + 2 * 3


def test_sequences_without_annotation_or_images_are_left_out_with_the_reason(tree, tmp_path):
    root = _copy(tree[0], tmp_path)
    (root / "data" / "scene_03__A001++seq__x" / "104422071041").mkdir(parents=True)
    write_annotation(root / "anno_preview" / "scene_03__A001++seq__x.pkl", {})
    next((root / "anno_preview").glob("scene_02*")).unlink()
    with pytest.warns(UserWarning, match="2 sequences are left out"):
        source = _open(root)
    assert source.index.left_out == {KEY_B: "no annotation file", "scene_03__A001/seq__x": "no images"}


def test_clips_are_whole_and_gap_free(tree):
    ids = np.array([1, 5, 9, 13, 21, 25, 29, 33, 37])
    assert whole_clips(ids, 2).tolist() == [1, 5, 9, 13, 21, 25, 29, 33]
    assert whole_clips(ids, 4).tolist() == [1, 5, 9, 13, 21, 25, 29, 33]
    assert whole_clips(ids, 49).tolist() == []
    assert whole_clips(np.arange(3, 3 + 4 * 100, 4), 49).tolist() == list(range(3, 3 + 4 * 98, 4))
    assert whole_clips(np.array([], np.int64), 49).tolist() == []
    root, _, _ = tree
    source = _open(root, sequences=[KEY_A], cameras=["egocentric"], clip_frames=3)
    assert source.index.tracks[0].frame_ids.tolist() == [9, 13, 17, 25, 29, 33, 37, 41, 45, 49, 53, 57][:12]
    assert "clip: 1, frame 1 of 3" in source.item(4).sample.source.notes
    with pytest.raises(ConfigError, match="no image is left"):
        _open(root, clip_frames=49)


def test_splits_go_by_sequence(tree, tmp_path):
    root, _, _ = tree
    names = [f"scene_01__A001/seq__{i:020x}__2023-04-27-20-38-16" for i in range(4000)]
    shares = {s: sum(hashed_split(n) == s for n in names) / len(names) for s in ("train", "val", "test")}
    assert shares["train"] == pytest.approx(0.69, abs=0.025)
    assert shares["val"] == pytest.approx(0.06, abs=0.015)
    assert hashed_split(KEY_A) == hashed_split(seq_key_of(KEY_A.replace("/", "++")))
    (tmp_path / "lists.json").write_text(json.dumps({"train": [KEY_A], "test": [KEY_B.replace("/", "++")]}))
    train = _open(root, split="train", split_list=str(tmp_path / "lists.json"))
    test = _open(root, split="test", split_list=str(tmp_path / "lists.json"))
    assert {t.seq_key for t in train.index.tracks} == {KEY_A}
    assert {t.seq_key for t in test.index.tracks} == {KEY_B}
    assert test.item(0).sample.source.split == "test"
    (tmp_path / "list.txt").write_text(f"# mine\n{KEY_B.replace('/', '++')}\n\n")
    assert read_list(tmp_path / "list.txt", "all") == {KEY_B}
    with pytest.raises(ConfigError, match="no list 'val', only train, test"):
        read_list(tmp_path / "lists.json", "val")
    whole = [len(_open_or_none(root, split)) for split in ("train", "val", "test")]
    assert sum(whole) == len(_open(root))


def _open_or_none(root, split):
    try:
        return _open(root, split=split)
    except ConfigError:
        return ()


def test_options_that_make_no_sense_are_named(tree):
    root, _, _ = tree
    with pytest.raises(ConfigError) as caught:
        _open(root, split="trian", cameras=["egocentrc"], clip_frames=49, every=2)
    assert "did you mean 'train'" in str(caught.value)
    assert "did you mean 'egocentric'" in str(caught.value)
    assert "cannot be joined" in str(caught.value)
    with pytest.raises(AssetMissing, match=r"no such folder.*huggingface"):
        _open(root / "nowhere")


# ------------------------------------------------------------------------------------------------- images and programme


def test_07_jpeg_bytes_are_copied_and_png_is_encoded_once(tree):
    """Pitfall 7."""
    root, _, _ = tree
    source = _open(root, sequences=[KEY_A])
    item = source.item(0)
    raw = (source.index.tracks[0].folder / "000009.jpg").read_bytes()
    assert item.image == raw
    assert item.sample.source.image_sha256 == hashlib.sha256(raw).hexdigest()
    source = _open(root, sequences=[KEY_B])
    png = (source.index.tracks[0].folder / "000100.png").read_bytes()
    item = source.item(0)
    assert item.sample.source.image_sha256 == hashlib.sha256(png).hexdigest()
    assert item.image[:2] == b"\xff\xd8"
    decoded, original = (cv2.imdecode(np.frombuffer(d, np.uint8), cv2.IMREAD_COLOR) for d in (item.image, png))
    assert np.abs(decoded.astype(int) - original).mean() < 2.0
    frame = re.search(rb"\xff[\xc0\xc2]..\x08....\x03(.{9})", item.image, re.DOTALL)
    assert frame is not None
    assert [frame[1][i] for i in (1, 4, 7)] == [0x11] * 3  # sampling factors: 4:4:4
    assert _open(root, sequences=[KEY_B], keep_png=True).item(0).image == png


def test_broken_images_are_named(tree, tmp_path):
    root = _copy(tree[0], tmp_path)
    source = _open(root)
    jpg = source.index.tracks[0].folder / "000009.jpg"
    png = source.index.tracks[-1].folder / "000108.png"
    for path, index in ((jpg, 0), (png, len(source) - 1)):
        whole = path.read_bytes()
        for broken in (whole[: len(whole) // 2], b"", b"GIF89a", whole[:20]):
            path.write_bytes(broken)
            with pytest.raises(SourceError, match=path.name):
                source.item(index)
        path.write_bytes(whole)
        source.item(index)
    small = cv2.imencode(".jpg", np.zeros((120, 160, 3), np.uint8))[1].tobytes()
    jpg.write_bytes(small)
    with pytest.raises(SourceError, match="160 × 120 do not fit the intrinsics"):
        source.item(0)


def test_11_idle_hands_and_text_come_from_the_programme(tree):
    """Pitfalls 11 and 13; intervals leave their end out, and each hand has its own."""
    root, _, _ = tree
    source = _open(root, sequences=[KEY_A], cameras=["allocentric_top"])
    at = {int(f): source.item(k).sample for k, f in enumerate(source.index.tracks[0].frame_ids) if f not in (49, 57)}
    holds, pours = "left hand: hold C12001", "left hand: pour O02@0015@00001"
    assert at[9].text == "Hold the bowl."
    assert at[9].source.notes[:3] == ("task: Make tea.", holds, "right hand: idle")
    assert at[17].source.notes[1] == holds + ", pour O02@0015@00001"
    assert at[17].text == "Hold the bowl. Pour the tea."
    assert at[25].source.notes[1:3] == (pours, "right hand: pour O02@0015@00001")
    assert at[29].source.notes[1:3] == ("left hand: idle", "right hand: pour O02@0015@00001")
    assert at[37].source.notes[1:3] == ("left hand: idle", "right hand: idle")
    assert at[37].text == "Make tea."
    assert len(at[37].hands) == 2  # annotated all the same
    active = _open(root, sequences=[KEY_A], cameras=["allocentric_top"], frames="active")
    assert active.index.tracks[0].frame_ids.tolist() == [9, 13, 17, 25, 29, 33]
    other = _open(root, sequences=[KEY_B]).item(0).sample
    assert other.text == "Brush the board."
    assert "programme: none, idle hands are not known" in other.source.notes


def test_unknown_programme_entries_are_reported(tree, tmp_path):
    programme = read_programme(tree[0] / "program", KEY_A, "Make tea.")
    assert programme.unknown == ("(None, (41, 45))",)
    assert [p.name for p in programme.primitives] == ["hold", "pour"]
    assert programme.primitives[1].intervals == {"left": (17, 29), "right": (25, 37)}
    assert programme.order == ((0, 1),)
    (tmp_path / "program_info").mkdir()
    path = tmp_path / "program_info" / f"{KEY_A.replace('/', '++')}.json"
    path.write_text('{"__import__(\'os\')": {}, "(None, None)": {}, "((5, 2), None)": {}, "((1, 2), None)": 7}')
    assert len(read_programme(tmp_path, KEY_A).unknown) == 4
    path.write_text("{")
    with pytest.raises(SourceError, match="not JSON"):
        read_programme(tmp_path, KEY_A)


# --------------------------------------------------------------------------------------------------------- without MANO


def test_without_mano_hands_are_left_out_and_wrists_are_noted(tree, monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)
    root, a, _ = tree
    with pytest.warns(UserWarning, match="no MANO files"):
        source = _open(root, sequences=[KEY_A], mano_dir="")
    assert source.hand_assets() == {}
    sample = source.item(0).sample
    assert sample.hands == ()
    assert len(sample.objects) == 3
    E = a.E["allocentric_left"][9]
    notes = {n.split()[0]: n for n in sample.source.notes if "wrist_cam_m" in n}
    for side in ("left", "right"):
        got = [float(x) for x in notes[side].partition("wrist_cam_m: ")[2].split()]
        np.testing.assert_allclose(got, E[:3, :3] @ a.tsl[side[0] + "h"][9] + E[:3, 3], atol=2e-6)


# ---------------------------------------------------------------------------------------------------------- conversions


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


# -------------------------------------------------------------------------------------------------------------- pickles


@pytest.mark.parametrize("protocol", range(6))
def test_09_tensors_of_every_kind_come_back_without_torch(tmp_path, protocol):
    """Pitfall 9."""
    base = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    tensors = [base, base[1:, ::2], base.T, torch.zeros(0, 3), torch.tensor(2.5), torch.ones(2, 2, requires_grad=True),
               torch.arange(3), torch.tensor([True, False]), torch.ones(3, dtype=torch.float16),
               torch.ones(1).expand(4)]  # fmt: skip
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"t": tensors, "same": [base, base]}, protocol))
    back = load_tensor_pickle(tmp_path / "t.pkl")
    for got, want in zip(back["t"], tensors, strict=True):
        np.testing.assert_array_equal(got.array(), want.detach().numpy())
        assert got.array().dtype == want.detach().numpy().dtype
    assert back["same"][0] is back["same"][1]


class Evil:
    def __init__(self, call, *args):
        self.parts = (call, args)

    def __reduce__(self):
        return self.parts


def test_09_hostile_pickles_are_refused_and_run_nothing(tree, tmp_path):
    """Pitfall 9: in the file itself, in place of a storage, and in the pickle inside a storage."""
    root = _copy(tree[0], tmp_path)
    path = next((root / "anno_preview").glob("scene_01*"))
    honest = path.read_bytes()
    marker = tmp_path / "ran"
    annotation = annotation_of(tree[1], as_torch=True)
    annotation["extra"] = Evil(os.system, f"touch {marker}")
    write_annotation(path, annotation)
    with pytest.raises(UnsafeInput, match=rf"{re.escape(path.name)}.*system"):
        _open(root, sequences=[KEY_A]).item(0)
    inner = pickle.dumps(Evil(os.system, f"touch {marker}"), 2)
    annotation = annotation_of(tree[1], as_torch=True)
    annotation["raw_mano"][9]["rh__tsl"] = Evil(
        torch._utils._rebuild_tensor_v2, Evil(torch.storage._load_from_bytes, inner), 0, (1, 3), (3, 1), False, {}
    )
    write_annotation(path, annotation)
    with pytest.raises(UnsafeInput, match=rf"{re.escape(path.name)}.*right hand, frame 9, tsl.*system"):
        _open(root, sequences=[KEY_A]).item(0)
    for foreign in (torch.nn.Linear, torch.load, torch._utils._rebuild_parameter, eval):
        annotation["extra"] = foreign
        write_annotation(path, annotation)
        with pytest.raises(UnsafeInput):
            read_annotation(path)
    assert not marker.exists()
    path.write_bytes(honest)
    assert len(_open(root, sequences=[KEY_A]).item(0).sample.hands) == 2


@pytest.mark.parametrize("change", [(0, (1, 4), (4, 1)), (1, (1, 3), (3, 1)), (-1, (1, 3), (3, 1)), (0, (9**9,), (0,))])
def test_tensors_that_reach_outside_their_storage_are_refused(tmp_path, change):
    storage = torch.zeros(3).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    forged = Evil(torch._utils._rebuild_tensor_v2, typed, *change, False, {})
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"t": forged}))
    with pytest.raises(SourceError):
        to_array(load_tensor_pickle(tmp_path / "t.pkl")["t"], (1, 3), "t")


def test_damaged_annotations_are_named(tree, tmp_path):
    path = tmp_path / "anno.pkl"
    write_annotation(path, annotation_of(tree[1], as_torch=True))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(whole) - 1, 12):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=r"anno\.pkl"):
            read_annotation(path)
    for content, what in (([1], "list"), ({}, "cam_def"), ({"cam_def": 3}, "raw_mano")):
        write_annotation(path, content)
        with pytest.raises(SourceError, match=what):
            read_annotation(path)
    annotation = annotation_of(tree[1], as_torch=False)
    write_annotation(path, {**annotation, "obj_list": ["../../etc"]})
    with pytest.raises(SourceError, match="is no object id"):
        read_annotation(path)
    with pytest.raises(SourceError, match="no such annotation"):
        read_annotation(tmp_path / "none.pkl")


def test_a_bad_part_costs_its_frame_only(tree, tmp_path):
    """NaN, wrong shape, a zero quaternion, a scaled pose, a missing entry: named, and other frames stay usable."""
    root = _copy(tree[0], tmp_path)
    annotation = annotation_of(tree[1], as_torch=True)
    mano = annotation["raw_mano"]
    mano[9]["rh__tsl"][0, 1] = float("nan")
    mano[13]["lh__pose_coeffs"] = torch.zeros(1, 16, 4)
    mano[17]["rh__betas"] = torch.zeros(10)
    del mano[25]["lh__tsl"]
    del mano[29]
    annotation["cam_extr"]["allocentric_top"][33] = np.eye(4) * 2.0
    annotation["obj_transf"]["C12001"][37] = np.full((4, 4), np.nan)
    del annotation["obj_transf"]["O02@0015@00001"]
    write_annotation(next((root / "anno_preview").glob("scene_01*")), annotation)
    source = _open(root, sequences=[KEY_A], cameras=["allocentric_top"])
    number = _by_name(source)
    for frame, left, why in ((9, "left", "NaN"), (13, "right", "unit quaternions"), (17, "left", "shape"),
                             (25, "right", "lh__tsl is missing")):  # fmt: skip
        sample = source.item(number["104422071041", frame]).sample
        assert [h.side for h in sample.hands] == [left]
        assert any(n.startswith("left out: ") and why in n for n in sample.source.notes)
        assert not any(str(tmp_path) in n for n in sample.source.notes)
    with pytest.raises(LeftOut, match=r"no hand can be used.*frame 29"):
        source.item(number["104422071041", 29])
    with pytest.raises(SourceError, match="allocentric_top, frame 33, extrinsics: not a rigid"):
        source.item(number["104422071041", 33])
    assert [o.valid for o in source.item(number["104422071041", 37]).sample.objects] == [False, False, True]
    assert len(source.item(number["104422071041", 41]).sample.hands) == 2


def test_05_the_sequences_own_table_of_cameras_decides(tree, tmp_path):
    """Pitfall 5: the sequence's own table of cameras decides, not the usual one."""
    root = _copy(tree[0], tmp_path)
    annotation = annotation_of(tree[1], as_torch=True)
    annotation["cam_def"] = {"104422071041": "egocentric", "104422070969": "allocentric_top"}
    write_annotation(next((root / "anno_preview").glob("scene_01*")), annotation)
    source = _open(root, sequences=[KEY_A])
    number = _by_name(source)
    sample = source.item(number["104422071041", 9]).sample
    assert sample.key.split("/")[3] == "egocentric"
    np.testing.assert_allclose(sample.camera.T_world_cam, np.linalg.inv(tree[1].E["egocentric"][9]), atol=1e-6)
    with pytest.raises(SourceError, match="no camera of serial 104422070088"):
        source.item(number["104422070088", 9])


def test_15_a_sequence_is_read_once_and_forgotten(tree, monkeypatch):
    """Pitfall 15: annotation files are opened one by one, when an item needs them, never all at opening."""
    from pam_aug.converters import oakink2

    root, _, _ = tree
    reads = []
    read = oakink2.read_annotation
    monkeypatch.setattr(oakink2, "read_annotation", lambda path: reads.append(path) or read(path))
    source = _open(root)
    assert reads == []
    for i in (0, 5, len(source) - 1, 1):
        source.item(i)
    assert len(reads) == 2


# ---------------------------------------------------------------------------------------------------------- real files


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


def _copy(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "tree"))
