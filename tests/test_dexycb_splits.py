"""DexYCB: which images there are. Splits by position, official numbers, filters, and the command."""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from dexycb_tree import all_items, copied_tree, labels_path, no_mano_by_environment, open_dexycb, written_tree  # noqa: F401
from fake_dexycb import FAR, SERIALS

from pam_aug.build.config import BuildConfig
from pam_aug.build.run import plan, run_build
from pam_aug.config import resolve
from pam_aug.converters.dexycb_index import build_index
from pam_aug.converters.dexycb_splits import SUBJECTS, list_sequences, read_sequence_table, split_rule
from pam_aug.errors import BudgetExceeded, ConfigError, SourceError
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.verify import verify


@pytest.mark.parametrize(
    ("setup", "split", "subjects", "cameras", "positions", "sequence_views"),
    [
        ("s0", "train", range(10), range(8), [i for i in range(100) if i % 5 != 4], 6400),
        ("s0", "val", [0, 1], range(8), range(4, 100, 5), 320),
        ("s0", "test", range(2, 10), range(8), range(4, 100, 5), 1280),
        ("s1", "train", [0, 1, 2, 3, 4, 5, 9], range(8), range(100), 5600),
        ("s1", "val", [6], range(8), range(100), 800),
        ("s1", "test", [7, 8], range(8), range(100), 1600),
        ("s2", "train", range(10), range(6), range(100), 6000),
        ("s2", "val", range(10), [6], range(100), 1000),
        ("s2", "test", range(10), [7], range(100), 1000),
        ("s3", "train", range(10), range(8), [i for i in range(100) if i // 5 % 4 != 3], 6000),
        ("s3", "val", range(10), range(8), [*range(15, 20), *range(95, 100)], 800),
        ("s3", "test", range(10), range(8), [*range(35, 40), *range(55, 60), *range(75, 80)], 1200),
    ],
)
def test_splits_go_by_position(setup, split, subjects, cameras, positions, sequence_views):
    rule = split_rule(setup, split)
    assert (rule.subjects, rule.cameras, rule.positions) == (tuple(subjects), tuple(cameras), tuple(positions))
    assert len(rule.subjects) * len(rule.cameras) * len(rule.positions) == sequence_views


def _names(subject: int) -> list[str]:
    return [f"{SUBJECTS[subject][:8]}_{140000 + 7 * i:06d}" for i in range(100)]


def test_a_complete_listing_numbers_frames_as_the_official_split_does(tmp_path):
    sequences = []
    for subject in (0, 1):
        for position, name in enumerate(_names(subject)):
            folder = tmp_path / SUBJECTS[subject] / name
            folder.mkdir(parents=True)
            if position % 5 == 4:
                sequences.append((subject, position, name, 2 + position % 3))
                _write_meta(folder, sequences[-1][3])
    index = build_index(tmp_path, "s0", "val")
    expected = [  # subject, sequence, camera, frame; frame 0 has no hand, and still has a number
        (subject, position, name, camera, number)
        for subject, position, name, frames in sequences
        for camera in range(8)
        for number in range(frames)
    ]
    got = [index[i] for i in range(len(index))]
    assert [(f.subject, f.position, f.sequence, f.camera, f.number) for f in got] == [e for e in expected if e[4]]
    assert [f.sample_index for f in got] == [i for i, e in enumerate(expected) if e[4]]
    assert index.counts["images"] == len(expected)
    assert index.counts["without a hand label"] == len(expected) - len(index) == 320


def _write_meta(folder: Path, frames: int) -> None:
    serials = ", ".join(f"'{s}'" for s in SERIALS)
    (folder / "meta.yml").write_text(
        f"serials: [{serials}]\nnum_frames: {frames}\nextrinsics: '20200702_151821'\nycb_ids: [3]\nycb_grasp_ind: 0\n"
        "mano_sides: [left]\nmano_calib: [20200709-subject-01_left]\n"
    )
    pose_m = np.ones((frames, 1, 51), np.float32)
    pose_m[0] = 0
    np.savez(folder / "pose.npz", pose_m=pose_m)


@pytest.fixture(scope="module")
def full_listing(tmp_path_factory) -> Path:
    """All 1,000 sequences by name, each of two frames, the second with a hand."""
    root, one = tmp_path_factory.mktemp("full"), tmp_path_factory.mktemp("one")
    _write_meta(one, 2)
    for subject in range(10):
        for name in _names(subject):
            (root / SUBJECTS[subject] / name).mkdir(parents=True)
            for file in ("meta.yml", "pose.npz"):
                os.link(one / file, root / SUBJECTS[subject] / name / file)
    return root


@pytest.mark.parametrize(
    ("setup", "sizes"),
    [("s0", (6400, 320, 1280)), ("s1", (5600, 800, 1600)), ("s2", (6000, 1000, 1000)), ("s3", (6000, 800, 1200))],
)
def test_a_full_size_listing_has_the_published_numbers_of_sequence_views(full_listing, setup, sizes):
    indexes = [build_index(full_listing, setup, split) for split in ("train", "val", "test")]
    assert tuple(map(len, indexes)) == sizes  # a hand in one frame of each
    assert tuple(index.counts["images"] for index in indexes) == tuple(2 * size for size in sizes)
    assert tuple(index[len(index) - 1].sample_index for index in indexes) == tuple(2 * size - 1 for size in sizes)


def test_11_a_partial_download_is_refused_or_needs_a_table(fake, tmp_path):
    with pytest.raises(ConfigError, match=r"subject-01: holds 3 sequences.*--sequence-table"):
        open_dexycb(fake, sequence_table="")
    with pytest.raises(ConfigError, match=r"subject-03: cannot be listed.*--subjects"):
        open_dexycb(fake, subjects=[1, 3])
    for i, name in enumerate(_names(6)):
        (tmp_path / SUBJECTS[6] / name).mkdir(parents=True)
        (tmp_path / SUBJECTS[6] / f"{name}.tar").touch()  # stray files and folders take no position
        (tmp_path / SUBJECTS[6] / f"notes-{i}").mkdir()
    assert list_sequences(tmp_path, 6) == dict(enumerate(_names(6)))
    (tmp_path / SUBJECTS[6] / "20200928_000000").mkdir()
    with pytest.raises(ConfigError, match="holds 101 sequences"):
        list_sequences(tmp_path, 6)


def test_a_sequence_table_gives_the_positions(fake, tmp_path):
    train, val = open_dexycb(fake, mano=False), open_dexycb(fake, mano=False, split="val")
    assert {train.index[i].position for i in range(len(train))} == {0, 2, 3}
    assert {val.index[i].position for i in range(len(val))} == {4}
    with pytest.raises(ConfigError, match="complete split"):
        train.sample_index(0)
    (tmp_path / "short.txt").write_text(fake.table.read_text().replace("20200709_142022 2", "20200709_142999 2"))
    with pytest.raises(ConfigError, match="20200709_142022"):
        open_dexycb(fake, sequence_table=str(tmp_path / "short.txt"))
    for line in ("20200709-subject-01 4", "elsewhere/20200709_141754 4", f"{SUBJECTS[0]}/20200709_141754 100"):
        (tmp_path / "bad.txt").write_text("\n" + line)
        with pytest.raises(SourceError, match="line 2"):
            read_sequence_table(tmp_path / "bad.txt")
    (tmp_path / "bad.txt").write_text(f"{SUBJECTS[0]}/20200709_141754 4\n{SUBJECTS[0]}/20200709_141755 4\n")
    with pytest.raises(SourceError, match="twice"):
        read_sequence_table(tmp_path / "bad.txt")


def test_filters_keep_what_their_predicates_say(fake, items):
    def kept(**options) -> set[tuple[str, str, int]]:
        converter = open_dexycb(fake, mano=False, **options)
        parts = [converter.item(i).sample.key.split("/") for i in range(len(converter))]
        return {(p[2], p[3], int(p[4])) for p in parts}

    assert kept(sides="right") == {k for k, i in items.items() if i.sample.hands[0].side == "right"}
    assert kept(stride=2) == {k for k in items if k[2] % 2 == 0}
    assert kept(frames=7) == set(list(items)[:7])
    near = kept(near_object_m=0.3)
    vertices = np.array([[-0.03, 0, 0], [0.03, 0, 0], [0, 0.05, 0], [0, 0.01, 0.06]])
    for k, item in items.items():
        grasped = item.sample.objects[0]
        placed = vertices @ grasped.T_cam_obj[:3, :3].T + grasped.T_cam_obj[:3, 3]
        distance = np.linalg.norm(item.sample.hands[0].joints_cam_m[:, None] - placed[None], axis=-1).min()
        assert (k in near) == (grasped.valid and distance <= 0.3)
    assert not any(f == FAR for _, _, f in near)
    assert len(near) > 24
    for wrong in ({"sides": "top"}, {"stride": 0}, {"frames": 0}, {"near_object_m": 0.0}, {"split": "all"}):
        with pytest.raises(ConfigError):
            open_dexycb(fake, **wrong)
    with pytest.raises(ConfigError, match="only the subjects 1, 2"):
        open_dexycb(fake, split="val", subjects=[3])


def test_the_command_converts_counts_failures_and_verifies(copy, tmp_path):
    root, out = str(copy.root), tmp_path / "out"
    labels_path(copy, camera=3, frame=2).write_bytes(b"torn")
    section = {"converter": "dexycb", "root": root, "subjects": [1, 2], "sequence_table": str(copy.table)}
    config = resolve(BuildConfig, {"source": section, "shards": {"samples_per_shard": 50}})
    with pytest.raises(BudgetExceeded, match="1 real images failed"):  # 1 of 120 is within 1 %: all but one are there
        run_build(dataclasses.replace(config, source={**section, "frames": 40}), tmp_path / "few", ("real",), workers=0)
    assert run_build(config, out, ("real",), workers=0).as_dict()["real_images"] == 119
    report = verify(out)
    assert (report.samples, report.hands, report.damaged) == (119, 119, [])
    with ShardReader(out / "shards" / "real-00000.tar") as shard:
        sample = shard.sample(0)
        assert shard.image_bytes(0) == (copy.root / sample.source.name).read_bytes()
        digest = hashlib.sha256(shard.image_bytes(0)).hexdigest()
        assert sample.source.image_sha256 == digest == shard.marker["image_sha256"][0]
    columns = ["key", "image_sha256", "image_bytes", "sides", "width"]
    first = pq.read_table(out / "manifest.parquet", columns=columns).slice(0, 1).to_pylist()[0]
    size = (copy.root / sample.source.name).stat().st_size
    assert tuple(first.values()) == (sample.key, digest, size, sample.hands[0].side, 640)
    assert len(plan(config, ("real",)).real_shards) == 3


def test_a_dry_run_says_what_is_left_out_and_what_is_missing(fake):
    section = {"converter": "dexycb", "root": str(fake.root), "subjects": [1, 2], "sequence_table": str(fake.table)}
    text = plan(resolve(BuildConfig, {"source": section}), ("real",)).as_text()
    assert "s0/train: 120 images to convert of 144; left out: 24 without a hand label" in text
    assert text.count("no MANO files") == 1
