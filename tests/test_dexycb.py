"""DexYCB on a small tree of our own making: splits, exact labels, and one test per pitfall of the format."""

import dataclasses
import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fake_dexycb import (
    FAR,
    FRAMES,
    LOST_OBJECT,
    MASTER,
    NO_HAND,
    OUT_OF_VIEW,
    SERIALS,
    TIPS,
    YCB,
    FakeDexYCB,
    write_dexycb,
)
from fake_mano import fake_hand, write_official

from pam_aug.build.config import BuildConfig
from pam_aug.build.run import plan, run_build
from pam_aug.config import resolve
from pam_aug.converters.dexycb import DexYCB
from pam_aug.converters.dexycb_calibration import T_world_cams, read_tuple_yaml
from pam_aug.converters.dexycb_index import build_index
from pam_aug.converters.dexycb_labels import read_frame
from pam_aug.converters.dexycb_npz import read_npz
from pam_aug.converters.dexycb_splits import SUBJECTS, list_sequences, read_sequence_table, split_rule
from pam_aug.errors import AssetMissing, BudgetExceeded, ConfigError, SourceError, UnsafeInput
from pam_aug.hand import HandLayer, load_mano, mano_model_name
from pam_aug.rollouts.scene import build_scene
from pam_aug.schema import sample_from_json, sample_to_json
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.verify import verify


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> FakeDexYCB:
    return write_dexycb(tmp_path_factory.mktemp("dexycb"))


@pytest.fixture
def copy(fake, tmp_path) -> FakeDexYCB:
    """A tree that a test may damage."""
    shutil.copytree(fake.root, tmp_path / "dexycb")
    return dataclasses.replace(fake, root=tmp_path / "dexycb")


@pytest.fixture(autouse=True)
def _no_mano_by_environment(monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)


def _open(fake: FakeDexYCB, mano: bool = True, **options) -> DexYCB:
    given = {"root": str(fake.root), "subjects": [1, 2], "sequence_table": str(fake.table), **options}
    return DexYCB(resolve(DexYCB.Options, {**given, **({"mano_dir": str(fake.mano_dir)} if mano else {})}))


@pytest.fixture(scope="module")
def items(fake):
    """Every item of s0/train by (sequence, serial, frame)."""
    converter = _open(fake)
    found = {}
    for i in range(len(converter)):
        item = converter.item(i)
        _, _, sequence, serial, frame = item.sample.key.split("/")
        found[sequence, serial, int(frame)] = item
    return found


def _labels(fake: FakeDexYCB, which: int = 0, camera: int = 0, frame: int = 1) -> Path:
    s = fake.sequences[which]
    return fake.root / s.subject / s.name / SERIALS[camera] / f"labels_{frame:06d}.npz"


def _world(item) -> np.ndarray:
    T = item.sample.camera.T_world_cam.astype(float)
    return item.sample.hands[0].joints_cam_m.astype(float) @ T[:3, :3].T + T[:3, 3]


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setup", "split", "subjects", "cameras", "positions", "sequence_views"),
    [
        ("s0", "train", range(10), range(8), [i for i in range(100) if i % 5 != 4], 6400),
        ("s0", "val", [0, 1], range(8), range(4, 100, 5), 320),
        ("s0", "test", range(2, 10), range(8), range(4, 100, 5), 1280),
        ("s1", "train", [0, 1, 2, 3, 4, 5, 9], range(8), range(100), 5600),
        ("s1", "val", [6], range(8), range(100), 800),
        ("s1", "test", [7, 8], range(8), range(100), 1600),
        ("s2", "train", range(10), range(6), range(100), 6000),
        ("s2", "val", range(10), [6], range(100), 1000),
        ("s2", "test", range(10), [7], range(100), 1000),
        ("s3", "train", range(10), range(8), [i for i in range(100) if i // 5 % 4 != 3], 6000),
        ("s3", "val", range(10), range(8), [*range(15, 20), *range(95, 100)], 800),
        ("s3", "test", range(10), range(8), [*range(35, 40), *range(55, 60), *range(75, 80)], 1200),
    ],
)
def test_splits_go_by_position(setup, split, subjects, cameras, positions, sequence_views):
    rule = split_rule(setup, split)
    assert (rule.subjects, rule.cameras, rule.positions) == (tuple(subjects), tuple(cameras), tuple(positions))
    assert len(rule.subjects) * len(rule.cameras) * len(rule.positions) == sequence_views


def _names(subject: int) -> list[str]:
    return [f"{SUBJECTS[subject][:8]}_{140000 + 7 * i:06d}" for i in range(100)]


def test_a_complete_listing_numbers_frames_as_the_official_split_does(tmp_path):
    sequences = []
    for subject in (0, 1):
        for position, name in enumerate(_names(subject)):
            folder = tmp_path / SUBJECTS[subject] / name
            folder.mkdir(parents=True)
            if position % 5 == 4:
                sequences.append((subject, position, name, 2 + position % 3))
                _write_meta(folder, sequences[-1][3])
    index = build_index(tmp_path, "s0", "val")
    expected = [  # subject, sequence, camera, frame; frame 0 has no hand, and still has a number
        (subject, position, name, camera, number)
        for subject, position, name, frames in sequences
        for camera in range(8)
        for number in range(frames)
    ]
    got = [index[i] for i in range(len(index))]
    assert [(f.subject, f.position, f.sequence, f.camera, f.number) for f in got] == [e for e in expected if e[4]]
    assert [f.sample_index for f in got] == [i for i, e in enumerate(expected) if e[4]]
    assert index.counts["images"] == len(expected)
    assert index.counts["without a hand label"] == len(expected) - len(index) == 320


def _write_meta(folder: Path, frames: int) -> None:
    serials = ", ".join(f"'{s}'" for s in SERIALS)
    (folder / "meta.yml").write_text(
        f"serials: [{serials}]\nnum_frames: {frames}\nextrinsics: '20200702_151821'\nycb_ids: [3]\nycb_grasp_ind: 0\n"
        "mano_sides: [left]\nmano_calib: [20200709-subject-01_left]\n"
    )
    pose_m = np.ones((frames, 1, 51), np.float32)
    pose_m[0] = 0
    np.savez(folder / "pose.npz", pose_m=pose_m)


def test_11_a_partial_download_is_refused_or_needs_a_table(fake, tmp_path):
    with pytest.raises(ConfigError, match=r"subject-01: holds 3 sequences.*--sequence-table"):
        _open(fake, sequence_table="")
    with pytest.raises(ConfigError, match=r"subject-03: cannot be listed.*--subjects"):
        _open(fake, subjects=[1, 3])
    for i, name in enumerate(_names(6)):
        (tmp_path / SUBJECTS[6] / name).mkdir(parents=True)
        (tmp_path / SUBJECTS[6] / f"{name}.tar").touch()  # stray files and folders take no position
        (tmp_path / SUBJECTS[6] / f"notes-{i}").mkdir()
    assert list_sequences(tmp_path, 6) == dict(enumerate(_names(6)))
    (tmp_path / SUBJECTS[6] / "20200928_000000").mkdir()
    with pytest.raises(ConfigError, match="holds 101 sequences"):
        list_sequences(tmp_path, 6)


def test_a_sequence_table_gives_the_positions(fake, tmp_path):
    train, val = _open(fake, mano=False), _open(fake, mano=False, split="val")
    assert {train.index[i].position for i in range(len(train))} == {0, 2, 3}
    assert {val.index[i].position for i in range(len(val))} == {4}
    with pytest.raises(ConfigError, match="complete split"):
        train.sample_index(0)
    (tmp_path / "short.txt").write_text(fake.table.read_text().replace("20200709_142022 2", "20200709_142999 2"))
    with pytest.raises(ConfigError, match="20200709_142022"):
        _open(fake, sequence_table=str(tmp_path / "short.txt"))
    for line in ("20200709-subject-01 4", "elsewhere/20200709_141754 4", f"{SUBJECTS[0]}/20200709_141754 100"):
        (tmp_path / "bad.txt").write_text("\n" + line)
        with pytest.raises(SourceError, match="line 2"):
            read_sequence_table(tmp_path / "bad.txt")
    (tmp_path / "bad.txt").write_text(f"{SUBJECTS[0]}/20200709_141754 4\n{SUBJECTS[0]}/20200709_141755 4\n")
    with pytest.raises(SourceError, match="twice"):
        read_sequence_table(tmp_path / "bad.txt")


# --- labels ----------------------------------------------------------------------------------------------------------


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
    converter = _open(fake)
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
    converter = _open(fake)
    right, left = (converter.hand_assets()[f"{mano_model_name(side, 'as_file')}/{side}"] for side in ("right", "left"))
    np.testing.assert_array_equal(left.shapedirs, right.shapedirs)
    fixed = load_mano(fake.mano_dir, "left", left_shapedirs="fixed")
    assert np.abs(fixed.shapedirs - left.shapedirs).max() > 1e-3
    notes = {i.sample.hands[0].side: i.sample.source.notes for i in items.values()}
    assert "left shape directions as in the file" in notes["left"]
    assert "left shape directions as in the file" not in notes["right"]


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
    label = dict(np.load(_labels(copy)))
    label["joint_3d"][0, 3, 0] = label["joint_2d"][0, 3, 0] = -1  # one such value is a coordinate, not a marker
    _rewrite(_labels(copy), label)
    assert read_frame(_labels(copy), 3) is not None
    label["joint_3d"][:] = -1
    _rewrite(_labels(copy), label)
    assert read_frame(_labels(copy), 3) is None
    with pytest.raises(SourceError, match=r"labels_000001.npz: has no hand, and pose.npz"):
        _open(copy, mano=False).item(0)
    assert read_frame(_labels(fake, frame=NO_HAND), 3) is None


def test_09_frames_without_a_hand_are_left_out_and_views_have_their_own_in_view(fake, items):
    converter = _open(fake)
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


def test_08_depth_0_and_65535_are_no_depth(fake):
    depth = _open(fake, mano=False, frames=1).depth_m(0)
    assert (depth.shape, depth.dtype) == ((480, 640), np.float32)
    np.testing.assert_array_equal(depth[0, :3], np.float32([0, 0, 0.9]))


def test_segmentation_takes_this_librarys_ids(fake):
    for side, hand_id in (("right", 1), ("left", 2)):
        converter = _open(fake, mano=False, sides=side, subjects=[1])
        s = next(s for s in fake.sequences if s.side == side)
        seg = converter.seg(0)
        assert seg[0, 0] == hand_id
        assert seg[10, 0] == converter.item(0).sample.objects[0].seg_id == 15 + s.ycb_ids[s.grasped]
        assert seg[20, 0] == 0


def test_13_the_colour_intrinsics_hold_for_the_aligned_depth_too(fake, items):
    for (_, serial, _), item in items.items():
        np.testing.assert_array_equal(item.sample.camera.K_px, fake.K_px[serial].astype(np.float32))
        assert item.sample.camera.K_px[0, 0] > 600  # the files have 380 for the depth camera
    assert _open(fake, mano=False, frames=1).depth_m(0).shape == (480, 640)  # the colour image's pixels


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


def test_names_licence_and_split_are_recorded(fake, items):
    for (name, serial, f), item in items.items():
        s = next(s for s in fake.sequences if s.name == name)
        source = item.sample.source
        assert item.sample.key == f"dexycb/{s.subject}/{name}/{serial}/{f:06d}"
        assert source.name == f"{s.subject}/{name}/{serial}/color_{f:06d}.jpg"
        assert (source.split, source.group) == ("s0/train", f"dexycb/{s.subject}/{name}")
        assert "BY-NC" in source.licence


def test_15_intrinsics_of_another_camera_are_noticed(copy):
    folder = copy.root / "calibration" / "intrinsics"
    shutil.copy(folder / f"{SERIALS[1]}_640x480.yml", folder / f"{SERIALS[0]}_640x480.yml")
    with pytest.raises(SourceError, match=r"labels_000001.npz: joint_2d is .* px from joint_3d"):
        _open(copy, mano=False).item(0)


def test_images_are_copied_byte_by_byte_and_items_are_repeatable(fake, items):
    for item in items.values():
        assert item.image == (fake.root / item.sample.source.name).read_bytes()
    again = _open(fake)
    assert [again.item(i).sample for i in reversed(range(len(again)))][::-1] == [i.sample for i in items.values()]
    with pytest.raises(SourceError, match="item 120 of 120"):
        again.item(120)


def test_meshes_are_read_only_when_they_are_asked_for(copy):
    item = _open(copy, mano=False).item(0)
    assert item.meshes[item.sample.objects[0].mesh].vertices_m.shape == (4, 3)
    shutil.rmtree(copy.root / "models")
    assert len(_open(copy, mano=False).item(0).image) > 0
    with pytest.raises(AssetMissing, match=r"textured_simple\.obj"):
        _open(copy, mano=False).item(0).meshes["ycb/003_cracker_box/textured_simple.obj"]


# --- without MANO, filters -------------------------------------------------------------------------------------------


def test_without_mano_labels_have_the_datasets_joints_only(fake, items, tmp_path):
    converter = _open(fake, mano=False)
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
        _open(fake, mano=False, mano_dir=str(tmp_path))


def test_another_mano_is_noticed_at_the_wrist(fake, tmp_path):
    write_official(fake_hand(5), tmp_path / "MANO_RIGHT.pkl")
    with pytest.raises(SourceError, match=r"the wrist of the MANO parameters is .* mm"):
        _open(fake, mano=False, sides="right", mano_dir=str(tmp_path)).item(0)


def test_filters_keep_what_their_predicates_say(fake, items):
    def kept(**options) -> set[tuple[str, str, int]]:
        converter = _open(fake, mano=False, **options)
        parts = [converter.item(i).sample.key.split("/") for i in range(len(converter))]
        return {(p[2], p[3], int(p[4])) for p in parts}

    assert kept(sides="right") == {k for k, i in items.items() if i.sample.hands[0].side == "right"}
    assert kept(stride=2) == {k for k in items if k[2] % 2 == 0}
    assert kept(frames=7) == set(list(items)[:7])
    near = kept(near_object_m=0.3)
    vertices = np.array([[-0.03, 0, 0], [0.03, 0, 0], [0, 0.05, 0], [0, 0.01, 0.06]])
    for k, item in items.items():
        grasped = item.sample.objects[0]
        placed = vertices @ grasped.T_cam_obj[:3, :3].T + grasped.T_cam_obj[:3, 3]
        distance = np.linalg.norm(item.sample.hands[0].joints_cam_m[:, None] - placed[None], axis=-1).min()
        assert (k in near) == (grasped.valid and distance <= 0.3)
    assert not any(f == FAR for _, _, f in near)
    assert len(near) > 24
    for wrong in ({"sides": "top"}, {"stride": 0}, {"frames": 0}, {"near_object_m": 0.0}, {"split": "all"}):
        with pytest.raises(ConfigError):
            _open(fake, **wrong)
    with pytest.raises(ConfigError, match="only the subjects 1, 2"):
        _open(fake, split="val", subjects=[3])


# --- bad input -------------------------------------------------------------------------------------------------------


def _rewrite(path: Path, arrays: dict) -> None:
    path.unlink()
    np.savez_compressed(path, **arrays)


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "flipped", "no joints", "shape", "nan", "mirrored object", "gone"]
)
def test_a_damaged_label_is_named(copy, damage):
    path = _labels(copy)
    label, data = dict(np.load(path)), path.read_bytes()
    if damage in ("truncated", "empty"):
        path.write_bytes(data[: len(data) // 2 if damage == "truncated" else 0])
    elif damage == "flipped":
        with zipfile.ZipFile(path) as archive:
            at = archive.getinfo("joint_3d.npy").header_offset + 80
        path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    elif damage == "gone":
        path.unlink()
    else:
        if damage == "no joints":
            del label["joint_3d"]
        elif damage == "shape":
            label["joint_3d"] = label["joint_3d"][:, :20]
        elif damage == "nan":
            label["pose_m"][0, 7] = np.nan
        else:
            label["pose_y"][0, 0] *= -1
        _rewrite(path, label)
    converter = _open(copy, mano=False)
    with pytest.raises(SourceError, match=r"labels_000001\.npz"):
        converter.item(0)
    assert converter.item(1).sample.key.endswith("000002")


def test_a_damaged_image_or_sequence_is_named(copy):
    converter = _open(copy, mano=False)
    path = copy.root / converter.item(0).sample.source.name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match=r"color_000001\.jpg: not a whole JPEG"):
        converter.item(0)
    pose = _labels(copy).parent.parent / "pose.npz"
    pose.write_bytes(pose.read_bytes()[:400])
    with pytest.raises(SourceError, match=r"pose\.npz"):
        _open(copy)
    pose.unlink()
    with pytest.raises(SourceError, match=r"pose\.npz"):
        _open(copy)


SHAPES = {"joint_3d": (1, 21, 3), "pose_m": (1, 51), "seg": (480, 640)}


def test_archives_are_read_as_numpy_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"joint_3d": rng.normal(size=(1, 21, 3)).astype(">f4"), "pose_m": rng.normal(size=(1, 51)),
              "seg": np.asfortranarray(rng.integers(0, 255, (480, 640), np.uint8))}  # fmt: skip
    for k, save in enumerate((np.savez, np.savez_compressed)):
        save(tmp_path / f"{k}.npz", **arrays)
        read = read_npz(tmp_path / f"{k}.npz", SHAPES)
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
    with zipfile.ZipFile(tmp_path / "1.npz", "a") as archive:
        archive.comment = b"repacked"
    np.testing.assert_array_equal(read_npz(tmp_path / "1.npz", SHAPES)["pose_m"], arrays["pose_m"])


def test_no_damage_to_an_archive_goes_unseen(fake, tmp_path):
    data, path = _labels(fake).read_bytes(), tmp_path / "labels.npz"
    whole, messages = read_npz(_labels(fake), SHAPES), []
    rng = np.random.default_rng(0)
    for at in (*rng.integers(0, len(data), 150), *range(len(data) - 30, len(data))):
        for broken in (data[:at], data[:at] + bytes([data[at] ^ 1 << rng.integers(8)]) + data[at + 1 :]):
            path.write_bytes(broken)
            try:
                read = read_npz(path, SHAPES)
            except (SourceError, UnsafeInput) as error:
                messages.append(str(error))
                continue
            for name, array in whole.items():  # a flipped bit of a time or of a member that is not read
                np.testing.assert_array_equal(read[name], array)
    assert len(messages) > 200
    assert all("labels.npz" in message for message in messages)


def test_what_unpacks_to_more_than_it_says_is_refused(tmp_path):
    path = tmp_path / "labels.npz"
    np.savez_compressed(path, pose_m=np.zeros((1, 51)), padding=np.zeros(9_000_000))  # the larger one, 72 MB
    with pytest.raises(UnsafeInput, match="padding unpacks to 72000128 bytes"):
        read_npz(path, {"padding": (9_000_000,)})
    data = path.read_bytes()
    path.write_bytes(data.replace((72000128).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(SourceError, match="padding is cut short, or unpacks to more than 1000 bytes"):
        read_npz(path, {"padding": (9_000_000,)})


class _Bomb:
    def __reduce__(self):
        return (eval, ("1/0",))


def test_nothing_is_unpickled(copy):
    label = dict(np.load(_labels(copy)))
    label["joint_3d"] = np.array([_Bomb()], dtype=object)
    _rewrite(_labels(copy), label)
    with pytest.raises(UnsafeInput, match=r"labels_000001\.npz: joint_3d holds Python objects"):
        _open(copy, mano=False).item(0)


@pytest.mark.parametrize(
    "text",
    [
        "betas: !!python/object/apply:os.system ['touch {marker}']",
        "betas: !!python/name:os.system",
        "betas: !!python/tuple [!!python/object/apply:os.system ['touch {marker}']]",
        "? !!python/tuple [!!python/tuple [1], 2]\n: 1",
    ],
)
def test_01_yaml_has_tuples_and_nothing_else(tmp_path, text):
    path = tmp_path / "mano.yml"
    path.write_text("a: !!python/tuple [1, 2.5, x]\n")
    assert read_tuple_yaml(path) == {"a": (1, 2.5, "x")}
    path.write_text(text.format(marker=tmp_path / "ran"))
    with pytest.raises(UnsafeInput, match=r"mano\.yml: refused"):
        read_tuple_yaml(path)
    assert not (tmp_path / "ran").exists()


def test_bad_calibration_and_meta_are_named(copy):
    extrinsics = copy.root / "calibration" / "extrinsics_20200702_151821" / "extrinsics.yml"
    good = extrinsics.read_text()
    inverse_scaled = good.replace("1.0", "2.0")
    for text in (inverse_scaled, good.replace(SERIALS[3], "1"), "extrinsics: 3\n", "a: [", "- 1\n"):
        extrinsics.write_text(text)
        with pytest.raises(SourceError, match=r"extrinsics\.yml"):
            T_world_cams(copy.root, "20200702_151821")
    extrinsics.unlink()
    with pytest.raises(SourceError, match=r"calibration archive"):
        _open(copy)
    extrinsics.write_text(good)
    meta = _labels(copy).parent.parent / "meta.yml"
    text = meta.read_text()
    for wrong in (
        text.replace("20200702_151821", "../../etc"),
        text.replace("ycb_grasp_ind: 1", "ycb_grasp_ind: 3"),
        text.replace("num_frames: 6", "num_frames: yes"),
        text.replace("- right", "- both"),
        text.replace(SERIALS[0], "1"),
    ):
        assert wrong != text
        meta.write_text(wrong)
        with pytest.raises(SourceError, match=r"meta\.yml"):
            _open(copy)
    shapes = copy.root / "calibration" / "mano_20200709-subject-01_right" / "mano.yml"
    meta.write_text(text)
    shapes.write_text("betas: [1, 2, .nan, 4, 5, 6, 7, 8, 9, 10]\n")
    with pytest.raises(SourceError, match=r"mano\.yml: betas should be 10 finite numbers"):
        _open(copy)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_converts_counts_failures_and_verifies(copy, tmp_path):
    root, out = str(copy.root), tmp_path / "out"
    _labels(copy, camera=3, frame=2).write_bytes(b"torn")
    section = {"converter": "dexycb", "root": root, "subjects": [1, 2], "sequence_table": str(copy.table)}
    config = resolve(BuildConfig, {"source": section, "shards": {"samples_per_shard": 50}})
    with pytest.raises(BudgetExceeded, match="1 real images failed"):  # 1 of 120 is within 1 %: all but one are there
        run_build(dataclasses.replace(config, source={**section, "frames": 40}), tmp_path / "few", ("real",), workers=0)
    assert run_build(config, out, ("real",), workers=0).as_dict()["real_images"] == 119
    report = verify(out)
    assert (report.samples, report.hands, report.damaged) == (119, 119, [])
    with ShardReader(out / "shards" / "real-00000.tar") as shard:
        sample = shard.sample(0)
        assert shard.image_bytes(0) == (copy.root / sample.source.name).read_bytes()
        digest = hashlib.sha256(shard.image_bytes(0)).hexdigest()
        assert sample.source.image_sha256 == digest == shard.marker["image_sha256"][0]
    columns = ["key", "image_sha256", "image_bytes", "sides", "width"]
    first = pq.read_table(out / "manifest.parquet", columns=columns).slice(0, 1).to_pylist()[0]
    size = (copy.root / sample.source.name).stat().st_size
    assert tuple(first.values()) == (sample.key, digest, size, sample.hands[0].side, 640)
    assert len(plan(config, ("real",)).real_shards) == 3


def test_a_dry_run_says_what_is_left_out_and_what_is_missing(fake):
    section = {"converter": "dexycb", "root": str(fake.root), "subjects": [1, 2], "sequence_table": str(fake.table)}
    text = plan(resolve(BuildConfig, {"source": section}), ("real",)).as_text()
    assert "s0/train: 120 images to convert of 144; left out: 24 without a hand label" in text
    assert text.count("no MANO files") == 1
