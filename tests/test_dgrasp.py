"""D-Grasp labels: a small file of our own making that has the real one's form, and the real one where it is at hand."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pam_aug import registry
from pam_aug.config import resolve
from pam_aug.converters.dgrasp import YCB_NAMES, DGrasp, read_grasps, solve_skeleton
from pam_aug.errors import AssetMissing, ConfigError, SourceError, UnsafeInput
from pam_aug.hand import load_npz, save_npz
from pam_aug.rollouts.contact import summarize
from pam_aug.rollouts.scene import build_scene
from pam_aug.schema import sample_from_json, sample_to_json

TETRA = "v -0.03 0 0\nv 0.03 0 0\nv 0 0.05 0\nv 0 0.01 0.06\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 3 1 4\n"
OFFSETS = {  # metres, in the file's finger order; made up, of a hand's size
    "index": [(-0.09, 0.002, 0.022), (-0.04, 0, 0), (-0.025, 0, 0), (-0.022, 0, 0)],
    "middle": [(-0.092, 0.003, 0), (-0.043, 0, 0), (-0.028, 0, 0), (-0.024, 0, 0)],
    "ring": [(-0.085, 0.002, -0.02), (-0.038, 0, 0), (-0.026, 0, 0), (-0.024, 0, 0)],
    "little": [(-0.076, -0.002, -0.038), (-0.03, 0, 0), (-0.02, 0, 0), (-0.02, 0, 0)],
    "thumb": [(-0.026, -0.014, 0.026), (-0.03, 0, 0.025), (-0.022, 0, 0.02), (-0.022, 0, 0.02)],
}


def _entry(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    angles = rng.uniform(-0.4, 0.4, (count, 48))
    angles[:, :3] = rng.uniform(-3, 3, (count, 3))
    wrist = rng.uniform(-0.2, 0.2, (count, 3)) + np.array([0, 0, 0.7])
    joints = np.zeros((count, 21, 3))
    for n in range(count):
        turns = Rotation.from_euler("XYZ", angles[n].reshape(16, 3))
        joints[n, 0] = wrist[n]
        for f, offsets in enumerate(OFFSETS.values()):
            turn, at = turns[0], wrist[n]
            for k, offset in enumerate(offsets):
                at = at + turn.apply(offset)
                joints[n, 1 + 4 * f + k] = at
                if k < 3:
                    turn = turn * turns[1 + 3 * f + k]
    place = joints[:, 6] + rng.uniform(-0.02, 0.02, (count, 3))
    turn = Rotation.random(count, random_state=1)
    relative = np.stack([turn[n].inv().apply(joints[n] - place[n]) for n in range(count)])
    return {
        "final_qpos": np.concatenate([wrist, angles], 1),
        "final_ee": joints.reshape(count, 63),
        "final_ee_rel": relative.reshape(count, 63),
        "final_obj_pos": np.concatenate([place, turn.as_quat()[:, [3, 0, 1, 2]]], 1),
    }


@pytest.fixture
def source(tmp_path: Path) -> dict:
    rng = np.random.default_rng(5)
    data = {np.int64(i): _entry(rng, 3) for i in (1, 14)}
    (tmp_path / "dexycb_train_labels.pkl").write_bytes(pickle.dumps(data, protocol=3))
    for ycb in (1, 14):
        folder = tmp_path / "meshes" / YCB_NAMES[ycb]
        folder.mkdir(parents=True)
        (folder / "textured_meshlab.obj").write_text(TETRA)
    return {"labels": str(tmp_path / "dexycb_train_labels.pkl"), "meshes": str(tmp_path / "meshes"), "data": data}


def _options(source: dict, **more) -> DGrasp.Options:
    return DGrasp.Options(labels=source["labels"], meshes=source["meshes"], **more)


def test_the_skeleton_is_solved_from_angles_and_joints(source):
    skeleton = solve_skeleton(read_grasps(source["labels"]))
    assert skeleton.residual_m < 1e-14
    expected = {name: np.cumsum(offsets, axis=0) for name, offsets in OFFSETS.items()}
    mano = [expected[n][k] for n in ("index", "middle", "little", "ring", "thumb") for k in range(3)]
    np.testing.assert_allclose(skeleton.joints_m, [[0, 0, 0], *mano], atol=1e-14)
    tips = [expected[n][3] for n in ("thumb", "index", "middle", "ring", "little")]
    np.testing.assert_allclose(skeleton.tips_m, tips, atol=1e-14)


def test_labels_reproduce_the_files_joints_through_the_camera(source, monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)
    converter = DGrasp(_options(source, views=2))
    assert len(converter) == 12
    our_order = [0, *range(17, 21), *range(1, 17)]
    for index in range(len(converter)):
        item = converter.item(index)
        hand, camera = item.sample.hands[0], item.sample.camera
        file_joints = source["data"][(1, 14)[index // 6]]["final_ee"][index // 2 % 3].reshape(21, 3)[our_order]
        T = camera.T_world_cam.astype(float)
        bones = np.delete(np.arange(21), [4, 8, 12, 16, 20])
        world = hand.joints_cam_m.astype(float) @ T[:3, :3].T + T[:3, 3]
        assert np.linalg.norm(world - file_joints, axis=1)[bones].max() < 1e-5
        assert np.linalg.norm(world - file_joints, axis=1).max() < 2e-3
        assert hand.in_view.all()
        px = hand.joints_cam_m @ camera.K_px.T
        np.testing.assert_allclose(hand.joints_px, px[:, :2] / px[:, 2:], atol=2e-3)
        scene = build_scene(item, converter.hand_assets())
        np.testing.assert_allclose(scene.hands[0].joints_cam_m, hand.joints_cam_m, atol=1e-7)
        assert sample_from_json(sample_to_json(item.sample)) == item.sample


def test_items_depend_on_options_and_index_only(source):
    one, other = DGrasp(_options(source)), DGrasp(_options(source))
    forward = [one.item(i).sample for i in range(len(one))]
    backward = [other.item(i).sample for i in reversed(range(len(other)))][::-1]
    assert forward == backward
    assert DGrasp(_options(source, seed=1)).item(0).sample != forward[0]
    assert len({s.key for s in forward}) == len(forward)
    assert forward[0].key == "dgrasp/002_master_chef_can/grasp-000/view-00/000000"
    assert (forward[0].source.split, forward[0].source.group) == ("train", "002_master_chef_can")
    assert "BY-NC" in forward[0].source.licence


def test_the_fitted_hand_is_named_by_its_hash_and_survives_a_file(source, tmp_path, monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)
    converter = DGrasp(_options(source))
    ((name, assets),) = converter.hand_assets().items()
    assert name == f"fitted:{assets.sha256}/right"
    save_npz(assets, tmp_path / "hand.npz")
    assert load_npz(tmp_path / "hand.npz").sha256 == assets.sha256


def test_objects_and_grasps_limit_the_source(source):
    assert len(DGrasp(_options(source, objects=["025_mug"]))) == 3
    assert len(DGrasp(_options(source, grasps=2, views=3))) == 6
    with pytest.raises(ConfigError, match="did you mean '025_mug'"):
        DGrasp(_options(source, objects=["25_mug"]))


def test_a_missing_mesh_stops_before_any_work(source):
    (Path(source["meshes"]) / "025_mug" / "textured_meshlab.obj").unlink()
    with pytest.raises(AssetMissing, match="025_mug"):
        DGrasp(_options(source))
    assert len(DGrasp(_options(source, objects=["002_master_chef_can"]))) == 3
    mesh = Path(source["meshes"]) / "025_mug" / "textured_meshlab.obj"
    mesh.write_text(TETRA.replace("0.0", "0"))  # 0.03 becomes 03: metres
    with pytest.raises(SourceError, match="in millimetres needs the scale"):
        DGrasp(_options(source, objects=["025_mug"]))


def _write(source: dict, data: object) -> None:
    Path(source["labels"]).write_bytes(pickle.dumps(data, protocol=3))


def test_damaged_and_foreign_files_say_what_to_do(source, tmp_path):
    whole = Path(source["labels"]).read_bytes()
    Path(source["labels"]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="dexycb_train_labels"):
        DGrasp(_options(source))
    _write(source, [1, 2, 3])
    with pytest.raises(SourceError, match="not labels by object"):
        DGrasp(_options(source))
    _write(source, {np.int64(1): {"final_qpos": np.zeros((2, 45))}})
    with pytest.raises(SourceError, match="final_qpos should be"):
        DGrasp(_options(source))
    _write(source, {np.int64(40): source["data"][1]})
    with pytest.raises(SourceError, match="YCB ids 1 to 21"):
        DGrasp(_options(source))
    _write(source, {np.int64(1): dict(source["data"][1], final_ee=source["data"][1]["final_ee"] * np.nan)})
    with pytest.raises(SourceError, match="not finite"):
        DGrasp(_options(source))
    _write(source, {np.int64(1): dict(source["data"][1], final_ee=source["data"][1]["final_ee"] + 0.01)})
    with pytest.raises(SourceError, match="disagree by 10"):
        DGrasp(_options(source))
    slipped = dict(source["data"][1])
    for name, kept in (("final_qpos", 3), ("final_ee", 63), ("final_ee_rel", 63), ("final_obj_pos", 3)):
        slipped[name] = slipped[name] * np.where(np.arange(slipped[name].shape[1]) < kept, 1000.0, 1.0)
    _write(source, {np.int64(1): slipped})
    with pytest.raises(SourceError, match="are its positions in metres"):
        DGrasp(_options(source))
    with pytest.raises(SourceError, match="no such label file"):
        read_grasps(tmp_path / "nothing.pkl")


class _Evil:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_pickle_with_code_is_refused_without_running_it(source, capsys):
    _write(source, {np.int64(1): _Evil()})
    with pytest.raises(UnsafeInput):
        DGrasp(_options(source))
    assert "this ran" not in capsys.readouterr().out


def test_the_registry_and_the_configuration_find_it():
    assert registry.load("converters", "dgrasp") is DGrasp
    options = resolve(DGrasp.Options, {"labels": "a.pkl", "meshes": "m"}, ["views=3", "size=[64,48]"])
    assert (options.views, options.size) == (3, [64, 48])
    with pytest.raises(ConfigError, match="labels"):
        resolve(DGrasp.Options, {"meshes": "m"})


@pytest.mark.realdata
def test_all_376_real_grasps(real_data, monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)
    labels = real_data / "noncommercial/dgrasp/dexycb_train_labels.pkl"
    converter = DGrasp(DGrasp.Options(labels=str(labels), meshes=str(real_data / "permissive/ycb_meshes")))
    assert len(converter) == 376
    assert converter.skeleton.residual_m < 1e-14
    tips = [4, 8, 12, 16, 20]
    for grasp in converter.grasps:
        _, joints = converter.posed(grasp)
        error_mm = np.linalg.norm(joints - grasp.joints_m, axis=1) * 1e3
        assert np.delete(error_mm, tips).max() < 0.01
        assert error_mm.max() < 2.0
        in_object = (joints - grasp.T_world_obj[:3, 3]) @ grasp.T_world_obj[:3, :3]
        assert np.delete(np.linalg.norm(in_object - grasp.joints_obj_m, axis=1), tips).max() < 1e-5
    items = [converter.item(i) for i in range(0, 376, 25)]
    assert all(item.sample.hands[0].in_view.all() for item in items)
    summary = summarize(converter.contacts)
    assert summary.share_in_contact > 0.95
    assert summary.depth_max_mm < 8.0
