"""Depth beside converted images: drawn from the label, or the sensor's own as the dataset has it."""

import dataclasses

import cv2
import numpy as np
import pytest
from fake_dexycb import write_dexycb
from fake_oakink2 import write_tree
from typer.testing import CliRunner

from pam_aug import cli
from pam_aug.build.config import BuildConfig, pixel_fields
from pam_aug.build.failures import read_failures
from pam_aug.build.layout import failures_path
from pam_aug.build.run import plan, run_build
from pam_aug.config import resolve
from pam_aug.errors import BudgetExceeded, ConfigError, ResumeMismatch
from pam_aug.shards.images import decode_depth_mm
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.verify import verify


@pytest.fixture(autouse=True)
def _no_mano_by_environment(monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)


@pytest.fixture
def fake(tmp_path):
    fake = write_dexycb(tmp_path)
    depth = np.full((480, 640), 900, np.uint16)
    depth[100:200, 100:300] = 700
    depth[:, 320:] = 65535  # saturated
    depth[300:310] = 0
    for path in fake.root.rglob("aligned_depth_to_color_*.png"):
        path.write_bytes(cv2.imencode(".png", depth + np.uint16(int(path.stem[-1]) % 2))[1].tobytes())
    return fake


def config(fake, *overrides: str, **source) -> BuildConfig:
    section = {"converter": "dexycb", "root": str(fake.root), "subjects": [1, 2], "sequence_table": str(fake.table)}
    given = {"source": section | {"frames": 12} | source, "shards": {"depth": True, "depth_from": "sensor"}}
    return resolve(BuildConfig, given, overrides)


def depth_of(source_name: str, fake) -> bytes:
    folder, _, name = (fake.root / source_name).as_posix().rpartition("/")
    return (fake.root / folder / f"aligned_depth_to_color_{name[6:12]}.png").read_bytes()


def test_08_the_sensors_depth_is_copied_as_it_is_and_0_and_65535_are_no_depth(fake, tmp_path):
    run_build(config(fake), tmp_path / "out", ("real",), workers=0)  # no MANO files: nothing is drawn
    assert verify(tmp_path / "out").damaged == []
    with ShardReader(tmp_path / "out" / "shards" / "real-00000.tar") as shard:
        assert len(shard) == 12
        for i in range(12):
            source = shard.sample(i).source
            assert shard.extras(i) == ("depth.png",)
            assert shard.extra(i, "depth.png") == depth_of(source.name, fake)
            assert source.notes[-1] == "depth: the sensor's, 0 and 65535 where nothing was measured"
        mm = decode_depth_mm(shard.extra(1, "depth.png"), "x")
    assert mm.dtype == np.uint16
    assert mm[:, 320:].max() == 0
    assert set(np.unique(mm[:, :320])) == {0, 700, 900}


def test_a_crop_of_the_sensors_depth_has_the_nearest_pixel_and_0_for_no_depth(fake, tmp_path):
    run_build(config(fake, crop="hand", crop_size=128), tmp_path / "out", ("real",), workers=0)
    seen = set()
    with ShardReader(tmp_path / "out" / "shards" / "real-00000.tar") as shard:
        for i in range(len(shard)):
            mm = decode_depth_mm(depth_of(shard.sample(i).source.name, fake), "x")
            cut = cv2.imdecode(np.frombuffer(shard.extra(i, "depth.png"), np.uint8), cv2.IMREAD_UNCHANGED)
            assert cut.shape == (128, 128)
            corner, side = crop_of(shard.sample(i).source.notes)
            for row in range(4, 128, 20):
                for column in range(4, 128, 20):
                    u, v = corner + (np.array([column, row]) + 0.5) * side / 128 - 0.5
                    around = mm[
                        max(0, round(v) - 1) : max(0, round(v) + 2), max(0, round(u) - 1) : max(0, round(u) + 2)
                    ]
                    assert cut[row, column] in {0 if not around.size else int(d) for d in around.ravel()} | (
                        {0} if not (0 <= u <= 639 and 0 <= v <= 479) else set()
                    )
            seen |= set(np.unique(cut))
    assert {0, 900} <= seen
    assert 65535 not in seen


def crop_of(notes) -> tuple[np.ndarray, float]:
    words = (
        next(n for n in notes if n.startswith("hand crop")).replace("(", "").replace(")", "").replace(",", "").split()
    )
    return np.array([float(words[6]), float(words[7])]), float(words[2])


def test_a_depth_image_that_is_gone_or_torn_fails_its_image_with_the_reason(fake, tmp_path):
    folder = fake.root / fake.sequences[0].subject / fake.sequences[0].name / "836212060125"
    one, two, three = (folder / f"aligned_depth_to_color_{n:06d}.png" for n in (1, 2, 3))
    one.unlink()
    two.write_bytes(two.read_bytes()[:-20])
    three.write_bytes(cv2.imencode(".png", np.zeros((480, 640), np.uint8))[1].tobytes())
    with pytest.raises(BudgetExceeded, match="3 real images failed"):
        run_build(config(fake), tmp_path / "out", ("real",), workers=0)
    reasons = [row.reason for row in read_failures(failures_path(tmp_path / "out", 0))]
    assert "aligned_depth_to_color_000001.png: cannot be read" in reasons[0]
    assert "aligned_depth_to_color_000002.png: not a whole 640x480 depth image of 16 bits" in reasons[1]
    assert "aligned_depth_to_color_000003.png: not a whole 640x480 depth image of 16 bits" in reasons[2]


def test_a_dataset_without_depth_refuses_to_copy_it(tmp_path):
    write_tree(tmp_path / "oakink2")
    section = {
        "converter": "oakink2",
        "root": str(tmp_path / "oakink2"),
        "mano_dir": str(tmp_path / "oakink2" / "mano"),
    }
    given = {"source": section, "shards": {"depth": True, "depth_from": "sensor"}}
    with (
        pytest.warns(UserWarning, match="oakink2"),
        pytest.raises(ConfigError, match=r"oakink2: the dataset has no depth of a sensor.*--depth drawn"),
    ):
        plan(resolve(BuildConfig, given), ("real",))


def test_where_depth_comes_from_is_part_of_a_build_and_drawn_is_what_it_was(fake, tmp_path):
    sensor, drawn = pixel_fields(config(fake)), pixel_fields(config(fake, "shards.depth_from=drawn"))
    assert sensor["shards"]["depth_from"] == "sensor"
    assert "depth_from" not in drawn["shards"]  # builds from before there was a choice go on
    run_build(config(fake), tmp_path / "out", ("real",), workers=0)
    with pytest.raises(ResumeMismatch, match="depth"):
        run_build(config(fake, "shards.depth_from=drawn", mano_dir=str(fake.mano_dir)), tmp_path / "out", ("real",))
    for wrong in ({"depth_from": "guessed", "depth": True}, {"depth_from": "sensor"}):
        with pytest.raises(ConfigError, match="depth"):
            plan(dataclasses.replace(config(fake), shards=resolve(BuildConfig, {"shards": wrong}).shards), ("real",))


def test_the_command_takes_drawn_or_sensor(fake, tmp_path):
    given = ["convert", "dexycb", "--root", str(fake.root), "--subjects", "[1, 2]", "--sequence-table", str(fake.table)]
    given += ["--frames", "3", "--workers", "0", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, [*given, "--depth", "sensor"])
    assert done.exit_code == 0, done.output
    with ShardReader(tmp_path / "out" / "shards" / "real-00000.tar") as shard:
        assert shard.extra(0, "depth.png") == depth_of(shard.sample(0).source.name, fake)
    wrong = CliRunner().invoke(cli.app, [*given, "--depth", "--seg"])
    assert isinstance(wrong.exception, ConfigError)
    assert "'--seg'; choose drawn or sensor" in str(wrong.exception)
