"""The z-buffer against closed forms, ray casting, and its own numpy path."""

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from pam_aug.errors import SchemaError
from pam_aug.render.rasterizer import NEAR_M, rasterize

K_PX = np.array([[610.0, 1.7, 71.3], [0.0, 598.0, 40.2], [0.0, 0.0, 1.0]])  # skewed and off-centre
W, H = 160, 120


def _rays(k, width, height):
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(k).T


def _soup(seed, n=60, behind=False):
    rng = np.random.default_rng(seed)
    centre = rng.uniform([-0.15, -0.1, -0.2 if behind else 0.5], [0.15, 0.1, 1.2], (n, 1, 3))
    verts = (centre + rng.normal(0, 0.05, (n, 3, 3))).reshape(-1, 3)
    return verts, np.arange(3 * n).reshape(-1, 3)


def test_a_tilted_plane_has_the_depth_of_the_plane_equation():
    normal, offset = np.array([0.2, -0.3, 1.0]), 0.7  # normal . p = offset
    xy = np.array([[-2.0, -2.0], [2.0, -2.0], [2.0, 2.0], [-2.0, 2.0]])
    verts = np.c_[xy, offset - xy @ normal[:2]]
    r = rasterize(verts, np.array([[0, 1, 2], [0, 2, 3]]), K_PX, W, H)
    want = offset / (_rays(K_PX, W, H) @ normal)
    assert (r.face >= 0).all()  # no crack along the diagonal
    np.testing.assert_allclose(r.depth_m, want, rtol=1e-6)


def test_a_sphere_has_the_depth_of_the_sphere_within_its_chord_error():
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=0.06)
    centre = np.array([0.01, 0.0, 0.5])
    r = rasterize(mesh.vertices + centre, mesh.faces, K_PX, W, H)
    d = _rays(K_PX, W, H)
    a, b, c = (d * d).sum(-1), d @ centre, centre @ centre - 0.06**2
    disc = b * b - a * c
    inner = disc > 2e-4 * a  # away from the rim, where depth turns vertical
    assert inner.sum() > 5000
    assert (r.face[inner] >= 0).all()
    exact = (b - np.sqrt(np.where(inner, disc, 0))) / a
    assert np.abs(r.depth_m - exact)[inner].max() < 1e-4
    assert not r.face[disc < 0].max() >= 0  # an inscribed mesh never leaves the sphere's outline


def test_barycentric_weights_are_perspective_correct():
    verts, faces = np.array([[-0.2, -0.1, 0.4], [0.3, -0.1, 1.5], [0.0, 0.2, 0.6]]), np.array([[0, 1, 2]])
    r = rasterize(verts, faces, K_PX, W, H)
    on = r.face == 0
    assert on.sum() > 500
    b = np.concatenate([1 - r.bary.sum(-1, keepdims=True), r.bary], -1)[on]
    point = b @ verts
    np.testing.assert_allclose(point, (_rays(K_PX, W, H) * r.depth_m[..., None])[on], atol=2e-7)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_equals_ray_casting(seed):
    intersector = pytest.importorskip("trimesh.ray.ray_pyembree")
    pytest.importorskip("embreex")
    hand = trimesh.creation.icosphere(subdivisions=3)
    rng = np.random.default_rng(seed)
    verts = hand.vertices * rng.uniform(0.02, 0.06, 3) * (1 + 0.2 * rng.random((len(hand.vertices), 1))) + [0, 0, 0.6]
    obj = trimesh.creation.annulus(r_min=0.02, r_max=0.05, height=0.05)
    mesh = trimesh.util.concatenate(
        [trimesh.Trimesh(verts, hand.faces, process=False), obj.apply_translation([0.03, 0.01, 0.58])]
    )
    r = rasterize(mesh.vertices, mesh.faces, K_PX, W, H)
    rays = _rays(K_PX, W, H).reshape(-1, 3)
    where, ray, _tri = intersector.RayMeshIntersector(mesh, scale_to_box=False).intersects_location(
        np.zeros_like(rays), rays, multiple_hits=False
    )
    depth = np.zeros(W * H)
    depth[ray] = where[:, 2]
    both = (depth > 0) & (r.depth_m.ravel() > 0)
    assert both.sum() > 3000
    assert ((depth > 0) ^ (r.depth_m.ravel() > 0)).sum() <= 2  # embree works in float32
    assert (np.abs(depth - r.depth_m.ravel())[both] > 1e-5).sum() <= 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([(1, 1), (3, 40), (64, 48)]))
def test_both_backends_give_the_same_bytes(seed, behind, size):
    verts, faces = _soup(seed, behind=behind)
    k = np.array([[60.0, 0.4, size[0] / 2], [0.0, 55.0, size[1] / 3], [0.0, 0.0, 1.0]])
    a = rasterize(verts, faces, k, *size, backend="numba")
    b = rasterize(verts, faces, k, *size, backend="numpy")
    for x, y in zip(a, b):
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes()


def test_shared_edges_leave_no_hole():
    grid = np.stack(np.meshgrid(np.linspace(-0.3, 0.3, 23), np.linspace(-0.3, 0.3, 19)), -1).reshape(-1, 2)
    verts = np.c_[grid, 0.8 + 0.05 * np.sin(grid[:, 0] * 30)]
    faces = np.array(
        [
            f
            for r in range(18)
            for c in range(22)
            for f in [(r * 23 + c, r * 23 + c + 1, r * 23 + c + 23), (r * 23 + c + 1, r * 23 + c + 24, r * 23 + c + 23)]
        ]
    )
    assert (rasterize(verts, faces, K_PX, W, H).face >= 0).all()


def test_a_floor_that_runs_through_the_camera_is_drawn_in_front_only():
    verts = np.array([[-5.0, 0.2, -5.0], [5.0, 0.2, -5.0], [0.0, 0.2, 50.0]])
    r = rasterize(verts, np.array([[0, 1, 2]]), K_PX, W, H)
    down = _rays(K_PX, W, H)[..., 1]
    want = np.where(down > 0, 0.2 / np.where(down > 0, down, 1), 0)
    seen = r.face >= 0
    assert seen.any()
    assert not seen[down <= 0].any()
    np.testing.assert_allclose(r.depth_m[seen], want[seen], rtol=1e-5)
    assert r.depth_m[seen].min() > NEAR_M


def test_nothing_is_drawn_for_what_is_outside_behind_or_degenerate():
    def draw(*tri):
        return (rasterize(np.array(tri, float), np.array([[0, 1, 2]]), K_PX, W, H).face >= 0).sum()

    assert draw([9, 9, 1], [9.1, 9, 1], [9, 9.1, 1]) == 0
    assert draw([0, 0, -1], [0.1, 0, -1], [0, 0.1, -1]) == 0
    assert draw([0, 0, 1e-4], [1e-4, 0, 1e-4], [0, 1e-4, 1e-4]) == 0  # nearer than the near plane
    assert draw([0, 0, 1], [0.1, 0, 1], [0.2, 0, 1]) == 0
    assert draw([0, 0, 1], [0, 0, 1], [0, 0, 1]) == 0
    assert (rasterize(np.zeros((0, 3)), np.zeros((0, 3), int), K_PX, W, H).depth_m == 0).all()


def test_both_sides_are_drawn_and_the_first_of_equal_faces_wins():
    verts = np.array([[-0.1, -0.1, 1.0], [0.1, -0.1, 1.0], [0.0, 0.1, 1.0]])
    front = rasterize(verts, np.array([[0, 1, 2]]), K_PX, W, H)
    back = rasterize(verts, np.array([[0, 2, 1]]), K_PX, W, H)
    assert (front.face >= 0).sum() > 100
    assert np.array_equal(front.depth_m, back.depth_m)
    both = rasterize(verts, np.array([[0, 2, 1], [0, 1, 2]]), K_PX, W, H)
    assert np.array_equal(both.face, back.face)


def test_pixel_centres_are_at_integers():
    # A square whose sides pass 0.25 px around the centres of columns 70..72 and rows 40..41 covers exactly those.
    k = np.array([[100.0, 0, 0], [0, 100.0, 0], [0, 0, 1.0]])
    x0, x1, y0, y1 = 0.6975, 0.7225, 0.3975, 0.4125
    verts = np.array([[x0, y0, 1], [x1, y0, 1], [x1, y1, 1], [x0, y1, 1]])
    seen = rasterize(verts, np.array([[0, 1, 2], [0, 2, 3]]), k, W, H).face >= 0
    want = np.zeros((H, W), bool)
    want[40:42, 70:73] = True
    assert np.array_equal(seen, want)


@pytest.mark.parametrize(
    ("verts", "faces", "k"),
    [
        (np.full((3, 3), np.nan), [[0, 1, 2]], np.eye(3)),
        (np.ones((3, 3)), [[0, 1, 3]], np.eye(3)),
        (np.ones((3, 2)), [[0, 1, 2]], np.eye(3)),
        (np.ones((3, 3)), [[0, 1, 2]], np.zeros((3, 3))),
    ],
)
def test_bad_input_is_refused(verts, faces, k):
    with pytest.raises(SchemaError, match="rasterize"):
        rasterize(verts, np.array(faces), k, W, H)
