"""The generic rollout archive: exact round trips in every form, and each check catches what it is named for."""

import doctest
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from fake_mano import fake_hand, write_clean
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pam_aug import registry
from pam_aug.converters.rollout_npz import RolloutNpz
from pam_aug.converters.rollout_tracks import MANO_J0_M, split_of
from pam_aug.errors import AssetMissing, ConfigError, SourceError, UnsafeInput
from pam_aug.hand import load_open_hand
from pam_aug.rollouts import archive as archive_module
from pam_aug.rollouts.archive import RolloutArchive, read_archive, write_archive
from pam_aug.rollouts.cameras import look_at
from pam_aug.rollouts.scene import build_scene
from pam_aug.schema import sample_from_json, sample_to_json

TETRA = "v -0.03 0 0\nv 0.03 0 0\nv 0 0.05 0\nv 0 0.01 0.06\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 3 1 4\n"
FORMS = ("axis_angle", "quat_wxyz", "quat_xyzw", "matrix", "euler_XYZ")
ORDERS = {
    "mano": ("index", "middle", "little", "ring", "thumb"),
    "index-middle-ring-little-thumb": ("index", "middle", "ring", "little", "thumb"),
    "thumb-index-middle-ring-little": ("thumb", "index", "middle", "ring", "little"),
}
MANO_ROWS = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3]


@pytest.fixture(autouse=True)
def no_mano(monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)


def _encode(turns: Rotation, form: str, shape: tuple[int, ...]) -> np.ndarray:
    if form == "axis_angle":
        return turns.as_rotvec().reshape(*shape, 3)
    if form == "matrix":
        return turns.as_matrix().reshape(*shape, 3, 3)
    if form == "euler_XYZ":
        return turns.as_euler("XYZ").reshape(*shape, 3)
    quaternion = turns.as_quat()
    return (quaternion[:, [3, 0, 1, 2]] if form == "quat_wxyz" else quaternion).reshape(*shape, 4)


class Truth:
    """T frames of two hands near a cup, in metres, MANO's order, z up; what every archive below says in its own way."""

    def __init__(self, seed: int, frames: int = 4) -> None:
        rng = np.random.default_rng(seed)
        self.frames = frames
        self.orient = Rotation.from_rotvec(rng.normal(size=(frames * 2, 3)))
        self.pose = Rotation.from_rotvec(rng.normal(scale=0.4, size=(frames * 2 * 15, 3)))
        self.wrist = rng.uniform(-0.1, 0.1, (frames, 2, 3)) + np.array([0.2, 0.1, 0.9])
        self.place = np.tile(np.eye(4), (frames, 1, 1, 1))
        self.place[:, 0, :3, :3] = Rotation.random(frames, random_state=seed).as_matrix()
        self.place[:, 0, :3, 3] = [0.2, 0.1, 0.8]

    def archive(self, form="matrix", order="mano", transl="wrist", unit="m", flat=True) -> RolloutArchive:
        T, scale = self.frames, 1.0 if unit == "m" else 1000.0
        rows = [ORDERS["mano"].index(finger) for finger in ORDERS[order]]
        pose = _encode(self.pose, form, (T, 2, 5, 3))[:, :, rows]
        shift = 0.0 if transl == "wrist" else np.array([MANO_J0_M["right"], MANO_J0_M["left"]])
        place = self.place.copy()
        place[..., :3, 3] *= scale
        return RolloutArchive(
            source="a simulator of our own", licence="CC0", provenance='{"seed": 1}', fps=50.0, length_unit=unit,
            up_axis="z", gravity=np.array([0.0, 0.0, -9.81]), hand_side=("right", "left"), hand_rot_repr=form,
            hand_flat_mean=flat, hand_finger_order=order, hand_pca=0, hand_transl_type=transl,
            hand_global_orient=_encode(self.orient, form, (T, 2)),
            hand_pose=pose.reshape(T, 2, 15, *pose.shape[4:]), hand_transl=(self.wrist - shift) * scale,
            hand_betas=np.zeros((2, 10)), hand_valid=np.ones((T, 2), bool), object_id=("cup",),
            object_mesh=("cup.obj",), object_scale=np.ones(1), object_pose=place,
        )  # fmt: skip

    def joints(self, frame: int, h: int) -> np.ndarray:
        """The wrist and 15 joints of the open hand by a loop over its tree."""
        hand = load_open_hand(("right", "left")[h])
        turns, joints = [self.orient[frame * 2 + h]], [self.wrist[frame, h]]
        for joint in range(1, 16):
            parent = hand.parents[joint]
            offset = hand.rest_joints_m[joint] - hand.rest_joints_m[parent]
            joints.append(joints[parent] + turns[parent].apply(offset))
            turns.append(turns[parent] * self.pose[(frame * 2 + h) * 15 + joint - 1])
        return np.stack(joints)


def _open(folder: Path, archive: RolloutArchive, **more) -> RolloutNpz:
    (folder / "cup.obj").write_text(TETRA)
    write_archive(folder / "roll.npz", archive)
    return RolloutNpz(RolloutNpz.Options(str(folder), **{"stride": 1, **more}))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 999), st.sampled_from(list(ORDERS)), st.sampled_from(["wrist", "mano_transl"]),
       st.sampled_from(["m", "mm"]))  # fmt: skip
@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_back_as_the_same_hand(tmp_path, form, seed, order, transl, unit):
    truth = Truth(seed)
    converter = _open(tmp_path, truth.archive(form, order, transl, unit))
    trajectory = converter.trajectory(0)
    for h, track in enumerate(trajectory.hands):
        expected = truth.pose.as_matrix().reshape(-1, 2, 15, 3, 3)[:, h]
        got = Rotation.from_rotvec(track.hand_pose.reshape(-1, 3)).as_matrix().reshape(expected.shape)
        np.testing.assert_allclose(got, expected, atol=1e-12)
        turns = Rotation.from_rotvec(track.global_orient).as_matrix()
        np.testing.assert_allclose(turns, truth.orient.as_matrix()[h::2], atol=1e-12)
        wrist = track.transl + load_open_hand(track.side).rest_joints_m[0]
        np.testing.assert_allclose(wrist, truth.wrist[:, h], atol=1e-12)
    np.testing.assert_allclose(trajectory.objects[0].T_world_obj, truth.place[:, 0], atol=1e-12)
    np.testing.assert_allclose(trajectory.times_s, [0, 0.02, 0.04, 0.06])


def test_an_archive_is_read_as_written_byte_for_byte(tmp_path):
    whole = replace(
        Truth(1).archive("euler_XYZ"), fps=None, timestamps=np.array([0.0, 0.1, 0.3, 0.4]), success=True, text="lift",
        split="val", group_id="mugs", world_frame="lab", table_height=0.5, object_valid=np.ones((4, 1), bool),
        object_angle=np.zeros((4, 1)), cam_K=np.tile(np.diag([100.0, 100.0, 1.0]), (2, 1, 1)),
        cam_size=np.array([[64, 48], [32, 32]]), cam_T_world_cam=np.tile(np.eye(4), (2, 1, 1)), cam_name=("a", "b"),
        cam_distortion=np.zeros((2, 5)), contact=np.ones((4, 2, 16), bool), contact_force=np.zeros((4, 2, 16, 3)),
    )  # fmt: skip
    write_archive(tmp_path / "a.npz", whole)
    again = read_archive(tmp_path / "a.npz")
    for f in fields(RolloutArchive):
        before, after = getattr(whole, f.name), getattr(again, f.name)
        assert type(before) is type(after), f.name
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after
    write_archive(tmp_path / "b.npz", again)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_documented_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(archive_module)
    assert (result.failed, result.attempted > 5) == (0, True)
    (tmp_path / "cup.obj").write_text(TETRA)
    assert len(RolloutNpz(RolloutNpz.Options("rollout.npz", stride=1))) == 2


def test_samples_are_exact_under_the_archives_own_cameras(tmp_path):
    truth = Truth(4)
    K = np.array([[300.0, 0, 80], [0, 290.0, 60], [0, 0, 1]])
    target, up = np.array([0.2, 0.1, 0.85]), np.array([0.0, 0, 1])
    still = look_at(target + np.array([0.6, 0, 0.3]), target, up)
    moving = np.stack([look_at(target + np.array([0, 0.7, 0.1 * t]), target, up) for t in range(4)])
    poses = np.stack([np.tile(still, (4, 1, 1)), moving], 1)
    shown = np.array([[True, True], [True, False], [True, True], [False, False]])
    archive = replace(
        truth.archive("quat_xyzw"), cam_K=np.stack([K, K]), cam_size=np.array([[160, 120]] * 2), cam_T_world_cam=poses,
        cam_name=("Still", "Moving"), hand_valid=shown, text="pick up the cup",
    )  # fmt: skip
    archive.hand_pose[~shown] = np.nan
    converter = _open(tmp_path, archive, cameras="archive")
    assert len(converter) == 3 * 2
    for index in range(6):
        frame, view = divmod(index, 2)
        item = converter.item(index)
        sample = item.sample
        assert sample.key == f"rollout/cup/roll/{('still', 'moving')[view]}/{frame:06d}"
        assert [hand.side for hand in sample.hands] == (["right"] if frame == 1 else ["right", "left"])
        for h, hand in enumerate(sample.hands):
            T = poses[frame, view]
            cam = (truth.joints(frame, h) - T[:3, 3]) @ T[:3, :3]
            np.testing.assert_allclose(hand.joints_cam_m[MANO_ROWS], cam, atol=1e-6)
            px = cam @ K.T
            np.testing.assert_allclose(hand.joints_px[MANO_ROWS], px[:, :2] / px[:, 2:], atol=1e-3)
            assert hand.pose_mean == "exact"
        np.testing.assert_allclose(
            sample.objects[0].T_cam_obj, np.linalg.inv(poses[frame, view]) @ truth.place[frame, 0], atol=1e-6
        )
        assert (sample.text, sample.source.licence, sample.source.group) == ("pick up the cup", "CC0", "cup")
        build_scene(item, converter.hand_assets())
        assert sample_from_json(sample_to_json(sample)) == sample
        assert RolloutNpz(converter.options).item(index).sample == sample


@pytest.mark.parametrize(("axis", "index", "sign"), [("y", 1, 1), ("-y", 1, -1), ("x", 0, 1)])
def test_sampled_cameras_and_rigs_know_what_is_up(tmp_path, axis, index, sign):
    gravity = np.zeros(3)
    gravity[index] = -9.8 * sign
    archive = replace(Truth(2).archive(), up_axis=axis, gravity=gravity)
    for more in ({"views": 2}, {"cameras": "dexycb"}):
        converter = _open(tmp_path, archive, **more)
        for i in range(len(converter)):
            sample = converter.item(i).sample
            centre = sample.camera.T_world_cam.astype(float) @ np.append(sample.hands[0].joints_cam_m.mean(0), 1)
            assert sign * (sample.camera.T_world_cam[index, 3] - centre[index]) > 0


def test_poses_relative_to_the_mean_take_it_from_the_hand_in_use(tmp_path):
    truth = Truth(5)
    archive = truth.archive("axis_angle", "thumb-index-middle-ring-little", "mano_transl", flat=False)
    relative = truth.pose.as_rotvec().reshape(4, 2, 45)
    with pytest.warns(UserWarning, match="MANO's mean"):
        track = _open(tmp_path, archive).trajectory(0).hands[0]
    np.testing.assert_allclose(track.hand_pose, relative[:, 0] + load_open_hand("right").hands_mean, atol=1e-6)
    assert track.pose_mean == "open_hand"
    mano = fake_hand()
    folder = tmp_path / "mano"
    folder.mkdir()
    write_clean(mano, folder / "MANO_RIGHT.pkl")
    one = _only_right(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        track = _open(tmp_path, one, mano_dir=str(folder)).trajectory(0).hands[0]
        np.testing.assert_allclose(track.hand_pose, relative[:, 0] + mano.hands_mean, atol=1e-12)
        np.testing.assert_allclose(track.transl, one.hand_transl[:, 0], atol=1e-12)
        coefficients = np.random.default_rng(0).normal(size=(4, 1, 6))
        pca = replace(one, hand_pca=6, hand_pose=coefficients)
        track = _open(tmp_path, pca, mano_dir=str(folder)).trajectory(0).hands[0]
        expected = [sum(c * mano.hands_components[i] for i, c in enumerate(row)) for row in coefficients[:, 0]]
        np.testing.assert_allclose(track.hand_pose, expected + mano.hands_mean, atol=1e-10)
    absolute = replace(pca, hand_flat_mean=True)
    with pytest.raises(AssetMissing, match="MANO's pose space"):
        _open(tmp_path, absolute)


def _only_right(a: RolloutArchive) -> RolloutArchive:
    cut = {n: getattr(a, n)[:, :1] for n in ("hand_global_orient", "hand_pose", "hand_transl", "hand_valid")}
    return replace(a, hand_side=("right",), hand_betas=a.hand_betas[:1], **cut)


def _with_joints(truth: Truth, a: RolloutArchive) -> RolloutArchive:
    """The archive with the joints that our own hand has (the source of the tips is the converter, tested elsewhere)."""
    joints = np.zeros((truth.frames, 2, 21, 3))
    for frame in range(truth.frames):
        for h in range(2):
            joints[frame, h, MANO_ROWS] = truth.joints(frame, h)
            turns = joints[frame, h, [3, 7, 11, 15, 19]] - joints[frame, h, [2, 6, 10, 14, 18]]
            joints[frame, h, [4, 8, 12, 16, 20]] = joints[frame, h, [3, 7, 11, 15, 19]] + turns
    return replace(a, hand_joints3d=joints)


def _nan(a: np.ndarray) -> np.ndarray:
    return np.where(np.arange(a.size).reshape(a.shape) == 5, np.nan, a)


FAILURES = [
    ("finite", lambda a: {"hand_transl": _nan(a.hand_transl)}),
    ("rotation_range", lambda a: {"hand_pose": a.hand_pose * 1.01}),
    ("rotation_range", lambda a: {"hand_global_orient": -a.hand_global_orient}),
    ("rigid", lambda a: {"object_pose": a.object_pose * np.array([2, 2, 2, 1.0])[:, None]}),
    ("units", lambda a: {"hand_transl": a.hand_transl * 1000}),
    ("units", lambda a: {"length_unit": "mm"}),
    ("units", lambda a: {"object_scale": np.zeros(1)}),
    ("units", lambda a: {"hand_joints3d": a.hand_joints3d * 3}),
    ("up_axis", lambda a: {"up_axis": "y"}),
    ("time", lambda a: {"fps": 0.0}),
    ("time", lambda a: {"fps": None}),
    ("time", lambda a: {"fps": None, "timestamps": np.array([0.0, 1, 1, 2])}),
    ("transl_type", lambda a: {"hand_transl_type": "mano_transl"}),
    ("transl_type", lambda a: {"hand_transl": a.hand_transl - MANO_J0_M["right"]}),
    ("paths", lambda a: {"object_mesh": ("../cup.obj",)}),
    ("paths", lambda a: {"object_mesh": ("/cup.obj",)}),
    ("cameras", lambda a: {"cam_K": np.tile(np.eye(3), (1, 1, 1))}),
    ("hand_finger_order", lambda a: {"hand_finger_order": "index-middle"}),
    ("hand_rot_repr", lambda a: {"hand_rot_repr": "euler"}),
    ("hand_pose", lambda a: {"hand_pose": a.hand_pose[:, :, :14]}),
    ("hand_valid", lambda a: {"hand_valid": np.ones((4, 2))}),
    ("provenance", lambda a: {"provenance": "by hand"}),
    ("licence", lambda a: {"licence": " "}),
    ("hand_side", lambda a: {"hand_side": ("right", "right")}),
    ("hand_pca", lambda a: {"hand_pca": 46}),
    ("object_id", lambda a: {"object_id": ("",)}),
]


@pytest.mark.parametrize(("name", "change"), FAILURES)
def test_each_check_is_named_and_stops_writing(tmp_path, name, change):
    truth = Truth(6)
    good = _with_joints(truth, truth.archive())
    write_archive(tmp_path / "good.npz", good)
    with pytest.raises(SourceError, match="mend what wrote it") as caught:
        write_archive(tmp_path / "bad.npz", replace(good, **change(good)))
    assert set(caught.value.failures) == {name}
    assert not (tmp_path / "bad.npz").exists()


def test_wrong_flags_are_told_by_the_joints(tmp_path):
    truth = Truth(7)
    warnings.simplefilter("ignore")
    good = _with_joints(truth, truth.archive("quat_wxyz", "index-middle-ring-little-thumb"))
    _open(tmp_path, good)
    for change, said in (
        (
            {"hand_finger_order": "thumb-index-middle-ring-little"},
            "index-middle-ring-little-thumb and hand_flat_mean True",
        ),
        ({"hand_flat_mean": False}, "index-middle-ring-little-thumb and hand_flat_mean True"),
    ):
        with pytest.raises(SourceError, match=said) as caught:
            _open(tmp_path, replace(good, **change))
        assert set(caught.value.failures) == {"flags"}
    shuffled = good.hand_joints3d[:, :, [0, *range(5, 21), *range(1, 5)]]
    with pytest.raises(SourceError, match="bone_lengths") as caught:
        _open(tmp_path, replace(good, hand_joints3d=shuffled))


def test_hands_far_from_objects_and_objects_below_the_table(tmp_path):
    truth = Truth(8)
    with pytest.raises(SourceError, match="hand_near_object"):
        _open(tmp_path, replace(truth.archive(), hand_transl=truth.wrist + np.array([0, 0, 0.9])))
    with pytest.raises(SourceError, match=r"cup reaches 1[0-9][0-9] mm below the table"):
        _open(tmp_path, replace(truth.archive(), table_height=0.9))
    _open(tmp_path, replace(truth.archive(), table_height=0.7))
    with pytest.raises(SourceError, match="30 m across"):
        _open(tmp_path, replace(truth.archive(), object_scale=np.array([500.0])))
    (tmp_path / "cup.obj").unlink()
    with pytest.raises(AssetMissing, match=r"cup\.obj"):
        RolloutNpz(RolloutNpz.Options(str(tmp_path)))


def _rewrite(path: Path, **change) -> None:
    arrays = dict(np.load(path))
    arrays.update(change)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def test_foreign_and_hostile_files(tmp_path):
    path = tmp_path / "a.npz"
    for change, error, message in (
        ({"hand_posse": np.zeros(3)}, SourceError, "unknown field hand_posse; did you mean hand_pose"),
        ({"hand_flat_mean": None}, SourceError, "hand_flat_mean is missing"),
        ({"hand_flat_mean": np.array(1)}, SourceError, "should be True or False"),
        ({"hand_pca": np.array(0.5)}, SourceError, "should be a whole number"),
        ({"hand_side": np.array("right")}, SourceError, "should be a list of texts"),
        ({"length_unit": np.array(["m"])}, SourceError, "should be a text"),
        ({"hand_betas": np.array("x")}, SourceError, "should hold numbers"),
        ({"schema_version": np.array(2)}, SourceError, "schema_version 2, this library reads 1"),
        ({"schema": np.array("other")}, SourceError, "schema is 'other'"),
        ({"contact": np.array([{}], dtype=object)}, UnsafeInput, "pickled objects"),
    ):
        write_archive(path, Truth(1).archive())
        _rewrite(path, **change)
        with pytest.raises(error, match=message):
            read_archive(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SourceError, match=r"not a readable \.npz"):
        read_archive(path)
    with pytest.raises(SourceError, match="no such rollout archive"):
        read_archive(tmp_path / "none.npz")


def test_splits_by_object_and_one_bad_archive_among_good_ones(tmp_path):
    converter = _open(tmp_path, Truth(1).archive(), stride=2)
    assert converter.item(0).sample.source.split == split_of("cup")
    write_archive(tmp_path / "test.npz", replace(Truth(2).archive(), split="test", group_id="mugs"))
    assert split_of("cup") == "val"
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    options = {"archives": str(tmp_path), "stride": 2}
    every = RolloutNpz(RolloutNpz.Options(**options))
    assert [f.name for f in every.files] == ["bad.npz", "roll.npz", "test.npz"]
    assert len(every) == 1 + 2 + 2
    with pytest.raises(SourceError, match=r"bad\.npz"):
        every.item(0)
    last = every.item(4).sample
    assert (last.source.split, last.source.group) == ("test", "mugs")
    assert [f.name for f in RolloutNpz(RolloutNpz.Options(split="test", **options)).files] == ["bad.npz", "test.npz"]
    with pytest.raises(ConfigError, match="none of all"):
        RolloutNpz(RolloutNpz.Options(split="dev", **options))
    with pytest.raises(SourceError, match="has no cameras"):
        RolloutNpz(RolloutNpz.Options(str(tmp_path / "test.npz"), cameras="archive"))
    assert registry.load("converters", "rollout-npz") is RolloutNpz
