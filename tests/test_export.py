"""Exports: SimpleHand's pictures and labels (left hands mirrored), COCO keypoints, and whose vertices."""

import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import orjson
import pytest
import torch
from fake_mano import fake_hand, write_official

from pam_aug.errors import AssetMissing, ConfigError, SchemaError
from pam_aug.export.coco import export_coco
from pam_aug.export.hamer import export_hamer
from pam_aug.export.items import hands_in
from pam_aug.export.simplehand import export_simplehand
from pam_aug.geometry import project
from pam_aug.hand import HandAssets, HandLayer, load_mano, load_open_hand, mirror_params, save_npz
from pam_aug.rollouts.label import hand_label
from pam_aug.schema import Camera, Hand, Sample, Source, make_key
from pam_aug.shards.images import decode_image
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, write_mix
from pam_aug.shards.writer import ShardWriter

WIDTH, HEIGHT = 64, 48
CAMERA = Camera(WIDTH, HEIGHT, np.array([[70.0, 0.5, 30], [0, 65.0, 24], [0, 0, 1]]), np.eye(4))
MIRRORED = Camera(WIDTH, HEIGHT, np.array([[70.0, -0.5, WIDTH - 31], [0, 65.0, 24], [0, 0, 1]]), np.eye(4))
MODELS = {f"open_hand/{side}": load_open_hand(side) for side in ("right", "left")}


def hand(seed: int, side: str = "right", camera: Camera = CAMERA, name: str = "open_hand", assets=None) -> Hand:
    """A hand posed by the seed; the left one is the right one's mirror image."""
    rng = np.random.default_rng(seed)
    orient, pose = 0.5 * rng.standard_normal((1, 3)), 0.2 * rng.standard_normal((1, 45))
    betas, transl = rng.standard_normal(10), np.array([[0.09, 0.0, 0.5]])
    numbers = [torch.from_numpy(a) for a in (orient, pose, transl)]
    orient, pose, transl = (a[0].numpy() for a in (mirror_params(*numbers) if side == "left" else numbers))
    layer = HandLayer(assets or MODELS[f"{name}/{side}"], dtype=torch.float64)
    return hand_label(layer, name, orient, pose, betas, transl, camera)


def make_build(out: Path, samples: list[tuple], models: dict[str, HandAssets] | None = None) -> Path:
    """A build's folder with one real shard; `samples` are (camera, hands, image, suffix)."""
    with ShardWriter(out / "shards" / "real-00000.tar", "real") as shard:
        for number, (camera, hands, image, suffix) in enumerate(samples):
            key = make_key("demo", "s", "take", "c", f"{number:06d}")
            shard.add(Sample(key, camera, hands, (), Source("demo", str(number), "CC0", "test")), image, suffix)
    write_mix(out / "mix.json", Mix((MixSource("real", "1", collect_shards(out / "shards", "real", out)),)))
    hashes = {name: assets.sha256 for name, assets in (MODELS if models is None else models).items()}
    (out / "build.json").write_bytes(orjson.dumps({"identity": {"hands": hashes}}))
    return out


def jpeg(seed: int) -> bytes:
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, (WIDTH, HEIGHT)))[1].tobytes()


def label_of(image_path: str) -> dict[str, np.ndarray]:
    tree = orjson.loads(Path(image_path).with_suffix(".json").read_bytes())
    assert tree.pop("image_path") == image_path
    return {name: np.array(value) for name, value in tree.items()}


def test_simplehand_right_hand_is_the_label(tmp_path):
    folder = make_build(tmp_path / "build", [(CAMERA, (hand(1),), jpeg(1), "jpg")])
    done = export_simplehand(folder, tmp_path / "out")
    (path,) = orjson.loads((tmp_path / "out" / "list.json").read_bytes())
    assert (done.hands, done.mirrored) == (1, 0)
    assert path == str(tmp_path / "out" / "images" / "demo/s/take/c/000000-r.jpg")
    assert Path(path).read_bytes() == jpeg(1)
    label, truth = label_of(path), hand(1)
    assert {n: a.shape for n, a in label.items()} == {"xyz": (21, 3), "uv": (21, 2), "K": (3, 3), "vertices": (778, 3)}
    np.testing.assert_array_equal(np.float32(label["xyz"]), truth.joints_cam_m)
    np.testing.assert_array_equal(np.float32(label["K"]), CAMERA.K_px)
    np.testing.assert_allclose(project(label["xyz"], label["K"]), label["uv"], atol=1e-3)
    # The mesh is in the same place as the joints.
    regressed = MODELS["open_hand/right"].J_regressor.astype(float) @ label["vertices"]
    np.testing.assert_allclose(regressed[0], label["xyz"][0], atol=3e-3)
    np.testing.assert_allclose(
        label["vertices"][[744, 320, 443, 554, 671]], label["xyz"][[4, 8, 12, 16, 20]], atol=1e-6
    )


def test_simplehand_left_hand_is_the_mirrored_right_one(tmp_path):
    image = cv2.imdecode(np.frombuffer(jpeg(2), np.uint8), cv2.IMREAD_COLOR)
    flipped = cv2.imencode(".png", image[:, ::-1])[1].tobytes()
    samples = [(CAMERA, (hand(2),), jpeg(2), "jpg"), (MIRRORED, (hand(2, "left", MIRRORED),), flipped, "png")]
    done = export_simplehand(make_build(tmp_path / "build", samples), tmp_path / "out")
    right, left = orjson.loads((tmp_path / "out" / "list.json").read_bytes())
    assert (done.hands, done.mirrored, left[-6:]) == (2, 1, "-l.jpg")
    wanted = label_of(right)
    for name, got in label_of(left).items():
        np.testing.assert_allclose(got, wanted[name], atol=1e-3 if name == "uv" else 1e-6, err_msg=name)
    a, b = (decode_image(Path(p).read_bytes(), "jpg", p).astype(int) for p in (right, left))
    assert np.abs(a - b).mean() < 1.0
    assert np.abs(a - b[:, ::-1]).mean() > 20.0


def test_hands_that_cannot_be_written_are_counted(tmp_path):
    away = replace(hand(3), in_view=np.zeros(21, bool))
    joints_only = replace(hand(3), mano_valid=False, hand_model="")
    both = (hand(3), hand(4))  # two right hands in one image
    samples = [(CAMERA, hands, jpeg(n), "jpg") for n, hands in enumerate(((away,), (joints_only,), both))]
    folder = make_build(tmp_path / "build", samples)
    done = export_simplehand(folder, tmp_path / "out")
    assert (done.hands, done.without_model, done.out_of_view) == (2, 1, 1)
    paths = orjson.loads((tmp_path / "out" / "list.json").read_bytes())
    assert [Path(p).name for p in paths] == ["000002-r.jpg", "000002-r1.jpg"]
    with pytest.raises(ConfigError, match="new folder"):
        export_simplehand(folder, tmp_path / "out")


def test_vertices_come_from_the_model_that_made_the_labels(tmp_path):
    small = load_open_hand("right")
    fitted = replace(small, v_template=small.v_template * 0.9)
    name = f"fitted:{fitted.sha256}"
    samples = [(CAMERA, (hand(5, name=name, assets=fitted),), jpeg(5), "jpg")]
    folder = make_build(tmp_path / "build", samples, {f"{name}/right": fitted})
    with pytest.raises(AssetMissing, match="fitted hand"):
        export_simplehand(folder, tmp_path / "out")
    (folder / "hands").mkdir()
    save_npz(fitted, folder / "hands" / f"{fitted.sha256}.npz")
    export_simplehand(folder, tmp_path / "out")
    (path,) = orjson.loads((tmp_path / "out" / "list.json").read_bytes())
    label = label_of(path)
    np.testing.assert_allclose(label["vertices"][744], label["xyz"][4], atol=1e-6)
    other = make_build(tmp_path / "other", [(CAMERA, (hand(5),), jpeg(5), "jpg")], {"open_hand/right": fitted})
    with pytest.raises(SchemaError, match="another open_hand/right"):
        export_simplehand(other, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_mano_labels_need_the_mano_files_of_the_build(tmp_path, monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)
    mano, made = tmp_path / "mano", fake_hand()
    mano.mkdir()
    write_official(made, mano / "MANO_RIGHT.pkl")
    write_official(made.mirrored("as_file"), mano / "MANO_LEFT.pkl")
    # The left hand as DexYCB's labels need it: shape directions as in the file.
    models = {f"mano/{side}": load_mano(mano, side, left_shapedirs="as_file") for side in ("right", "left")}
    hands = (
        hand(9, name="mano", assets=models["mano/right"]),
        hand(9, "left", name="mano", assets=models["mano/left"]),
    )
    folder = make_build(tmp_path / "build", [(CAMERA, hands, jpeg(9), "jpg")], models)
    with pytest.raises(AssetMissing, match="--mano-dir"):
        export_simplehand(folder, tmp_path / "out")
    assert export_simplehand(folder, tmp_path / "out", mano).hands == 2
    for path in orjson.loads((tmp_path / "out" / "list.json").read_bytes()):
        label = label_of(path)
        np.testing.assert_allclose(label["vertices"][744], label["xyz"][4], atol=1e-6)


def test_coco(tmp_path):
    half = hand(6)
    inside = np.arange(21) < 12
    half = replace(half, in_view=inside)
    away = replace(hand(7), in_view=np.zeros(21, bool))
    samples = [(CAMERA, (half, hand(8, "left")), jpeg(1), "jpg"), (CAMERA, (away,), jpeg(2), "jpg")]
    folder = make_build(tmp_path / "build", samples)
    told: list[int] = []
    done = export_coco(folder, tmp_path / "out", told.append)
    assert (done.images, done.hands, done.out_of_view) == (2, 2, 1)
    assert sum(told) == hands_in(folder) == 3
    tree = orjson.loads((tmp_path / "out" / "keypoints.json").read_bytes())
    assert [i["file_name"] for i in tree["images"]] == [f"images/demo/s/take/c/00000{n}.jpg" for n in range(2)]
    assert [(tmp_path / "out" / i["file_name"]).read_bytes() for i in tree["images"]] == [jpeg(1), jpeg(2)]
    assert tree["licenses"] == [{"id": 1, "name": "CC0", "url": ""}]
    (category,) = tree["categories"]
    assert (len(category["keypoints"]), len(category["skeleton"])) == (21, 20)
    names = [(category["keypoints"][a - 1], category["keypoints"][b - 1]) for a, b in category["skeleton"]]
    assert {("wrist", "index_mcp"), ("index_mcp", "index_pip"), ("thumb_ip", "thumb_tip")} <= set(names)
    first, second = tree["annotations"]
    assert [(a["id"], a["image_id"], a["category_id"], a["side"]) for a in (first, second)] == [
        (1, 1, 1, "right"),
        (2, 1, 1, "left"),
    ]
    points = np.array(first["keypoints"], np.float32).reshape(21, 3)
    np.testing.assert_array_equal(points[inside, :2], half.joints_px[inside])
    np.testing.assert_array_equal(points[:, 2], np.where(inside, 2, 0))
    assert not points[~inside].any()
    assert first["num_keypoints"] == 12
    x, y, w, h = first["bbox"]
    low, high = np.clip(half.joints_px.min(0), -0.5, None), half.joints_px.max(0)
    np.testing.assert_allclose([x, y, x + w, y + h], [*low, *np.minimum(high, [WIDTH - 0.5, HEIGHT - 0.5])], rtol=1e-6)
    assert first["area"] == pytest.approx(w * h)


def test_sources_that_are_not_read_are_not_exported(tmp_path):
    folder = make_build(tmp_path / "build", [(CAMERA, (hand(1),), jpeg(1), "jpg")])
    real = collect_shards(folder / "shards", "real", folder)
    sources = (MixSource("real", "1", real), MixSource("synthetic", "0", real))
    write_mix(folder / "mix.json", Mix(sources))
    assert export_coco(folder, tmp_path / "out").images == hands_in(folder) == 1
    with pytest.raises(ConfigError, match=r"mix\.json"):
        export_coco(tmp_path, tmp_path / "again")


class OnlyArrays(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        assert (module, name) == ("numpy", "array")
        return np.array


def test_hamer_tars_name_one_function_and_hold_the_labels(tmp_path, monkeypatch):
    monkeypatch.setattr("pam_aug.export.hamer._PER_TAR", 2)
    mano = replace(hand(11), hand_model="mano")
    away = replace(hand(12), in_view=np.zeros(21, bool))
    half = replace(hand(13, "left"), in_view=np.arange(21) < 9)
    pictures = [(mano, half), (away,), (hand(14),), (mano,)]
    samples = [(CAMERA, hands, jpeg(n), "jpg") for n, hands in enumerate(pictures)]
    folder = make_build(tmp_path / "build", samples)
    done = export_hamer(folder, tmp_path / "out")
    assert (done.tars, done.images, done.hands, done.without_mano, done.out_of_view) == (2, 3, 4, 2, 1)
    members = {}
    for number in range(2):
        with tarfile.open(tmp_path / "out" / f"{number:06d}.tar") as tar:
            for info in tar:
                assert info.mtime == 0
                members[info.name] = tar.extractfile(info).read()
    keys = [f"demo/s/take/c/{n:06d}" for n in (0, 2, 3)]
    assert list(members) == [f"{key}.{suffix}" for key in keys for suffix in ("jpg", "data.pyd")]
    assert [members[f"{key}.jpg"] for key in keys] == [jpeg(n) for n in (0, 2, 3)]
    right, left = OnlyArrays(io.BytesIO(members[f"{keys[0]}.data.pyd"])).load()
    assert {name: value.shape for name, value in right.items() if name not in ("personid", "extra_info")} == {
        **{"keypoints_2d": (21, 3), "keypoints_3d": (21, 4), "center": (2,), "scale": (2,)},
        **{"hand_pose": (48,), "betas": (10,), "has_hand_pose": (), "has_betas": (), "right": ()},
    }
    assert all(value.dtype == np.float32 for value in right.values() if isinstance(value, np.ndarray))
    assert (right["right"], right["has_hand_pose"], right["personid"], right["extra_info"]) == (1, 1, 0, {})
    np.testing.assert_array_equal(right["keypoints_2d"][:, :2], mano.joints_px)
    np.testing.assert_array_equal(right["keypoints_3d"][:, :3], mano.joints_cam_m)
    np.testing.assert_array_equal(right["hand_pose"], np.concatenate([mano.global_orient, mano.hand_pose]))
    low, high = mano.joints_px.min(0), mano.joints_px.max(0)
    np.testing.assert_allclose(right["center"], (low + high) / 2, rtol=1e-5)
    np.testing.assert_allclose(right["scale"] * 200, 2 * (high - low), rtol=1e-5)
    assert (left["right"], left["has_hand_pose"], left["has_betas"]) == (0, 0, 0)  # the open hand's shape is not MANO's
    assert not left["betas"].any()
    np.testing.assert_array_equal(left["keypoints_2d"][:, 2], np.arange(21) < 9)
    assert "{000000..000001}.tar" in (tmp_path / "out" / "datasets_tar.yaml").read_text()
    export_hamer(folder, tmp_path / "again")
    assert (tmp_path / "again" / "000001.tar").read_bytes() == (tmp_path / "out" / "000001.tar").read_bytes()
    with pytest.raises(ConfigError, match="no hand in view"):
        export_hamer(make_build(tmp_path / "empty", [(CAMERA, (away,), jpeg(1), "jpg")]), tmp_path / "none")
