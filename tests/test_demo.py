"""The sources that need no input: rollouts made in code, and the path-traced stand-in for a real dataset."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from pam_aug import registry
from pam_aug.converters.demo import DemoReal, DemoRollouts
from pam_aug.converters.demo_denoise import denoise
from pam_aug.converters.demo_sequences import make_sequence
from pam_aug.converters.demo_shapes import FAMILIES, make_shape
from pam_aug.errors import AssetMissing, ConfigError, SourceError
from pam_aug.hand import load_open_hand
from pam_aug.rollouts.contact import hand_parts, measure_contact, summarize
from pam_aug.rollouts.grasp import FREE_KINDS, GraspSampler, surface_of
from pam_aug.rollouts.mesh_queries import signed_distance_m
from pam_aug.rollouts.scene import build_scene
from pam_aug.schema import sample_from_json, sample_to_json

FRAMES = 40


@pytest.fixture(scope="module")
def rollouts():
    converter = DemoRollouts(DemoRollouts.Options(count=FRAMES, seed=3))
    return converter, [converter.item(i) for i in range(FRAMES)]


def test_labels_are_exact_and_whole_hands_in_view(rollouts):
    converter, items = rollouts
    for item in items:
        (hand,), camera = item.sample.hands, item.sample.camera
        scene = build_scene(item, converter.hand_assets())
        np.testing.assert_allclose(scene.hands[0].joints_cam_m, hand.joints_cam_m, atol=1e-7)
        px = hand.joints_cam_m.astype(float) @ camera.K_px.T.astype(float)
        np.testing.assert_allclose(hand.joints_px, px[:, :2] / px[:, 2:], atol=1e-4)
        assert hand.in_view.all()
        verts = scene.hands[0].verts_cam_m @ camera.K_px.T.astype(float)
        box = np.ptp(verts[:, :2] / verts[:, 2:], axis=0).max() / camera.width
        assert 0.28 < box < 0.62
        assert sample_from_json(sample_to_json(item.sample)) == item.sample
        assert item.image == b""
        assert set(item.meshes) == {o.mesh for o in item.sample.objects}


def test_both_sides_and_many_kinds_occur(rollouts):
    _, items = rollouts
    assert {item.sample.hands[0].side for item in items} == {"left", "right"}
    assert len({item.sample.source.notes[0] for item in items}) >= 5
    assert len({item.sample.key for item in items}) == FRAMES
    assert any(not item.sample.objects for item in items)


def test_held_objects_are_touched_and_hardly_pierced(rollouts):
    converter, items = rollouts
    contacts = []
    for item in items:
        if "near" in item.sample.source.notes[0] or not item.sample.objects:
            continue
        scene = build_scene(item, converter.hand_assets())
        hand, thing = scene.hands[0], scene.objects[0]
        contacts.append(measure_contact(hand.verts_cam_m, hand_parts(hand.assets), thing.verts_cam_m, thing.mesh.faces))
    summary = summarize(contacts)
    assert summary.grasps >= 20
    assert summary.share_in_contact >= 0.9
    assert summary.depth_max_mm < 6
    assert summary.parts_touching > 3


def test_an_item_depends_on_the_seed_and_its_number_only(rollouts):
    _, items = rollouts
    longer = DemoRollouts(DemoRollouts.Options(count=500, seed=3))
    assert longer.item(17).sample == items[17].sample
    assert longer.item(17).meshes.keys() == items[17].meshes.keys()
    other = DemoRollouts(DemoRollouts.Options(count=500, seed=4)).item(17).sample
    assert other != items[17].sample
    with pytest.raises(SourceError, match="item 500"):
        longer.item(500)


def test_the_test_split_has_other_shapes_and_other_keys():
    train, test = (DemoRollouts(DemoRollouts.Options(count=12, split=s, grasp_share=1.0)) for s in ("train", "test"))
    families = [{c.item(i).sample.objects[0].id.split("-")[0] for i in range(12)} for c in (train, test)]
    assert families[0] <= set(FAMILIES["train"])
    assert families[1] <= set(FAMILIES["test"])
    names = [set(f) for f in FAMILIES.values()]
    assert sum(len(n) for n in names) == len(set.union(*names))
    assert not {train.item(i).sample.key for i in range(12)} & {test.item(i).sample.key for i in range(12)}


def test_sphere_views_cover_all_directions_of_the_hand():
    converter = DemoRollouts(DemoRollouts.Options(count=150, sides="right"))
    toward = []
    for i in range(150):
        joints = converter.item(i).sample.hands[0].joints_cam_m.astype(float)
        along = joints[9] - joints[0]
        palm = np.cross(joints[5] - joints[0], joints[17] - joints[0])
        frame = np.stack([along / np.linalg.norm(along), palm / np.linalg.norm(palm)])
        toward.append(frame @ (-joints[9] / np.linalg.norm(joints[9])))
    toward = np.array(toward)
    assert np.histogram(toward[:, 1], bins=5, range=(-1, 1))[0].min() > 10  # back of the hand to palm
    assert np.histogram(toward[:, 0], bins=5, range=(-1, 1))[0].min() > 5  # from the arm to the fingertips


def test_a_misspelt_choice_is_named():
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        DemoRollouts(DemoRollouts.Options(split="trian"))
    with pytest.raises(ConfigError, match="size"):
        DemoRollouts(DemoRollouts.Options(size=[64]))


@pytest.mark.parametrize("split", sorted(FAMILIES))
def test_shapes_are_closed_outward_and_of_a_size_to_hold(split):
    import trimesh

    for i in range(12):
        mesh = make_shape(split, np.random.default_rng(i), str(i))
        solid = trimesh.Trimesh(mesh.vertices_m, mesh.faces, process=False)
        assert solid.is_watertight
        assert solid.volume > 2e-6
        extent = np.ptp(mesh.vertices_m, axis=0)
        assert 0.03 < extent.max() < 0.27
        again = make_shape(split, np.random.default_rng(i), str(i))
        assert again.sha256 == mesh.sha256


def test_the_surface_cloud_tells_distance_and_side():
    mesh = make_shape("train", np.random.default_rng(2), "x")
    surface = surface_of(mesh.vertices_m, mesh.faces)
    points = np.random.default_rng(0).uniform(-0.1, 0.1, (400, 3))
    exact = signed_distance_m(points, mesh.vertices_m, mesh.faces)
    np.testing.assert_allclose(np.abs(surface.distance_m(points)), np.abs(exact), atol=0.003)
    clear = np.abs(exact) > 0.003
    assert (np.sign(surface.distance_m(points)) == np.sign(exact))[clear].mean() > 0.99


def test_free_poses_stay_within_the_hands_limits():
    sampler = GraspSampler(load_open_hand("right"))
    limits = sampler.assets.joint_limits_rad
    for kind in FREE_KINDS:
        for seed in range(10):
            pose = sampler.free_pose(np.random.default_rng(seed), kind).reshape(15, 3)
            assert (pose >= limits[..., 0] - 0.121).all()
            assert (pose <= limits[..., 1] + 0.121).all()


def test_sequences_move_and_take_the_object_along():
    moved = 0
    for number in range(6):
        sequence = make_sequence(0, number, 6, 64, 64)
        views = [sequence.view(f) for f in range(6)]
        joints = np.stack([v.label.joints_cam_m for v in views])
        assert np.linalg.norm(np.diff(joints, axis=0), axis=2).max() < 0.2
        assert np.linalg.norm(joints[-1] - joints[0], axis=1).max() > 0.003
        moved += np.linalg.norm(sequence.objects_world[-1][:3, 3] - sequence.objects_world[0][:3, 3]) > 0.01
        betas = {tuple(v.label.betas) for v in views}
        assert len(betas) == 1
        low = [(sequence.mesh.vertices_m @ T[:3, :3].T + T[:3, 3])[:, 2].min() for T in sequence.objects_world]
        assert low[0] > 0  # on or over the table, never in it
    assert moved >= 3


def test_denoising_keeps_edges_and_takes_grain_away():
    rng = np.random.default_rng(0)
    albedo = np.full((32, 32, 3), 0.2)
    albedo[:, 16:] = 0.8
    clean = albedo * 0.5
    normal, depth = np.zeros((32, 32, 3)), np.ones((32, 32))
    noisy = clean * rng.uniform(0.7, 1.3, clean.shape)
    out = denoise(noisy, albedo, normal, depth)
    assert np.abs(out - clean).mean() < 0.3 * np.abs(noisy - clean).mean()
    assert np.abs(np.diff(out, axis=1)[:, 15]).mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(denoise(clean, albedo, normal, depth), clean, rtol=1e-5)


# --- the path-traced stand-in --------------------------------------------------------------------------------------

SMALL = dict(count=20, frames=2, size=[48, 48], spp=4)


@pytest.fixture(scope="module")
def real():
    pytest.importorskip("mitsuba")
    return DemoReal(DemoReal.Options(**SMALL))


def test_stand_in_images_are_jpegs_that_say_what_they_are(real):
    items = [real.item(i) for i in range(3)]
    for item in items:
        image = cv2.imdecode(np.frombuffer(item.image, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (48, 48, 3)
        assert image.std() > 5
        assert item.sample.key.startswith("demo-real/")
        assert item.sample.source.dataset == "demo-real"
        assert "not real photographs" in item.sample.source.licence
        assert not item.sample.synthetic
        assert item.sample.objects[0].id.split("-")[0] in FAMILIES["real"]
    assert items[0].sample.source.group == items[1].sample.source.group != items[2].sample.source.group
    assert items[0].image != items[1].image


def test_another_process_renders_the_same_bytes(real):
    code = (
        "import hashlib; from pam_aug.converters.demo import DemoReal; "
        f"print(hashlib.sha256(DemoReal(DemoReal.Options(**{SMALL!r})).item(3).image).hexdigest())"
    )
    import hashlib

    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    real.item(7)
    assert hashlib.sha256(real.item(3).image).hexdigest() == there


def test_the_picture_shows_the_hand_where_the_label_says(monkeypatch):
    pytest.importorskip("mitsuba")
    from pam_aug.converters import demo_pathtrace
    from pam_aug.render.rasterizer import rasterize

    seen = {}

    def spy(light, albedo, normal, depth):
        seen["depth"] = depth
        return denoise(light, albedo, normal, depth)

    monkeypatch.setattr(demo_pathtrace, "denoise", spy)
    real = DemoReal(DemoReal.Options(count=4, frames=2, size=[160, 120], spp=1))
    item = real.item(2)
    camera = item.sample.camera
    scene = build_scene(item, real.hand_assets())
    hand, thing = scene.hands[0], scene.objects[0]
    verts = np.concatenate([hand.verts_cam_m, thing.verts_cam_m])
    faces = np.concatenate([hand.assets.f, thing.mesh.faces + len(hand.verts_cam_m)])
    expected = rasterize(verts, faces, camera.K_px, camera.width, camera.height)
    v, u = np.mgrid[0 : camera.height, 0 : camera.width]
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(camera.K_px.astype(float)).T
    # The arm, which is no part of the label, covers the object at times and the open wrist always.
    a, b, c = (hand.verts_cam_m[hand.assets.f[:, k]] for k in range(3))
    outer = np.append(np.einsum("fi,fi->f", np.cross(b - a, c - a), a) < 0, np.zeros(len(thing.mesh.faces) + 1, bool))
    of_hand = outer[expected.face]
    inside = cv2.erode(of_hand.astype(np.uint8), np.ones((3, 3))) > 0
    assert inside.sum() > 300
    # Mitsuba's depth is along the ray from the near plane; the drawn hand is a refined, slightly rounder one.
    along = np.linalg.norm(rays, axis=-1)
    ray_depth = np.where(expected.depth_m > 0, (expected.depth_m - demo_pathtrace.NEAR_M) * along, 0.0)
    apart = np.abs(seen["depth"] - ray_depth)
    assert np.median(apart[inside]) < 0.002
    assert (apart[inside] < 0.02).mean() > 0.93
    # Labels shifted by two pixels must fit worse.
    for shift in (-2, 2):
        moved, within = np.roll(ray_depth, shift, axis=1), np.roll(inside, shift, axis=1)
        assert (np.abs(seen["depth"] - moved)[within] < 0.005).mean() < (apart[inside] < 0.005).mean() - 0.05


def test_without_mitsuba_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mitsuba", None)
    monkeypatch.delitem(sys.modules, "pam_aug.converters.demo_pathtrace", raising=False)
    with pytest.raises(AssetMissing, match=r"pip install 'pam_aug\[rgb\]'"):
        DemoReal(DemoReal.Options())


def test_the_registry_knows_both():
    assert registry.load("converters", "demo-rollouts") is DemoRollouts
    assert registry.load("converters", "demo-real") is DemoReal
