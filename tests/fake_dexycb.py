"""Writes a small, complete DexYCB tree: calibration with Python tuples, meta, poses, labels, images, depth, meshes.

Labels are posed by a slow MANO of this file's own, in the world, and carried to each camera point by point.
"""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import yaml
from fake_mano import fake_hand, write_official
from scipy.spatial.transform import Rotation

from pam_aug.hand.assets import HandAssets

SERIALS = (
    "836212060125",
    "839512060362",
    "840412060917",
    "841412060263",
    "932122060857",
    "932122060861",
    "932122061900",
    "932122062010",
)
MASTER = 2
EXTRINSICS = {"20200709-subject-01": "20200702_151821", "20200813-subject-02": "20200813_100608"}
CENTRE = np.array([0.0, 0.0, 0.9])
TIPS = {"right": (745, 317, 444, 556, 673), "left": (745, 317, 445, 556, 673)}
ORDER_21 = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
MESH = "v -0.03 0 0\nv 0.03 0 0\nv 0 0.05 0\nv 0 0.01 0.06\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 3 1 4\n"
YCB = {2: "003_cracker_box", 5: "006_mustard_bottle", 14: "025_mug"}
FRAMES, NO_HAND, OUT_OF_VIEW, LOST_OBJECT, FAR = 6, 0, 4, 3, 5  # frame numbers of what is special


@dataclass
class FakeSequence:
    """One sequence; world joints are kept for comparison."""

    subject: str
    name: str
    position: int
    side: str
    ycb_ids: tuple[int, ...] = (2, 5, 14)
    grasped: int = 1
    joints_world_m: dict[int, np.ndarray] = field(default_factory=dict)
    absolute_pose: dict[int, np.ndarray] = field(default_factory=dict)
    T_world_obj: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)


@dataclass
class FakeDexYCB:
    root: Path
    mano_dir: Path
    table: Path
    sequences: list[FakeSequence]
    T_world_cam: dict[tuple[str, str], np.ndarray]
    K_px: dict[str, np.ndarray]
    betas: dict[str, np.ndarray]


def slow_mano(assets: HandAssets, orient, pose, betas, transl) -> np.ndarray:
    """21 joints by loops over joints, from MANO's equations; DexYCB's order and fingertips."""
    shaped = assets.v_template + np.einsum("vck,k->vc", assets.shapedirs, betas)
    rest = assets.J_regressor @ shaped
    turns = [Rotation.from_rotvec(r) for r in np.vstack([orient, np.reshape(pose, (15, 3))])]
    feature = np.concatenate([(t.as_matrix() - np.eye(3)).ravel() for t in turns[1:]])
    world: list[tuple[Rotation, np.ndarray]] = []
    for j, parent in enumerate(PARENTS):
        if parent < 0:
            world.append((turns[0], rest[0]))
        else:
            above, at = world[parent]
            world.append((above * turns[j], at + above.apply(rest[j] - rest[parent])))
    joints = [at + transl for _, at in world]
    for v in TIPS[assets.side]:
        place = shaped[v] + assets.posedirs[v] @ feature
        joints.append(
            sum(
                w * (turn.apply(place - rest[j]) + at)
                for j, (w, (turn, at)) in enumerate(zip(assets.weights[v], world))
            )
            + transl
        )
    return np.array(joints)[list(ORDER_21)]


def write_dexycb(folder: Path, seed: int = 0) -> FakeDexYCB:
    """Two subjects, four sequences of six frames, eight cameras; see `sequences` for positions and sides."""
    rng = np.random.default_rng(seed)
    root, mano_dir = folder / "dexycb", folder / "mano"
    mano_dir.mkdir(parents=True)
    right = fake_hand(seed)
    hands = {"right": right, "left": right.mirrored(left_shapedirs="as_file")}
    for side, assets in hands.items():
        write_official(assets, mano_dir / f"MANO_{side.upper()}.pkl")
    one, two = EXTRINSICS
    fake = FakeDexYCB(
        root=root,
        mano_dir=mano_dir,
        table=folder / "table.txt",
        sequences=[
            FakeSequence(one, "20200709_141754", 0, "right"),
            FakeSequence(one, "20200709_142022", 2, "left", grasped=2),
            FakeSequence(one, "20200709_142211", 4, "right", ycb_ids=(5, 14), grasped=0),
            FakeSequence(two, "20200813_143449", 3, "left"),
        ],
        T_world_cam={},
        K_px={},
        betas={subject: rng.normal(size=10) for subject in EXTRINSICS},
    )
    _write_calibration(fake, rng)
    for name in YCB.values():
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "textured_simple.obj").write_text(MESH)
    for sequence in fake.sequences:
        _write_sequence(fake, sequence, hands[sequence.side], rng)
    lines = [f"{s.subject}/{s.name} {s.position}" for s in fake.sequences]
    fake.table.write_text("\n".join(["# sequence position", "", *lines]) + "\n")
    return fake


def _dump(path: Path, data) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.dump(data))  # writes tuples as !!python/tuple


def _floats(T: np.ndarray) -> tuple[float, ...]:
    return tuple(float(v) for v in T[:3].ravel())


def _write_calibration(fake: FakeDexYCB, rng: np.random.Generator) -> None:
    calibration = fake.root / "calibration"
    for serial in SERIALS:
        fx, fy, cx, cy = (float(v) for v in np.array([615, 614, 310, 245]) + rng.normal(scale=3, size=4))
        fake.K_px[serial] = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        color = {"fx": fx, "fy": fy, "ppx": cx, "ppy": cy}
        depth = {"fx": 380.0, "fy": 380.0, "ppx": 320.0, "ppy": 240.0}
        given = {"color": color, "depth": depth, "extrinsics": _floats(np.eye(4))}
        _dump(calibration / "intrinsics" / f"{serial}_640x480.yml", given)
    for subject, name in EXTRINSICS.items():
        poses = {}
        for k, serial in enumerate(SERIALS):
            turn = np.eye(3) if k == MASTER else Rotation.from_rotvec(rng.normal(scale=0.4, size=3)).as_matrix()
            T = np.eye(4)
            T[:3, :3], T[:3, 3] = turn, CENTRE - turn @ CENTRE  # x_world = centre + R (x_cam - centre)
            fake.T_world_cam[subject, serial] = T
            poses[serial] = _floats(T)
        tag = np.eye(4)
        tag[:3, :3] = Rotation.from_euler("x", 2.0 + 0.2 * rng.random()).as_matrix()
        fake.T_world_cam[subject, "apriltag"] = tag
        poses["apriltag"] = _floats(tag)
        _dump(calibration / f"extrinsics_{name}" / "extrinsics.yml", {"master": SERIALS[MASTER], "extrinsics": poses})
        for side in ("right", "left"):
            betas = [float(b) for b in fake.betas[subject]]
            _dump(calibration / f"mano_{subject}_{side}" / "mano.yml", {"betas": betas})


def _write_sequence(fake: FakeDexYCB, s: FakeSequence, assets: HandAssets, rng: np.random.Generator) -> None:
    folder = fake.root / s.subject / s.name
    meta = {
        "serials": list(SERIALS),
        "num_frames": FRAMES,
        "extrinsics": EXTRINSICS[s.subject],
        "ycb_ids": list(s.ycb_ids),
        "ycb_grasp_ind": s.grasped,
        "mano_sides": [s.side],
        "mano_calib": [f"{s.subject}_{s.side}"],
    }
    _dump(folder / "meta.yml", meta)
    betas, objects = fake.betas[s.subject], len(s.ycb_ids)
    J0 = (assets.J_regressor @ (assets.v_template + assets.shapedirs @ betas))[0]
    pose_m = np.zeros((FRAMES, 1, 51), np.float32)
    pose_y = np.tile(np.float32([0, 0, 0, 1, 0, 0, 0]), (FRAMES, objects, 1))
    for f in range(FRAMES):
        at = np.array([-0.6, 0.0, 0.9]) if f == OUT_OF_VIEW else CENTRE + rng.normal(scale=0.03, size=3)
        if f != NO_HAND:
            pose_m[f, 0] = np.concatenate([rng.normal(size=3), rng.normal(scale=0.5, size=45), at - J0])
            orient, coeffs, transl = (v.astype(float) for v in np.split(pose_m[f, 0], [3, 48]))
            s.absolute_pose[f] = coeffs @ assets.hands_components + assets.hands_mean
            s.joints_world_m[f] = slow_mano(assets, orient, s.absolute_pose[f], betas, transl)
        for o in range(objects):
            if f == LOST_OBJECT and o == 0:
                continue
            place = at + rng.normal(scale=0.02, size=3) + (0.5 if f == FAR else 0.0) * np.array([0, 0, 1])
            pose_y[f, o] = np.concatenate([Rotation.random(random_state=7 * f + o).as_quat(), place])
            s.T_world_obj[f, o] = np.eye(4)
            s.T_world_obj[f, o][:3, :3] = Rotation.from_quat(pose_y[f, o, :4].astype(float)).as_matrix()
            s.T_world_obj[f, o][:3, 3] = pose_y[f, o, 4:]
    np.savez(folder / "pose.npz", pose_y=pose_y, pose_m=pose_m)
    for k, serial in enumerate(SERIALS):
        (folder / serial).mkdir()
        T = np.linalg.inv(fake.T_world_cam[s.subject, serial])
        picture = np.full((480, 640, 3), 20 * k + 10, np.uint8)
        depth = np.full((480, 640), 900, np.uint16)
        depth[0, 0], depth[0, 1] = 0, 65535
        depth_png = cv2.imencode(".png", depth)[1].tobytes()
        for f in range(FRAMES):
            picture[:, :, 0] = 30 * f + s.position
            jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
            (folder / serial / f"color_{f:06d}.jpg").write_bytes(jpeg)
            (folder / serial / f"aligned_depth_to_color_{f:06d}.png").write_bytes(depth_png)
            label = _label(fake, s, f, serial, T, J0, pose_m[f, 0])
            np.savez_compressed(folder / serial / f"labels_{f:06d}.npz", **label)


def _label(fake: FakeDexYCB, s: FakeSequence, f: int, serial: str, T_cam_world, J0, pose_m) -> dict[str, np.ndarray]:
    seg = np.zeros((480, 640), np.uint8)
    seg[:10], seg[10:20] = 255, s.ycb_ids[s.grasped]
    label = {
        "seg": seg,
        "pose_y": np.zeros((len(s.ycb_ids), 3, 4), np.float32),
        "pose_m": np.zeros((1, 51), np.float32),
        "joint_3d": np.full((1, 21, 3), -1, np.float32),
        "joint_2d": np.full((1, 21, 2), -1, np.float32),
    }
    for o in range(len(s.ycb_ids)):
        if (f, o) in s.T_world_obj:
            label["pose_y"][o] = (T_cam_world @ s.T_world_obj[f, o])[:3]
    if f in s.joints_world_m:
        R, t = T_cam_world[:3, :3], T_cam_world[:3, 3]
        label["joint_3d"][0] = [R @ j + t for j in s.joints_world_m[f]]
        rays = label["joint_3d"][0].astype(float) @ fake.K_px[serial].T
        label["joint_2d"][0] = rays[:, :2] / rays[:, 2:]
        orient = (Rotation.from_matrix(R) * Rotation.from_rotvec(pose_m[:3].astype(float))).as_rotvec()
        label["pose_m"][0] = np.concatenate([orient, pose_m[3:48], R @ (pose_m[48:] + J0) + t - J0])
    return label
