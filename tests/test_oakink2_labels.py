"""OAKINK2: a small tree of our own making against slow computations from what its files say; pitfalls by number."""

import hashlib
import re
import shutil

import cv2
import numpy as np
import pytest
from fake_oakink2 import HEIGHT, KEY_A, KEY_B, PARTS, SERIALS, WIDTH, annotation_of, write_annotation
from oakink2_tree import by_name, copy_tree, open_oakink2, written_tree  # noqa: F401
from scipy.spatial.transform import Rotation

from pam_aug.converters.oakink2 import OakInk2
from pam_aug.converters.oakink2_program import read_programme
from pam_aug.errors import AssetMissing, SourceError
from pam_aug.hand import load_open_hand
from pam_aug.hand.joints import TIP_SETS
from pam_aug.rollouts.scene import build_scene

pytestmark = pytest.mark.filterwarnings("ignore:oakink2")


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


@pytest.mark.parametrize(("name", "frame"), [("allocentric_top", 13), ("egocentric", 33), ("allocentric_left", 45)])
def test_labels_are_what_the_files_say(tree, name, frame):
    """Pitfalls 1 to 6: world→camera, wxyz, wrist translation, ids, names and serials, a head camera that moves."""
    root, a, _ = tree
    source = open_oakink2(root, sequences=[KEY_A])
    serial = next(s for s, n in SERIALS.items() if n == name)
    sample = source.item(by_name(source)[serial, frame]).sample
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
    source = open_oakink2(root, sequences=[KEY_A])
    worlds = []
    for serial in SERIALS:
        sample = source.item(by_name(source)[serial, 29]).sample
        T = np.asarray(sample.camera.T_world_cam, np.float64)
        worlds.append([np.asarray(h.joints_cam_m, np.float64) @ T[:3, :3].T + T[:3, 3] for h in sample.hands])
    assert np.ptp(np.array(worlds), axis=0).max() <= 1e-6


def _at(source: OakInk2, name: str, frame: int):
    serial = next(s for s, n in SERIALS.items() if n == name)
    return source.item(by_name(source)[serial, frame]).sample


def test_01_extrinsics_go_from_world_to_camera(tree):
    root, a, _ = tree
    sample, E = _at(open_oakink2(root, sequences=[KEY_A]), "allocentric_top", 17), a.E["allocentric_top"][17]
    np.testing.assert_allclose(sample.camera.T_world_cam @ E, np.eye(4), atol=1e-6)
    assert np.abs(sample.camera.T_world_cam - E).max() > 0.1  # the other direction would have shown


def test_02_quaternions_have_w_first(tree):
    root, a, _ = tree
    for hand in _at(open_oakink2(root, sequences=[KEY_A]), "allocentric_left", 25).hands:
        quats = a.quats[hand.side[0] + "h"][25]
        turns = Rotation.from_quat(np.roll(quats, -1, axis=1)).as_matrix()[1:]
        np.testing.assert_allclose(Rotation.from_rotvec(hand.hand_pose.reshape(15, 3)).as_matrix(), turns, atol=1e-6)
        assert np.abs(Rotation.from_quat(quats).as_matrix()[1:] - turns).max() > 0.1


def test_03_tsl_is_the_wrist(tree):
    root, a, _ = tree
    sample = _at(open_oakink2(root, sequences=[KEY_A]), "allocentric_right", 37)
    for hand in sample.hands:
        wrist_world = sample.camera.T_world_cam.astype(float) @ [*hand.joints_cam_m[0], 1.0]
        np.testing.assert_allclose(wrist_world[:3], a.tsl[hand.side[0] + "h"][37], atol=1e-6)
        assert np.linalg.norm(hand.transl - hand.joints_cam_m[0]) > 0.02  # smplx's translation is another point


def test_05_the_sequences_own_table_of_cameras_decides(tree, tmp_path):
    """Pitfall 5: the sequence's own table of cameras decides, not the usual one."""
    root = copy_tree(tree[0], tmp_path)
    annotation = annotation_of(tree[1], as_torch=True)
    annotation["cam_def"] = {"104422071041": "egocentric", "104422070969": "allocentric_top"}
    write_annotation(next((root / "anno_preview").glob("scene_01*")), annotation)
    source = open_oakink2(root, sequences=[KEY_A])
    number = by_name(source)
    sample = source.item(number["104422071041", 9]).sample
    assert sample.key.split("/")[3] == "egocentric"
    np.testing.assert_allclose(sample.camera.T_world_cam, np.linalg.inv(tree[1].E["egocentric"][9]), atol=1e-6)
    with pytest.raises(SourceError, match="no camera of serial 104422070088"):
        source.item(number["104422070088", 9])


def test_06_the_head_camera_moves_and_the_others_do_not(tree):
    root, a, _ = tree
    source = open_oakink2(root, sequences=[KEY_A])
    for name in SERIALS.values():
        first, later = (_at(source, name, f).camera.T_world_cam for f in (9, 45))
        assert (np.abs(first - later).max() > 1e-3) == (name == "egocentric")
        np.testing.assert_allclose(later, np.linalg.inv(a.E[name][45]), atol=1e-6)


def test_07_jpeg_bytes_are_copied_and_png_is_encoded_once(tree):
    """Pitfall 7."""
    root, _, _ = tree
    source = open_oakink2(root, sequences=[KEY_A])
    item = source.item(0)
    raw = (source.index.tracks[0].folder / "000009.jpg").read_bytes()
    assert item.image == raw
    assert item.sample.source.image_sha256 == hashlib.sha256(raw).hexdigest()
    source = open_oakink2(root, sequences=[KEY_B])
    png = (source.index.tracks[0].folder / "000100.png").read_bytes()
    item = source.item(0)
    assert item.sample.source.image_sha256 == hashlib.sha256(png).hexdigest()
    assert item.image[:2] == b"\xff\xd8"
    decoded, original = (cv2.imdecode(np.frombuffer(d, np.uint8), cv2.IMREAD_COLOR) for d in (item.image, png))
    assert np.abs(decoded.astype(int) - original).mean() < 2.0
    frame = re.search(rb"\xff[\xc0\xc2]..\x08....\x03(.{9})", item.image, re.DOTALL)
    assert frame is not None
    assert [frame[1][i] for i in (1, 4, 7)] == [0x11] * 3  # sampling factors: 4:4:4
    assert open_oakink2(root, sequences=[KEY_B], keep_png=True).item(0).image == png


def test_10_the_world_with_y_up_is_kept(tree):
    """Pitfall 10: no axis is swapped on the way; a point above another in the file's y is above it in ours."""
    root, a, _ = tree
    sample = open_oakink2(root, sequences=[KEY_A]).item(0).sample
    T = np.asarray(sample.camera.T_world_cam, np.float64)
    wrists = {h.side: T[:3, :3] @ h.joints_cam_m[0] + T[:3, 3] for h in sample.hands}
    np.testing.assert_allclose(wrists["left"][1] - wrists["right"][1], a.tsl["lh"][9][1] - a.tsl["rh"][9][1], atol=1e-6)


def test_11_idle_hands_and_text_come_from_the_programme(tree):
    """Pitfalls 11 and 13; intervals leave their end out, and each hand has its own."""
    root, _, _ = tree
    source = open_oakink2(root, sequences=[KEY_A], cameras=["allocentric_top"])
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
    active = open_oakink2(root, sequences=[KEY_A], cameras=["allocentric_top"], frames="active")
    assert active.index.tracks[0].frame_ids.tolist() == [9, 13, 17, 25, 29, 33]
    other = open_oakink2(root, sequences=[KEY_B]).item(0).sample
    assert other.text == "Brush the board."
    assert "programme: none, idle hands are not known" in other.source.notes


def test_12_parts_are_objects_with_poses_of_their_own(tree):
    """Pitfall 12."""
    root, a, _ = tree
    source = open_oakink2(root, sequences=[KEY_A], meshes="repair")
    item = source.item(by_name(source)["104422070969", 17])
    assert [o.id for o in item.sample.objects] == list(PARTS)
    assert [o.seg_id for o in item.sample.objects] == [16, 17, 18]
    for o in item.sample.objects:
        np.testing.assert_allclose(o.T_cam_obj, a.E["egocentric"][17] @ a.poses[o.id][17], atol=1e-6)
        assert o.mesh == f"object_repair/align_ds/{o.id}/{o.id}.obj"
        assert o.valid
    scene = build_scene(item, source.hand_assets())
    assert [m.mesh.vertices_m.shape for m in scene.objects] == [(4, 3)] * 3
    np.testing.assert_allclose(scene.hands[0].joints_cam_m, item.sample.hands[0].joints_cam_m, atol=1e-6)


def test_13_intervals_are_the_text_of_python_tuples(tree):
    programme = read_programme(tree[0] / "program", KEY_A)
    assert [dict(p.intervals) for p in programme.primitives] == [
        {"left": (9, 20)},
        {"left": (17, 29), "right": (25, 37)},
    ]
    assert programme.active("left", 9)
    assert not programme.active("left", 29)  # ends are left out


def test_a_missing_mesh_is_named_when_it_is_drawn_only(tree, tmp_path):
    root = copy_tree(tree[0], tmp_path)
    shutil.rmtree(root / "object_raw" / "align_ds" / "C12001")
    source = open_oakink2(root, sequences=[KEY_A])
    item = source.item(0)
    with pytest.raises(AssetMissing, match="C12001"):
        build_scene(item, source.hand_assets())


def test_without_mano_hands_are_left_out_and_wrists_are_noted(tree, monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)
    root, a, _ = tree
    with pytest.warns(UserWarning, match="no MANO files"):
        source = open_oakink2(root, sequences=[KEY_A], mano_dir="")
    assert source.hand_assets() == {}
    sample = source.item(0).sample
    assert sample.hands == ()
    assert len(sample.objects) == 3
    E = a.E["allocentric_left"][9]
    notes = {n.split()[0]: n for n in sample.source.notes if "wrist_cam_m" in n}
    for side in ("left", "right"):
        got = [float(x) for x in notes[side].partition("wrist_cam_m: ")[2].split()]
        np.testing.assert_allclose(got, E[:3, :3] @ a.tsl[side[0] + "h"][9] + E[:3, 3], atol=2e-6)
