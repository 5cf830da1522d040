"""The registry of files that users bring, and the command that prints and checks them."""

import hashlib
import json
import socket
import sys

import pytest

from pam_aug import cli
from pam_aug.errors import ConfigError
from pam_aug.estimators import weights
from pam_aug.estimators.weights import WEIGHTS, WeightFile, inspect_weights

CONTENT = b"weights" * 100
KNOWN = WeightFile(
    name="known",
    file="known.bin",
    what="A file",
    needed_by="a test",
    licence="none",
    get="Ask",
    folder="weights",
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PAM_AUG_WEIGHTS", str(tmp_path))
    monkeypatch.delenv("MANO_DIR", raising=False)


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(weights, "WEIGHTS", (KNOWN,))
    return KNOWN


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pam-aug", "fetch-weights", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    streams = capsys.readouterr()
    return int(stop.value.code or 0), streams.out, streams.err


def test_every_entry_says_all_a_user_needs():
    assert len({weight.name for weight in WEIGHTS}) == len(WEIGHTS)
    for weight in WEIGHTS:
        assert all((weight.what, weight.needed_by, weight.licence)), weight.name
        assert "https://" in weight.get
        assert len(weight.sha256) in (0, 64)
        assert (weight.size_bytes > 0) == bool(weight.sha256)
        assert not (weight.size_note and weight.sha256)
        line = weight.instruction()
        assert str(weight.path) in line
        assert weight.licence in line


def test_places_follow_the_environment(tmp_path, monkeypatch):
    paths = {weight.name: weight.path for weight in WEIGHTS}
    assert paths["hamer"] == tmp_path / "hamer.ckpt"
    assert paths["mano-right"] == tmp_path / "mano" / "MANO_RIGHT.pkl"
    monkeypatch.setenv("MANO_DIR", str(tmp_path / "elsewhere"))
    assert {weight.name: weight.path for weight in WEIGHTS}["mano-left"] == tmp_path / "elsewhere" / "MANO_LEFT.pkl"
    monkeypatch.delenv("PAM_AUG_WEIGHTS")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights.weights_dir() == tmp_path / "home" / ".cache" / "pam_aug" / "weights"


def test_files_are_told_apart(known):
    (report,) = inspect_weights()
    assert (report.state, report.found) == ("missing", "")
    known.path.write_bytes(CONTENT)
    assert inspect_weights(["known"])[0].state == "intact"
    known.path.write_bytes(CONTENT[:-1])
    (report,) = inspect_weights()
    assert (report.state, report.found) == ("differs", "699 bytes instead of 700")
    known.path.write_bytes(b"W" + CONTENT[1:])
    (report,) = inspect_weights()
    assert report.state == "differs"
    assert report.found == f"sha256 {hashlib.sha256(b'W' + CONTENT[1:]).hexdigest()}"


def test_a_file_without_a_published_hash_is_not_called_intact(tmp_path):
    (tmp_path / "mano").mkdir()
    (tmp_path / "mano" / "MANO_LEFT.pkl").write_bytes(b"x")
    (report,) = inspect_weights(["mano-left"])
    assert report.state == "unchecked"
    assert "not published" in report.as_text()


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="there are hamer, mano-right, mano-left"):
        inspect_weights(["hammer"])


def test_the_command_prints_checks_and_never_connects(monkeypatch, capsys, tmp_path):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    code, out, _ = run(monkeypatch, capsys)
    assert code == 0
    assert out.count("MISSING") == len(WEIGHTS)
    for part in (str(tmp_path / "hamer.ckpt"), "2,689,536,166 bytes", "MIT", "e5cc06f294d88a92", "mano.is.tue.mpg.de"):
        assert part in out
    assert list(tmp_path.iterdir()) == []
    code, out, _ = run(monkeypatch, capsys, "--json")
    rows = json.loads(out)["weights"]
    assert [row["name"] for row in rows] == [weight.name for weight in WEIGHTS]
    assert rows[0]["state"] == "missing"


def test_the_exit_code_says_what_a_script_needs_to_know(monkeypatch, capsys, known):
    assert run(monkeypatch, capsys, "known")[0] == 2
    known.path.write_bytes(CONTENT)
    code, out, _ = run(monkeypatch, capsys, "known", "--json")
    assert (code, json.loads(out)["weights"][0]["state"]) == (0, "intact")
    known.path.write_bytes(b"")
    code, out, _ = run(monkeypatch, capsys)
    assert code == 4
    assert "0 bytes instead of 700" in out
    code, _, err = run(monkeypatch, capsys, "unknown")
    assert code == 2
    assert "no weight file of that name" in err


def test_flux_and_pams_checkpoint_are_checked_by_structure(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    from fake_flux import TRANSFORMER, VAE, write_flux

    from pam_aug.generate.flux import structure

    names = ("flux", "flux-t5", "flux-clip", "pam-controlnet")
    assert {report.state for report in inspect_weights(names)} == {"missing"}
    write_flux(tmp_path)  # the layout of the published folder, other sizes
    reports = {report.weight.name: report for report in inspect_weights(names)}
    assert {report.state for report in reports.values()} == {"differs"}
    assert "is (32, 256) of torch.float32, expected (3072, 256)" in reports["flux"].found
    assert "d_model is 24 instead of 4096" in reports["flux-t5"].found
    assert "hidden_size is 20 instead of 768" in reports["flux-clip"].found
    assert "controlnet1.img_in.weight is (32, 64)" in reports["pam-controlnet"].found

    # The same files pass where the published model has their sizes, until one of them is cut short.
    monkeypatch.setattr(structure, "DEV_TRANSFORMER", TRANSFORMER)
    monkeypatch.setattr(structure, "DEV_VAE", VAE)
    monkeypatch.setattr(structure, "_check_sizes", lambda folder, sizes: structure._folder(folder))
    reports = inspect_weights(names)
    assert [(report.weight.name, report.state, report.found) for report in reports] == [(n, "fits", "") for n in names]
    assert "names and shapes as published" in reports[0].as_text()
    path = next((tmp_path / "FLUX.1-dev/transformer").glob("*.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    (report,) = inspect_weights(["flux"])
    assert report.state == "differs"
    assert "not a whole safetensors file" in report.found
    path.unlink()
    assert "holds no *.safetensors" in inspect_weights(["flux"])[0].found
    index = path.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text('{"weight_map": {"x_embedder.weight": "model-00002-of-00003.safetensors"}}')
    assert "model-00002-of-00003.safetensors is missing" in inspect_weights(["flux"])[0].found
