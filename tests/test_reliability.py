"""Promises of reliability by number (reliability_index.py): what the areas' own tests leave out. Quick versions."""

import ast
import gc
import gzip
import io
import os
import pickle
import random
import resource
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import fakes
import numpy as np
import pytest
import reliability_index
import simplejpeg
import yaml
from test_build import tar_bytes
from test_shards import HOSTILE, KEY, Payload, link, make_jpeg, make_sample, patched, png_header, tar_of, write_shard

from pam_aug import cli, registry
from pam_aug.build import run as build_run
from pam_aug.build.config import BuildConfig
from pam_aug.build.run import run_build
from pam_aug.config import read_yaml, resolve
from pam_aug.errors import BudgetExceeded, PamAugError, ResumeMismatch, SchemaError, StorageError, UnsafeInput
from pam_aug.mix import MixedDataset
from pam_aug.rollouts.scene import Item
from pam_aug.schema import sample_from_json, sample_to_json
from pam_aug.shards.images import decode_image, decode_plane
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, read_mix, write_mix
from pam_aug.shards.reader import ShardReader, read_marker
from pam_aug.shards.verify import verify
from pam_aug.shards.writer import ShardWriter, index_path, marker_path, shard_name


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    monkeypatch.setattr(registry, "load", registry.load)
    fakes.install()


def config(*overrides: str) -> BuildConfig:
    return resolve(BuildConfig, fakes.CONFIG, overrides)


def fork(work: Callable[[], object]) -> int:
    """`work` in a process of its own: its exit code is 0, that of a PamAugError, or 99 for any other exception."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        code = 0
    except PamAugError as error:
        code = error.exit_code
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_index_names_18_promises_and_tests_that_exist():
    assert list(reliability_index.PROMISES) == list(range(1, 19))
    files = [ast.parse(path.read_text()) for path in Path(__file__).parent.glob("test_*.py")]
    found = (f.name for file in files for f in file.body if isinstance(f, ast.FunctionDef))
    names = Counter(map(reliability_index.plain, found))
    for number, (_, tests) in reliability_index.PROMISES.items():
        assert {test: names[test] for test in tests} == dict.fromkeys(tests, 1)
        assert tests or any(name.startswith(f"test_c5_{number:02d}_") for name in names)


# --------------------------------------------------------------------------------------------------- 1 to 4: stopping


def kill_packing(root: Path, kills: int, shards: int = 6) -> None:
    """Kills a process that packs, at random moments; every few kills the folder is begun anew, to meet all moments."""

    def pack(folder: Path) -> None:
        for n in range(shards):
            path = folder / shard_name("real", n)
            if read_marker(path) is None:
                write_shard(path, range(10 * n, 10 * n + 8))

    pack(root / "whole")
    folder, rng, done = root / "killed-0", random.Random(0), 0
    while done < kills:
        folder = root / f"killed-{done // 10}"
        folder.mkdir(exist_ok=True)
        child = fork(lambda folder=folder: pack(folder))
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        killed = exit_code(child) == -signal.SIGKILL
        assert verify(folder).damaged == []
        done += 1
        if done % 10 == 0 or not killed:
            pack(folder)
            for path in sorted((root / "whole").iterdir()):
                if path.suffix != ".json":  # a marker holds the seconds that the writing took
                    assert (folder / path.name).read_bytes() == path.read_bytes()
            assert verify(folder).uncommitted == [p for p in sorted(folder.iterdir()) if p.name.startswith(".tmp-")]


def test_c5_01_a_few_kills_of_a_process_that_packs(tmp_path):
    kill_packing(tmp_path, 10)


def kill_generating(root: Path, monkeypatch: pytest.MonkeyPatch, kills: int, inputs: int) -> None:
    """Kills a build that generates; the log of the generator says what was paid for more than once."""
    settings = config(f"source.count={inputs}")
    run_build(settings, root / "clean", ("synthetic",), workers=0)
    monkeypatch.setattr(fakes.FakeGenerator, "log", root / "log")
    monkeypatch.setattr(fakes.FakeGenerator, "seconds", 0.02)
    rng, done = random.Random(0), 0
    while done < kills:
        child = fork(lambda: run_build(settings, root / "out", ("synthetic",), workers=0))
        time.sleep(rng.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        if exit_code(child) == 0:
            break
        done += 1
    run_build(settings, root / "out", ("synthetic",), workers=0)
    made = Counter((root / "log").read_text().split())
    assert len(made) == 8 * inputs
    assert sum(made.values()) - len(made) <= done
    assert done >= min(kills, 3)
    assert tar_bytes(root / "out") == tar_bytes(root / "clean")
    assert verify(root / "out").damaged == []


def test_c5_02_a_few_kills_of_a_build_that_generates(tmp_path, monkeypatch):
    kill_generating(tmp_path, monkeypatch, kills=3, inputs=5)


def test_c5_03_a_build_stopped_at_each_candidate_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    settings = config("source.count=2", "generate.candidates=3")
    run_build(settings, tmp_path / "clean", ("synthetic",), workers=0)
    generate, left = fakes.FakeGenerator.generate, [0]

    def stopping(self, scene, seeds):
        for image in generate(self, scene, seeds):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            yield image

    for stop in range(6):
        out = tmp_path / str(stop)
        monkeypatch.setattr(fakes.FakeGenerator, "generate", stopping)
        left[0] = stop
        with pytest.raises(KeyboardInterrupt):
            run_build(settings, out, ("synthetic",), workers=0)
        assert not [p for p in out.rglob("*") if p.suffix in (".tar", ".idx") or p.parent.name == "shards"]
        monkeypatch.setattr(fakes.FakeGenerator, "generate", generate)
        run_build(settings, out, ("synthetic",), workers=0)
        assert tar_bytes(out) == tar_bytes(tmp_path / "clean")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_c5_04_a_signal_ends_the_command_with_a_code_and_nothing_half(tmp_path, monkeypatch, number):
    out, log = tmp_path / "out", tmp_path / "log"
    log.touch()
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(fakes.CONFIG))
    monkeypatch.setattr(fakes.FakeGenerator, "log", log)
    monkeypatch.setattr(fakes.FakeGenerator, "seconds", 0.02)
    arguments = ["pam-aug", "build", str(tmp_path / "quick.yaml"), "--out", str(out), "--workers", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    child = fork(cli.main)
    deadline = time.monotonic() + 60
    while len(log.read_text().split()) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child, number)
    assert exit_code(child) == (130 if number == signal.SIGINT else -number)
    assert verify(out).damaged == []
    assert not list((out / "shards").glob("syn-*.json"))
    monkeypatch.setattr(fakes.FakeGenerator, "seconds", 0.0)
    run_build(config(), out, workers=0)
    run_build(config(), tmp_path / "clean", workers=0)
    assert tar_bytes(out) == tar_bytes(tmp_path / "clean")


def test_c5_04_a_read_only_folder_is_a_storage_error():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)

        def write() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)  # root may write anywhere
            write_shard(folder / "real-00000.tar", range(2))

        assert exit_code(fork(write)) == StorageError.exit_code
        assert list(folder.iterdir()) == []
        folder.chmod(0o755)


# --------------------------------------------------------------------------------------- 9 and 10: what must not pass


def test_c5_09_the_same_input_twice_is_an_error(tmp_path, monkeypatch):
    """A seed is a function of run seed, key and index, so the same seed twice is the same key twice."""
    item = fakes.FakeRollouts.item
    monkeypatch.setattr(fakes.FakeRollouts, "item", lambda self, index: item(self, index // 2))
    with pytest.raises(SchemaError, match="keys are unique"):
        run_build(config(), tmp_path / "out", ("synthetic",), workers=0)
    assert not list((tmp_path / "out" / "shards").glob("*.json"))


def test_c5_09_the_same_image_twice_is_told_by_verify(tmp_path):
    with ShardWriter(tmp_path / "real-00000.tar", "real") as shard:
        for n in (0, 1, 2):
            shard.add(make_sample(n), make_jpeg(n % 2))
    report = verify(tmp_path)
    assert report.same_images == [(make_sample(2).key, make_sample(0).key)]
    assert report.ok


def test_c5_10_what_changes_the_pixels_is_refused_by_name(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_build(config(), out, workers=0)
    before = tar_bytes(out)

    def refused(field: str, *overrides: str) -> None:
        with pytest.raises(ResumeMismatch) as caught:
            run_build(config(*overrides), out, workers=0)
        assert caught.value.field == field

    refused("select.reject", "select.reject=0.5")
    refused("generate.run_seed", "generate.run_seed=1")
    refused("source.count", "source.count=4")
    with monkeypatch.context() as patch:
        patch.setattr(build_run, "SCHEMA_VERSION", 2)
        refused("schema_version")
    with monkeypatch.context() as patch:
        patch.setattr(fakes.FakeGenerator, "version", "2")
        refused("generator_version")
    with monkeypatch.context() as patch:
        patch.setattr(fakes.FakeEstimator, "version", "weights-of-another-hash")
        refused("estimator_version")
    with monkeypatch.context() as patch:
        hand = fakes.load_open_hand("right")
        wider = replace(hand, v_template=hand.v_template * np.float32(1.01))
        patch.setattr(fakes.FakeRollouts, "hand_assets", lambda self: {"open_hand/right": wider})
        refused("hands.open_hand/right")
    assert tar_bytes(out) == before


# ------------------------------------------------------------------------------------------- 11 and 12: hostile, broken


def object_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def million_members(path: Path) -> Path:
    """Whole headers for more samples than any shard may hold, in a file as long as that of a million members."""
    parts = []
    bases = [bytearray(tarfile.TarInfo(f"{KEY}.{s}").tobuf(tarfile.USTAR_FORMAT)) for s in ("jpg", "json")]
    digits = len(KEY) - 6
    for n in range(1 << 15):
        for base in bases:
            base[digits : digits + 6] = b"%06d" % n
            base[148:156] = b" " * 8
            base[148:156] = b"%06o\0 " % sum(base)
            parts.append(bytes(base))
    path.write_bytes(b"".join(parts) + tarfile.TarInfo(f"{KEY}.jpg").tobuf(tarfile.USTAR_FORMAT))
    os.truncate(path, 10**6 * 512)
    return path


def pax_of_a_gigabyte(path: Path) -> Path:
    patched(path, 124, b"%011o\0" % 10**9)
    raw = bytearray(path.read_bytes())
    raw[156:157] = b"x"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    path.write_bytes(raw)
    return path


ELEVEN = {
    "pickle": lambda p: tar_of(p, (f"{KEY}.jpg", make_jpeg(0)), (f"{KEY}.pkl", pickle.dumps(Payload()))),
    "object npy": lambda p: tar_of(p, (f"{KEY}.jpg", make_jpeg(0)), (f"{KEY}.npy", object_array())),
    "symlink": HOSTILE["symlink"],
    "hard link": lambda p: tar_of(p, (link(tarfile.LNKTYPE), b"")),
    "parent": HOSTILE["parent"],
    "absolute": HOSTILE["absolute"],
    "header of 10^9 bytes": pax_of_a_gigabyte,
    "size of 10^9 bytes": lambda p: patched(p, 124, b"%011o\0" % 10**9),
    "negative offset": HOSTILE["negative size"],
    "10^6 members": million_members,
    "gzip bomb of 10^9 bytes": lambda p: p.write_bytes(gzip.compress(bytes(1 << 20)) * 1000),
}


@pytest.mark.parametrize("name", ELEVEN)
def test_c5_11_hostile_input_costs_under_a_second_and_200_mb(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "real-00000.tar"
    ELEVEN[name](path)
    answer = tmp_path / "answer"

    def refuse() -> None:
        gc.freeze()  # or the child's collections would walk through all that the tests before have left
        idle = resource.getrusage(resource.RUSAGE_SELF)
        with pytest.raises(UnsafeInput, match="real-00000"):
            len(ShardReader(path))
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = used.ru_utime + used.ru_stime - idle.ru_utime - idle.ru_stime
        answer.write_text(f"{seconds} {(used.ru_maxrss - idle.ru_maxrss) / 1024}")

    assert exit_code(fork(refuse)) == 0
    seconds, megabytes = map(float, answer.read_text().split())
    assert seconds < 1
    assert megabytes < 200
    assert not (tmp_path / "payload-ran").exists()


def with_size(jpeg: bytes, height: int, width: int) -> bytes:
    """The JPEG with another size in its frame header."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[at + 4 :]


def rotated(jpeg: bytes) -> bytes:
    """The JPEG with an EXIF tag that asks for a quarter turn."""
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


def cmyk() -> bytes:
    pixels = np.zeros((fakes.SIZE, fakes.SIZE, 4), np.uint8)
    return simplejpeg.encode_jpeg(pixels, colorspace="CMYK", colorsubsampling="444")


def test_c5_12_a_build_goes_on_past_broken_images_and_counts_them(tmp_path, monkeypatch):
    good = fakes.picture(0)
    grey16 = cv2.imencode(".png", np.zeros((fakes.SIZE, fakes.SIZE), np.uint16))[1].tobytes()
    images = {
        "sound": good,
        "empty": b"",
        "corrupt JPEG": good[:150],
        "corrupt PNG": png_header(0, fakes.SIZE),
        "16 bit": grey16,
        "CMYK": cmyk(),
        "50,000 wide": with_size(good, 1000, 50_000),
        "another size": with_size(good, 1, 1),
        "rotated": rotated(good),
    }
    wrong = [name for name in images if name not in ("sound", "rotated")]
    listed = list(images.values())
    monkeypatch.setattr(fakes.FakeReal, "item", lambda self, i: Item(fakes.label(i, self.name), listed[i], {}))
    settings = config(f"real.count={len(images)}", "shards.samples_per_shard=100")
    with pytest.raises(BudgetExceeded):  # more than 1 % failed, which is said at the end
        run_build(settings, tmp_path / "out", ("real",), workers=0)
    path = tmp_path / "out" / "shards" / "real-00000.tar"
    marker = read_marker(path)
    assert marker is not None
    assert marker["counts"] == {"failed": len(wrong), "hands": 2, "samples": 2}
    reader = ShardReader(path)
    np.testing.assert_array_equal(reader.image(1), reader.image(0))  # labels are in the pixels as they are stored


def test_c5_12_planes_of_another_depth_and_one_pixel(tmp_path):
    planes = {d: cv2.imencode(".png", np.ones((4, 4), d))[1].tobytes() for d in (np.uint8, np.uint16)}
    for wanted, other in ((np.uint8, np.uint16), (np.uint16, np.uint8)):
        assert decode_plane(planes[wanted], wanted, "x").dtype == wanted
        with pytest.raises(PamAugError, match="x: not a grey"):
            decode_plane(planes[other], wanted, "x")
    assert decode_image(make_jpeg(0, 1), "jpg", "x").shape == (1, 1, 3)


# ------------------------------------------------------------------------------------------------ 13 to 17: everything


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, cut out or doubled."""
    raw = bytearray(whole)
    for _ in range(int(rng.integers(1, 8))):
        a, b = sorted(int(x) for x in rng.integers(0, len(raw) + 1, 2))
        kind = int(rng.integers(0, 5))
        if kind == 0:
            del raw[a : min(b, a + 40)]
        elif kind == 1:
            raw[a:a] = raw[a : min(b, a + 40)]
        elif raw:
            raw[min(a, len(raw) - 1)] = int(rng.integers(0, 256))
    return bytes(raw)


def fuzz_sample(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    return sample_to_json(make_sample(0, hands=2)), sample_from_json


def fuzz_shard(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    whole = write_shard(folder / "whole" / "real-00000.tar", range(3)).read_bytes()

    def read(data: bytes) -> None:
        path = folder / "real-00000.tar"
        path.write_bytes(data)
        with ShardReader(path) as reader:
            for i in range(len(reader)):
                reader.sample(i)
                reader.image(i)

    return whole, read


def fuzz_yaml(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    def read(data: bytes) -> None:
        path = folder / "recipe.yaml"
        path.write_bytes(data)
        resolve(BuildConfig, read_yaml(path))

    return yaml.safe_dump(fakes.CONFIG).encode(), read


def fuzz_mix(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    write_shard(folder / "shards" / "real-00000.tar", range(3))
    write_mix(folder / "mix.json", Mix((MixSource("real", "1", collect_shards(folder / "shards", "real", folder)),)))
    whole = (folder / "mix.json").read_bytes()

    def read(data: bytes) -> None:
        (folder / "mix.json").write_bytes(data)
        read_mix(folder)

    return whole, read


def fuzz_calibration(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    from pam_aug.converters.dexycb_calibration import SERIALS, read_meta

    meta = {"serials": list(SERIALS), "num_frames": 72, "extrinsics": "20200702_151821", "ycb_ids": [2, 5]}
    meta |= {"mano_calib": ["20200709-subject-01_right"], "mano_sides": ["right"], "ycb_grasp_ind": 0}

    def read(data: bytes) -> None:
        path = folder / "meta.yml"
        path.write_bytes(data)
        read_meta(path)

    return yaml.safe_dump(meta).encode(), read


def fuzz_rollout(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    from test_rollout_npz import Truth, read_archive, write_archive

    path = folder / "a.npz"
    write_archive(path, Truth(1).archive())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_archive(path)

    return path.read_bytes(), read


FUZZED = (fuzz_sample, fuzz_shard, fuzz_yaml, fuzz_mix, fuzz_calibration, fuzz_rollout)


def fuzz(target: Callable[[Path], tuple[bytes, Callable[[bytes], object]]], folder: Path, go_on: Callable[[], bool]):
    """Damages what a target reads until `go_on` says no; (tries, refused). Another error than ours is raised."""
    whole, read = target(folder)
    read(whole)
    tries = refused = 0
    while go_on():
        tries += 1
        data = damaged(whole, np.random.default_rng(tries))
        try:
            read(data)
        except PamAugError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"try {tries}: {type(error).__name__} escaped: {error}") from error
    return tries, refused


@pytest.mark.parametrize("target", FUZZED)
def test_c5_13_damage_gives_only_errors_of_this_library(tmp_path, target):
    left = iter(range(60))
    tries, refused = fuzz(target, tmp_path, lambda: next(left, None) is not None)
    assert tries == 60
    assert refused > 5


def test_c5_14_built_twice(tmp_path):
    for name in "ab":
        run_build(config(), tmp_path / name, workers=0)
    assert tar_bytes(tmp_path / "a") == tar_bytes(tmp_path / "b")


def linked_shards(root: Path, shards: int, samples: int) -> Path:
    """A mix of many shards that are hard links of one: true sizes, indexes and markers, little disk."""
    first = write_shard(root / "first" / "real-00000.tar", range(samples), size=16)
    (root / "shards").mkdir()
    for number in range(shards):
        path = root / "shards" / shard_name("real", number)
        for old, new in ((first, path), (index_path(first), index_path(path)), (marker_path(first), marker_path(path))):
            os.link(old, new)
    write_mix(root / "mix.json", Mix((MixSource("real", "1", collect_shards(root / "shards", "real", root)),)))
    return root


def memory_of_reading(folder: Path, answer: Path, batches: int) -> dict[str, float]:
    """MB above the idle process, and seconds, of opening a mix and reading batches from all over it."""

    def read() -> None:
        idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        dataset = MixedDataset(folder, 64, decode_threads=1)
        found = iter(dataset)
        next(found)
        opened = time.process_time() - started
        for _ in range(batches - 1):
            next(found)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer.write_text(f"{len(dataset.sources[0])} {opened} {(peak - idle) / 1024}")

    assert exit_code(fork(read)) == 0
    return dict(zip(("samples", "seconds", "megabytes"), map(float, answer.read_text().split())))


def test_c5_16_memory_does_not_grow_with_the_data(tmp_path):
    found = memory_of_reading(linked_shards(tmp_path, 300, 20), tmp_path / "answer", 20)
    assert found["samples"] == 6000
    assert found["megabytes"] < 100


def test_c5_17_two_builders_in_one_folder(tmp_path, monkeypatch):
    run_build(config(), tmp_path / "clean", workers=0)
    monkeypatch.setattr(fakes.FakeGenerator, "seconds", 0.002)
    children = [fork(lambda: run_build(config(), tmp_path / "out", workers=0)) for _ in range(2)]
    codes = [exit_code(child) for child in children]
    assert 0 in codes
    assert 99 not in codes
    run_build(config(), tmp_path / "out", workers=0)
    assert verify(tmp_path / "out").damaged == []
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "clean")
