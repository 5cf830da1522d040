import json
import subprocess
import sys
import time
from pathlib import Path

import fakes
import pytest
import yaml

from pam_aug import cli
from pam_aug.recipes import load_recipe, recipe_names, recipe_text

pytestmark = pytest.mark.usefixtures("fakes_installed")


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pam-aug", *arguments])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    streams = capsys.readouterr()
    return code, streams.out, streams.err


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "quick.yaml"
    path.write_text(yaml.safe_dump(fakes.CONFIG))
    return str(path)


def test_help_is_quick_and_loads_nothing_heavy():
    code = "import sys; from pam_aug import cli; sys.argv = ['pam-aug', '--help']\n"
    code += "try:\n cli.main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numba', 'cv2', 'numpy', 'omegaconf', 'pyarrow') if m in sys.modules])"
    started = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.splitlines()[-1] == "[]"
    assert "build" in out
    assert time.monotonic() - started < 10  # the real budget, 0.4 s, is for a machine that does nothing else


def test_build_verify_inspect(monkeypatch, capsys, tmp_path, recipe):
    out = str(tmp_path / "out")
    code, text, _ = run(
        monkeypatch, capsys, "build", recipe, "--out", out, "--ratio", "1/3", "--workers", "0", "--json"
    )
    assert code == 0
    assert json.loads(text)["ratio"] == "1/3"
    code, text, _ = run(monkeypatch, capsys, "verify", out)
    assert code == 0
    code, text, _ = run(monkeypatch, capsys, "inspect", out)
    assert code == 0
    page = Path(text.strip()).read_text()
    assert page.count("<figure") == 40 + 7
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_generate_and_convert_are_the_two_halves(monkeypatch, capsys, tmp_path, recipe):
    code, text, _ = run(
        monkeypatch, capsys, "generate", recipe, "--out", str(tmp_path / "a"), "--workers", "0", "--json"
    )
    assert (code, json.loads(text)["kept"]) == (0, 30)
    arguments = ["convert", "fake-real", "--out", str(tmp_path / "b"), "--workers", "0", "--count", "3", "--json"]
    code, text, _ = run(monkeypatch, capsys, *arguments)
    assert (code, json.loads(text)["real_images"]) == (0, 3)
    code, _, error = run(monkeypatch, capsys, "convert", "fake-real", "--cuont=3", "--out", str(tmp_path / "c"))
    assert code == 2
    assert "did you mean count" in error
    code, _, error = run(monkeypatch, capsys, "convert", "fake-rollouts", "--out", str(tmp_path / "c"))
    assert code == 2
    assert "no images" in error


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["build", "nonesuch"], 2, "nonesuch"),
        (["build", "--ratio", "2", "--source", "fake-rollouts"], 2, "ratio"),
        (["build", "--source", "fake-rolouts"], 2, "fake-rolouts"),
        (["build", "--sett", "a=b"], 2, "sett"),
        (["verify", "/nowhere"], 2, "nowhere"),
        (["inspect", "/nowhere"], 2, "nowhere"),
        (["recipes", "show", "nonesuch"], 2, "nonesuch"),
    ],
)
def test_bad_use_is_one_message_and_its_code(monkeypatch, capsys, tmp_path, arguments, code, word):
    monkeypatch.chdir(tmp_path)
    got, _, error = run(monkeypatch, capsys, *arguments)
    assert got == code
    assert word in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_damage_is_exit_code_4(monkeypatch, capsys, tmp_path, recipe):
    out = tmp_path / "out"
    run(monkeypatch, capsys, "build", recipe, "--out", str(out), "--workers", "0")
    shard = out / "shards" / "syn-00001.tar"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    code, text, _ = run(monkeypatch, capsys, "verify", str(out))
    assert code == 4
    assert "syn-00001" in text


def test_dry_run_writes_nothing(monkeypatch, capsys, tmp_path, recipe):
    code, text, _ = run(monkeypatch, capsys, "build", recipe, "--out", str(tmp_path / "out"), "--dry-run", "--json")
    assert code == 0
    assert json.loads(text)["candidates"] == 40
    assert not (tmp_path / "out").exists()


def test_recipes(monkeypatch, capsys, tmp_path):
    code, text, _ = run(monkeypatch, capsys, "recipes", "ls", "--json")
    assert code == 0
    assert sorted(json.loads(text)) == recipe_names()
    code, text, _ = run(monkeypatch, capsys, "recipes", "cp", "demo", str(tmp_path))
    assert code == 0
    assert (tmp_path / "demo.yaml").read_text() == recipe_text("demo")
    code, _, error = run(monkeypatch, capsys, "recipes", "cp", "demo", str(tmp_path))
    assert code == 2
    assert "demo.yaml" in error


def test_every_recipe_in_the_repository_is_bundled_and_read():
    files = sorted(p.stem for p in (Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
    assert files == recipe_names()
    assert len(files) >= 3
    for name in files:
        assert load_recipe(name)["schema"] == 1
        assert recipe_text(name).startswith("# ")


def test_repair_lists_and_removes(monkeypatch, capsys, tmp_path, recipe):
    out = tmp_path / "out"
    run(monkeypatch, capsys, "build", recipe, "--out", str(out), "--workers", "0")
    (out / "shards" / "syn-00001.json").unlink()
    code, text, _ = run(monkeypatch, capsys, "repair", str(out), "--dry-run")
    assert code == 0
    assert "would remove shards/syn-00001.tar" in text
    assert (out / "shards" / "syn-00001.tar").exists()
    code, text, _ = run(monkeypatch, capsys, "repair", str(out), "--json")
    assert code == 0
    assert len(json.loads(text)["removed"]) == 2
    assert not (out / "shards" / "syn-00001.tar").exists()
    assert run(monkeypatch, capsys, "repair", str(tmp_path))[0] == 2


def test_mix_changes_the_ratio_or_writes_shards(monkeypatch, capsys, tmp_path, recipe):
    out = str(tmp_path / "out")
    run(monkeypatch, capsys, "build", recipe, "--out", out, "--workers", "0")
    code, text, _ = run(monkeypatch, capsys, "mix", out, "--ratio", "1/3", "--json")
    assert (code, json.loads(text)["epoch_hands"]) == (0, 21)
    arguments = ["mix", out, "--materialize", str(tmp_path / "mixed"), "--ratio", "1/2", "--json"]
    code, text, _ = run(monkeypatch, capsys, *arguments, "--dry-run")
    assert (code, json.loads(text)["samples"]) == (0, 14)
    assert not (tmp_path / "mixed").exists()
    code, text, _ = run(monkeypatch, capsys, *arguments)
    assert code == 0
    assert (tmp_path / "mixed" / "mixed-00000.json").exists()
    assert json.loads((Path(out) / "mix.json").read_text())["sources"][0]["share"] == "1/3"
    assert run(monkeypatch, capsys, "mix", out)[0] == 2


def test_select_again(monkeypatch, capsys, tmp_path, recipe):
    out = str(tmp_path / "out")
    run(monkeypatch, capsys, "build", recipe, "--out", out, "--workers", "0")
    arguments = ["select", out, "--out", str(tmp_path / "new"), "--set", "reject=1/2", "--workers", "0", "--json"]
    code, text, _ = run(monkeypatch, capsys, *arguments, "--dry-run")
    assert (code, json.loads(text)["kept"], json.loads(text)["newly_rejected"]) == (0, 20, 10)
    assert not (tmp_path / "new").exists()
    code, text, _ = run(monkeypatch, capsys, *arguments)
    assert (code, json.loads(text)["kept"]) == (0, 20)


def test_export(monkeypatch, capsys, tmp_path, recipe):
    out = str(tmp_path / "out")
    run(monkeypatch, capsys, "build", recipe, "--out", out, "--workers", "0")
    code, text, _ = run(monkeypatch, capsys, "export", "simplehand", out, "--out", str(tmp_path / "a"), "--json")
    assert (code, json.loads(text)["hands"] + json.loads(text)["out_of_view"]) == (0, 37)
    assert len(json.loads(Path(json.loads(text)["list_file"]).read_text())) == json.loads(text)["hands"]
    code, text, _ = run(monkeypatch, capsys, "export", "coco", out, "--out", str(tmp_path / "b"), "--json")
    assert (code, json.loads(text)["images"]) == (0, 37)
    assert run(monkeypatch, capsys, "export", "coco", out, "--out", str(tmp_path / "b"))[0] == 2
