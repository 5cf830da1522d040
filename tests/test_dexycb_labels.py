"""DexYCB: labels that are exact, against slow computations, and one test per pitfall of the format."""

import shutil

import numpy as np
import pytest
import torch
from dexycb_tree import all_items, copied_tree, labels_path, no_mano_by_environment, open_dexycb, rewrite, written_tree  # noqa: F401
from fake_dexycb import FRAMES, LOST_OBJECT, MASTER, NO_HAND, OUT_OF_VIEW, SERIALS, TIPS, YCB

from pam_aug.converters.dexycb_labels import read_frame
from pam_aug.errors import AssetMissing, SourceError
from pam_aug.hand import HandLayer, load_mano, mano_model_name
from pam_aug.rollouts.scene import build_scene
from pam_aug.schema import sample_from_json, sample_to_json


def _world(item) -> np.ndarray:
    T = item.sample.camera.T_world_cam.astype(float)
    return item.sample.hands[0].joints_cam_m.astype(float) @ T[:3, :3].T + T[:3, 3]


def test_labels_are_the_independently_computed_ones(fake, items):
    for (name, serial, f), item in items.items():
        s = next(s for s in fake.sequences if s.name == name)
        hand, camera = item.sample.hands[0], item.sample.camera
        T_cam_world = np.linalg.inv(fake.T_world_cam[s.subject, serial])
        expected = s.joints_world_m[f] @ T_cam_world[:3, :3].T + T_cam_world[:3, 3]
        np.testing.assert_allclose(hand.joints_cam_m, expected, atol=1e-6)
        assert (hand.side, hand.tips, hand.hand_model, hand.mano_valid, hand.pose_mean) == (
            *(s.side, "manopth", "mano_as_file" if s.side == "left" else "mano", True, "exact"),
        )
        rays = expected @ fake.K_px[serial].T
        np.testing.assert_allclose(hand.joints_px, rays[:, :2] / rays[:, 2:], atol=1e-3)
        np.testing.assert_array_equal(camera.K_px, fake.K_px[serial].astype(np.float32))
        assert (camera.width, camera.height) == (640, 480)
        assert sample_from_json(sample_to_json(item.sample)) == item.sample
    assert len(items) == 3 * 8 * (FRAMES - 1)


def test_the_converted_parameters_give_the_datasets_joints_on_both_sides(fake, items):
    worst = {"right": 0.0, "left": 0.0}
    converter = open_dexycb(fake)
    for side in worst:
        layer = HandLayer(
            converter.hand_assets()[f"{mano_model_name(side, 'as_file')}/{side}"], dtype=torch.float64, tips="manopth"
        )
        hands = [item.sample.hands[0] for item in items.values() if item.sample.hands[0].side == side]
        rows = [
            torch.from_numpy(np.stack([getattr(h, name) for h in hands]).astype(float))
            for name in ("global_orient", "hand_pose", "betas", "transl")
        ]
        off = layer(*rows).joints21.numpy() - np.stack([h.joints_cam_m for h in hands])
        worst[side] = float(np.linalg.norm(off, axis=-1).max())
    assert max(worst.values()) < 1e-5
    left = items[fake.sequences[1].name, SERIALS[0], 1]
    scene = build_scene(left, converter.hand_assets())
    np.testing.assert_allclose(
        scene.hands[0].verts_cam_m[list(TIPS["left"])], left.sample.hands[0].joints_cam_m[[4, 8, 12, 16, 20]], atol=1e-5
    )


def test_02_extrinsics_go_from_camera_to_world(fake, items):
    for s in fake.sequences:
        for f in s.joints_world_m if s.position != 4 else ():
            worlds = [_world(items[s.name, serial, f]) for serial in SERIALS]
            for world in worlds:
                np.testing.assert_allclose(world, s.joints_world_m[f], atol=1e-6)
            master = items[s.name, SERIALS[MASTER], f].sample
            np.testing.assert_array_equal(master.camera.T_world_cam, np.eye(4, dtype=np.float32))
            apart = items[s.name, SERIALS[0], f].sample.hands[0].joints_cam_m - master.hands[0].joints_cam_m
            assert np.abs(apart).max() > 0.01


def test_03_up_comes_from_the_tag(fake, items):
    for (name, serial, _), item in items.items():
        s = next(s for s in fake.sequences if s.name == name)
        up_world = fake.T_world_cam[s.subject, "apriltag"][:3, 2]
        note = next(n for n in item.sample.source.notes if n.startswith("up in the camera frame"))
        up = np.array([float(v) for v in note.split(": ")[1].split()])
        np.testing.assert_allclose(up, fake.T_world_cam[s.subject, serial][:3, :3].T @ up_world, atol=1e-5)


def test_04_absent_is_minus_one_for_joints_and_zero_for_poses(fake, copy):
    label = dict(np.load(labels_path(copy)))
    label["joint_3d"][0, 3, 0] = label["joint_2d"][0, 3, 0] = -1  # one such value is a coordinate, not a marker
    rewrite(labels_path(copy), label)
    assert read_frame(labels_path(copy), 3) is not None
    label["joint_3d"][:] = -1
    rewrite(labels_path(copy), label)
    assert read_frame(labels_path(copy), 3) is None
    with pytest.raises(SourceError, match=r"labels_000001.npz: has no hand, and pose.npz"):
        open_dexycb(copy, mano=False).item(0)
    assert read_frame(labels_path(fake, frame=NO_HAND), 3) is None


def test_05_45_coefficients_become_an_absolute_pose_with_the_sides_own_basis(fake, items):
    for (name, _, f), item in items.items():
        s = next(s for s in fake.sequences if s.name == name)
        np.testing.assert_allclose(item.sample.hands[0].hand_pose, s.absolute_pose[f], atol=1e-6)
    right, left = (load_mano(fake.mano_dir, side) for side in ("right", "left"))
    assert np.abs(right.hands_mean - left.hands_mean).max() > 0.1  # the wrong side would have shown


def test_06_the_translation_is_not_the_wrist(fake, items):
    hands = {side: load_mano(fake.mano_dir, side, left_shapedirs="as_file") for side in TIPS}
    for (name, _, _), item in items.items():
        s = next(s for s in fake.sequences if s.name == name)
        hand, assets = item.sample.hands[0], hands[s.side]
        J0 = (assets.J_regressor @ (assets.v_template + assets.shapedirs @ fake.betas[s.subject]))[0]
        np.testing.assert_allclose(hand.transl + J0, hand.joints_cam_m[0], atol=1e-6)
        assert np.linalg.norm(hand.transl - hand.joints_cam_m[0]) > 0.05
        np.testing.assert_array_equal(hand.betas, fake.betas[s.subject].astype(np.float32))


def test_07_the_left_shape_directions_stay_as_in_the_file(fake, items):
    converter = open_dexycb(fake)
    right, left = (converter.hand_assets()[f"{mano_model_name(side, 'as_file')}/{side}"] for side in ("right", "left"))
    np.testing.assert_array_equal(left.shapedirs, right.shapedirs)
    fixed = load_mano(fake.mano_dir, "left", left_shapedirs="fixed")
    assert np.abs(fixed.shapedirs - left.shapedirs).max() > 1e-3
    notes = {i.sample.hands[0].side: i.sample.source.notes for i in items.values()}
    assert "left shape directions as in the file" in notes["left"]
    assert "left shape directions as in the file" not in notes["right"]


def test_08_depth_0_and_65535_are_no_depth(fake):
    depth = open_dexycb(fake, mano=False, frames=1).depth_m(0)
    assert (depth.shape, depth.dtype) == ((480, 640), np.float32)
    np.testing.assert_array_equal(depth[0, :3], np.float32([0, 0, 0.9]))


def test_09_frames_without_a_hand_are_left_out_and_views_have_their_own_in_view(fake, items):
    converter = open_dexycb(fake)
    assert not any(frame == NO_HAND for _, _, frame in items)
    assert converter.index.counts == {"images": 144, "without a hand label": 24, "between strides": 0}
    assert converter.notes == ("s0/train: 120 images to convert of 144; left out: 24 without a hand label",)
    name = fake.sequences[0].name
    outside, inside = (items[name, SERIALS[MASTER], f].sample.hands[0] for f in (OUT_OF_VIEW, 1))
    assert not outside.in_view.any()
    assert outside.joints_px[:, 0].max() < -0.5  # not clipped
    assert inside.in_view.all()


def test_10_objects_have_matrices_and_their_own_validity(fake, items):
    for (name, serial, f), item in items.items():
        s = next(s for s in fake.sequences if s.name == name)
        T_cam_world = np.linalg.inv(fake.T_world_cam[s.subject, serial])
        for o in item.sample.objects:
            row = s.ycb_ids.index(next(i for i, n in YCB.items() if n == o.id))
            assert o.valid == ((f, row) in s.T_world_obj) == (not (f == LOST_OBJECT and row == 0))
            assert o.seg_id == 15 + s.ycb_ids[row]
            if o.valid:
                np.testing.assert_allclose(o.T_cam_obj, T_cam_world @ s.T_world_obj[f, row], atol=1e-6)


def test_12_the_grasped_object_of_meta_comes_first(fake, items):
    for s in fake.sequences:
        if s.position != 4:
            sample = items[s.name, SERIALS[0], 1].sample
            assert sample.objects[0].id == YCB[s.ycb_ids[s.grasped]]
            assert [o.id for o in sample.objects[1:]] == [YCB[i] for k, i in enumerate(s.ycb_ids) if k != s.grasped]
            assert f"grasped: {sample.objects[0].id}" in sample.source.notes


def test_13_the_colour_intrinsics_hold_for_the_aligned_depth_too(fake, items):
    for (_, serial, _), item in items.items():
        np.testing.assert_array_equal(item.sample.camera.K_px, fake.K_px[serial].astype(np.float32))
        assert item.sample.camera.K_px[0, 0] > 600  # the files have 380 for the depth camera
    assert open_dexycb(fake, mano=False, frames=1).depth_m(0).shape == (480, 640)  # the colour image's pixels


def test_14_no_distortion_and_no_timestamps(items):
    for item in items.values():
        hand, K = item.sample.hands[0], item.sample.camera.K_px.astype(float)
        rays = hand.joints_cam_m.astype(float) @ K.T
        np.testing.assert_allclose(hand.joints_px, rays[:, :2] / rays[:, 2:], atol=1e-3)  # a plain pinhole
        assert "25 fps nominal, the source has no timestamps" in item.sample.source.notes


def test_15_each_camera_has_its_own_intrinsics(items):
    assert len({item.sample.camera.K_px.tobytes() for item in items.values()}) == 8


def test_16_one_hand_is_labelled_whatever_else_is_visible(items):
    assert {len(item.sample.hands) for item in items.values()} == {1}


def test_segmentation_takes_this_librarys_ids(fake):
    for side, hand_id in (("right", 1), ("left", 2)):
        converter = open_dexycb(fake, mano=False, sides=side, subjects=[1])
        s = next(s for s in fake.sequences if s.side == side)
        seg = converter.seg(0)
        assert seg[0, 0] == hand_id
        assert seg[10, 0] == converter.item(0).sample.objects[0].seg_id == 15 + s.ycb_ids[s.grasped]
        assert seg[20, 0] == 0


def test_names_licence_and_split_are_recorded(fake, items):
    for (name, serial, f), item in items.items():
        s = next(s for s in fake.sequences if s.name == name)
        source = item.sample.source
        assert item.sample.key == f"dexycb/{s.subject}/{name}/{serial}/{f:06d}"
        assert source.name == f"{s.subject}/{name}/{serial}/color_{f:06d}.jpg"
        assert (source.split, source.group) == ("s0/train", f"dexycb/{s.subject}/{name}")
        assert "BY-NC" in source.licence


def test_images_are_copied_byte_by_byte_and_items_are_repeatable(fake, items):
    for item in items.values():
        assert item.image == (fake.root / item.sample.source.name).read_bytes()
    again = open_dexycb(fake)
    assert [again.item(i).sample for i in reversed(range(len(again)))][::-1] == [i.sample for i in items.values()]
    with pytest.raises(SourceError, match="item 120 of 120"):
        again.item(120)


def test_meshes_are_read_only_when_they_are_asked_for(copy):
    item = open_dexycb(copy, mano=False).item(0)
    assert item.meshes[item.sample.objects[0].mesh].vertices_m.shape == (4, 3)
    shutil.rmtree(copy.root / "models")
    assert len(open_dexycb(copy, mano=False).item(0).image) > 0
    with pytest.raises(AssetMissing, match=r"textured_simple\.obj"):
        open_dexycb(copy, mano=False).item(0).meshes["ycb/003_cracker_box/textured_simple.obj"]


def test_without_mano_labels_have_the_datasets_joints_only(fake, items, tmp_path):
    converter = open_dexycb(fake, mano=False)
    assert len(converter) == len(items)
    assert converter.hand_assets() == {}
    assert sum("no MANO files" in note for note in converter.notes) == 1
    for i, expected in enumerate(items.values()):
        hand, full = converter.item(i).sample.hands[0], expected.sample.hands[0]
        np.testing.assert_array_equal(hand.joints_cam_m, full.joints_cam_m)
        np.testing.assert_array_equal(hand.joints_px, full.joints_px)
        np.testing.assert_array_equal(hand.in_view, full.in_view)
        assert (hand.mano_valid, hand.hand_model, hand.tips) == (False, "", "manopth")
        numbers = np.concatenate([hand.hand_pose, hand.betas, hand.transl, hand.global_orient])
        np.testing.assert_array_equal(numbers, 0)
    with pytest.raises(AssetMissing, match="MANO_"):
        open_dexycb(fake, mano=False, mano_dir=str(tmp_path))
