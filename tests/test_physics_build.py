"""A build that screens: refused inputs are rows with a reason, nothing is generated from them, others are untouched."""

from pathlib import Path

import fakes
import pytest

from pam_aug import registry
from pam_aug.build.config import BuildConfig, pixel_fields
from pam_aug.build.layout import screening_path, shards_folder
from pam_aug.build.reselect import reselect
from pam_aug.build.run import run_build
from pam_aug.build.screen import read_screening
from pam_aug.config import resolve
from pam_aug.report.summary import read_all_candidates
from pam_aug.rollouts.scene import LeftOut
from pam_aug.shards.manifest import read_mix
from pam_aug.shards.reader import read_marker
from pam_aug.shards.writer import shard_name

DEMO = "source={converter: demo-rollouts, count: 6, size: [48, 48]}"


pytestmark = pytest.mark.usefixtures("fakes_installed")


def config(*overrides: str) -> BuildConfig:
    return resolve(BuildConfig, fakes.CONFIG, [DEMO, "shards.inputs_per_shard=6", *overrides])


def test_refused_inputs_are_left_out_with_their_reason(tmp_path):
    limits = ("screen.on=true", "screen.preset=none", "screen.max_penetration_mm=3.0")
    result = run_build(config(*limits), tmp_path, workers=0)
    rows = read_screening(screening_path(tmp_path, 0))
    kept = {row.key for row in rows if row.kept}
    assert len(rows) == 6
    assert len(kept) == 4  # two of the six are 3.9 and 5.0 mm deep
    assert {row.input_key for row in read_all_candidates(tmp_path)} == kept
    assert result.summary.failed == 0
    told = [note for note in result.notes if "refused by screening" in note]
    assert sum(int(note.split()[0]) for note in told) == 6 - len(kept)


def test_selecting_again_keeps_what_screening_measured(tmp_path):
    limits = ("screen.on=true", "screen.preset=none", "screen.max_penetration_mm=3.0", "shards.inputs_per_shard=4")
    run_build(config(*limits), tmp_path / "build", ("synthetic",), workers=0)
    run_build(config(*limits, "select.reject=1/2"), tmp_path / "wanted", ("synthetic",), workers=0)
    reselect(tmp_path / "build", tmp_path / "out", None, ["reject=1/2"], workers=0)

    def content(out: Path) -> dict[str, bytes]:
        files = [*out.rglob("*.tar"), *out.glob("candidates/*"), *out.glob("screening/*")]
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}

    found = content(tmp_path / "out")
    assert found == content(tmp_path / "wanted")
    assert found != content(tmp_path / "build")
    assert [len(read_screening(screening_path(tmp_path / "out", shard))) for shard in (0, 1)] == [4, 2]
    for number in (0, 1):
        markers = [
            read_marker(shards_folder(tmp_path / name) / shard_name("syn", number)) for name in ("out", "wanted")
        ]
        assert markers[0]["counts"] == markers[1]["counts"]


def test_what_a_source_leaves_out_is_counted_by_reason(tmp_path, monkeypatch):
    converter = registry.load("converters", "demo-rollouts")
    item = converter.item

    def with_a_hidden_hand(self, index):
        if index == 1:
            raise LeftOut("the second", reason="the hand is hidden")
        return item(self, index)

    monkeypatch.setattr(converter, "item", with_a_hidden_hand)
    result = run_build(config(), tmp_path / "build", ("synthetic",), workers=0)
    assert "1 images left out: the hand is hidden" in result.notes
    assert len({row.input_key for row in read_all_candidates(tmp_path / "build")}) == 5
    reselect(tmp_path / "build", tmp_path / "out", None, ["reject=1/2"], workers=0)
    marker = read_marker(shards_folder(tmp_path / "out") / shard_name("syn", 0))
    assert marker["counts"]["left out: the hand is hidden"] == 1
    assert marker["counts"]["inputs"] == 5


def test_a_build_that_does_not_screen_is_the_same_as_ever(tmp_path):
    assert "screen" not in pixel_fields(config())
    assert pixel_fields(config("screen.on=true"))["screen"]["max_penetration_mm"] == 10.0
    run_build(config(), tmp_path, workers=0)
    assert not (tmp_path / "screening").exists()
    assert len({row.input_key for row in read_all_candidates(tmp_path)}) == 6


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore")
def test_real_graspxl_frames_become_mixed_shards_with_screening(real_data, tmp_path, monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)
    root = real_data / "noncommercial" / "graspxl"
    files = f"sequences: {root}, meshes: {root / 'object_dataset'}"
    source = f"source={{converter: graspxl, {files}, start: -40, size: [48, 48]}}"
    chosen = ("inputs=4", "shards.inputs_per_shard=4", "generate.candidates=30", "mix.ratio=0.5")
    run_build(config(source, *chosen, "screen.on=true", "screen.preset=none"), tmp_path, workers=0)
    rows = read_screening(screening_path(tmp_path, 0))
    assert [row.reason.partition(":")[0] for row in rows if not row.kept] == []
    assert all(row.in_contact and row.touching and 0 <= row.penetration_mm < 10 for row in rows)
    candidates = read_all_candidates(tmp_path)
    assert {row.key for row in rows} == {row.input_key for row in candidates}
    assert len(candidates) == 4 * 30
    mix = read_mix(tmp_path)
    assert [s.samples for s in mix.sources if s.name == "synthetic"] == [4 * 22]
    assert [s.share for s in mix.sources] == ["1/2", "1/2"]
