"""Stage I: the simulated hand is MANO's tree, grasps lift, labels are exact, the same seed gives the same bytes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

pytest.importorskip("mujoco")

from pam_aug.errors import ConfigError, SourceError
from pam_aug.geometry import axis_angle_to_matrix, rigid_matrix
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.registry import load
from pam_aug.rollouts.archive import read_archive, write_archive
from pam_aug.rollouts.contact import hand_parts, measure_contact
from pam_aug.rollouts.label import pose_hand
from pam_aug.rollouts.mesh_queries import signed_distance_m
from pam_aug.rollouts.scene import load_mesh
from pam_aug.rollouts.sim_control import HELD_S, LIFTED_M
from pam_aug.rollouts.sim_hand import make_sim_hand
from pam_aug.rollouts.sim_object import DENSITY
from pam_aug.rollouts.sim_scene import FPS, load_mujoco
from pam_aug.rollouts.simulate import GivenGrasp, prepare, simulate, to_archive


@pytest.fixture(scope="module")
def box_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mesh") / "box.obj"
    trimesh.creation.box((0.05, 0.06, 0.12)).export(path)
    return path


@pytest.fixture(scope="module")
def ready(box_file):
    return prepare(load_mesh(box_file, "box"))


@pytest.fixture(scope="module")
def rollout(ready):
    made = simulate(ready, 0)
    assert made.success, made.attempts
    return made


@pytest.fixture(scope="module")
def archive(ready, rollout):
    return to_archive(ready, rollout, "box.obj")


def test_engine_poses_the_hand_as_the_layer_does(ready):
    mujoco = load_mujoco()
    hand, world = ready.hand, ready.world
    rng = np.random.default_rng(0)
    low, high = hand.limits_rad.T
    angles = rng.uniform(low, high)
    data = mujoco.MjData(world.model)
    data.qpos[world.hand_qpos] = [*hand.joints_m[0], 1.0, 0.0, 0.0, 0.0]
    data.qpos[world.hinge_qpos] = angles
    mujoco.mj_kinematics(world.model, data)
    bodies = [mujoco.mj_name2id(world.model, mujoco.mjtObj.mjOBJ_BODY, f"joint{k}") for k in range(16)]
    layer = HandLayer(hand.assets, dtype=torch.float64)
    out = layer(torch.zeros(1, 3).double(), torch.from_numpy(hand.hand_pose(angles))[None])
    np.testing.assert_allclose(np.array(data.xpos)[bodies], out.joints16[0].numpy(), atol=2e-8)


def test_angles_of_a_pose_come_back():
    hand = make_sim_hand(load_open_hand("right"))
    flexed = np.zeros(len(hand.dofs))
    for i, dof in enumerate(hand.dofs):
        if dof.turn == 0:
            flexed[i] = 0.5 * dof.high_rad
    np.testing.assert_allclose(
        hand.angles_rad(hand.hand_pose(flexed)), flexed, atol=1e-7
    )  # the model's axes are float32


def test_left_and_rangeless_hands_are_refused():
    with pytest.raises(ConfigError, match="right hands"):
        make_sim_hand(load_open_hand("left"))


def test_a_box_rests_on_its_faces_and_weighs_its_volume(ready):
    downs = {tuple(np.round(T[2, :3]).astype(int)) for T in ready.rest_poses}
    assert len(downs) == len(ready.rest_poses) == 6
    assert ready.thing.mass_kg == pytest.approx(DENSITY * 0.05 * 0.06 * 0.12, rel=1e-6)
    np.testing.assert_allclose(ready.thing.centre_m, 0.0, atol=1e-9)


def test_the_object_is_lifted_held_and_set_down(rollout):
    motion = rollout.motion
    height = np.stack(motion.T_world_obj)[:, 2, 3]
    held = [i for i, phase in enumerate(motion.phase) if phase == "hold"]
    assert len(held) >= HELD_S * FPS
    assert (height[held] - height[0]).min() >= LIFTED_M
    assert abs(height[-1] - height[0]) < 0.01
    phases = list(dict.fromkeys(motion.phase))
    assert phases == ["approach", "close", "squeeze", "lift", "hold", "carry", "lower", "release", "leave"]


def test_held_by_thumb_and_fingers_and_let_go(rollout):
    force = np.stack(rollout.motion.force_n)
    held = np.array(rollout.motion.phase) == "hold"
    assert (force[held, 0] > 0).all()
    assert (force[held, 1:5].max(1) > 0).all()
    assert not force[-1].any()


def test_motion_is_smooth(rollout):
    """No frame jumps: at 30 Hz the wrist moves under 3 cm, a hinge under 0.25 rad, the object under 3 cm."""
    motion = rollout.motion
    assert np.linalg.norm(np.diff(np.stack(motion.T_world_wrist)[:, :3, 3], axis=0), axis=1).max() < 0.03
    assert np.abs(np.diff(np.stack(motion.angles_rad), axis=0)).max() < 0.25
    assert np.linalg.norm(np.diff(np.stack(motion.T_world_obj)[:, :3, 3], axis=0), axis=1).max() < 0.03


def test_skin_touches_without_going_deep(ready, rollout, archive):
    hand = ready.hand.assets
    layer, parts = HandLayer(hand, dtype=torch.float64), hand_parts(hand)
    frame = rollout.motion.phase.index("hold") + 5
    transl = archive.hand_transl[frame, 0] - hand.rest_joints_m[0]
    verts, _ = pose_hand(layer, archive.hand_global_orient[frame, 0], archive.hand_pose[frame, 0], np.zeros(10), transl)
    T = archive.object_pose[frame, 0]
    contact = measure_contact(verts, parts, ready.mesh.vertices_m @ T[:3, :3].T + T[:3, 3], ready.mesh.faces)
    assert contact.in_contact
    assert "thumb" in contact.parts
    assert len(contact.parts) >= 2
    assert contact.depth_max_mm < 6.0


def test_same_seed_same_bytes(ready, archive, box_file, tmp_path):
    write_archive(tmp_path / "a.npz", archive)
    again = prepare(load_mesh(box_file, "box"))
    write_archive(tmp_path / "b.npz", to_archive(again, simulate(again, 0), "box.obj"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_source_reads_it_with_exact_joints(archive, box_file, tmp_path):
    (tmp_path / "box.obj").write_bytes(box_file.read_bytes())
    write_archive(tmp_path / "r.npz", archive)
    back = read_archive(tmp_path / "r.npz")
    assert back.success is True
    assert json.loads(back.provenance)["attempts"][-1] == "success"
    converter = load("converters", "rollout-npz")
    source = converter(converter.Options(archives=str(tmp_path), stride=60))
    item = source.item(1)
    assert item.sample.hands[0].side == "right"
    assert item.sample.objects[0].valid


def test_a_given_grasp_and_target_are_used(ready, rollout):
    motion = rollout.motion
    touch = motion.phase.index("squeeze")
    given = GivenGrasp(
        motion.T_world_obj[0], motion.T_world_wrist[touch], ready.hand.hand_pose(motion.angles_rad[touch])
    )
    target = motion.T_world_obj[0].copy()
    target[:2, 3] += [0.1, -0.05]
    made = simulate(ready, 5, grasp=given, T_world_target=target)
    assert len(made.attempts) == 1
    assert made.success, made.attempts
    assert np.linalg.norm(made.motion.T_world_obj[-1][:2, 3] - target[:2, 3]) < 0.03


def _depth_mm(archive, mesh, frame: int) -> float:
    """How deep the posed hand of an archive's frame is in the mesh; below 0: how far away."""
    hand = load_open_hand(archive.hand_side[0])
    transl = (
        archive.hand_transl[frame, 0]
        - HandLayer(hand, dtype=torch.float64)
        .wrist_from_transl(torch.zeros(1, 3).double(), torch.from_numpy(archive.hand_betas[:1]).double())
        .numpy()[0]
    )
    numbers = (archive.hand_global_orient[frame, 0], archive.hand_pose[frame, 0], archive.hand_betas[0], transl)
    verts, joints = pose_hand(HandLayer(hand, dtype=torch.float64), *numbers)
    np.testing.assert_allclose(joints, archive.hand_joints3d[frame, 0], atol=1e-7)
    T = archive.object_pose[frame, 0]
    local = (verts - T[:3, 3]) @ T[:3, :3]
    return -1e3 * float(signed_distance_m(local, mesh.vertices_m, mesh.faces).min())


@pytest.mark.parametrize(("side", "first"), [("left", 0.0), ("right", 2.0), ("left", -2.0)])
def test_left_and_other_hands_hold_the_mesh_that_was_given(tmp_path, side, first):
    """A wedge beside its origin: were anything mirrored once too often, the labels' hand would miss or enter it."""
    corners = np.array([[x, y, z] for x in (-0.025, 0.025) for y in (-0.03, 0.03) for z in (-0.06, 0.06)])
    corners[(corners[:, 0] > 0) & (corners[:, 2] > 0), 0] *= 0.6
    corners[(corners[:, 1] > 0) & (corners[:, 2] > 0), 1] *= 0.8
    trimesh.convex.convex_hull(corners + np.array([0.03, 0.0, 0.0])).export(tmp_path / "wedge.obj")
    mesh, betas = load_mesh(tmp_path / "wedge.obj", "wedge"), np.array([first, 1.0, *np.zeros(8)])
    ready = prepare(mesh, side=side, betas=betas)
    assert ready.thing.mass_kg == pytest.approx(prepare(mesh).thing.mass_kg, rel=1e-9)
    made = simulate(ready, 0)
    assert made.success, made.attempts
    archive = to_archive(ready, made, "wedge.obj")
    assert archive.hand_side == (side,)
    assert archive.hand_betas[0].tolist() == betas.tolist()
    held = made.motion.phase.index("hold") + 5
    assert -2.0 < _depth_mm(archive, mesh, held) < 6.0
    wrong = replace(mesh, vertices_m=mesh.vertices_m * [-1.0, 1.0, 1.0])
    assert not -2.0 < _depth_mm(archive, wrong, held) < 6.0
    assert np.linalg.det(archive.object_pose[held, 0]) == pytest.approx(1.0)
    write_archive(tmp_path / "r.npz", archive)
    source = load("converters", "rollout-npz")
    sample = source(source.Options(archives=str(tmp_path), start=held, stride=500)).item(0).sample
    assert sample.hands[0].side == side


def test_a_given_left_grasp_is_used(box_file):
    ready = prepare(load_mesh(box_file, "box"), side="left")
    made = simulate(ready, 1)
    archive, touch = to_archive(ready, made, "box.obj"), made.motion.phase.index("squeeze")
    T = rigid_matrix(axis_angle_to_matrix(archive.hand_global_orient[touch, 0]), archive.hand_transl[touch, 0])
    again = simulate(ready, 7, grasp=GivenGrasp(archive.object_pose[0, 0], T, archive.hand_pose[touch, 0]))
    assert again.success, again.attempts
    begin = to_archive(ready, again, "box.obj").object_pose[0, 0]
    np.testing.assert_allclose(begin, archive.object_pose[0, 0], atol=1e-9)


@pytest.mark.parametrize(
    ("scale", "message"), [(1000.0, "millimetres"), (9.0, "--scale 0.001"), (0.01, "check its unit")]
)
def test_unit_slips_are_named(box_file, scale, message):
    with pytest.raises(SourceError, match=message):
        prepare(load_mesh(box_file, "box", scale))


def test_a_flat_mesh_has_no_volume(tmp_path):
    (tmp_path / "flat.obj").write_text("v 0 0 0\nv 0.1 0 0\nv 0 0.1 0\nf 1 2 3\n")
    with pytest.raises(SourceError, match="zero volume"):
        prepare(load_mesh(tmp_path / "flat.obj", "flat"))


def test_a_thing_too_wide_offers_no_start(tmp_path):
    trimesh.creation.box((0.3, 0.3, 0.3)).export(tmp_path / "crate.obj")
    made = simulate(prepare(load_mesh(tmp_path / "crate.obj", "crate")), 0)
    assert not made.success
    assert made.reason == "no_start"
    assert made.attempts == ()


def test_an_absurd_mass_is_refused(box_file):
    with pytest.raises(SourceError, match="kilograms"):
        prepare(load_mesh(box_file, "box"), mass_kg=500.0)
