"""The bundled hand: topology, rest pose, skinning, bends, shape and pose statistics, and that its script still makes
it."""

from importlib.resources import files

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from pam_aug.hand.make_open_hand import make_open_hand

ROOTS = {"index": 1, "middle": 4, "little": 7, "ring": 10, "thumb": 13}
TIP_IDS = {
    "thumb": (744, 745),
    "index": (320, 317),
    "middle": (443, 444, 445),
    "ring": (554, 555, 556),
    "little": (671, 672, 673),
}


@pytest.fixture(scope="module")
def hand():
    with np.load(files("pam_aug.hand") / "open_hand.npz", allow_pickle=False) as data:
        return {k: data[k] for k in data.files}


def skin(hand, turns, betas=None, correct=True):
    """Linear blend skinning written out plainly; `turns` maps joint to a Rotation."""
    v = hand["v_template"].astype(float)
    if betas is not None:
        v = v + hand["shapedirs"] @ betas
    joints = hand["J_regressor"].astype(float) @ v
    local = np.stack([turns.get(k, Rotation.identity()).as_matrix() for k in range(16)])
    if correct:
        v = v + hand["posedirs"].astype(float) @ (local[1:] - np.eye(3)).ravel()
    chain = np.zeros((16, 4, 4))
    for k, parent in enumerate(hand["parents"]):
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = local[k], joints[k] - (joints[parent] if k else 0)
        chain[k] = step if k == 0 else chain[parent] @ step
    place = chain[:, :3, 3] - np.einsum("kij,kj->ki", chain[:, :3, :3], joints)
    weights = hand["weights"].astype(float)
    return np.einsum("vk,kij,vj->vi", weights, chain[:, :3, :3], v) + weights @ place, chain[:, :3, 3]


def flex(hand, joint, degrees):
    return {joint: Rotation.from_rotvec(np.radians(degrees) * hand["joint_axes"][joint - 1, 0])}


def closed(hand):
    return np.concatenate([hand["f"], hand["f_cap"]])


def volume(v, f):
    return np.einsum("ij,ij->", v[f[:, 0]], np.cross(v[f[:, 1]], v[f[:, 2]])) / 6


def winding_number(points, v, f):
    """1 inside a closed mesh, 0 outside: the sum of the faces' solid angles (Van Oosterom and Strackee, 1983)."""
    a, b, c = (v[f[:, k]][None] - points[:, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(x, axis=2) for x in (a, b, c))
    dot = [np.einsum("pfi,pfi->pf", x, y) for x, y in ((a, b), (b, c), (c, a))]
    below = la * lb * lc + dot[0] * lc + dot[1] * la + dot[2] * lb
    return 2 * np.arctan2(np.einsum("pfi,pfi->pf", a, np.cross(b, c)), below).sum(1) / (4 * np.pi)


def count_edges_through_faces(v, f):
    """Edges that pass through a face that they do not touch (Moeller and Trumbore, 1997)."""
    edges = np.unique(np.sort(directed_edges(f), axis=1), axis=0)
    a, u, w = v[f[:, 0]], v[f[:, 1]] - v[f[:, 0]], v[f[:, 2]] - v[f[:, 0]]
    found = 0
    for part in np.array_split(edges, 12):
        step = (v[part[:, 1]] - v[part[:, 0]])[:, None]
        across = np.cross(step, w)
        scale = np.einsum("efi,fi->ef", across, u)
        scale = np.where(scale == 0, np.inf, scale)
        away = v[part[:, 0]][:, None] - a
        turned = np.cross(away, u)
        x = np.einsum("efi,efi->ef", away, across) / scale
        y = np.einsum("eki,efi->ef", step, turned) / scale
        t = np.einsum("fi,efi->ef", w, turned) / scale
        hit = (x > 0) & (y > 0) & (x + y < 1) & (t > 0) & (t < 1)
        touches = (f[None, :, :, None] == part[:, None, None, :]).any(axis=(2, 3))
        found += int((hit & ~touches).sum())
    return found


def turned_inside_out(hand, turns, v):
    """Number of faces whose normal points against the one that the blended bones carry along."""
    f = hand["f"]
    rest = hand["v_template"].astype(float)
    local = np.stack([turns.get(k, Rotation.identity()).as_matrix() for k in range(16)])
    chain = []
    for k, parent in enumerate(hand["parents"]):
        chain.append(local[k] if k == 0 else chain[parent] @ local[k])
    carried = np.einsum("fk,kij->fij", hand["weights"].astype(float)[f].mean(1), np.stack(chain))
    before, after = (np.cross(p[f[:, 1]] - p[f[:, 0]], p[f[:, 2]] - p[f[:, 0]]) for p in (rest, v))
    return int((np.einsum("fi,fij,fj->f", after, carried, before) < 0).sum())


def directed_edges(f):
    return np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]])


def test_arrays_have_the_interface(hand):
    shapes = {
        "v_template": (778, 3),
        "f": (1538, 3),
        "f_cap": (14, 3),
        "shapedirs": (778, 3, 10),
        "posedirs": (778, 3, 135),
        "J_regressor": (16, 778),
        "weights": (778, 16),
        "parents": (16,),
        "hands_mean": (45,),
        "hands_components": (45, 45),
        "joint_limits_rad": (15, 3, 2),
        "joint_axes": (15, 3, 3),
        "joint_ranges_rad": (15, 3, 2),
        "nail": (778,),
        "palmar": (778,),
    }
    assert {k: a.shape for k, a in hand.items()} == shapes
    assert hand["parents"].tolist() == [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
    for name, array in hand.items():
        assert array.dtype in (np.float32, np.int32, np.uint8), name
        assert np.isfinite(array).all(), name


def test_mesh_is_a_disk_with_a_wrist_loop_of_sixteen(hand):
    f = hand["f"]
    edges, uses = np.unique(np.sort(directed_edges(f), axis=1), axis=0, return_counts=True)
    assert len(edges) == 2315
    assert len(np.unique(f)) == 778
    assert 778 - len(edges) + len(f) == 1
    assert sorted(np.unique(uses)) == [1, 2]
    loop = edges[uses == 1]
    assert len(loop) == 16
    assert len(np.unique(loop)) == 16
    assert np.ptp(hand["v_template"][np.unique(loop), 0]) < 1e-6


def test_capped_mesh_is_closed_and_wound_outwards(hand):
    f = closed(hand)
    directed = directed_edges(f)
    assert len(np.unique(directed, axis=0)) == len(directed) == 3 * 1552
    assert {tuple(e) for e in directed} == {tuple(e[::-1]) for e in directed}
    assert 3.3e-4 < volume(hand["v_template"].astype(float), f) < 5.0e-4


def test_triangles_are_well_shaped(hand):
    v, f = hand["v_template"].astype(float), hand["f"]
    sides = [v[f[:, i]] - v[f[:, i - 1]] for i in range(3)]
    area = np.linalg.norm(np.cross(sides[0], sides[1]), axis=1) / 2
    quality = 4 * np.sqrt(3) * area / sum((s**2).sum(1) for s in sides)
    assert quality.min() > 0.12
    assert np.median(quality) > 0.75


def test_the_rest_pose_does_not_cut_itself(hand):
    assert count_edges_through_faces(hand["v_template"].astype(float), closed(hand)) == 0


def test_the_mean_pose_only_creases(hand):
    """The thumb comes in from its spread rest: the web may fold onto itself, fingers may not meet."""
    turns = {k + 1: Rotation.from_rotvec(r) for k, r in enumerate(hand["hands_mean"].reshape(15, 3))}
    v, _ = skin(hand, turns)
    assert count_edges_through_faces(v, closed(hand)) <= 10
    assert turned_inside_out(hand, turns, v) <= 5


def test_weights_and_regressor_rows(hand):
    weights, regressor = hand["weights"], hand["J_regressor"]
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(regressor.sum(1), 1, atol=1e-6)
    assert weights.min() >= 0
    assert regressor.min() >= 0
    assert (weights > 0).sum(1).max() <= 4
    assert (regressor > 0).sum(1).max() <= 100
    joints = regressor @ hand["v_template"]
    for k in range(16):
        near = np.linalg.norm(hand["v_template"][regressor[k] > 0] - joints[k], axis=1)
        assert near.max() < 0.045


def test_every_tip_set_lies_on_the_fingertips(hand):
    v = hand["v_template"].astype(float)
    joints = hand["J_regressor"].astype(float) @ v
    for name, ids in TIP_IDS.items():
        last = ROOTS[name] + 2
        along = v[list(ids)].mean(0) - joints[last]
        along /= np.linalg.norm(along)
        own = np.flatnonzero(hand["weights"][:, last] > 0.5)
        end = v[own[np.argmax((v[own] - joints[last]) @ along)]]
        assert np.linalg.norm(v[list(ids)] - end, axis=1).max() < 4e-3, name
        assert np.linalg.norm(v[list(ids)][:, None] - v[list(ids)], axis=2).max() < 3.5e-3, name


def test_rest_axes_and_flexion_sign(hand):
    v, joints = skin(hand, {})
    assert v[443, 0] < -0.07
    assert joints[0, 0] > 0.08
    assert v[744, 2] > 0.06
    heading = v[744] - joints[13]
    assert 35 < np.degrees(np.arctan2(heading[2], -heading[0])) < 50
    assert heading[1] < 0
    for name in ("index", "middle", "ring", "little"):
        k = ROOTS[name]
        bent, _ = skin(hand, {k: Rotation.from_rotvec([0, 0, np.pi / 2])})
        tip = TIP_IDS[name][0]
        assert bent[tip, 1] < joints[k, 1] - 0.05, name
        assert hand["joint_axes"][k - 1, 0, 2] > 0.88  # the spread little finger bends across +z


def test_bone_lengths_are_human(hand):
    """Within about two standard deviations of Buryanov and Kotiuk (2010), joint centres against bones allowed 4 mm."""
    joints = hand["J_regressor"].astype(float) @ hand["v_template"]
    v = hand["v_template"]
    ranges_mm = {
        "index": ((33, 48), (19, 28), (16, 26)),
        "middle": ((37, 52), (22, 33), (17, 27)),
        "ring": ((34, 50), (20, 33), (17, 27)),
        "little": ((28, 40), (14, 24), (15, 25)),
        "thumb": ((38, 55), (26, 38), (23, 33)),
    }
    for name, ranges in ranges_mm.items():
        points = [*joints[ROOTS[name] : ROOTS[name] + 3], v[TIP_IDS[name][0]]]
        for n, (low, high) in enumerate(ranges):
            assert low < 1e3 * np.linalg.norm(points[n + 1] - points[n]) < high, (name, n)
    assert 178 < 1e3 * np.linalg.norm(v[444] - joints[0]) < 196
    row = v[np.abs(v[:, 0] - joints[4, 0]) < 0.006]
    assert 76 < 1e3 * np.ptp(row[row[:, 2] < joints[1, 2] + 0.02][:, 2]) < 94


def test_left_hand_is_the_mirror(hand):
    mirror = np.array([-1.0, 1, 1])
    left = dict(hand)
    left["v_template"] = hand["v_template"] * mirror
    left["shapedirs"] = hand["shapedirs"] * mirror[:, None]
    flip = np.array([1, -1, -1, -1, 1, 1, -1, 1, 1.0])
    left["posedirs"] = hand["posedirs"] * mirror[:, None] * np.tile(flip, 15)
    rng = np.random.default_rng(0)
    turns = {k: Rotation.from_rotvec(rng.normal(0, 0.4, 3)) for k in range(16)}
    mirrored = {k: Rotation.from_rotvec(t.as_rotvec() * [1, -1, -1]) for k, t in turns.items()}
    betas = rng.normal(size=10)
    v, joints = skin(hand, turns, betas)
    v_left, joints_left = skin(left, mirrored, betas)
    np.testing.assert_allclose(v_left, v * mirror, atol=1e-7)
    np.testing.assert_allclose(joints_left, joints * mirror, atol=1e-7)


@pytest.mark.parametrize("name", ["index", "middle", "ring", "little"])
@pytest.mark.parametrize("step", [1, 2])
def test_a_right_angle_does_not_collapse_a_finger(hand, name, step):
    """Around the bent joint: the girth section in the bisecting plane, the finger's volume, and no face turned inside
    out."""
    joint = ROOTS[name] + step
    f = closed(hand)
    rest, joints = skin(hand, {})
    bone_in = joints[joint] - joints[joint - 1]
    bone_in /= np.linalg.norm(bone_in)
    turn = flex(hand, joint, 90)
    bent, _ = skin(hand, turn)
    half = Rotation.from_rotvec(0.5 * turn[joint].as_rotvec()).apply(bone_in)
    finger = (hand["weights"][:, ROOTS[name] : ROOTS[name] + 3].sum(1) > 0.6)[f].all(axis=1)

    def section(v, normal):
        """Area of the loop around the joint; both sides of it are solid, so the loop is closed."""
        cut = trimesh.Trimesh(v, f[finger], process=False).section(plane_origin=joints[joint], plane_normal=normal)
        loops = [loop - joints[joint] for loop in cut.discrete]
        loop = min(loops, key=lambda p: np.linalg.norm(p.mean(0)))
        return 0.5 * np.linalg.norm(np.cross(loop[:-1], loop[1:]).sum(0))

    assert section(bent, half) > 0.85 * section(rest, bone_in)
    assert turned_inside_out(hand, turn, bent) == 0
    assert 0.96 < volume(bent, f) / volume(rest, f) < 1.04


def test_a_fist_keeps_its_volume(hand):
    turns = {}
    for root in (1, 4, 7, 10):
        for step, degrees in enumerate((80, 90, 60)):
            turns |= flex(hand, root + step, degrees)
    bent, _ = skin(hand, turns)
    plain, _ = skin(hand, turns, correct=False)
    rest = volume(hand["v_template"].astype(float), closed(hand))
    assert 0.90 < volume(bent, closed(hand)) / rest < 1.05
    assert volume(plain, closed(hand)) < volume(bent, closed(hand))


def test_shapes_mean_what_they_say(hand):
    v = hand["v_template"].astype(float)

    def measure(index, amount=1.0):
        w = v + hand["shapedirs"][:, :, index] * amount
        joints = hand["J_regressor"].astype(float) @ w
        finger = {n: np.linalg.norm(w[TIP_IDS[n][0]] - joints[k]) for n, k in ROOTS.items()}
        return {
            **finger,
            "breadth": np.linalg.norm(joints[1] - joints[7]),
            "palm": np.linalg.norm(joints[4] - joints[0]),
            "volume": volume(w, closed(hand)),
        }

    base = measure(0, 0.0)

    def change(index):
        return {k: m / base[k] - 1 for k, m in measure(index).items()}

    size = change(0)
    assert all(abs(size[k] - 0.05) < 0.004 for k in (*ROOTS, "breadth", "palm"))
    assert change(1)["breadth"] > 0.03
    assert abs(change(1)["middle"]) < 0.005
    assert change(2)["volume"] > 0.02
    assert abs(change(2)["palm"]) < 0.005
    length = change(3)
    assert min(length[k] for k in ("index", "middle", "ring", "little")) > 0.03
    assert abs(length["breadth"]) < 0.005
    assert abs(length["thumb"]) < 0.005
    assert change(4)["volume"] > 0.01
    assert abs(change(4)["middle"]) < 0.005
    assert change(5)["palm"] > 0.03
    assert abs(change(5)["middle"]) < 0.006
    assert change(6)["thumb"] > 0.04
    assert abs(change(6)["index"]) < 0.005
    assert change(7)["index"] > 0.02
    assert change(7)["ring"] < -0.02
    assert change(8)["little"] > 0.04
    assert abs(change(8)["ring"]) < 0.005
    assert abs(change(9)["palm"]) < 0.005


def test_joints_stay_inside_the_flesh_whatever_the_shape(hand):
    rng = np.random.default_rng(1)
    for betas in rng.normal(0, 1.5, (4, 10)):
        w = hand["v_template"] + hand["shapedirs"] @ betas
        joints = hand["J_regressor"].astype(float) @ w
        np.testing.assert_allclose(winding_number(joints, w, closed(hand)), 1, atol=1e-6)
        assert np.linalg.norm(joints[:, None] - w[None], axis=2).min() > 0.004


def test_pose_statistics(hand):
    rows = hand["hands_components"].astype(float)
    gram = rows @ rows.T
    norms = np.sqrt(np.diag(gram))
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-6
    assert (np.diff(norms) < 1e-9).all()
    assert 0.9 < norms[0] < 1.6
    assert 0.02 < norms[-1] < 0.06
    mean = hand["hands_mean"].reshape(15, 3)
    assert (mean[:12, 2] > 0.1).all()
    limits = hand["joint_limits_rad"]
    assert (limits[..., 0] < mean).all()
    assert (limits[..., 1] > mean).all()
    axes = hand["joint_axes"].astype(float)
    np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (15, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(axes), 1, atol=1e-6)


def test_nails_are_on_the_back_of_the_fingertips(hand):
    for number, name in enumerate(("thumb", "index", "middle", "ring", "little"), start=1):
        on = hand["nail"] == number
        assert 2 <= on.sum() <= 20
        assert (hand["weights"][on, ROOTS[name] + 2] > 0.9).all()
        if name != "thumb":
            assert (hand["palmar"][on] == 0).mean() > 0.8


def test_the_script_still_makes_the_bundled_file(hand):
    made = make_open_hand()
    assert list(made) == list(hand)
    for name, array in made.items():
        assert array.dtype == hand[name].dtype
        np.testing.assert_allclose(array, hand[name], atol=2e-6, err_msg=name)
