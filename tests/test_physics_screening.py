"""Screening: each reason on a scene that has it, rows that survive their table, and the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from pam_aug.build.screen import Screening, read_screening, screen_source, write_screening
from pam_aug.errors import ConfigError
from pam_aug.geometry import rigid_matrix
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.rollouts.label import pose_hand
from pam_aug.rollouts.scene import HandMesh, Mesh, ObjectMesh, Scene
from pam_aug.rollouts.screening import ScreenConfig, Screener, ScreenRow
from pam_aug.schema import SEG_FIRST_OBJECT, Camera, Hand, Object, Sample, Source, make_key

STILL = ScreenConfig(preset="none")


@pytest.fixture(scope="module")
def hand() -> HandMesh:
    """The bundled right hand at rest: palm facing -y."""
    assets = load_open_hand("right")
    layer = HandLayer(assets, dtype=torch.float64)
    verts, joints = pose_hand(layer, np.zeros(3), np.zeros(45), np.zeros(10), np.zeros(3))
    return HandMesh("right", assets, verts, joints)


def scene(hand: HandMesh, below_m: float | None, scale: float = 1.0, object_id: str = "brick") -> Scene:
    """A brick of 6 x 4 x 8 cm whose upper face lies `below_m` under the middle of the palm; None: no object."""
    made = trimesh.creation.box(np.array([0.06, 0.04, 0.08]) * scale)
    mesh = Mesh("brick.obj", np.asarray(made.vertices, np.float64), np.asarray(made.faces, np.int64), "0" * 64)
    middle = 0.5 * (hand.joints_cam_m[0] + hand.joints_cam_m[9])
    column = np.abs(hand.verts_cam_m - middle)[:, [0, 2]].max(1) < 0.02
    palm_m = float(hand.verts_cam_m[column, 1].min())
    placed = []
    if below_m is not None:
        T = rigid_matrix(np.eye(3), np.array([middle[0], palm_m - below_m - 0.02, middle[2]]))
        placed = [ObjectMesh(mesh, SEG_FIRST_OBJECT, T)]
    sample = Sample(
        key=make_key("made", "s", "q", "c", "000000"),
        camera=Camera(64, 64, np.eye(3), np.eye(4)),
        hands=(Hand("right", "open_hand", hand.joints_cam_m, np.zeros((21, 2)), np.zeros(21, bool)),),
        objects=tuple(Object(object_id, "brick.obj", SEG_FIRST_OBJECT, p.T_cam_obj) for p in placed),
        source=Source("made", "made", "none", "made"),
    )
    return Scene(sample, (hand,), tuple(placed))


@pytest.mark.parametrize(
    ("below_m", "reason"),
    [(None, "no object"), (0.05, "no contact: the hand is"), (-0.015, "penetration"), (0.001, "")],
)
def test_each_reason_is_named(hand, below_m, reason):
    row = Screener(STILL).screen(scene(hand, below_m))
    assert row.reason.startswith(reason)
    assert row.kept == (not reason)
    assert row.directions == 0


def test_depth_and_volume_are_the_meshes_own(hand):
    row = Screener(STILL).screen(scene(hand, -0.008))
    assert row.in_contact
    assert "right palm" in row.touching
    assert row.penetration_mm >= 8.0
    assert row.volume_cm3 > 0.1
    strict = Screener(ScreenConfig(preset="none", max_penetration_mm=-1, max_volume_cm3=0.05))
    assert strict.screen(scene(hand, -0.008)).reason.startswith("volume")
    assert Screener(STILL).screen(scene(hand, 0.004)).volume_cm3 == 0.0


def test_a_mesh_in_millimetres_is_a_row_that_says_so(hand):
    row = Screener(STILL).screen(scene(hand, -0.01, scale=1000.0))
    assert not row.kept
    assert row.reason.startswith("mesh: brick.obj")
    assert "millimetres" in row.reason


@pytest.mark.parametrize(
    ("squash", "repeats", "message"), [(1.0, 83_334, "1000008 faces, at most 250000"), (0.0, 1, "zero volume")]
)
def test_a_mesh_that_no_engine_takes_is_a_row_that_says_so(hand, squash, repeats, message):
    seen = scene(hand, -0.001)
    (placed,) = seen.objects
    mesh = placed.mesh
    spoilt = replace(mesh, vertices_m=mesh.vertices_m * [1.0, squash, 1.0], faces=np.tile(mesh.faces, (repeats, 1)))
    row = Screener(STILL).screen(replace(seen, objects=(replace(placed, mesh=spoilt),)))
    assert not row.kept
    assert row.reason.startswith("mesh: brick.obj")
    assert message in row.reason


def test_a_hand_on_one_side_only_is_unstable_under_grip(hand):
    pytest.importorskip("mujoco")
    row = Screener(ScreenConfig(masses_kg={"brick": 0.4})).screen(scene(hand, 0.001))
    assert row.reason.startswith("unstable")
    assert row.preset == "grip"
    assert row.engine.startswith("mujoco ")
    assert row.mass_kg == pytest.approx(0.4)
    assert 1 <= row.directions <= 6


def test_rows_survive_their_table_and_are_counted_by_object(tmp_path):
    rows = [
        ScreenRow(
            "a/b/c/d/0", "mug", True, "", True, "right thumb", 0.1, 12.5, 0.4, 3.0, 6, 4, 0.118, "grip", "mujoco 4"
        ),
        ScreenRow("a/b/c/d/1", "mug", False, "no contact: the hand is 12.0 mm away", nearest_mm=12.0),
    ]
    write_screening(tmp_path / "t" / "screening.parquet", rows)
    assert read_screening(tmp_path / "t" / "screening.parquet") == rows
    told = Screening(tuple(rows)).as_dict()
    assert told["kept"] == 1
    assert told["reasons"] == {"no contact": 1}
    assert told["objects"]["mug"]["cp_percent"] == 50.0
    assert told["objects"]["mug"]["deep_percent"] == 50.0
    assert told["objects"]["all"]["pd_cm"] == pytest.approx(0.625)
    assert told["objects"]["all"]["sr_percent"] == 100.0  # of what was simulated
    assert "1 no contact" in Screening(tuple(rows)).as_text()


def test_a_source_is_screened_in_order():
    found = screen_source({"converter": "demo-rollouts", "count": 2}, STILL, workers=0)
    assert len(found.rows) == 2
    assert len({row.key for row in found.rows}) == 2
    json.dumps(found.as_dict())


def test_the_command_stores_its_table(tmp_path):
    from typer.testing import CliRunner

    from pam_aug.cli import app

    out = tmp_path / "table.parquet"
    told = CliRunner().invoke(
        app,
        ["screen", "demo-rollouts", "--count", "1", "--preset", "none", "--out", str(out), "--workers", "0", "--json"],
    )
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout.splitlines()[-1])["inputs"] == 1
    assert len(read_screening(out)) == 1


def test_options_are_checked():
    with pytest.raises(ConfigError, match="grip"):
        ScreenConfig(preset="gripp").check()
    with pytest.raises(ConfigError, match="above 0"):
        ScreenConfig(preset="none", density_kg_m3=0).check()
