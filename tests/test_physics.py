"""Physics against theory: measures on meshes, free fall, grips, and the presets; nothing is taken on trust."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from pam_aug.errors import ConfigError
from pam_aug.geometry import rigid_matrix, transform_points
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.rollouts.convex_parts import ConvexPart, convex_hull
from pam_aug.rollouts.grasp import GraspSampler
from pam_aug.rollouts.hand_bodies import CAPSULES_PER_HAND, Capsules, hand_capsules, hand_hulls, part_vertices
from pam_aug.rollouts.label import pose_hand
from pam_aug.rollouts.physics import intersection_volume_m3, penetration_depth_m, summarize

FALL_M = 0.19796  # 9.8 · 0.002² · 100 · 101 / 2


def solid(made: trimesh.Trimesh, at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> ConvexPart:
    return np.asarray(made.vertices, np.float64) + at, np.asarray(made.faces, np.int64)


BOX = solid(trimesh.creation.box((0.06, 0.06, 0.1)))
BOX_KG = 0.36  # of water


def balls(*places_m: tuple[float, float, float], radius_m: float = 0.03) -> Capsules:
    """A hand of nothing but balls (capsules of 0.2 mm); the rest of its capsules stand 2 m off."""
    at = np.tile([2.0, 0.0, 0.0], (CAPSULES_PER_HAND, 1))
    at[: len(places_m)] = places_m
    length = np.array([0.0, 0.0, 1e-4])
    return Capsules(at - length, at + length, np.full(CAPSULES_PER_HAND, radius_m))


@pytest.fixture(scope="module")
def simulation():
    pytest.importorskip("mujoco")
    from pam_aug.rollouts import stability

    return stability


@pytest.fixture(scope="module")
def posed() -> tuple[np.ndarray, np.ndarray]:
    """Vertices and joints of the bundled right hand, half closed."""
    assets = load_open_hand("right")
    pose = GraspSampler(assets).free_pose(np.random.default_rng(3), "relaxed")
    return pose_hand(HandLayer(assets, dtype=torch.float64), np.zeros(3), pose, np.zeros(10), np.zeros(3))


# ------------------------------------------------------------------------------------------------------------ measures


@pytest.mark.parametrize("depth_m", [0.001, 0.004, 0.02])
def test_a_sphere_pushed_into_a_plane_is_as_deep_as_it_was_pushed(depth_m):
    block = solid(trimesh.creation.box((0.4, 0.4, 0.4)), (0.0, 0.0, -0.2))
    verts, _ = solid(trimesh.creation.uv_sphere(0.03), (0.0, 0.0, 0.03 - depth_m))
    assert penetration_depth_m(verts, *block) == pytest.approx(depth_m, abs=1e-9)
    assert penetration_depth_m(verts + np.array([0.0, 0.0, 2 * depth_m]), *block) == 0.0


def test_shared_volumes_are_the_analytic_ones():
    block = solid(trimesh.creation.box((0.2, 0.2, 0.2)))
    assert intersection_volume_m3(*solid(trimesh.creation.box((0.2, 0.2, 0.2)), (0.151, 0.133, 0.17)), *block) == (
        pytest.approx(0.049 * 0.067 * 0.03, rel=0.02)
    )
    h = 0.006  # a cap of a sphere: pi h² (3 r - h) / 3
    ball = solid(trimesh.creation.icosphere(3, 0.03), (0.0, 0.0, 0.13 - h))
    assert intersection_volume_m3(*ball, *block) == pytest.approx(np.pi * h**2 * (0.09 - h) / 3, rel=0.03)
    inside = solid(trimesh.creation.box((0.03, 0.04, 0.05)))
    assert intersection_volume_m3(*inside, *block) == pytest.approx(60e-6, rel=0.02)
    assert intersection_volume_m3(*solid(trimesh.creation.box((0.1, 0.1, 0.1)), (0.3, 0, 0)), *block) == 0.0


def test_the_four_figures_of_three_grasps():
    summary = summarize([True, True, False], [0.01, 0.0, 0.0], [0.001, 0.01, 0.19])
    assert summary == pytest.approx((3, 200 / 3, 1 / 3, 6.7, 200 / 3))
    assert summarize([], [], []).grasps == 0


# ---------------------------------------------------------------------------------------------------------- the hand


@pytest.mark.parametrize("side", ["right", "left"])
def test_capsules_lie_on_the_skin(posed, side):
    assets = load_open_hand(side)
    mirror = [1.0 if side == "right" else -1.0, 1.0, 1.0]
    verts, joints = (a * mirror for a in posed)
    capsules = hand_capsules(verts, joints, assets)
    off_mm = capsules.distance_m(verts) * 1e3
    fingers = np.concatenate(part_vertices(assets)[1:13])
    assert np.median(np.abs(off_mm[fingers])) < 1.5
    assert np.median(np.abs(off_mm)) < 2.0


def test_every_vertex_belongs_to_one_part_and_hulls_hold_their_own(posed):
    assets = load_open_hand("right")
    parts = part_vertices(assets)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(778))
    hulls = hand_hulls(posed[0], assets)
    assert len(hulls) == 16
    for rows, (verts, faces) in zip(parts, hulls, strict=True):
        assert penetration_depth_m(verts, verts, faces) < 1e-6
        own = posed[0][rows]
        assert (own >= verts.min(0) - 1e-9).all()
        assert (own <= verts.max(0) + 1e-9).all()


# --------------------------------------------------------------------------------------------------------- simulation


def test_free_fall_is_the_theorys(simulation):
    model = simulation.ObjectModel([convex_hull(BOX[0])])
    fallen = model.hold([], np.eye(4), stop=False)
    assert fallen.displacements_m == pytest.approx([FALL_M] * 6, abs=1e-6)
    assert fallen.contacts == 0
    assert fallen.engine.startswith("mujoco ")
    assert not fallen.stable
    assert len(model.hold([], np.eye(4)).displacements_m) == 1  # stops at the first failure


def test_without_gravity_and_contact_nothing_moves(simulation):
    model = simulation.ObjectModel([convex_hull(BOX[0])])
    assert model.hold([balls((0.0, -0.2, 0.0))], np.eye(4), np.zeros((1, 3))).displacements_m == (0.0,)


def test_a_pinch_holds_and_a_gap_does_not(simulation):
    model = simulation.ObjectModel([convex_hull(BOX[0])])
    pinch = model.hold([balls((0.0, -0.0595, 0.0), (0.0, 0.0595, 0.0))], np.eye(4))
    assert pinch.stable
    assert len(pinch.displacements_m) == 6
    assert pinch.worst_m < 0.002
    assert pinch.contacts > 0
    gap = model.hold([balls((0.0, -0.11, 0.0), (0.0, 0.11, 0.0))], np.eye(4), stop=False)
    assert min(d for d, g in zip(gap.displacements_m, simulation.SIX_DIRECTIONS, strict=True) if g[1] == 0) > 0.15


def test_a_rigid_motion_of_scene_and_gravity_changes_nothing(simulation):
    turn = Rotation.from_rotvec([0.3, -1.2, 0.7]).as_matrix()
    T = rigid_matrix(turn, np.array([0.4, -0.1, 0.9]))
    off_middle = balls((0.004, -0.0595, 0.01), (0.0, 0.0595, -0.012))
    down = np.array([[0.0, 0.6, 0.8]])
    # "six" directions are the object's own; with one direction, gravity is turned with the scene.
    for preset, gravity in ((simulation.GRIP, None), (replace(simulation.GRIP, six=False), down)):
        model = simulation.ObjectModel([convex_hull(BOX[0])], preset)
        here = model.hold([off_middle], np.eye(4), gravity, stop=False)
        there = model.hold([off_middle.moved(T)], T, None if gravity is None else gravity @ turn.T, stop=False)
        assert here.displacements_m == pytest.approx(there.displacements_m, abs=1e-9)


def test_capsules_put_in_place_equal_a_model_compiled_with_them(simulation, posed):
    mujoco: Any = pytest.importorskip("mujoco")
    verts, joints = posed
    hand = hand_capsules(verts, joints, load_open_hand("right"))
    T = rigid_matrix(np.eye(3), joints[9] + [0.0, -0.036, 0.0])  # against the palm side of the middle finger's base
    model = simulation.ObjectModel([convex_hull(BOX[0])])
    model.hold([balls((0.0, -0.0595, 0.0))], np.eye(4))  # another grasp before
    moved = model.hold([hand], T, stop=False)
    assert moved.contacts > 0

    at = hand.moved(np.linalg.inv(T))
    geoms = "".join(
        f'<geom type="capsule" fromto="{" ".join(f"{x!r}" for x in (*map(float, a), *map(float, b)))}" size="{r!r}"/>'
        for a, b, r in zip(at.starts_m, at.ends_m, map(float, at.radii_m), strict=True)
    )
    xml = f"""<mujoco><compiler autolimits="true"/><option timestep="0.002"/>
      <asset><mesh name="box" vertex="{" ".join(map(str, convex_hull(BOX[0])[0].ravel()))}"/></asset>
      <worldbody><body><freejoint/><geom type="mesh" mesh="box" condim="6" density="1000"/></body>
      <body name="hand">{geoms}</body></worldbody>
      <actuator><adhesion body="hand" ctrlrange="0 10" gain="1"/></actuator></mujoco>"""
    compiled = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(compiled)
    for direction, want in zip(simulation.SIX_DIRECTIONS, moved.displacements_m, strict=True):
        mujoco.mj_resetData(compiled, data)
        compiled.opt.gravity[:] = 9.8 * direction
        data.ctrl[:] = 10.0
        mujoco.mj_step(compiled, data, 100)
        assert np.linalg.norm(data.qpos[:3]) == pytest.approx(want, abs=5e-6)


def test_deepsimho_weighs_the_visual_mesh_too_and_pulls_once(simulation, posed):
    whole = convex_hull(BOX[0])
    once = simulation.ObjectModel([whole])
    twice = simulation.ObjectModel([whole], simulation.DEEPSIMHO, BOX)
    assert once.mass_kg == pytest.approx(BOX_KG)
    assert twice.mass_kg == pytest.approx(2 * BOX_KG)
    hulls = [hand_hulls(posed[0], load_open_hand("right"))]
    away = rigid_matrix(np.eye(3), np.array([0.0, 0.0, 1.0]))
    assert twice.hold(hulls, away).displacements_m == pytest.approx([FALL_M], abs=1e-6)


def test_a_known_mass_wins_over_density(simulation):
    assert simulation.ObjectModel([convex_hull(BOX[0])], mass_kg=0.05).mass_kg == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="above 0"):
        simulation.ObjectModel([convex_hull(BOX[0])], density_kg_m3=0.0)
    with pytest.raises(ConfigError, match="grip"):
        simulation.preset_named("grab")


def test_moved_capsules_keep_their_distances(posed):
    hand = hand_capsules(posed[0], posed[1], load_open_hand("right"))
    T = rigid_matrix(Rotation.from_rotvec([0.1, 0.2, 2.0]).as_matrix(), np.array([0.1, 0.2, 0.3]))
    assert hand.moved(T).distance_m(transform_points(T, posed[0])) == pytest.approx(hand.distance_m(posed[0]), abs=1e-9)
