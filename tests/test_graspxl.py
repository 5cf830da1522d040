"""GraspXL: small files of our own making in the real ones' form, and the real ones where they are at hand."""

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_mano import fake_hand, write_clean
from scipy.spatial.transform import Rotation

from pam_aug import registry
from pam_aug.build.screen import screen_source
from pam_aug.converters.graspxl import GraspXL
from pam_aug.converters.rollout_tracks import MANO_J0_M, split_of
from pam_aug.errors import AssetMissing, ConfigError, SourceError, UnsafeInput
from pam_aug.hand import load_open_hand
from pam_aug.rollouts.cameras import look_at
from pam_aug.rollouts.rigs import RIGS, rig_cameras
from pam_aug.rollouts.scene import LeftOut, build_scene
from pam_aug.rollouts.screening import ScreenConfig
from pam_aug.schema import sample_from_json, sample_to_json

TETRA = "v -0.03 0 0\nv 0.03 0 0\nv 0 0.05 0\nv 0 0.01 0.06\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 3 1 4\n"
BOX, CUP = "00ab" * 8, "0c1d" * 8


def _hand(rng: np.random.Generator, count: int, side: str = "right") -> dict[str, np.ndarray]:
    wrist = np.linspace([0.0, 0.1, 0.9], [0.02, 0.05, 0.75], count)
    columns = {
        "trans": wrist - np.array(MANO_J0_M[side]),
        "rot": rng.uniform(-1.5, 1.5, (count, 3)),
        "pose": rng.uniform(-0.3, 0.3, (count, 45)),
    }
    return {name: value.astype(np.float32) for name, value in columns.items()}


def _object(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {
        "trans": np.tile(np.array([0.0, 0.0, 0.6], np.float32), (count, 1)),
        "rot": rng.uniform(-2, 2, (count, 3)).astype(np.float32),
        "angle": np.zeros((count, 1), np.float32),
    }


def _save(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(data, dtype=object), allow_pickle=True)


@pytest.fixture
def source(tmp_path: Path, monkeypatch) -> dict:
    monkeypatch.delenv("MANO_DIR", raising=False)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(3)
    data = {}
    for object_id, number, count in ((BOX, 1, 12), (BOX, 2, 25), (CUP, 1, 31)):
        name = f"mano_dataset_1/large/{object_id}/mano_{number}.npy"
        data[name] = {"right_hand": _hand(rng, count), object_id: _object(rng, count)}
        _save(tmp_path / name, data[name])
        mesh = tmp_path / "object_dataset" / "large" / object_id / f"{object_id}.obj"
        mesh.parent.mkdir(parents=True, exist_ok=True)
        mesh.write_text(TETRA)
    return {"root": tmp_path, "data": data}


def _open(source: dict, **more) -> GraspXL:
    root = source["root"]
    return GraspXL(GraspXL.Options(str(root / "mano_dataset_1"), str(root / "object_dataset"), **more))


def _slow_joints(hand, numbers: dict, frame: int, mean: np.ndarray) -> np.ndarray:
    """The wrist and 15 joints by a loop over the tree, in the world."""
    rest = hand.rest_joints_m
    pose = (numbers["pose"][frame].astype(float) + mean).reshape(15, 3)
    turns = [Rotation.from_rotvec(numbers["rot"][frame].astype(float))]
    joints = [numbers["trans"][frame].astype(float) + MANO_J0_M["right"]]
    for joint in range(1, 16):
        parent = hand.parents[joint]
        joints.append(joints[parent] + turns[parent].apply(rest[joint] - rest[parent]))
        turns.append(turns[parent] * Rotation.from_rotvec(pose[joint - 1]))
    return np.stack(joints)


def test_labels_are_the_files_joints_and_object_seen_by_the_camera(source):
    converter = _open(source, stride=7)
    assert len(converter) == 2 + 4 + 5
    hand = load_open_hand("right")
    mano_rows = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3]
    seen = []
    for index in range(len(converter)):
        item = converter.item(index)
        label, T = item.sample.hands[0], item.sample.camera.T_world_cam.astype(float)
        file, frame = item.sample.source.name.split(":")
        seen.append((file, int(frame)))
        data = source["data"][f"mano_dataset_1/{file}"]
        expected = _slow_joints(hand, data["right_hand"], int(frame), hand.hands_mean.astype(float))
        world = label.joints_cam_m.astype(float) @ T[:3, :3].T + T[:3, 3]
        np.testing.assert_allclose(world[mano_rows], expected, atol=2e-6)
        (obj,) = item.sample.objects
        numbers = data[obj.id]
        T_obj = T @ obj.T_cam_obj.astype(float)
        turn = Rotation.from_rotvec(numbers["rot"][int(frame)].astype(float)).as_matrix()
        np.testing.assert_allclose(T_obj[:3, :3], turn, atol=1e-6)
        np.testing.assert_allclose(T_obj[:3, 3], numbers["trans"][int(frame)], atol=1e-6)
        assert label.in_view.all()
        assert (label.pose_mean, label.hand_model, label.side) == ("open_hand", "open_hand", "right")
        assert f"time_s: {int(frame) / 100:.4f}" in item.sample.source.notes
        scene = build_scene(item, converter.hand_assets())
        np.testing.assert_allclose(scene.hands[0].joints_cam_m, label.joints_cam_m, atol=1e-7)
        assert sample_from_json(sample_to_json(item.sample)) == item.sample
    assert seen == [(f"large/{o}/mano_{n}.npy", f) for o, n, c in ((BOX, 1, 12), (BOX, 2, 25), (CUP, 1, 31))
                    for f in range(0, c, 7)]  # fmt: skip
    assert converter.item(0).sample.key == f"graspxl/{BOX}/large-mano_1/view-00/000000"


def test_items_depend_on_options_and_index_only(source):
    one, other = _open(source, views=2), _open(source, views=2)
    forward = [one.item(i).sample for i in range(len(one))]
    assert forward == [other.item(i).sample for i in reversed(range(len(other)))][::-1]
    assert len({s.key for s in forward}) == len(forward) == 2 * (2 + 3 + 4)
    assert _open(source, views=2, seed=1).item(0).sample.camera != forward[0].camera


def test_the_users_mano_gives_its_own_mean_and_transl(source, tmp_path):
    mano = fake_hand()
    (tmp_path / "mano").mkdir()
    write_clean(mano, tmp_path / "mano" / "MANO_RIGHT.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        track = _open(source, mano_dir=str(tmp_path / "mano")).trajectory(2).hands[0]
    raw = source["data"][f"mano_dataset_1/large/{CUP}/mano_1.npy"]["right_hand"]
    np.testing.assert_allclose(track.hand_pose, raw["pose"] + mano.hands_mean, atol=1e-7)
    np.testing.assert_allclose(track.transl + mano.rest_joints_m[0], raw["trans"] + MANO_J0_M["right"], atol=1e-7)
    assert track.pose_mean == "exact"


def test_without_mano_one_warning_says_what_it_costs(source):
    with pytest.warns(UserWarning, match="relative to MANO's mean") as caught:
        _open(source).item(0)
    assert sum("MANO's mean" in str(w.message) for w in caught) == 1


def test_splits_go_by_object(source):
    assert (split_of(BOX), split_of(CUP)) == ("train", "train")
    shares = np.array([split_of(f"object-{i}") for i in range(4000)])
    np.testing.assert_allclose([(shares == s).mean() for s in ("train", "val", "test")], [0.8, 0.1, 0.1], atol=0.02)
    other = next(f"object-{i}" for i in range(100) if split_of(f"object-{i}") == "test")
    rng = np.random.default_rng(0)
    for number in (1, 2):
        name = f"mano_dataset_1/small/{other}/mano_{number}.npy"
        _save(source["root"] / name, {"right_hand": _hand(rng, 10), other: _object(rng, 10)})
    mesh = source["root"] / "object_dataset" / "small" / other / f"{other}.obj"
    mesh.parent.mkdir(parents=True)
    mesh.write_text(TETRA)
    test, train = _open(source, split="test"), _open(source, split="train")
    assert [f.parent.name for f in test.files] == [other, other]
    assert len(train.files) == 3
    assert {test.item(i).sample.source.group for i in range(len(test))} == {other}
    assert {test.item(i).sample.source.split for i in range(len(test))} == {"test"}
    assert len(_open(source, objects=[CUP]).files) == 1
    assert len(_open(source, limit=2).files) == 2
    with pytest.raises(ConfigError, match="nothing-like"):
        _open(source, objects=["nothing-like"])


def test_two_hands_millimetres_and_a_hinge(source):
    rng = np.random.default_rng(1)
    hands = {"right_hand": _hand(rng, 20), "left_hand": _hand(rng, 20, "left")}
    thing = _object(rng, 20) | {"angle": np.linspace(0, 1.2, 20, dtype=np.float32)[:, None]}
    thing["trans"] = thing["trans"] * 1000
    _save(source["root"] / "two" / "grab_01.npy", {**hands, "laptop": thing})
    folder = source["root"] / "object_dataset" / "laptop"
    folder.mkdir()
    for part in ("top_watertight_tiny", "bottom_watertight_tiny"):
        (folder / f"{part}.obj").write_text(TETRA)
    options = GraspXL.Options(str(source["root"] / "two"), str(source["root"] / "object_dataset"))
    item = GraspXL(options).item(1)
    assert [h.side for h in item.sample.hands] == ["right", "left"]
    assert "object positions read as millimetres" in item.sample.source.notes
    bottom, top = (o.T_cam_obj.astype(float) for o in item.sample.objects)
    world = item.sample.camera.T_world_cam.astype(float) @ bottom
    np.testing.assert_allclose(world[:3, 3], [0, 0, 0.6], atol=1e-6)
    relative = np.linalg.inv(bottom) @ top
    turned = Rotation.from_matrix(relative[:3, :3]).as_rotvec()
    np.testing.assert_allclose(turned, [0, 0, -thing["angle"][10, 0]], atol=1e-5)
    assert {o.seg_id for o in item.sample.objects} == {16, 17}
    assert all(h.in_view.all() for h in item.sample.hands)
    assert set(GraspXL(options).hand_assets()) == {"open_hand/right", "open_hand/left"}
    (folder / "laptop.obj").write_text(TETRA)
    for part in ("top", "bottom"):
        (folder / f"{part}_watertight_tiny.obj").unlink()
    with pytest.raises(SourceError, match="hinge"):
        GraspXL(options)


def test_robot_hands_are_refused_with_the_reason(source):
    rng = np.random.default_rng(1)
    robot = _hand(rng, 10) | {"pose": np.zeros((10, 22), np.float32)}
    root = source["root"] / "allegro_dataset_1" / CUP
    _save(root / "allegro_1.npy", {"right_hand": robot, CUP: _object(rng, 10)})
    options = dict(meshes=str(source["root"] / "object_dataset"))
    with pytest.raises(SourceError, match="robot hand"):
        GraspXL(GraspXL.Options(str(source["root"] / "allegro_dataset_1"), **options))
    (root / "allegro_1.npy").rename(root / "mano_1.npy")
    with pytest.raises(SourceError, match="22 joint values, a robot hand's"):
        GraspXL(GraspXL.Options(str(root), **options))


def _break(source: dict, change) -> None:
    name = f"mano_dataset_1/large/{CUP}/mano_1.npy"
    change(source["data"][name])
    _save(source["root"] / name, source["data"][name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["right_hand"]["pose"].__setitem__((4, 2), np.nan), "right_hand.pose is not finite from row 4"),
        (lambda d: d["right_hand"]["rot"].__imul__(180 / np.pi), "degrees"),
        (lambda d: d[CUP]["trans"].__iadd__(5), "never comes within"),
        (lambda d: d["right_hand"]["trans"].__imul__(1000), "never comes within"),
        (lambda d: [d[k]["trans"].__imul__(1000) for k in ("right_hand", CUP)], "never comes within"),
        (lambda d: d.pop("right_hand"), "expected right_hand"),
        (lambda d: d.update(other=d[CUP]), "one object"),
        (lambda d: d[CUP].pop("rot"), "rot should be"),
        (lambda d: d["right_hand"].update(trans=np.zeros((30, 3), np.float32)), "trans should be"),
    ],
)
def test_a_bad_file_is_one_item_with_a_reason_and_the_rest_go_on(source, change, message):
    _break(source, change)
    converter = _open(source)
    assert len(converter) == 2 + 3 + 1
    assert converter.item(4).sample.key.startswith(f"graspxl/{BOX}")
    with pytest.raises(SourceError, match=message):
        converter.item(5)
    with pytest.raises(SourceError, match=message):
        GraspXL(GraspXL.Options(str(source["root"] / "mano_dataset_1" / "large" / CUP), str(source["root"])))


def test_screening_goes_on_past_a_file_with_nan(source):
    _break(source, lambda d: d["right_hand"]["pose"].__setitem__((4, 2), np.nan))
    root = source["root"]
    section = {"converter": "graspxl", "sequences": str(root / "mano_dataset_1")}
    section["meshes"] = str(root / "object_dataset")
    rows = screen_source(section, ScreenConfig(preset="none"), workers=0).rows
    assert len(rows) == 2 + 3 + 1
    assert [row.reason.partition(":")[0] == "unreadable" for row in rows] == [False] * 5 + [True]
    assert "right_hand.pose is not finite from row 4" in rows[-1].reason


class _Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_hostile_and_missing_files(source, capsys):
    _break(source, lambda d: d["right_hand"].update(pose=_Evil()))
    with pytest.raises(UnsafeInput, match="print"):
        _open(source)
    assert "ran" not in capsys.readouterr().out
    (source["root"] / "object_dataset" / "large" / BOX / f"{BOX}.obj").unlink()
    with pytest.raises(AssetMissing, match=BOX):
        GraspXL(GraspXL.Options(str(source["root"] / "mano_dataset_1" / "large" / BOX), str(source["root"])))
    with pytest.raises(SourceError, match="no such file"):
        GraspXL(GraspXL.Options(str(source["root"] / "nowhere"), ""))


# ------------------------------------------------------------------------------------------------------------- rigs


@pytest.mark.parametrize(("name", "count", "size"), [("dexycb", 8, (640, 480)), ("oakink2", 4, (848, 480))])
def test_a_rig_stands_still_and_looks_at_the_anchor(source, name, count, size):
    anchor, up = np.array([0.3, -0.2, 0.8]), np.array([0.0, 0.0, 1.0])
    cameras = rig_cameras(name, anchor, up, np.array([0.0, 1.0, 0.4]))
    assert len(cameras) == count == len({c.T_world_cam.tobytes() for c in cameras})
    for camera, view in zip(cameras, RIGS[name].views):
        T, K = camera.T_world_cam.astype(float), camera.K_px.astype(float)
        assert (camera.width, camera.height) == size
        local = (anchor - T[:3, 3]) @ T[:3, :3]
        np.testing.assert_allclose(local, [0, 0, view.distance_m], atol=1e-6)
        np.testing.assert_allclose(K[:2, 2], (np.array(size) - 1) / 2 + view.centre_px, atol=1e-4)
        height = np.sin(np.radians(view.elevation_deg)) * view.distance_m
        np.testing.assert_allclose(T[2, 3] - anchor[2], height, atol=1e-6)
        assert T[2, 1] < -0.1  # the image's y points down
    front = RIGS[name].views[-1] if name == "oakink2" else RIGS[name].views[4]
    eye = next(c for c, v in zip(cameras, RIGS[name].views) if v is front).T_world_cam[:3, 3]
    level = np.cos(np.radians(front.elevation_deg)) * front.distance_m
    np.testing.assert_allclose(eye[:2] - anchor[:2], [0, level], atol=1e-6)
    converter = _open(source, cameras=name, stride=6)
    assert len(converter) == count * (2 + 5 + 6)
    items = [sample for sample, _ in map(partial(_item, converter), range(len(converter))) if sample]
    assert len(items) > 0.5 * len(converter)
    for hand in (s.hands[0] for s in items):  # the camera is at the origin of what labels are in
        wrist, knuckle = hand.joints_cam_m[0].astype(float), hand.joints_cam_m[9].astype(float)
        forearm = (wrist - knuckle) / np.linalg.norm(wrist - knuckle)
        assert forearm @ -wrist / np.linalg.norm(wrist) <= 0.75 + 1e-6
        assert hand.in_view[[0, 9]].all()
    assert all(int(s.source.notes[-1].split()[2]) <= 10 for s in items)  # of 21 joints are hidden
    by_camera: dict[str, set] = {}
    for s in items:
        by_camera.setdefault(s.key.rsplit("/", 1)[0], set()).add(s.camera.T_world_cam.tobytes())
    assert all(len(poses) == 1 for poses in by_camera.values())
    halves = _open(source, cameras=name, stride=6, size=[size[0] // 2, size[1] // 2])
    small = next(sample for sample, _ in map(partial(_item, halves), range(len(halves))) if sample)
    np.testing.assert_allclose(small.hands[0].joints_px, (items[0].hands[0].joints_px + 0.5) / 2 - 0.5, atol=1e-3)


def _item(converter: GraspXL, index: int):
    """A sample and "", or None and why it is left out."""
    try:
        return converter.item(index).sample, ""
    except LeftOut as error:
        return None, error.reason


def test_a_rigs_views_that_do_not_show_the_hand_are_left_out_and_counted(source):
    """A forearm that points at the head's camera, and a wall between the hand and the camera on its left."""
    root, count = source["root"] / "wall", 3
    still = {name: np.zeros((count, n), np.float32) for name, n in (("trans", 3), ("rot", 3), ("pose", 45))}
    still["trans"] += np.array([0, 0, 0.7], np.float32) - np.array(MANO_J0_M["right"], np.float32)
    still["rot"][:, 1] = -np.radians(50)  # the forearm, +x at rest, up by 50 degrees: the head's camera is there
    verts = [(x, 0.0, z) for x, z in ((-0.4, -0.4), (0.4, -0.4), (0.4, 0.4), (-0.4, 0.4))]
    root.mkdir()
    (root / "wall.obj").write_text("".join(f"v {x} {y} {z}\n" for x, y, z in verts) + "f 1 2 3\nf 1 3 4\n")
    options = {"sequences": str(root), "meshes": str(root), "cameras": "oakink2", "stride": 1}

    def told(place: list[float], turn: float, **more) -> list[str]:
        wall = {"trans": np.tile(np.array(place, np.float32), (count, 1)), "angle": np.zeros((count, 1))}
        wall["rot"] = np.tile(np.array([turn, 0, 0], np.float32), (count, 1))
        _save(root / "mano_1.npy", {"right_hand": still, "wall": wall})
        converter = GraspXL(GraspXL.Options(**options, **more))
        assert len(converter) == 4 * count
        return [_item(converter, i)[1] for i in range(4)]

    hidden, wrist = "the hand is hidden", "seen along the forearm, into the wrist"
    # From the top the hand is edge-on: its fingers hide each other.
    assert told([-0.05, 0.0, 0.5], np.pi / 2) == [hidden, "", "", wrist]
    assert told([-0.05, 0.1, 0.7], 0.0, max_hidden=1.0) == ["", "", "", wrist]
    assert told([-0.05, 0.1, 0.7], 0.0) == [hidden, hidden, "", wrist]
    screened = screen_source({"converter": "graspxl", **options}, ScreenConfig(preset="none"), workers=0)
    assert len(screened.rows) == count
    assert screened.as_dict()["left_out"] == 3 * count
    assert screened.left_out == {hidden: 2 * count, wrist: count}
    assert f"{count} {wrist}" in screened.as_text()


def test_rigs_and_options_that_do_not_exist(source):
    with pytest.raises(ConfigError, match="did you mean 'dexycb'"):
        _open(source, cameras="dexicb")
    with pytest.raises(ConfigError, match="did you mean 'oakink2'"):
        rig_cameras("oakink", np.zeros(3), np.array([0, 0, 1.0]), np.array([1.0, 0, 0]))
    with pytest.raises(ConfigError, match="distort"):
        _open(source, cameras="dexycb", size=[256, 256])
    for wrong in (dict(stride=0), dict(views=0), dict(size=[3]), dict(split="dev"), dict(fps=0.0)):
        with pytest.raises(ConfigError):
            _open(source, **wrong)
    assert registry.load("converters", "graspxl") is GraspXL
    T = look_at(np.array([0, 0, 2.0]), np.zeros(3), np.array([0, 0, 1.0]))
    np.testing.assert_allclose(T[:3, 2], [0, 0, -1])


# -------------------------------------------------------------------------------------------------------- real files


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore")
def test_every_real_mano_sequence_converts(real_data, monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)
    root = real_data / "noncommercial" / "graspxl"
    converter = GraspXL(GraspXL.Options(str(root), str(root / "object_dataset"), stride=50))
    assert [len(converter.trajectory(n).times_s) for n in range(len(converter.files))] == [155, 155, 155, 155, 130]
    assert len(converter) == 4 * 4 + 3
    keys = {converter.item(i).sample.key for i in range(len(converter))}
    assert len(keys) == len(converter)
    hand = load_open_hand("right")
    for n in range(5):
        track = converter.trajectory(n)
        place = track.objects[0].T_world_obj[:, :3, 3]
        wrist = track.hands[0].transl + hand.rest_joints_m[0]
        away = np.linalg.norm(wrist - place, axis=1)
        assert 0.07 < away[-1] < 0.26 < 0.29 < away[0]
        assert 0.53 < place[0, 2] < 0.62
        assert place[-1, 2] > place[0, 2] + 0.08
        assert np.linalg.norm(np.diff(wrist, axis=0), axis=1).max() < 0.03
        (contact,) = converter.contacts(n)
        assert contact.in_contact
        assert contact.depth_max_mm < 10


@pytest.mark.realdata
def test_real_allegro_files_are_refused(real_data):
    root = real_data / "noncommercial" / "graspxl"
    with pytest.raises(SourceError, match="robot hand"):
        GraspXL(GraspXL.Options(str(root / "allegro_dataset_1"), str(root / "object_dataset")))
    for file in sorted((root / "allegro_dataset_1").rglob("*.npy")):
        with pytest.raises(SourceError, match="robot hand"):
            GraspXL(GraspXL.Options(str(file), str(root / "object_dataset")))
