"""HaMeR as an estimator: its hands in the terms of a label. Weights are random and narrow: form, not skill."""

from dataclasses import replace

import fakes
import numpy as np
import pytest
import torch
from fake_hamer import BOX, TINY, K, images, write_checkpoint

from pam_aug.errors import BackendError, ConfigError
from pam_aug.estimators.base import Estimator, HandQuery
from pam_aug.estimators.hamer import HamerEstimator, HamerOptions, hamer_crop
from pam_aug.estimators.hamer_net import HamerConfig
from pam_aug.geometry import flip_intrinsics, project
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.hand.joints import TIP_SETS
from pam_aug.score import hand_errors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("hamer") / "hamer.ckpt")


@pytest.fixture(scope="module")
def estimator(checkpoint):
    return HamerEstimator(HamerOptions(checkpoint=str(checkpoint), net=TINY, device="cpu"))


def test_estimates_have_their_form(estimator):
    assert isinstance(estimator, Estimator)
    assert estimator.requires() == []
    assert estimator.version.endswith("-fp32")
    hands = estimator.estimate_hands(images(3), [HandQuery("right", BOX, K)] * 3)
    found = hands.estimates
    assert found.valid.all()
    assert np.abs(found.joints_m[:, 0]).max() == 0
    assert np.ptp(found.joints_m, axis=0).max() > 1e-4  # the image matters
    assert np.abs(found.joints_m).max() < 0.4


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tips", sorted(TIP_SETS))
def test_the_parameters_make_the_reported_hand(estimator, side, tips):
    """Posing that side's hand model with the reported label gives the reported joints, and projects onto them."""
    # The camera that the network believes in: its focal length, looking straight at the box.
    focal = 5000 * hamer_crop(BOX, 300, flip=False).side_px / 256
    K_own = np.array([[focal, 0, 220], [0, focal, 95], [0, 0, 1]])
    hands = estimator.estimate_hands(images(2), [HandQuery(side, BOX, K_own, tips)] * 2)
    layer = HandLayer(load_open_hand(side), torch.float64, tips=tips)
    label = (torch.from_numpy(a) for a in (hands.global_orient, hands.hand_pose, hands.betas, hands.transl_cam_m))
    out = layer(*label)
    joints = out.joints21.numpy()
    assert hands.estimates.joints_m == pytest.approx(joints - joints[:, :1], abs=1e-6)
    assert hands.estimates.verts_m == pytest.approx(out.verts.numpy() - joints[:, :1], abs=1e-6)
    assert project(joints, K_own) == pytest.approx(hands.estimates.joints_px, abs=1e-3)


def test_a_mirrored_image_of_the_other_hand_gives_the_mirrored_estimate(estimator):
    image = images(1)[0]
    mirrored_box = np.array([299 - BOX[2], BOX[1], 299 - BOX[0], BOX[3]])
    right = estimator.estimate_hands([image], [HandQuery("right", BOX, K)])
    mirrored = np.ascontiguousarray(image[:, ::-1])
    left = estimator.estimate_hands([mirrored], [HandQuery("left", mirrored_box, flip_intrinsics(K, 300))])
    flip = np.array([-1.0, 1, 1])
    assert left.estimates.joints_m * flip == pytest.approx(right.estimates.joints_m, abs=1e-5)
    assert left.estimates.verts_m * flip == pytest.approx(right.estimates.verts_m, abs=1e-5)
    assert left.transl_cam_m * flip == pytest.approx(right.transl_cam_m, abs=1e-5)
    assert left.global_orient * [1, -1, -1] == pytest.approx(right.global_orient, abs=1e-5)
    px = left.estimates.joints_px
    assert np.stack([299 - px[..., 0], px[..., 1]], -1) == pytest.approx(right.estimates.joints_px, abs=1e-3)


def test_batched_and_one_at_a_time_agree(estimator, checkpoint):
    pictures = images(5)
    queries = [HandQuery("right", BOX + i, K) for i in range(5)]
    together = estimator.estimate(pictures, queries)
    blocks = HamerEstimator(HamerOptions(checkpoint=str(checkpoint), net=TINY, device="cpu", batch=2))
    in_blocks = blocks.estimate(pictures, queries)
    alone = np.concatenate([estimator.estimate([p], [q]).joints_m for p, q in zip(pictures, queries, strict=True)])
    for found in (together, in_blocks):
        assert np.abs(found.joints_m - alone).max() < 1e-8  # metres: 1e-5 mm
    hand = replace(fakes.label(1, "x").hands[0], joints_px=np.linspace(BOX[:2], BOX[2:], 21))
    scores = [hand_errors(found, hand).err_mm for found in (together, in_blocks)]
    apart = [hand_errors(estimator.estimate([p], [q]), hand).err_mm[0] for p, q in zip(pictures, queries, strict=True)]
    assert np.abs(np.array(scores) - apart).max() < 1e-5
    assert np.ptp(apart) > 1e-3  # the image matters
    again = HamerEstimator(HamerOptions(checkpoint=str(checkpoint), net=TINY, device="cpu")).estimate(pictures, queries)
    assert np.array_equal(together.verts_m, again.verts_m)


def test_a_half_precision_backbone_stays_within_a_millimetre(estimator, checkpoint):
    queries = [HandQuery("left", BOX, K)] * 2
    exact = estimator.estimate(images(2), queries)
    for precision in ("fp16", "bf16"):
        options = HamerOptions(checkpoint=str(checkpoint), net=TINY, device="cpu", precision=precision)
        half = HamerEstimator(options)
        assert half.net.backbone.pos_embed.dtype != torch.float32
        assert half.net.mano_head.decpose.weight.dtype == torch.float64
        distance = np.linalg.norm(half.estimate(images(2), queries).verts_m - exact.verts_m, axis=-1).max()
        assert 0 < distance < (1e-3 if precision == "fp16" else 4e-3)


def test_a_hopeless_box_is_a_row_and_moves_no_other(estimator):
    query, lost = HandQuery("right", BOX, K), HandQuery("right", np.full(4, np.nan), K)
    found = estimator.estimate(images(3), [query, lost, query])
    assert found.valid.tolist() == [True, False, True]
    assert "not finite" in found.reasons[1]
    assert np.array_equal(found.verts_m[2], estimator.estimate(images(3), [query] * 3).verts_m[2])
    assert len(estimator.estimate([], [])) == 0


def test_wrong_images_and_options_are_refused(estimator):
    with pytest.raises(BackendError):
        estimator.estimate(images(2), [HandQuery("right", BOX, K)])
    with pytest.raises(BackendError):
        estimator.estimate([np.zeros((9, 9), np.uint8)], [HandQuery("right", BOX, K)])
    with pytest.raises(BackendError, match="tip set 'other'"):
        estimator.estimate(images(1), [HandQuery("right", BOX, K, "other")])
    for wrong in ({"precision": "fp8"}, {"device": "tpu"}, {"batch": 0}, {"enlarge": 0.0}, {"pixel_centres": "x"}):
        with pytest.raises(ConfigError):
            HamerOptions(**wrong)
    for sizes in ({"width": 30}, {"depth": 0}):
        with pytest.raises(ConfigError):
            HamerConfig(**sizes)
