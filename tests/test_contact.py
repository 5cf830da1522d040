"""Distances and contact against shapes whose answer is known in closed form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pam_aug.errors import SchemaError
from pam_aug.hand import load_open_hand
from pam_aug.rollouts.contact import PARTS, Contact, hand_parts, measure_contact, summarize
from pam_aug.rollouts.mesh_queries import clear_share, nearest_distance_m, signed_distance_m, winding_numbers

CUBE_V = np.array([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)]) * 0.05
CUBE_F = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4],
     [1, 5, 7], [1, 7, 3]]
)  # fmt: skip


def _box_distance(p: np.ndarray) -> np.ndarray:
    q = np.abs(p) - 0.05
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_signed_distance_to_a_cube_is_exact(seed):
    points = np.random.default_rng(seed).uniform(-0.12, 0.12, (40, 3))
    np.testing.assert_allclose(signed_distance_m(points, CUBE_V, CUBE_F), _box_distance(points), atol=1e-12)
    # Faces that all wind the wrong way change nothing.
    np.testing.assert_allclose(signed_distance_m(points, CUBE_V, CUBE_F[:, ::-1]), _box_distance(points), atol=1e-12)


def test_slivers_without_area_change_nothing():
    """Scans name a point twice in a face, and put three on a line."""
    verts = np.concatenate([CUBE_V, 0.5 * (CUBE_V[:1] + CUBE_V[1:2])])
    slivers = [[0, 0, 1], [2, 3, 2], [6, 7, 7], [4, 4, 4], [0, 8, 1], [8, 0, 1], [0, 1, 8]]
    points = np.concatenate([np.random.default_rng(1).uniform(-0.12, 0.12, (400, 3)), verts, verts * 1.5])
    for faces in (np.concatenate([CUBE_F, slivers]), np.concatenate([slivers, CUBE_F])):
        np.testing.assert_allclose(signed_distance_m(points, verts, faces), _box_distance(points), atol=1e-9)
    edge = nearest_distance_m(np.array([[-0.05, -0.05, 0.07], [-0.02, -0.05, 0.0]]), verts, np.array([[0, 8, 1]]))
    np.testing.assert_allclose(edge, [0.02, 0.03], atol=1e-12)


def test_winding_number_inside_outside_and_through_a_hole():
    inside, outside = np.zeros((1, 3)), np.array([[0.2, 0.0, 0.0]])
    assert winding_numbers(inside, CUBE_V, CUBE_F)[0] == pytest.approx(1.0, abs=1e-12)
    assert winding_numbers(outside, CUBE_V, CUBE_F)[0] == pytest.approx(0.0, abs=1e-12)
    # Without one of its six sides a cube covers five sixths of the sphere around its centre: still inside.
    assert winding_numbers(inside, CUBE_V, CUBE_F[2:])[0] == pytest.approx(5 / 6, abs=1e-12)
    assert signed_distance_m(inside, CUBE_V, CUBE_F[2:])[0] == pytest.approx(-0.05)


def test_nearest_distance_covers_faces_edges_and_corners():
    points = np.array([[0.0, 0, 0.08], [0.0, 0.08, 0.09], [0.06, 0.07, 0.07]])
    expected = [0.03, 0.05, np.linalg.norm([0.01, 0.02, 0.02])]
    np.testing.assert_allclose(nearest_distance_m(points, CUBE_V, CUBE_F), expected, atol=1e-15)


def test_clear_share_sees_past_the_edge_and_forgives_flesh():
    eye = np.array([0.0, 0.0, 1.0])
    points = np.array([[0.0, 0.0, -0.2], [0.2, 0.0, -0.2], [0.0, 0.0, 0.04], [0.0, 0.0, 0.0]])
    share, clear = clear_share(eye, points, CUBE_V, CUBE_F, flesh_m=0.02)
    assert clear.tolist() == [False, True, True, False]
    assert share == 0.5


def test_a_mesh_without_faces_is_refused():
    with pytest.raises(SchemaError, match="without faces"):
        nearest_distance_m(np.zeros((1, 3)), CUBE_V, np.zeros((0, 3), int))


def test_hand_parts_name_every_finger():
    hand = load_open_hand("right")
    parts = hand_parts(hand)
    assert set(parts) == set(range(6))
    tips = [744, 320, 443, 554, 671]
    assert [PARTS[parts[i]] for i in tips] == ["thumb", "index", "middle", "ring", "little"]
    assert parts[hand.v_template[:, 0].argmax()] == 5  # the wrist end belongs to the palm


def test_a_sphere_pushed_into_a_plate_by_d_penetrates_by_d():
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(778, 3))
    ball *= 0.01 / np.linalg.norm(ball, axis=1, keepdims=True)
    ball[0], ball[1] = [0, 0, -0.01], [0, 0, 0.01]
    parts = np.where(ball[:, 2] < 0, 1, 5)
    pressed = measure_contact(ball + np.array([0, 0, 0.05 + 0.01 - 0.003]), parts, CUBE_V, CUBE_F)
    assert pressed.in_contact
    assert pressed.depth_max_mm == pytest.approx(3.0, abs=1e-9)
    assert pressed.parts == ("index",)
    clear = measure_contact(ball + np.array([0, 0, 0.05 + 0.01 + 0.0051]), parts, CUBE_V, CUBE_F)
    assert (clear.in_contact, clear.depth_max_mm, clear.parts) == (False, 0.0, ())
    assert clear.nearest_mm == pytest.approx(5.1, abs=1e-9)
    touching = measure_contact(ball + np.array([0, 0, 0.05 + 0.01 + 0.0049]), parts, CUBE_V, CUBE_F)
    assert touching.in_contact
    assert touching.depth_max_mm == 0.0


def test_summary_counts_grasps_without_contact():
    touch = Contact(True, -4.0, 0.1, 4.0, 2.0, ("thumb", "index"))
    miss = Contact(False, 20.0, 0.0, 0.0, 0.0, ())
    assert summarize([touch, miss]) == (2, 0.5, 2.0, 1.0, 1.0)
    assert summarize([]).grasps == 0
