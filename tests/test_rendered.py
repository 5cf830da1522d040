"""The bundled generator on posed hands: exact labels, decodable files, and bytes that depend on scene and seed only."""

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import trimesh

from pam_aug.generate.base import Generator
from pam_aug.generate.rendered import RenderedGenerator
from pam_aug.hand.joints import TIP_SETS
from pam_aug.hand.model import HandLayer
from pam_aug.hand.open_hand import load_open_hand
from pam_aug.render.appearance import prepare
from pam_aug.render.conditions import Part
from pam_aug.render.pieces import scene_conditions, scene_pieces
from pam_aug.render.skin import CREASE, NAIL, PALM, skin_marks
from pam_aug.render.surface import interpolate, see_surface
from pam_aug.rollouts.scene import HandMesh, Mesh, ObjectMesh, Scene
from pam_aug.schema import Camera, Hand, Object, Sample, Source, candidate_key
from pam_aug.seeds import candidate_seed

SIZE = 128


def random_scene(seed: int, size: int = SIZE, with_object: bool = True) -> Scene:
    """A hand in a random believable pose and view, filling most of the image, an object in its grasp."""
    rng = np.random.default_rng(seed)
    assets = load_open_hand("right" if seed % 2 else "left")
    layer = HandLayer(assets, dtype=torch.float64)
    pose = assets.hands_mean * rng.uniform(0, 1.2) + rng.normal(0, 0.3, 45) @ assets.hands_components
    turn = rng.normal(0, 1, 3)
    turn *= rng.uniform(0, np.pi) / np.linalg.norm(turn)
    betas = rng.normal(0, 0.7, 10)
    focal = 1.6 * size
    K_px = np.array([[focal, 0, size / 2 - 0.5], [0, focal, size / 2 - 0.5], [0, 0, 1]])

    def pose_at(transl):
        arrays = (torch.from_numpy(np.asarray(a, np.float64))[None] for a in (turn, pose, betas, transl))
        with torch.no_grad():
            out = layer(*arrays)
        return out.verts[0].numpy(), out.joints21[0].numpy()

    _, joints = pose_at(np.zeros(3))
    middle = (joints.min(0) + joints.max(0)) / 2
    extent = np.abs(joints - middle).max()
    transl = np.array([0, 0, 2 * focal * extent / (0.7 * size)]) - middle
    verts, joints = pose_at(transl)
    uvw = joints @ K_px.T
    hand = Hand(
        side=assets.side, hand_model="open_hand", joints_cam_m=joints, joints_px=uvw[:, :2] / uvw[:, 2:],
        in_view=np.ones(21, bool), global_orient=turn, hand_pose=pose, betas=betas, transl=transl,
    )  # fmt: skip
    objects, labels = (), ()
    if with_object:
        can = trimesh.creation.cylinder(0.03, 0.12)
        at = np.eye(4)
        at[:3, 3] = joints[[0, 9, 12, 4]].mean(0) + rng.normal(0, 0.02, 3)
        objects = (ObjectMesh(Mesh("can", np.asarray(can.vertices), np.asarray(can.faces), ""), 16, at),)
        labels = (Object(id="can", mesh="can", seg_id=16, T_cam_obj=at),)
    camera = Camera(width=size, height=size, K_px=K_px, T_world_cam=np.eye(4))
    source = Source(dataset="test", name=str(seed), licence="", converter="test")
    sample = Sample(key=f"test/s/q/c/{seed}", camera=camera, hands=(hand,), objects=labels, source=source)
    return Scene(sample, (HandMesh(assets.side, assets, verts, joints),), objects)


def _digest(order):
    scene = random_scene(4)
    seeds = [candidate_seed(0, scene.sample.key, i) for i in order]
    images = dict(zip(order, RenderedGenerator().generate(scene, seeds)))
    return hashlib.sha256(b"".join(images[i].jpeg for i in sorted(images))).hexdigest()


def test_it_is_a_generator_that_needs_nothing():
    generator = RenderedGenerator()
    assert isinstance(generator, Generator)
    assert generator.requires() == []


def test_bytes_do_not_depend_on_batch_order_or_process():
    whole = _digest([0, 1, 2, 3])
    assert _digest([3, 1, 0, 2]) == whole
    scene = random_scene(4)
    seeds = [candidate_seed(0, scene.sample.key, i) for i in range(4)]
    single = [next(RenderedGenerator().generate(random_scene(4), [s])).jpeg for s in seeds]
    assert hashlib.sha256(b"".join(single)).hexdigest() == whole
    code = "import sys; sys.path.insert(0, 'tests'); from test_rendered import _digest; print(_digest([2, 3, 0, 1]))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert there.stdout.strip() == whole


def test_files_decode_to_what_an_estimator_is_given():
    scene = random_scene(1)
    images = list(RenderedGenerator().generate(scene, [11, 12, 13]))
    assert len(images) == 3
    assert len({i.jpeg for i in images}) == 3
    for image in images:
        assert image.prompt == ""
        decoded = cv2.imdecode(np.frombuffer(image.jpeg, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        assert decoded.shape == image.rgb.shape == (SIZE, SIZE, 3)
        assert np.abs(decoded.astype(int) - image.rgb).mean() < 2  # two decoders differ in chroma upsampling
        assert image.rgb.std() > 3
        assert 10 < image.rgb.mean() < 245


def test_another_size_is_drawn_with_the_scaled_camera():
    scene = random_scene(3)
    image = next(RenderedGenerator().generate(scene, [5], (96, 64)))
    assert image.rgb.shape == (64, 96, 3)


@pytest.mark.parametrize("seed", range(12))
def test_labelled_joints_lie_on_the_drawn_hand(seed):
    scene = random_scene(seed, with_object=False)
    prepared = prepare(scene_pieces(scene, occluders=False), scene.sample.camera.K_px.astype(np.float64), SIZE, SIZE)
    seen = (prepared.surface.seg > 0).astype(np.uint8)
    near = cv2.dilate(seen, np.ones((3, 3), np.uint8)).astype(bool)
    for u, v in np.rint(scene.sample.hands[0].joints_px).astype(int):
        if 0 <= u < SIZE and 0 <= v < SIZE:
            assert near[v, u], (u, v)


def test_segmentation_has_the_hand_the_forearm_and_the_object():
    scene = random_scene(1)
    c = scene_conditions(scene)
    assert {1, 3, 16} <= set(np.unique(c.seg)) <= {0, 1, 3, 16}
    left = scene_conditions(random_scene(2))
    assert {2, 3} <= set(np.unique(left.seg))
    assert 1 not in left.seg
    assert np.array_equal(c.seg > 0, c.depth_m > 0)
    assert c.keypoints.any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_hand_and_forearm_are_one_closed_surface(side):
    for seed in range(8):
        scene = random_scene(2 * seed + (side == "right"), with_object=False)
        hand, arm = scene_pieces(scene, occluders=False)[:2]
        verts = np.concatenate([hand.part.verts_cam_m, arm.part.verts_cam_m])
        faces = np.concatenate([hand.part.faces, arm.part.faces + len(hand.part.verts_cam_m)])
        mesh = trimesh.Trimesh(verts, faces, process=False)
        mesh.merge_vertices(digits_vertex=12)
        mesh.remove_unreferenced_vertices()
        assert mesh.is_watertight
        assert mesh.is_winding_consistent


def test_arms_and_occluders_follow_the_key_not_the_seed():
    a, b = random_scene(6), random_scene(6)
    for p, q in zip(scene_pieces(a), scene_pieces(b)):
        assert np.array_equal(p.part.verts_cam_m, q.part.verts_cam_m)
    found = [
        p.part.seg_id
        for s in range(60)
        for p in scene_pieces(random_scene(s, with_object=False))
        if p.part.seg_id >= 200
    ]
    assert 0 < len(found) < 12
    assert candidate_key(a.sample.key, 7).endswith("@07")


@pytest.mark.parametrize("side", ["left", "right"])
def test_nails_lie_on_the_backs_of_fingertips_and_creases_on_the_palm(side):
    assets = load_open_hand(side)
    focal, middle = 300.0, np.array([0.0, 0.0, 0.5])
    K_px = np.array([[focal, 0, 79.5], [0, focal, 79.5], [0, 0, 1]])
    seen = {}
    for view, sign in (("back", -1.0), ("palm", 1.0)):  # the rest pose's back looks along +y
        turn = np.array([[1.0, 0, 0], [0, 0, sign], [0, sign, 0]])
        turn = turn if np.linalg.det(turn) > 0 else turn * np.array([[-1.0], [1], [1]])
        verts = assets.v_template @ turn.T + middle
        surface = see_surface([Part(verts, assets.f, 1)], K_px, 160, 160)
        ids, marks = skin_marks(surface, 0, assets, 0)
        rest = interpolate(surface, assets.v_template)[ids]
        seen[view] = marks
        nail = rest[marks[:, NAIL] > 0.5]
        tips = assets.v_template[list(TIP_SETS["smplx"][side])]
        if view == "back":
            distance = np.linalg.norm(nail[:, None] - tips[None], axis=-1)
            assert (distance.min(1) < 0.022).all()
            assert (np.bincount(distance.argmin(1), minlength=5)[1:] > 10).all()  # the thumb's may look aside
    assert (seen["palm"][:, NAIL] > 0.5).sum() < 0.1 * (seen["back"][:, NAIL] > 0.5).sum()
    assert seen["palm"][:, PALM].mean() > 0.6 > 0.4 > seen["back"][:, PALM].mean()
    assert seen["palm"][:, CREASE].mean() > 2 * seen["back"][:, CREASE].mean()
