"""Condition images: golden keypoint colours, segmentation ids, and a forearm that closes the wrist."""

import cv2
import numpy as np
import pytest
import trimesh

from pam_aug.errors import SchemaError
from pam_aug.render.conditions import (
    Part,
    depth_png,
    depth_to_inferno,
    draw_keypoints,
    merge_parts,
    render_conditions,
    seg_png,
)
from pam_aug.render.forearm import build_forearm, draw_forearm_shape, wrist_loop
from pam_aug.render.rasterizer import rasterize

K_PX = np.array([[300.0, 0, 99.5], [0, 300.0, 79.5], [0, 0, 1]])
W, H = 200, 160

# Limb colours of PAM's DexYCB drawing, limb 0 to 19: finger rows with a saturating step of 35.
LIMB_RGB = [
    (139, 53, 255), (174, 88, 255), (209, 123, 255), (244, 158, 255),
    (0, 56, 255), (35, 91, 255), (70, 126, 255), (105, 161, 255),
    (43, 140, 237), (78, 175, 255), (113, 210, 255), (148, 245, 255),
    (37, 168, 36), (72, 203, 71), (107, 238, 106), (142, 255, 141),
    (147, 147, 0), (182, 182, 35), (217, 217, 70), (252, 252, 105),
]  # fmt: skip


def _spread_hand():
    """Joints that lie far apart, so that every limb's middle is its own."""
    joints = np.zeros((21, 2))
    joints[0] = (100, 150)
    for finger in range(5):
        for k in range(4):
            joints[1 + 4 * finger + k] = (20 + 40 * finger, 110 - 30 * k)
    return joints


def open_sphere(radius=0.04):
    """A sphere with a hole of 16 edges at -y, as a stand-in for a hand with an open wrist."""
    mesh = trimesh.creation.uv_sphere(radius=radius, count=[17, 8])
    verts = mesh.vertices @ np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # the poles along y
    keep = ~(verts[mesh.faces][:, :, 1] < -0.75 * radius).any(1)
    return verts, np.asarray(mesh.faces)[keep]


def test_limb_colours_are_the_golden_ones():
    joints = _spread_hand()
    image = draw_keypoints([(joints, np.zeros(21))], 200, 170)
    for limb, want in enumerate(LIMB_RGB):
        if limb % 4 == 0:
            continue  # limbs from the wrist fan out and cover each other there
        middle = (joints[limb] + joints[limb + 1]) / 2
        assert tuple(image[int(middle[1]), int(middle[0])]) == want, limb
    base = joints[0] * 0.3 + joints[1] * 0.7
    assert tuple(image[int(base[1]), int(base[0])]) == LIMB_RGB[0]


def test_the_last_joint_has_a_colour_that_no_limb_has():
    joints = np.full((21, 2), -100.0)
    joints[20] = (30, 40)
    image = draw_keypoints([(joints, np.zeros(21))], 64, 64)
    assert tuple(image[40, 30]) == (70, 17, 145)
    disc = np.zeros((64, 64), np.uint8)
    cv2.circle(disc, (30, 40), 3, 1, -1)
    assert np.array_equal(image.any(-1), disc.astype(bool))


def test_limbs_of_5_pixels_or_150_pixels_are_left_out():
    def lit(length):
        joints = np.full((21, 2), 20.0)
        joints[:, 1] = 500.0  # out of the picture
        joints[6], joints[7] = (20, 20), (20 + length, 20)
        return draw_keypoints([(joints, np.zeros(21))], 250, 40)[20, 20 + length // 2].any()

    assert not lit(150)
    assert lit(149)
    joints = np.zeros((21, 2))
    assert len(np.unique(draw_keypoints([(joints, np.zeros(21))], 16, 16).reshape(-1, 3), axis=0)) == 2


def test_limbs_run_backwards_where_the_wrist_is_nearer_than_the_little_tip():
    joints = np.full((21, 2), -300.0)
    joints[1], joints[2], joints[3], joints[4] = (10, 20), (50, 20), (10, 24), (50, 24)  # limbs 1, 2, 3 cross
    far_wrist, near_wrist = np.zeros(21), np.zeros(21)
    far_wrist[0], near_wrist[20] = 1.0, 1.0
    a = draw_keypoints([(joints, far_wrist)], 64, 48)
    b = draw_keypoints([(joints, near_wrist)], 64, 48)
    assert tuple(a[22, 30]) == LIMB_RGB[3]
    assert tuple(b[22, 30]) == LIMB_RGB[1]


def test_the_nearer_hand_is_drawn_on_top():
    a, b = np.full((21, 2), -300.0), np.full((21, 2), -300.0)
    a[5], b[9] = (20, 20), (20, 20)
    near, far = np.full(21, 0.3), np.full(21, 0.9)
    for hands in ([(a, near), (b, far)], [(b, far), (a, near)]):
        assert tuple(draw_keypoints(hands, 40, 40)[20, 20]) == (35, 91, 255)


def test_segmentation_ids_and_depth():
    near = trimesh.creation.icosphere(subdivisions=3, radius=0.03)
    far = trimesh.creation.box((0.1, 0.1, 0.02))
    parts = [
        Part(near.vertices + np.array([0, 0, 0.5]), near.faces, 2),
        Part(far.vertices + np.array([0.05, 0, 0.6]), far.faces, 17),
    ]
    c = render_conditions(parts, [], K_PX, W, H)
    assert c.depth_m.dtype == np.float32
    assert c.seg.dtype == np.uint8
    assert set(np.unique(c.seg)) == {0, 2, 17}
    assert np.array_equal(c.seg > 0, c.depth_m > 0)
    assert c.seg[80, 100] == 2
    assert c.depth_m[80, 100] == pytest.approx(0.47, abs=1e-3)
    assert c.seg[80, 140] == 17
    assert c.depth_m[80, 140] == pytest.approx(0.59, abs=1e-5)
    assert not c.keypoints.any()
    with pytest.raises(SchemaError, match="8 bits"):
        render_conditions([parts[0]._replace(seg_id=300)], [], K_PX, W, H)


def test_pngs_hold_whole_millimetres_and_ids():
    depth = np.array([[0, 0.4567, 70.0]], np.float32)
    assert cv2.imdecode(np.frombuffer(depth_png(depth), np.uint8), -1).tolist() == [[0, 457, 65535]]
    seg = np.array([[0, 3, 255]], np.uint8)
    assert np.array_equal(cv2.imdecode(np.frombuffer(seg_png(seg), np.uint8), -1), seg)


def test_inferno_is_bright_near_and_black_on_nothing():
    depth = np.linspace(0.4, 0.9, 64, dtype=np.float32).reshape(8, 8)
    depth[0, 0] = 0
    image = depth_to_inferno(depth).astype(int)
    assert image[0, 0].sum() == 0
    assert image[0, 1].sum() > image[4, 4].sum() > image[7, 7].sum() > 0
    assert image[0, 1, 0] > 240  # yellow
    assert image[0, 1, 2] < 170
    clip = depth_to_inferno(depth, (0.2, 2.0)).astype(int)
    assert clip[0, 1].sum() < image[0, 1].sum()  # a clip's range holds for all its frames


def test_the_wrist_loop_is_found_in_order():
    _, faces = open_sphere()
    loop = wrist_loop(faces)
    assert len(loop) == 16
    edges = {(int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1))}
    assert all((int(a), int(b)) in edges for a, b in zip(loop, np.roll(loop, -1)))
    with pytest.raises(SchemaError, match="one hole"):
        wrist_loop(np.asarray(trimesh.creation.icosphere(subdivisions=1).faces))


@pytest.mark.parametrize("seed", range(6))
def test_the_forearm_closes_the_wrist_without_a_gap(seed):
    rng = np.random.default_rng(seed)
    verts, faces = open_sphere()
    loop = wrist_loop(faces)
    turn = trimesh.transformations.random_rotation_matrix(rng.random(3))[:3, :3]
    verts = verts @ turn.T + [0, 0, 0.6]
    wrist, knuckle = verts[loop].mean(0), np.array([0, 0, 0.6]) + 0.03 * turn[:, 1]
    tube = build_forearm(verts, loop, wrist, knuckle, draw_forearm_shape(rng))
    assert np.array_equal(tube.verts_m[: len(loop)], verts[loop])
    # Joined at the shared vertices, hand and bare arm are one closed surface.
    skin = tube.faces[~tube.is_cloth]
    rename = np.arange(len(tube.verts_m)) + len(verts)
    rename[: len(loop)] = loop
    joined = trimesh.Trimesh(
        np.concatenate([verts, tube.verts_m]), np.concatenate([faces, rename[skin]]), process=False
    )
    assert joined.is_watertight
    assert joined.is_winding_consistent
    assert joined.volume > 0
    reach = (tube.verts_m[:, :] - wrist) @ ((wrist - knuckle) / np.linalg.norm(wrist - knuckle))
    assert 0.18 < reach.max() < 0.3
    # No background shows between hand and arm: what is seen of both is one connected region.
    parts = [Part(verts, faces, 1), Part(tube.verts_m, tube.faces, 3)]
    v, f, _ = merge_parts(parts)
    seen = (rasterize(v, f, K_PX, W, H).face >= 0).astype(np.uint8)
    assert cv2.connectedComponents(seen, connectivity=8)[0] == 2
    assert cv2.connectedComponents(1 - seen, connectivity=8)[0] <= 3


def test_the_forearm_on_the_rest_pose_has_the_same_topology():
    verts, faces = open_sphere()
    loop = wrist_loop(faces)
    shape = draw_forearm_shape(np.random.default_rng(3))
    posed = build_forearm(verts * 1.1, loop, np.array([0, -0.03, 0]), np.array([0, 0.04, 0]), shape)
    rest = build_forearm(verts, loop, np.array([0, -0.03, 0]), np.array([0, 0.04, 0]), shape._replace(bend_rad=(0, 0)))
    assert np.array_equal(posed.faces, rest.faces)
    assert posed.verts_m.shape == rest.verts_m.shape
