"""HaMeR's checkpoint: read strictly and as it was written; other, damaged, hostile and missing files are refused."""

import pickle

import numpy as np
import pytest
import torch
from fake_hamer import TINY, random_state, table, write_checkpoint
from fake_mano import fake_hand, write_official
from safetensors.torch import save_file

from pam_aug.checkpoint import read_state
from pam_aug.errors import AssetMissing, SchemaError, UnsafeInput
from pam_aug.estimators.hamer import HamerEstimator, HamerOptions
from pam_aug.estimators.hamer_checkpoint import hand_of, load_hamer
from pam_aug.estimators.hamer_net import HamerConfig
from pam_aug.hand import load_open_hand


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("hamer") / "hamer.ckpt")


def test_a_checkpoint_round_trips(checkpoint, tmp_path):
    saved = random_state()
    net = load_hamer(read_state(checkpoint, "hamer"), TINY, where="here")
    assert set(net.state_dict()) == set(table(TINY))
    for name, value in net.state_dict().items():
        assert torch.equal(value.float(), saved[name]), name  # wider in places, never rounded
    path = tmp_path / "hamer.safetensors"
    save_file({name: value for name, value in saved.items() if not name.startswith("discriminator.")}, path)
    again = load_hamer(read_state(path, "hamer"), TINY, where="here")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_checkpoints_own_hand_is_the_hand_it_was_made_of(checkpoint):
    ours = load_open_hand("right")
    hand = hand_of(read_state(checkpoint, "hamer"), where="here")
    assert hand is not None
    for name in ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "parents", "hands_mean"):
        assert np.array_equal(getattr(hand, name), np.asarray(getattr(ours, name))), name
    assert {tuple(sorted(t)) for t in hand.f_cap.tolist()}  # closed: every border edge is used up
    edges = [tuple(sorted((int(t[a]), int(t[b])))) for t in [*hand.f, *hand.f_cap] for a, b in ((0, 1), (1, 2), (2, 0))]
    assert all(edges.count(edge) == 2 for edge in set(edges[-42:]))


def test_other_networks_are_refused_with_the_first_differences(checkpoint):
    state = read_state(checkpoint, "hamer")
    with pytest.raises(SchemaError, match=r"backbone.pos_embed is \(1, 193, 32\).*expected \(1, 193, 1280\)"):
        load_hamer(state, HamerConfig(), where="x")
    del state["mano_head.deccam.bias"]
    state["backbone.blocks.0.ls1.gamma"] = torch.ones(32)
    with pytest.raises(SchemaError) as caught:
        load_hamer(state, TINY, where="x.ckpt")
    assert "x.ckpt" in str(caught.value)
    assert "2 entries differ" in str(caught.value)
    assert "mano_head.deccam.bias is missing (expected (3,))" in str(caught.value)
    assert "backbone.blocks.0.ls1.gamma is unknown" in str(caught.value)


class Hostile:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_hostile_and_damaged_files_are_refused(checkpoint, tmp_path, capsys):
    bad = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {"x": Hostile()}}, bad)
    with pytest.raises(UnsafeInput, match="more than tensors"):
        read_state(bad, "hamer")
    assert "this must not run" not in capsys.readouterr().out
    bad.write_bytes(pickle.dumps({"state_dict": Hostile()}))
    with pytest.raises((UnsafeInput, SchemaError)):
        read_state(bad, "hamer")
    assert "this must not run" not in capsys.readouterr().out
    whole = checkpoint.read_bytes()
    for damaged in (b"", b"PK\x03\x04", whole[: len(whole) // 2], whole[:-30]):
        bad.write_bytes(damaged)
        with pytest.raises(SchemaError, match="copy or download"):
            read_state(bad, "hamer")
    torch.save([1, 2], bad)
    with pytest.raises(SchemaError, match="holds a list"):
        read_state(bad, "hamer")
    torch.save({"model": 1, "epoch": 3}, bad)
    with pytest.raises(SchemaError, match="has the entries model, epoch"):
        read_state(bad, "hamer")
    (tmp_path / "bad.safetensors").write_bytes(whole[:100])
    with pytest.raises(SchemaError):
        read_state(tmp_path / "bad.safetensors", "hamer")
    with pytest.raises(AssetMissing):
        read_state(tmp_path / "none.ckpt", "hamer")


def test_missing_files_are_named_before_work(tmp_path, monkeypatch, checkpoint):
    monkeypatch.setenv("PAM_AUG_WEIGHTS", str(tmp_path))
    monkeypatch.delenv("MANO_DIR", raising=False)
    (missing,) = HamerEstimator().requires()
    for part in (str(tmp_path / "hamer.ckpt"), "2,689.5 MB", "MIT", "huggingface.co"):
        assert part in missing
    bare = tmp_path / "bare.safetensors"
    save_file({name: value for name, value in random_state().items() if name in table(TINY)}, bare)
    (missing,) = HamerEstimator(HamerOptions(checkpoint=str(bare), net=TINY)).requires()
    assert "MANO_RIGHT.pkl" in missing
    assert "Max Planck" in missing
    (tmp_path / "mano").mkdir()
    official = write_official(fake_hand(), tmp_path / "mano" / "MANO_RIGHT.pkl")
    assert HamerEstimator(HamerOptions(checkpoint=str(bare), net=TINY)).requires() == []
    users = HamerEstimator(HamerOptions(checkpoint=str(checkpoint), net=TINY, mano=str(official.parent)))
    assert users.requires() == []
    assert np.allclose(users.assets.v_template, fake_hand().v_template)
    assert "-mano-" in users.version
    lost = HamerEstimator(HamerOptions(checkpoint=str(checkpoint), net=TINY, mano=str(tmp_path / "no")))
    assert "MANO_RIGHT.pkl" in lost.requires()[0]
    with pytest.raises(SchemaError, match="entries differ"):
        HamerEstimator(HamerOptions(checkpoint=str(checkpoint))).requires()
