"""`pam-aug rollout`: meshes in, archives, records and a table out; what is there is kept."""

import json
from pathlib import Path

import pytest
import trimesh
from typer.testing import CliRunner

pytest.importorskip("mujoco")

from pam_aug.build.rollouts import RolloutJob, find_meshes, roll_out
from pam_aug.cli import app
from pam_aug.errors import ConfigError, SourceError


@pytest.fixture(scope="module")
def meshes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("meshes")
    trimesh.creation.box((0.05, 0.06, 0.12)).export(folder / "box.obj")
    (folder / "flat.obj").write_text("v 0 0 0\nv 0.1 0 0\nv 0 0.1 0\nf 1 2 3\n")
    return folder


def test_command_writes_archives_records_and_table_and_resumes(meshes, tmp_path):
    arguments = ["rollout", "--meshes", str(meshes), "--out", str(tmp_path), "--workers", "0", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    table = json.loads(result.stdout)
    assert table["objects"]["box"]["seeds"] == 1
    assert "zero volume" in table["refused"]["flat"]
    assert table == json.loads((tmp_path / "rollouts.json").read_text())
    archive = tmp_path / "box" / "0000.npz"
    before = archive.read_bytes(), archive.stat().st_mtime_ns
    assert (tmp_path / "box" / "mesh.obj").read_bytes() == (meshes / "box.obj").read_bytes()
    again = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    assert again["rows"] == table["rows"]
    assert (archive.read_bytes(), archive.stat().st_mtime_ns) == before


def test_dry_run_counts_and_writes_nothing(meshes, tmp_path):
    table = roll_out(RolloutJob((str(meshes),), str(tmp_path / "out"), seeds=3), dry_run=True)
    assert table.planned == 6
    assert not (tmp_path / "out").exists()


def test_ids_come_from_stems_else_folders(tmp_path):
    for name in ("cup", "pot"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mesh.obj").write_text("v 0 0 0\n")
    assert set(find_meshes([str(tmp_path)])) == {"cup", "pot"}
    assert set(find_meshes([str(tmp_path)], "cup/*")) == {"mesh"}
    with pytest.raises(SourceError, match="no mesh"):
        find_meshes([str(tmp_path)], "*.stl")
    with pytest.raises(SourceError, match="no such mesh"):
        find_meshes([str(tmp_path / "gone.obj")])


def test_all_refused_is_an_error_with_the_reason(meshes, tmp_path):
    with pytest.raises(SourceError, match="zero volume"):
        roll_out(RolloutJob((str(meshes / "flat.obj"),), str(tmp_path)), workers=0)


def test_bad_numbers_and_poses_are_refused(meshes, tmp_path):
    with pytest.raises(ConfigError, match="seeds"):
        roll_out(RolloutJob((str(meshes),), str(tmp_path), seeds=0))
    start = tmp_path / "start.json"
    start.write_text(json.dumps({"hand_pose": [float("nan")] * 45}))
    with pytest.raises(SourceError, match="45 finite"):
        roll_out(RolloutJob((str(meshes / "box.obj"),), str(tmp_path), start=str(start)), workers=0)
