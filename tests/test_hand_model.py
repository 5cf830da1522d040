"""The MANO equations against a slow reference, and the identities that users of the layer rely on."""

import numpy as np
import pytest
import torch
from fake_mano import fake_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pam_aug.errors import ConfigError, SchemaError
from pam_aug.geometry import axis_angle_to_matrix
from pam_aug.hand import (
    BONES,
    FINGERS,
    JOINT_NAMES_21,
    JOINTS21_TO_MANO16,
    MANO16_NAMES,
    MANO16_TO_21,
    MANO_PARENTS,
    TIP_SETS,
    TIPS_21,
    HandAssets,
    HandLayer,
    fit_hand,
    load_hand,
    load_open_hand,
    mirror_params,
)

RIGHT = fake_hand()
LAYER = HandLayer(RIGHT, torch.float64)


def parameters(seed: int, batch: int, dtype=torch.float64) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    sizes = {3: 1.0, 45: 0.5, 10: 1.0, -3: 1.0}
    return [(torch.randn(batch, abs(n), generator=rng, dtype=torch.float64) * s).to(dtype) for n, s in sizes.items()]


def slow_mano(a: HandAssets, global_orient, hand_pose, betas, transl):
    """One hand, vertex by vertex, with 4x4 matrices (Romero et al. 2017, equations 1 to 4)."""
    pose = np.concatenate([global_orient, hand_pose]).reshape(16, 3)
    R = [Rotation.from_rotvec(p).as_matrix() for p in pose]
    shaped = np.zeros((778, 3))
    for v in range(778):
        shaped[v] = a.v_template[v]
        for k in range(10):
            shaped[v] += a.shapedirs[v, :, k] * betas[k]
    J = [sum(a.J_regressor[j, v] * shaped[v] for v in range(778)) for j in range(16)]
    world = []
    for j in range(16):
        local = np.eye(4)
        local[:3, :3] = R[j]
        local[:3, 3] = J[j] - (J[MANO_PARENTS[j]] if j else 0)
        world.append(world[MANO_PARENTS[j]] @ local if j else local)
    feature = np.concatenate([(R[j] - np.eye(3)).ravel() for j in range(1, 16)])
    verts = np.zeros((778, 3))
    for v in range(778):
        rest = np.append(shaped[v] + a.posedirs[v] @ feature, 1.0)
        for j in range(16):
            unbind = np.eye(4)
            unbind[:3, 3] = -J[j]
            verts[v] += a.weights[v, j] * (world[j] @ unbind @ rest)[:3]
    return verts + transl, np.array([w[:3, 3] for w in world]) + transl


@pytest.mark.parametrize("assets", [RIGHT, load_open_hand("left")], ids=["fake", "open-left"])
def test_equals_the_slow_reference(assets):
    given_parameters = parameters(0, 3)
    out = HandLayer(assets, torch.float64)(*given_parameters)
    for i in range(3):
        verts, joints = slow_mano(assets, *(p[i].numpy() for p in given_parameters))
        np.testing.assert_allclose(out.verts[i], verts, atol=1e-10)
        np.testing.assert_allclose(out.joints16[i], joints, atol=1e-10)
    single = HandLayer(assets)(*(p.float() for p in given_parameters))
    assert single.verts.dtype == torch.float32
    np.testing.assert_allclose(single.verts, out.verts, atol=1e-6)


@pytest.mark.parametrize("batch", [0, 1, 31, 32, 33, 100])
def test_every_batch_size_gives_each_hand_alone(batch):
    given_parameters = parameters(1, batch)
    out = LAYER(*given_parameters)
    assert out.verts.shape == (batch, 778, 3)
    assert out.joints21.shape == (batch, 21, 3)
    assert out.verts.is_contiguous()
    if batch:
        alone = LAYER(*(p[-1:] for p in given_parameters))
        np.testing.assert_allclose(alone.verts[0], out.verts[-1], atol=1e-12)


def test_joint_orders_are_consistent():
    names = (*MANO16_NAMES, *(f"{f}_tip" for f in FINGERS))
    assert tuple(names[i] for i in MANO16_TO_21) == JOINT_NAMES_21
    assert tuple(JOINT_NAMES_21[i] for i in JOINTS21_TO_MANO16) == MANO16_NAMES
    assert [JOINT_NAMES_21[i] for i in TIPS_21] == [f"{f}_tip" for f in FINGERS]
    assert BONES == (-1, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19)
    for k in range(1, 16):
        assert BONES[JOINTS21_TO_MANO16[k]] == JOINTS21_TO_MANO16[MANO_PARENTS[k]]


def test_joints21_and_tip_sets():
    given_parameters = parameters(2, 4)
    for name, sides in TIP_SETS.items():
        out = LAYER(*given_parameters, tips=name)
        np.testing.assert_array_equal(out.joints21[:, list(TIPS_21)], out.verts[:, list(sides["right"])])
        np.testing.assert_array_equal(out.joints21[:, list(JOINTS21_TO_MANO16)], out.joints16)
    assert HandLayer(RIGHT.mirrored(), tips="manopth").tip_ids_manopth.tolist() == [745, 317, 445, 556, 673]


@pytest.mark.parametrize("batch", [0, 1, 7, 3000])
@pytest.mark.parametrize("tips", [None, *TIP_SETS])
def test_joints_without_the_mesh_are_the_meshs(batch, tips):
    given_parameters = parameters(8, batch)
    joints = LAYER.kinematic_joints21(*given_parameters, tips=tips)
    np.testing.assert_allclose(joints, LAYER(*given_parameters, tips=tips).joints21, atol=1e-12)
    if batch == 7:
        root, fingers, betas, _ = given_parameters
        np.testing.assert_allclose(LAYER.kinematic_joints21(root, fingers), LAYER(root, fingers).joints21, atol=1e-12)
        with pytest.raises(SchemaError, match="betas has shape"):
            LAYER.kinematic_joints21(root, fingers, betas[:, :9])
        with pytest.raises(ConfigError, match="'mano' is not a tip set"):
            LAYER.kinematic_joints21(root, fingers, tips="mano")


def test_regressor_joints_come_from_the_posed_mesh():
    out = LAYER(*parameters(3, 2), joints="regressor")
    expected = np.einsum("jv,bvc->bjc", RIGHT.J_regressor, out.verts.numpy())
    np.testing.assert_allclose(out.joints16, expected, atol=1e-12)
    kinematic = HandLayer(RIGHT, torch.float64, joints="kinematic")(*parameters(3, 2)).joints16
    assert (out.joints16 - kinematic).abs().max() > 1e-3


def test_matrices_and_axis_angles_give_the_same_hand():
    root, fingers, betas, transl = parameters(4, 3)
    expected = LAYER(root, fingers, betas, transl).verts
    R, F = axis_angle_to_matrix(root), axis_angle_to_matrix(fingers.view(3, 15, 3))
    for pair in [(R, F), (R, fingers), (root, F)]:
        np.testing.assert_allclose(LAYER(*pair, betas, transl).verts, expected, atol=1e-12)


def test_defaults_and_broadcast():
    root, fingers, betas, transl = parameters(5, 4)
    plain = LAYER(root, fingers)
    np.testing.assert_array_equal(plain.verts, LAYER(root, fingers, betas * 0, transl[:1] * 0).verts)
    np.testing.assert_allclose(
        LAYER(root, fingers, betas[:1], transl).verts, LAYER(root, fingers, betas[:1].repeat(4, 1), transl).verts
    )


def test_wrong_arguments_are_named():
    root, fingers, betas, _ = parameters(6, 2)
    with pytest.raises(SchemaError, match=r"hand_pose \(2, 44\)"):
        LAYER(root, fingers[:, :44])
    with pytest.raises(SchemaError, match="1 hands and hand_pose 2"):
        LAYER(root[:1], fingers)
    with pytest.raises(SchemaError, match="betas has shape"):
        LAYER(root, fingers, betas[:, :9])
    with pytest.raises(ConfigError, match=r"'mano' is not a tip set\. Choose one of smplx, freihand, manopth"):
        LAYER(root, fingers, tips="mano")
    with pytest.raises(ConfigError, match="'chain' is not a joint definition"):
        HandLayer(RIGHT, joints="chain")
    with pytest.raises(SchemaError, match="46 pose coefficients"):
        LAYER.pose_from_pca(torch.zeros(1, 46))


def test_gradients():
    small = [p.requires_grad_() for p in parameters(7, 2)]
    assert torch.autograd.gradcheck(lambda *p: LAYER(*p).joints21, small)
    at_rest = [torch.zeros_like(p).requires_grad_() for p in small]
    LAYER(*at_rest).verts.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in at_rest)


def test_model_arrays_are_not_saved_with_a_network():
    assert not LAYER.state_dict()


# --- identities ----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_wrist_is_transl_plus_j0(seed):
    root, fingers, betas, transl = parameters(seed, 3)
    wrist = LAYER(root, fingers, betas, transl).joints21[:, 0]
    np.testing.assert_allclose(LAYER.wrist_from_transl(transl, betas), wrist, atol=1e-12)
    np.testing.assert_allclose(LAYER.transl_from_wrist(wrist, betas), transl, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_change_of_camera_frame(seed):
    root, fingers, betas, transl = parameters(seed, 3)
    turn, T, *_ = parameters(seed + 1, 1)[::3]
    R = axis_angle_to_matrix(turn)
    before = LAYER(root, fingers, betas, transl)
    root2, transl2 = LAYER.transform_pose(R, T, root, transl, betas)
    after = LAYER(root2, fingers, betas, transl2)
    np.testing.assert_allclose(after.verts, before.verts @ R[0].T + T, atol=1e-10)
    np.testing.assert_allclose(after.joints21, before.joints21 @ R[0].T + T, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([RIGHT, load_open_hand("right")]))
def test_mirror_is_exact(seed, assets):
    root, fingers, betas, transl = parameters(seed, 2)
    right = HandLayer(assets, torch.float64)(root, fingers, betas, transl)
    root2, fingers2, transl2 = mirror_params(root, fingers, transl)
    left = HandLayer(assets.mirrored(), torch.float64)(root2, fingers2, betas, transl2)
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(left.verts, right.verts * flip, atol=1e-12)
    np.testing.assert_allclose(left.joints21, right.joints21 * flip, atol=1e-12)


def test_unfixed_left_shape_directions_break_the_mirror_and_only_for_shapes():
    root, fingers, betas, transl = parameters(8, 2)
    flip = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    defective = HandLayer(RIGHT.mirrored("as_file"), torch.float64)
    mirrored = mirror_params(root, fingers, transl)
    for shape, broken in [(betas, True), (betas * 0, False)]:
        left = defective(mirrored[0], mirrored[1], shape, mirrored[2]).verts
        error = (left - LAYER(root, fingers, shape, transl).verts * flip).abs().max()
        assert (error > 1e-3) == broken


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([RIGHT, load_open_hand("right"), load_open_hand("left")]), st.booleans())
def test_pca_round_trip(seed, assets, mean):
    layer = HandLayer(assets, torch.float64)
    coeffs = torch.randn(3, 45, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    back = layer.pose_to_pca(layer.pose_from_pca(coeffs, mean=mean), mean=mean)
    tolerance = 1e-10 if assets is RIGHT else 1e-4  # the bundled components are stored in float32
    np.testing.assert_allclose(back, coeffs, atol=tolerance)
    few = layer.pose_to_pca(layer.pose_from_pca(coeffs[:, :6], mean=mean), mean=mean)
    np.testing.assert_allclose(few[:, :6], coeffs[:, :6], atol=tolerance)
    np.testing.assert_allclose(few[:, 6:], 0, atol=tolerance)


def test_zero_coefficients_are_the_mean_pose():
    np.testing.assert_array_equal(LAYER.pose_from_pca(torch.zeros(1, 45, dtype=torch.float64))[0], RIGHT.hands_mean)


# --- the bundled and the fitted hand -------------------------------------------------------------------------------


def rest_tips(assets: HandAssets) -> np.ndarray:
    return assets.v_template[list(TIP_SETS["smplx"][assets.side])].astype(np.float64)


def closed_faces(assets: HandAssets) -> np.ndarray:
    return np.concatenate([assets.f, assets.f_cap])


def volume_m3(verts: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = verts[faces].astype(np.float64).transpose(1, 0, 2)
    return float((np.cross(a, b) * c).sum() / 6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_open_hand_is_closed_outward_and_hand_sized(side):
    assets = load_open_hand(side)
    assert assets is load_open_hand(side)
    assert assets.name == f"open-hand-{side}"
    faces = closed_faces(assets)
    half_edges = {(a, b) for t in faces.tolist() for a, b in zip(t, t[1:] + t[:1], strict=True)}
    assert len(half_edges) == 3 * len(faces)
    assert all((b, a) in half_edges for a, b in half_edges)
    assert 1e-4 < volume_m3(assets.v_template, faces) < 8e-4


def test_load_hand_prefers_the_users_mano(tmp_path, monkeypatch):
    from fake_mano import write_official

    from pam_aug.errors import AssetMissing

    monkeypatch.delenv("MANO_DIR", raising=False)
    assert load_hand("right").name == "open-hand-right"
    write_official(RIGHT, tmp_path / "MANO_RIGHT.pkl")
    assert load_hand("right", tmp_path).name == "mano-right"
    monkeypatch.setenv("MANO_DIR", str(tmp_path))
    assert load_hand("right").name == "mano-right"
    with pytest.raises(AssetMissing, match=r"MANO_LEFT\.pkl"):
        load_hand("left")


def skeleton(assets: HandAssets, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Another person's skeleton: scaled 0.85 to 1.15, each bone by ±7 % and turned by some degrees, moved aside."""
    rng = np.random.default_rng(seed)
    old = np.concatenate([assets.rest_joints_m, rest_tips(assets)])
    new = np.zeros((21, 3))
    new[0] = old[0] + rng.normal(scale=0.01, size=3)
    scale = rng.uniform(0.85, 1.15)
    last = (15, 3, 6, 12, 9)
    for k in range(1, 21):
        parent = MANO_PARENTS[k] if k < 16 else last[k - 16]
        bone = (old[k] - old[parent]) * scale * rng.uniform(0.93, 1.07)
        new[k] = new[parent] + Rotation.from_rotvec(rng.normal(scale=0.04, size=3)).apply(bone)
    return new[:16], new[16:]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("side", ["left", "right"])
def test_fitted_hand_meets_its_skeleton(side, seed):
    assets = load_open_hand(side)
    joints, tips = skeleton(assets, seed)
    fitted = fit_hand(assets, joints, tips, "other")
    np.testing.assert_allclose(fitted.J_regressor.astype(float) @ fitted.v_template, joints, atol=1e-9)
    np.testing.assert_allclose(rest_tips(fitted), tips, atol=1e-9)
    assert fitted.name == "other"
    assert fitted.sha256 != assets.sha256

    # Posed: joints as the bare skeleton's forward kinematics, tips moved by no more than the pose correctives.
    root, fingers, _, transl = parameters(seed, 5)
    fingers = fingers * 0.8
    out = HandLayer(fitted)(root.float(), fingers.float(), None, transl.float())
    R = axis_angle_to_matrix(torch.cat([root, fingers], 1).view(5, 16, 3)).numpy()
    for i in range(5):
        turn, place = [R[i, 0]], [joints[0]]
        for k in range(1, 16):
            place.append(place[MANO_PARENTS[k]] + turn[MANO_PARENTS[k]] @ (joints[k] - joints[MANO_PARENTS[k]]))
            turn.append(turn[MANO_PARENTS[k]] @ R[i, k])
        np.testing.assert_allclose(out.joints16[i], np.array(place) + transl[i].numpy(), atol=1e-6)
        for finger, last in enumerate((15, 3, 6, 12, 9)):
            tip = place[last] + turn[last] @ (tips[finger] - joints[last]) + transl[i].numpy()
            assert np.linalg.norm(out.joints21[i, TIPS_21[finger]].numpy() - tip) < 2e-3


@pytest.mark.parametrize("seed", range(4))
def test_fitted_hand_keeps_a_hands_form(seed):
    assets = load_open_hand("right")
    joints, tips = skeleton(assets, seed)
    fitted = fit_hand(assets, joints, tips, "other")

    def normals(hand: HandAssets) -> np.ndarray:
        a, b, c = hand.v_template[hand.f].astype(np.float64).transpose(1, 0, 2)
        return np.cross(b - a, c - a)

    before, after = normals(assets), normals(fitted)
    cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert (cosine < 0).mean() < 0.003
    assert np.median(cosine) > 0.97
    ratio = volume_m3(fitted.v_template, closed_faces(fitted)) / volume_m3(assets.v_template, closed_faces(assets))
    size = (
        np.linalg.norm(joints[1:] - joints[0], axis=1).sum()
        / np.linalg.norm(assets.rest_joints_m[1:] - assets.rest_joints_m[0], axis=1).sum()
    )
    assert 0.8 < ratio / size**3 < 1.25


def test_fitting_to_its_own_skeleton_changes_nothing():
    assets = load_open_hand("right")
    fitted = fit_hand(assets, assets.rest_joints_m, rest_tips(assets), "same")
    np.testing.assert_allclose(fitted.v_template, assets.v_template, atol=1e-7)
    np.testing.assert_allclose(fitted.posedirs, assets.posedirs, atol=1e-7)


def test_fit_refuses_what_is_no_skeleton():
    assets = load_open_hand("right")
    joints, tips = assets.rest_joints_m, rest_tips(assets)
    with pytest.raises(SchemaError, match=r"joints \(16, 3\)"):
        fit_hand(assets, joints[:15], tips, "x")
    with pytest.raises(SchemaError, match="NaN"):
        fit_hand(assets, joints * np.nan, tips, "x")
    with pytest.raises(SchemaError, match="Are the units metres"):
        fit_hand(assets, joints * 0, tips, "x")
