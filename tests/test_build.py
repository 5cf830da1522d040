import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import fakes
import numpy as np
import orjson
import pytest
import webdataset
from fakes import config
from torch.utils.data import DataLoader

from pam_aug.build.run import plan, run_build
from pam_aug.build.workdir import InputWork, shard_work
from pam_aug.build.worker import Worker
from pam_aug.errors import AssetMissing, BudgetExceeded, ConfigError, ResumeMismatch, StorageError
from pam_aug.mix import MixedDataset
from pam_aug.report.summary import read_all_candidates
from pam_aug.shards.verify import verify

pytestmark = pytest.mark.usefixtures("fakes_installed")


def tar_bytes(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted([*out.rglob("*.tar"), *out.glob("candidates/*")])
    }


def test_a_build_has_everything_it_promises(tmp_path):
    result = run_build(config(), tmp_path / "out", workers=0)
    out = tmp_path / "out"
    for name in ("build.json", "mix.json", "manifest.parquet", "card.md", "report/index.html"):
        assert (out / name).stat().st_size > 0, name
    assert not list((out / "work").glob("*"))
    assert sorted(p.name for p in (out / "shards").glob("*.tar")) == [
        *(f"real-{i:05d}.tar" for i in range(2)),
        *(f"syn-{i:05d}.tar" for i in range(3)),
    ]
    assert (result.summary.real_images, result.summary.candidates) == (7, 40)
    assert (result.summary.kept, result.summary.rejected) == (30, 10)  # 8 candidates: ceil(2) go, of each of 5 inputs
    rows = read_all_candidates(out)
    assert len(rows) == 40
    for key in {r.input_key for r in rows}:
        mine = [r for r in rows if r.input_key == key]
        worst = sorted(mine, key=lambda r: (r.err_mm, r.index))[-2:]
        assert {r.index for r in mine if not r.verdict.kept} == {r.index for r in worst}
        assert all(r.verdict.reason for r in worst)
    assert verify(out).damaged == []


def test_labels_in_the_shards_are_the_sources_labels(tmp_path):
    out = tmp_path / "out"
    run_build(config(), out, workers=0)
    shards = [str(p) for p in sorted((out / "shards").glob("*.tar"))]
    seen = 0
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        tree = orjson.loads(sample["json"])
        truth = fakes.label(int(tree["source"]["name"]), tree["source"]["dataset"])
        assert np.array_equal(np.float32(tree["hands"][0]["joints_cam_m"]), truth.hands[0].joints_cam_m)
        image = fakes.picture(tree["generation"]["seed"] if tree["synthetic"] else int(tree["source"]["name"]))
        assert sample["jpg"] == image
        seen += 1
    assert seen == 37


def test_the_mix_reads_at_the_ratio(tmp_path):
    out = tmp_path / "out"
    result = run_build(config("mix.ratio=1/3"), out, workers=0)
    assert result.summary.epoch_hands == 21
    flags = [bool(f) for b in DataLoader(MixedDataset(out, batch_size=4), batch_size=None) for f in b["is_synthetic"]]
    for k in range(len(flags) + 1):
        assert abs((k - sum(flags[:k])) - k / 3) < 1
    assert sum(not f for f in flags) == 7


def test_the_same_command_resumes_and_does_nothing_twice(tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(fakes.FakeGenerator, "log", tmp_path / "log")
    run_build(config(), out, workers=0)
    before = tar_bytes(out)
    assert len((tmp_path / "log").read_text().split()) == 40
    run_build(config(), out, workers=0)
    assert len((tmp_path / "log").read_text().split()) == 40
    (out / "shards" / "syn-00001.json").unlink()
    run_build(config(), out, workers=0)
    assert tar_bytes(out) == before


def test_the_ratio_may_change_and_what_changes_pixels_may_not(tmp_path):
    out = tmp_path / "out"
    run_build(config(), out, workers=0)
    assert run_build(config("mix.ratio=1"), out, workers=0).summary.epoch_hands == 7
    with pytest.raises(ResumeMismatch, match=r"generate\.candidates = 8, this run has 6"):
        run_build(config("generate.candidates=6"), out, workers=0)


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        run_build(config(), tmp_path, workers=0)


def test_one_bad_input_is_rows_with_a_reason_and_the_budget_is_kept(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(BudgetExceeded, match="8 candidates"):
        run_build(config("source.bad=2"), out, workers=0)
    rows = read_all_candidates(out)
    failed = [r for r in rows if r.failure]
    assert len(failed) == 8
    assert all("item 2 is broken" in r.verdict.reason for r in failed)
    assert len(rows) == 40
    assert sum(r.verdict.kept for r in rows) == 24
    assert verify(out).damaged == []


def test_a_rule_over_the_whole_build(tmp_path):
    out = tmp_path / "out"
    run_build(config("select.scope=build"), out, workers=0)
    rows = read_all_candidates(out)
    worst = sorted(rows, key=lambda r: (r.err_mm, r.index, r.input_key))[-10:]
    assert {r.key for r in rows if not r.verdict.kept} == {r.key for r in worst}


def test_rejected_candidates_may_be_dropped_and_conditions_added(tmp_path):
    out = tmp_path / "out"
    run_build(config("shards.keep_rejected=false", "shards.depth=true", "shards.seg=true"), out, workers=0)
    assert not (out / "rejected").exists()
    shards = [str(p) for p in sorted((out / "shards").glob("*.tar"))]
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        assert {"jpg", "json", "depth.png", "seg.png"} <= set(sample)


def test_only_one_half(tmp_path):
    result = run_build(config(), tmp_path / "real", ("real",), workers=0)
    assert (result.summary.real_images, result.summary.candidates, result.summary.ratio) == (7, 0, "1")
    result = run_build(config(), tmp_path / "syn", ("synthetic",), workers=0)
    assert (result.summary.real_images, result.summary.kept, result.summary.ratio) == (0, 30, "0")
    shards = tmp_path / "real" / "shards"
    joined = config(f'real={{"shards": "{shards}"}}')
    result = run_build(joined, tmp_path / "joined", workers=0)
    assert (result.summary.real_images, result.summary.kept, result.summary.ratio) == (7, 30, "1/2")


def test_a_dry_run_counts_and_writes_nothing(tmp_path):
    todo = plan(config("inputs=3"))
    assert todo.as_dict()["candidates"] == 24
    assert "real images" in todo.as_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("generate.candidates=0", "candidates"),
        ("generate.generator=fluks", "fluks"),
        ("source.converter=nothing", "nothing"),
        ("source.cuont=3", "count"),
        ("mix.ratio=1.5", "ratio"),
        ("inputs=0", "inputs"),
        ("select.reject=2", "reject"),
        ("generate.optoins={}", "options"),
        ('real={"shards": "/nowhere"}', "nowhere"),
    ],
)
def test_a_configuration_that_cannot_run_says_why(tmp_path, override, word):
    with pytest.raises(ConfigError, match=word):
        run_build(config(override), tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_what_a_backend_lacks_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(fakes.FakeGenerator, "requires", lambda self: ["weights.bin (3 GB), from the authors' page"])
    with pytest.raises(AssetMissing, match=r"weights\.bin"):
        run_build(config(), tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_work_that_another_builder_takes_away_is_not_there(tmp_path):
    work = InputWork(tmp_path, 0, 0)
    work.put_image(0, b"one")
    (work.folder / "01-00112233445566ff.jpg").symlink_to("gone")  # listed, and gone when it is read
    assert work.images() == {0: b"one"}


def test_a_scored_image_that_is_gone_is_made_anew_and_never_left_out(tmp_path, monkeypatch):
    out, clean = tmp_path / "out", tmp_path / "clean"
    run_build(config(), clean, workers=0)
    pack = Worker._pack

    def robbed(self, unit):
        next(shard_work(out, unit.shard).rglob("*.jpg")).unlink()
        return pack(self, unit)

    monkeypatch.setattr(Worker, "_pack", robbed)
    with pytest.raises(StorageError, match="run the same command again"):
        run_build(config(), out, workers=0)
    monkeypatch.setattr(Worker, "_pack", pack)
    run_build(config(), out, workers=0)
    assert tar_bytes(out) == tar_bytes(clean)


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half(tmp_path, monkeypatch):
    out = tmp_path / "out"
    real_fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        run_build(config(), out, workers=0)
    monkeypatch.undo()
    fakes.install()
    assert not [p for p in out.rglob(".tmp-*") if p.is_file()]
    run_build(config(), out, workers=0)
    clean = tmp_path / "clean"
    run_build(config(), clean, workers=0)
    assert tar_bytes(out) == tar_bytes(clean)


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path):
    script = Path(__file__).with_name("build_with_fakes.py")
    command = [sys.executable, str(script), str(tmp_path / "out")]
    subprocess.run([sys.executable, str(script), str(tmp_path / "clean")], check=True, timeout=120)
    rng = random.Random(0)
    kills = 0
    while kills < 4:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()  # imports are done, work begins
        time.sleep(rng.uniform(0.0, 0.5))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    subprocess.run(command, check=True, timeout=120)
    assert kills >= 2
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "clean")
    assert verify(tmp_path / "out").damaged == []
