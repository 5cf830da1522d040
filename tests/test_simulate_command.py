"""`pam-aug rollout`: meshes in, archives, records and a table out; what is there is kept."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from typer.testing import CliRunner

pytest.importorskip("mujoco")

from pam_aug.build.rollouts import RolloutJob, find_meshes, roll_out
from pam_aug.cli import app
from pam_aug.errors import ConfigError, SourceError
from pam_aug.rollouts.archive import read_archive


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


def test_a_left_hand_of_another_shape_is_filmed(meshes, tmp_path):
    given = ["--side", "left", "--betas", "1.5,-0.5", "--shape-spread", "0.5", "--video", "--workers", "0", "--json"]
    arguments = ["rollout", "--meshes", str(meshes / "box.obj"), "--out", str(tmp_path), *given]
    table = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    (row,) = table["rows"]
    job = RolloutJob((), "", betas=(1.5, -0.5), shape_spread=0.5)
    assert (row["side"], tuple(row["betas"])) == ("left", job.shape(0))
    assert job.shape(0) != job.shape(1)
    assert RolloutJob((), "", betas=(1.5, -0.5)).shape(3) == (1.5, -0.5, *[0.0] * 8)
    archive = read_archive(tmp_path / "box" / "0000.npz")
    assert archive.hand_side == ("left",)
    video = cv2.VideoCapture(str(tmp_path / "box" / "0000.mp4"))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) == pytest.approx(len(archive.times_s) / 2, abs=1)
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(15.0)
    blue = [(f[..., 0].astype(int) - f[..., 2] > 40) for f in frames]  # the object
    middle = [float(np.nonzero(mask)[0].mean()) for mask in blue]
    assert all(mask.sum() > 300 for mask in blue)
    assert min(middle) < middle[0] - 20  # it rises in the image
    assert (tmp_path / "box" / "0000.mp4").stat().st_size < 2_000_000
    assert sorted(p.name for p in (tmp_path / "box").iterdir()) == ["0000.json", "0000.mp4", "0000.npz", "mesh.obj"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"side": "both"}, ConfigError, "right or left"),
        ({"betas": (9.0,)}, ConfigError, "up to 10 numbers"),
        ({"betas": (float("nan"),)}, ConfigError, "up to 10 numbers"),
        ({"shape_spread": -1.0}, ConfigError, "shape_spread"),
        ({"scale": 1000.0}, SourceError, "millimetres"),
        ({"mass_kg": 300.0}, SourceError, "kilograms"),
        ({"pattern": "gone/*"}, SourceError, "no mesh"),
    ],
)
def test_what_cannot_be_simulated_is_named(meshes, tmp_path, change, error, message):
    place = meshes if "pattern" in change else meshes / "box.obj"
    with pytest.raises(error, match=message):
        roll_out(RolloutJob((str(place),), str(tmp_path), **change), workers=0)


def test_a_million_faces_are_refused_before_they_are_split(tmp_path):
    sphere = trimesh.creation.icosphere(2, 0.03)  # 320 faces, named 3125 times
    lines = [f"v {x} {y} {z}" for x, y, z in sphere.vertices] + [
        f"f {a} {b} {c}" for a, b, c in sphere.faces + 1
    ] * 3125
    (tmp_path / "fine.obj").write_text("\n".join(lines))
    with pytest.raises(SourceError, match="1000000 faces, at most 250000 are used; decimate"):
        roll_out(RolloutJob((str(tmp_path / "fine.obj"),), str(tmp_path / "out")), workers=0)


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
    start.write_text(json.dumps({"hand_posse": [0.0] * 45}))
    with pytest.raises(SourceError, match="unknown key 'hand_posse'; did you mean 'hand_pose'"):
        roll_out(RolloutJob((str(meshes / "box.obj"),), str(tmp_path), start=str(start)), workers=0)
    far = np.eye(4)
    far[0, 3] = 250.0
    start.write_text(json.dumps({"T_world_obj": far.tolist()}))
    with pytest.raises(SourceError, match="are its units millimetres"):
        roll_out(RolloutJob((str(meshes / "box.obj"),), str(tmp_path), target=str(start)), workers=0)
