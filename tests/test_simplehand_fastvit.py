"""The released SimpleHand's form. Weights are random; timm's backbone, where there is timm, is on the meta device."""

import numpy as np
import pytest
import torch
from fake_mano import fake_hand, write_official

from pam_aug import registry
from pam_aug.errors import AssetMissing, BackendError, ConfigError, SchemaError
from pam_aug.estimators import simplehand_fastvit
from pam_aug.estimators.base import Estimator, HandQuery
from pam_aug.estimators.simplehand_fastvit import (
    FastViTSimpleHand,
    SimpleHandFastViTEstimator,
    SimpleHandFastViTOptions,
    published_crop,
)
from pam_aug.geometry import flip_intrinsics
from pam_aug.hand.joints import TIP_SETS, TIPS_21

K = np.array([[300.0, 0, 150], [0, 300, 90], [0, 0, 1]])
BOX = np.array([180.0, 60, 260, 130])


class FakeBackbone(torch.nn.Module):
    """7 × 7 features of the published width, from the means of the image's cells."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 1216, 32, 32)

    def forward_features(self, x):
        return self.conv(x)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    torch.manual_seed(0)
    net = FastViTSimpleHand(FakeBackbone())
    torch.nn.init.constant_(net.keypoints_2d_head.bias, 0.5)
    torch.save({"epoch": 200, "state_dict": net.state_dict(), "optimizer_state_dict": {}}, folder / "epoch_200_rerun1")
    write_official(fake_hand(), folder / "MANO_RIGHT.pkl")
    return folder


@pytest.fixture
def estimator(files, monkeypatch):
    monkeypatch.setattr(simplehand_fastvit, "make_backbone", FakeBackbone)
    options = {"weights": str(files / "epoch_200_rerun1"), "mano": str(files), "joints": "regressor"}
    return SimpleHandFastViTEstimator(SimpleHandFastViTOptions(**options))


def images(n):
    rng = np.random.default_rng(0)
    return [np.kron(rng.integers(0, 255, (18, 30, 3), np.uint8), np.ones((10, 10, 1), np.uint8)) for _ in range(n)]


def test_the_published_structure():
    try:
        with torch.device("meta"):
            net = FastViTSimpleHand(simplehand_fastvit.make_backbone())
    except AssetMissing as error:
        pytest.skip(str(error))
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert len(shapes) == 1325
    assert sum(name.startswith("backbone.") for name in shapes) == 1264
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(50.61e6, abs=5e3)
    assert shapes["backbone.stages.3.pos_emb.pos_enc.weight"] == (608, 1, 7, 7)
    assert shapes["backbone.head.fc.weight"] == (1000, 1216)
    assert net.backbone.forward_features(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1216, 7, 7)


def test_the_heads_have_the_published_entries():
    with torch.device("meta"):
        net = FastViTSimpleHand(torch.nn.Identity())
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    expected = {
        "keypoints_2d_head.weight": (42, 1216),
        "keypoints_2d_head.bias": (42,),
        "mesh_head.deconv.0.weight": (1216, 256, 4, 4),
        "mesh_head.deconv.1.num_batches_tracked": (),
        "mesh_head.pred_final.weight": (3, 64),
        "mesh_head.pred_final.bias": (3,),
    }
    expected |= {f"mesh_head.deconv.1.{k}": (256,) for k in ("weight", "bias", "running_mean", "running_var")}
    tokens, widths = (21, 84, 336, 778), (256, 256, 128, 64)
    for k in (1, 2, 3):
        d, block = widths[k], f"mesh_head.encoder_{k}.0"
        expected[f"mesh_head.pos_emb_{k}"] = (1, tokens[k - 1], widths[k - 1])
        sizes = {
            f"mesh_head.proj_{k}": (d, widths[k - 1]),
            f"mesh_head.upsample_{k}.upsample": (tokens[k], tokens[k - 1]),
            f"{block}.token_mixer.out_proj": (d, d),
            f"{block}.mlp.fc1": (4 * d, d),
            f"{block}.mlp.fc2": (d, 4 * d),
        }
        expected |= {f"{name}.weight": size for name, size in sizes.items()}
        expected |= {f"{name}.bias": size[:1] for name, size in sizes.items()}
        expected |= {f"{block}.token_mixer.in_proj_weight": (3 * d, d), f"{block}.token_mixer.in_proj_bias": (3 * d,)}
        expected |= {f"{block}.norm{j}.{kind}": (d,) for j in (1, 2) for kind in ("weight", "bias")}
    assert shapes == expected
    assert len(shapes) == 61
    assert sum(p.numel() for p in net.mesh_head.parameters()) == pytest.approx(6.49e6, rel=0.001)


def test_the_crops_axis_is_at_half_its_size():
    middle = (BOX[:2] + BOX[2:]) / 2
    assert published_crop(K, BOX, flip=False).points(middle[None])[0] == pytest.approx([112, 112])
    assert published_crop(K, BOX, flip=True).points(middle[None])[0] == pytest.approx([223 - 112, 112])


def test_estimates_have_their_form(estimator):
    assert isinstance(estimator, Estimator)
    assert estimator.requires() == []
    query = HandQuery("right", BOX, K, "manopth")
    found = estimator.estimate(images(3), [query, HandQuery("right", np.full(4, np.nan), K), query])
    assert found.valid.tolist() == [True, False, True]
    assert np.abs(found.joints_m[:, 0]).max() == 0
    assert np.array_equal(found.joints_m[2, list(TIPS_21)], found.verts_m[2, list(TIP_SETS["manopth"]["right"])])
    assert np.ptp(found.verts_m[[0, 2]], axis=0).max() > 0  # the image matters
    assert found.joints_px[0] == pytest.approx(np.tile((BOX[:2] + BOX[2:]) / 2, (21, 1)), abs=60)


def test_a_mirrored_image_of_the_other_hand_gives_the_mirrored_estimate(estimator):
    image = images(1)[0]
    mirrored_box = np.array([299 - BOX[2], BOX[1], 299 - BOX[0], BOX[3]])
    right = estimator.estimate([image], [HandQuery("right", BOX, K)])
    left_query = HandQuery("left", mirrored_box, flip_intrinsics(K, 300))
    left = estimator.estimate([np.ascontiguousarray(image[:, ::-1])], [left_query])
    assert left.verts_m * [-1, 1, 1] == pytest.approx(right.verts_m, abs=5e-3 * np.abs(right.verts_m).max())


def test_wrong_input_is_refused(estimator, files, tmp_path):
    with pytest.raises(BackendError):
        estimator.estimate(images(2), [HandQuery("right", BOX, K)])
    with pytest.raises(BackendError):
        estimator.estimate([np.zeros((9, 9), np.uint8)], [HandQuery("right", BOX, K)])
    for wrong in ({"joints": "x"}, {"batch": 0}):
        with pytest.raises(ConfigError):
            SimpleHandFastViTOptions(**wrong)
    other = tmp_path / "epoch_1"
    torch.save({"state_dict": {"backbone.conv.weight": torch.zeros(3)}}, other)
    with pytest.raises(SchemaError, match="entries differ"):
        _ = SimpleHandFastViTEstimator(SimpleHandFastViTOptions(weights=str(other), mano=str(files))).net


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PAM_AUG_WEIGHTS", str(tmp_path))
    monkeypatch.delenv("MANO_DIR", raising=False)

    def no_timm():
        raise AssetMissing("needs timm")

    monkeypatch.setattr(simplehand_fastvit, "make_backbone", no_timm)
    weights, mano, package = SimpleHandFastViTEstimator().requires()
    assert str(tmp_path / "epoch_200_rerun1") in weights
    assert "github.com/patienceFromZhou" in weights
    assert str(tmp_path / "mano" / "MANO_RIGHT.pkl") in mano
    assert "timm" in package


def test_the_registry_knows_it():
    assert registry.load("estimators", "simplehand-fastvit") is SimpleHandFastViTEstimator
