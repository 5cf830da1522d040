"""Hand crops of any source: labels that stay exact, images that show what the labels say, and early refusals."""

import contextlib
import hashlib
from pathlib import Path

import cv2
import fake_oakink2
import fakes
import numpy as np
import pytest
import simplejpeg
import torch
from fake_dexycb import write_dexycb

from pam_aug import registry
from pam_aug.build import hand_crop
from pam_aug.build.config import BuildConfig, open_converter
from pam_aug.build.hand_crop import AbsentHand, CropOptions, HandCrops, crop_image
from pam_aug.build.run import plan, run_build
from pam_aug.config import resolve
from pam_aug.errors import AssetMissing, BudgetExceeded, ConfigError, ResumeMismatch, SourceError
from pam_aug.geometry import Crop, project, square_crop
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.render.pieces import scene_conditions
from pam_aug.report.summary import read_all_candidates
from pam_aug.rollouts.label import hand_label
from pam_aug.rollouts.scene import Item, build_scene
from pam_aug.schema import Camera, Sample, Source, make_key
from pam_aug.shards.images import decode_plane
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.verify import verify

W, H = 200, 140
K = np.array([[180.0, 0, 101.3], [0, 176.0, 68.2], [0, 0, 1]])


def two_hands(seed: int) -> Sample:
    """A right hand near the middle and a left one that leaves the image."""
    rng = np.random.default_rng(seed)
    T = np.eye(4)
    T[:3, 3] = 0.1, -0.2, 0.3
    camera = Camera(W, H, K, T)
    hands = []
    for side, x in (("right", -0.05), ("left", 0.32)):
        layer = HandLayer(load_open_hand(side), dtype=torch.float64)
        pose, orient = 0.2 * rng.standard_normal(45), 0.4 * rng.standard_normal(3)
        transl = np.array([x + 0.1, -0.2 + 0.02, 0.3 + 0.55])
        hands.append(hand_label(layer, "open_hand", orient, pose, rng.standard_normal(10), transl, camera))
    return Sample(
        key=make_key("two", "s", "q", "c", f"{seed:06d}"),
        camera=camera,
        hands=tuple(hands),
        objects=(),
        source=Source(dataset="two", name=str(seed), licence="test", converter="two-hands"),
    )


def dot(px: np.ndarray) -> np.ndarray:
    """A picture with a small round white dot, at a place between pixels."""
    y, x = np.mgrid[:H, :W]
    grey = 255 * np.exp(-((x - float(px[0])) ** 2 + (y - float(px[1])) ** 2) / (2 * 1.5**2))
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, -1)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


class TwoHands(fakes.FakeReal):
    name = "two-hands"

    def item(self, index: int) -> Item:
        if index == self.options.bad:
            raise SourceError(f"item {index} is broken")
        sample = two_hands(index)
        return Item(sample, png(dot(sample.hands[0].joints_px[0])), {})

    def hand_assets(self):
        return {f"open_hand/{side}": load_open_hand(side) for side in ("right", "left")}


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    monkeypatch.setattr(registry, "load", registry.load)
    monkeypatch.setitem(fakes._BACKENDS, ("converters", "two-hands"), TwoHands)
    monkeypatch.delenv("MANO_DIR", raising=False)
    fakes.install()


def crops_of(**options) -> HandCrops:
    section = {"converter": "two-hands", "count": 3, "crop": "hand", "crop_size": 96, **options}
    made = open_converter(section, "source")
    assert isinstance(made, HandCrops)
    return made


def config(*overrides: str) -> BuildConfig:
    tree = {
        **fakes.CONFIG,
        "source": {"converter": "two-hands", "count": 3, "crop": "hand", "crop_size": 64},
        "real": {},
    }
    return resolve(BuildConfig, tree, overrides)


@pytest.mark.parametrize("slot", [0, 1])
def test_only_the_image_and_its_pixels_change(slot):
    whole, crop = two_hands(0), crops_of().item(slot).sample
    hand, cut = whole.hands[slot], crop.hands[0]
    assert crop.key == f"{whole.key}-{'rl'[slot]}"
    assert (len(crop.hands), crop.camera.width, crop.camera.height) == (1, 96, 96)
    for name in ("joints_cam_m", "transl", "global_orient", "hand_pose", "betas"):
        assert getattr(cut, name).tobytes() == getattr(hand, name).tobytes()
    assert crop.camera.T_world_cam.tobytes() == whole.camera.T_world_cam.tobytes()
    again = project(cut.joints_cam_m.astype(float), crop.camera.K_px.astype(float))
    assert np.abs(again - cut.joints_px).max() < 1e-3
    # A pinhole of the same shape: no skew, both axes zoomed alike, nothing else touched.
    zoom = crop.camera.K_px[0, 0] / K[0, 0]
    assert crop.camera.K_px[1, 1] == pytest.approx(zoom * K[1, 1], rel=1e-6)
    assert crop.camera.K_px[0, 1] == 0


def test_the_box_is_centred_and_enlarged():
    for size, enlarge in ((96, 1.5), (101, 2.0)):
        px = crops_of(crop_size=size, crop_enlarge=enlarge).item(0).sample.hands[0].joints_px.astype(float)
        low, high = px.min(0), px.max(0)
        assert (low + high) / 2 == pytest.approx(np.full(2, (size - 1) / 2), abs=1e-3)
        assert (high - low).max() * enlarge == pytest.approx(size, abs=1e-2)


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("size", [48, 160])
def test_a_drawn_dot_lands_where_the_label_says(slot, size):
    whole = two_hands(0)
    hand = whole.hands[slot]
    crop = square_crop(hand.joints_px, size, 1.5)
    y, x = np.mgrid[:size, :size]
    for j in np.flatnonzero(hand.in_view)[::4]:
        cut = hand_crop.hand_crop(Item(whole, png(dot(hand.joints_px[j])), {}), hand, crop)
        image = simplejpeg.decode_jpeg(cut.image)[..., 0].astype(float)
        weight = np.where(image > 20, image, 0)
        centre = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
        assert np.abs(centre - cut.sample.hands[0].joints_px[j]).max() < 0.15


def test_outside_the_source_image_is_black_and_not_in_view():
    crop = Crop(x0_px=-10.0, y0_px=-10.0, side_px=20.0, size_px=40)
    white = crop_image(np.full((30, 30, 3), 255, np.uint8), crop)
    assert not white[:19].any()
    assert not white[:, :19].any()
    assert (white[21:, 21:] == 255).all()
    item = crops_of().item(1)
    hand = item.sample.hands[0]
    on_canvas = ((hand.joints_px >= -0.5) & (hand.joints_px < 95.5)).all(-1)
    assert on_canvas.all()
    assert 0 < hand.in_view.sum() < 21
    assert hand.in_view.tolist() == two_hands(0).hands[1].in_view.tolist()


def test_shrinking_keeps_the_mean_of_a_fine_pattern():
    checks = np.repeat(((np.indices((120, 120)).sum(0) % 2) * 255).astype(np.uint8)[..., None], 3, -1)
    small = crop_image(checks, Crop(20.0, 20.0, 80.0, 20)).astype(float)
    assert small.mean() == pytest.approx(127.5, abs=2)
    assert small.std() < 8


def test_an_identity_crop_copies_the_pixels():
    image = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    assert np.array_equal(crop_image(image, Crop(7.0, 5.0, 32.0, 32)), image[5:37, 7:39])


def test_converted_crops_verify_and_say_where_they_come_from(tmp_path):
    result = run_build(config(), tmp_path / "out", ("real",), workers=0)
    assert (result.summary.real_images, result.summary.real_hands) == (6, 6)
    assert verify(tmp_path / "out").damaged == []
    reader = ShardReader(tmp_path / "out" / "shards" / "real-00000.tar")
    assert reader.keys == [f"two/s/q/c/{i:06d}-{side}" for i in range(3) for side in "rl"]
    sample = reader.sample(0)
    whole = png(dot(two_hands(0).hands[0].joints_px[0]))
    assert sample.source.image_sha256 == hashlib.sha256(whole).hexdigest()
    assert any(note.startswith("hand crop: ") for note in sample.source.notes)
    assert reader.image(0).shape == (64, 64, 3)


def test_depth_and_segmentation_are_those_of_the_whole_scene(monkeypatch):
    # A crop at the source's own resolution, over two of its edges: it must equal a cut of the whole image's conditions.
    monkeypatch.setattr(hand_crop, "square_crop", lambda px, size, enlarge: Crop(60.0, 0.0, 160.0, 160))
    crops = crops_of()
    whole = scene_conditions(build_scene(TwoHands(fakes.SourceOptions()).item(0), crops.hand_assets()))
    for slot in (0, 1):
        cut = crops.conditions(slot, crops.hand_assets())
        same = whole.seg[:, 60:] == cut.seg[:H, : W - 60]
        assert same.mean() > 0.999
        assert np.abs(whole.depth_m[:, 60:] - cut.depth_m[:H, : W - 60])[same].max() < 1e-3
        assert {1, 2} <= set(np.unique(cut.seg))  # both hands, as in the picture
        outside = np.ones((160, 160), bool)
        outside[:H, : W - 60] = False
        assert not cut.seg[outside].any()
        assert not cut.depth_m[outside].any()


def test_depth_and_segmentation_are_written(tmp_path):
    run_build(config("shards.depth=true", "shards.seg=true"), tmp_path / "out", ("real",), workers=0)
    reader = ShardReader(tmp_path / "out" / "shards" / "real-00000.tar")
    for i, own in ((0, 1), (1, 2)):
        hand, seg = reader.sample(i).hands[0], decode_plane(reader.extra(i, "seg.png"), np.uint8, "")
        depth = decode_plane(reader.extra(i, "depth.png"), np.uint16, "")
        u, v = np.rint(hand.joints_px[hand.in_view]).astype(int).clip(0, 63).T
        on = seg[v, u] == own
        assert on.mean() > 0.6  # a joint may project beside the silhouette
        below_skin_mm = 1000 * hand.joints_cam_m[hand.in_view, 2][on] - depth[v, u][on]
        assert below_skin_mm.min() > -2  # the first surface a pixel meets lies in front of the joint
        assert below_skin_mm.min() < 15  # and where nothing else of the hand is before it, it is the joint's own skin


def test_generating_from_crops_takes_each_hand_as_an_input(tmp_path):
    out = tmp_path / "out"
    result = run_build(config("source.crop_size=48", "real.converter=fake-real", "real.count=2"), out, workers=0)
    assert result.summary.inputs == 6
    assert {r.input_key[-2:] for r in read_all_candidates(out)} == {"-r", "-l"}
    assert verify(out).damaged == []


def test_a_source_of_one_hand_makes_one_crop_and_no_failure(tmp_path):
    tree = {**fakes.CONFIG, "source": {"converter": "fake-real", "count": 5, "crop": "hand", "crop_size": 48}}
    tree["real"] = {}
    result = run_build(resolve(BuildConfig, tree), tmp_path / "out", workers=0)
    s = result.summary
    assert (s.real_images, s.real_failed, s.inputs, s.failed) == (5, 0, 5, 0)


def test_an_unreadable_image_counts_once(tmp_path):
    with pytest.raises(BudgetExceeded, match="1 real images"):
        run_build(config("source.bad=1"), tmp_path / "out", ("real",), workers=0)
    with pytest.raises(AbsentHand):
        crops_of(bad=1).item(3)
    with pytest.raises(SourceError, match="broken"):
        crops_of(bad=1).item(2)


def test_another_crop_is_another_build(tmp_path):
    run_build(config(), tmp_path / "out", ("real",), workers=0)
    for change in ("source.crop_size=65", "source.crop_enlarge=1.25", "source.crop="):
        with pytest.raises((ResumeMismatch, ConfigError)) as caught:
            run_build(
                config(change, *(["source.crop_size=256"] if change.endswith("=") else [])),
                tmp_path / "out",
                ("real",),
                0,
            )
        assert "crop" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"crop": "head"}, "hand"),
        ({"crop_size": 8}, "16 to 4096"),
        ({"crop_size": "big"}, "crop_size"),
        ({"crop_enlarge": 0.5}, "crop_enlarge"),
        ({"crop_enlarge": float("nan")}, "crop_enlarge"),
        ({"crop": "", "crop_size": 64}, "crop: hand"),
        ({"crop_sise": 64}, "crop_sise"),
    ],
)
def test_bad_values_are_refused(options, word):
    with pytest.raises(ConfigError, match=word):
        crops_of(**options)


def test_defaults_are_whole_images():
    assert CropOptions().crop == ""
    assert isinstance(open_converter({"converter": "two-hands", "crop": ""}, "source"), TwoHands)


# ------------------------------------------------------------------------------------------------- real converters


@pytest.fixture(scope="module")
def dexycb(tmp_path_factory):
    return write_dexycb(tmp_path_factory.mktemp("dexycb"))


def dexycb_section(fake, **more) -> dict:
    return {
        "converter": "dexycb",
        "root": str(fake.root),
        "subjects": [1, 2],
        "sequence_table": str(fake.table),
        **more,
    }


def test_dexycb_and_its_missing_mano(dexycb, tmp_path):
    cropped = open_converter(dexycb_section(dexycb, crop="hand"), "source")
    item = cropped.item(0)
    px = project(item.sample.hands[0].joints_cam_m.astype(float), item.sample.camera.K_px.astype(float))
    assert np.abs(px - item.sample.hands[0].joints_px).max() < 1e-3
    tree = {**fakes.CONFIG, "source": dexycb_section(dexycb), "real": {}}
    for parts in (("real", "synthetic"), ("synthetic",)):
        with pytest.raises(AssetMissing, match=r"MANO_LEFT.*pam-aug convert dexycb"):
            run_build(resolve(BuildConfig, tree), tmp_path / "out", parts, workers=0)
    with pytest.raises(AssetMissing, match="depth and segmentation"):
        run_build(resolve(BuildConfig, tree, ["shards.seg=true"]), tmp_path / "out", ("real",), workers=0)
    assert not (tmp_path / "out").exists()
    assert plan(resolve(BuildConfig, tree), ("real",)).as_dict()["real_images"] > 0
    with_mano = {**tree, "source": dexycb_section(dexycb, mano_dir=str(dexycb.mano_dir))}
    assert plan(resolve(BuildConfig, with_mano)).inputs > 0


@pytest.mark.filterwarnings("ignore:oakink2")
def test_oakink2_and_its_missing_mano(tmp_path):
    fake_oakink2.write_tree(tmp_path)
    section = {"converter": "oakink2", "root": str(tmp_path)}
    with_mano = {**section, "mano_dir": str(tmp_path / "mano"), "crop": "hand", "crop_size": 128}
    cropped = open_converter(with_mano, "source")
    found = []
    for slot in range(8):
        with contextlib.suppress(SourceError):  # the fixture has an image without annotation
            found.append(cropped.item(slot).sample)
    assert {s.key[-2:] for s in found} == {"-r", "-l"}
    for s in found:
        px = project(s.hands[0].joints_cam_m.astype(float), s.camera.K_px.astype(float))
        assert np.abs(px - s.hands[0].joints_px).max() < 1e-3
    tree = {**fakes.CONFIG, "source": section, "real": {}}
    with pytest.raises(AssetMissing, match=r"generate from it.*MANO"):
        plan(resolve(BuildConfig, tree), ("synthetic",))
    with pytest.raises(AssetMissing, match="crop its hands"):
        plan(resolve(BuildConfig, tree, ["source.crop=hand"]), ("real",))
    assert plan(resolve(BuildConfig, tree), ("real",)).as_dict()["real_images"] > 0


def test_the_stand_in_source_can_be_cropped():
    assert isinstance(open_converter({"converter": "demo-real", "crop": "hand"}, "source"), HandCrops)
    rollouts = open_converter({"converter": "demo-rollouts", "crop": "hand", "crop_size": 72}, "source")
    item = rollouts.item(0)
    assert (item.image, item.sample.camera.width) == (b"", 72)
    assert Path(item.sample.key).name.endswith(("-l", "-r"))
