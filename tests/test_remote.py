"""Shards at URLs: the same order and batches as from the disk, checked before use, with clear errors."""

import functools
import gc
import http.server
import os
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path

import fsspec
import numpy as np
import orjson
import pytest
from made_shards import write_shard
from test_mix import keys_of, mixed

from pam_aug.cli import main
from pam_aug.errors import AssetMissing, ConfigError, PamAugError, ShardDamaged, UnsafeInput
from pam_aug.materialize import materialize
from pam_aug.mix import MixedDataset
from pam_aug.report.page import write_report
from pam_aug.shards.files import RemotePath, place, read_whole
from pam_aug.shards.manifest import Mix, MixSource, read_mix
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.verify import Report, verify


@pytest.fixture
def folder(tmp_path) -> Path:
    shards = tmp_path / "out" / "shards"
    write_shard(shards / "real-00000.tar", range(4), hands=2)
    write_shard(shards / "real-00001.tar", range(4, 9))
    write_shard(shards / "syn-00000.tar", range(100, 106), synthetic=True)
    return mixed(tmp_path / "out")


@pytest.fixture
def memory(folder):
    """The folder in fsspec's memory file system: (its URL, the file system)."""
    files = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe(f"/data/{path.relative_to(folder)}", path.read_bytes())
    yield "memory://data", files
    files.rm("/data", recursive=True)


class WholeFiles(http.server.SimpleHTTPRequestHandler):
    """The standard library's server, which answers every range with the whole file."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass


class Ranges(WholeFiles):
    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        data, wanted = path.read_bytes(), self.headers.get("Range", "")
        first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-")) if wanted else (0, len(data) - 1)
        part = data[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def serve(folder):
    """Serves the folder; call it with a handler, get the URL."""
    servers = []

    def start(handler: type[WholeFiles]) -> str:
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(folder.parent))
        )
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/out"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def check_same(url: str, folder: Path) -> None:
    here, there = MixedDataset(folder, 5), MixedDataset(url, 5, decode_threads=3)
    for a, b in zip(here, there, strict=True):
        assert (list(a["keys"]), a["position"]) == (list(b["keys"]), b["position"])
        for name in ("image", "joints_cam_m", "joints_px", "K_px", "betas"):
            np.testing.assert_array_equal(a[name], b[name])
    there.load_state_dict(here.state_dict(next(iter(here))))  # one order, so one state
    assert keys_of(there, workers=2, epoch=1) == keys_of(here, epoch=1)
    with ShardReader(f"{url}/shards/real-00000.tar") as reader:
        assert len(reader) == 4
        assert reader.has_index
        assert reader.sample(3) == ShardReader(folder / "shards" / "real-00000.tar").sample(3)


def test_from_memory_and_file_urls(folder, memory):
    check_same(memory[0], folder)
    check_same(f"file://{folder}", folder)
    assert MixedDataset(f"{memory[0]}/mix.json", 5).schedule.epoch_length == len(keys_of(MixedDataset(folder, 5)))


def test_from_a_web_server(folder, serve):
    check_same(serve(Ranges), folder)


@pytest.mark.timeout(60)
def test_a_forked_worker_leaves_its_parents_connections_alone(serve):
    """A child that closes an inherited connection takes it out of the event queue that both share: the parent hangs."""
    at = RemotePath(f"{serve(Ranges)}/mix.json")
    before = read_whole(at)
    child = os.fork()
    if not child:
        same = read_whole(at) == before
        gc.collect()
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert read_whole(at) == before


def test_a_web_server_without_ranges_is_an_error_not_a_download(folder, serve):
    url = serve(WholeFiles)
    with pytest.raises(ShardDamaged, match="range"):
        ShardReader(f"{url}/shards/real-00000.tar").sample(1)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_mix(f"{url}/nowhere")


def test_damage_at_a_url_is_named_before_it_is_used(memory):
    url, files = memory
    tar, marker, index = (f"/data/shards/real-00001.{s}" for s in ("tar", "json", "idx"))
    wholes = {name: files.cat_file(name) for name in (tar, marker, index)}
    row = ShardReader(f"{url}/shards/real-00001.tar").rows[2]
    flipped = bytearray(wholes[tar])
    flipped[int(row["image_offset"]) + 30] ^= 1
    damages = {
        "image": (tar, bytes(flipped)),
        "short": (tar, wholes[tar][:-512]),
        "marker": (marker, b"{}"),
        "another": (marker, wholes[marker].replace(b'"sha256":"', b'"sha256":"0')[:-1]),
    }
    for name, data in damages.values():
        files.pipe(name, data)
        with pytest.raises(ShardDamaged, match="real-00001"):
            list(MixedDataset(url, 5, decode_threads=1))
        files.pipe(name, wholes[name])
    files.rm(index)
    keys = keys_of(MixedDataset(url, 5))
    files.pipe(index, wholes[index][:-10])  # stale or damaged: the labels of the tar are read instead
    assert keys_of(MixedDataset(url, 5)) == keys
    files.rm(marker)
    with pytest.raises(ShardDamaged, match=r"missing|marker"):
        keys_of(MixedDataset(url, 5))
    files.pipe(marker, wholes[marker])


@pytest.mark.parametrize(
    "name", ["../other/real-00000.tar", "/etc/passwd", "file:///etc/passwd", "a/..", "x?y", "x::y"]
)
def test_a_remote_mix_names_nothing_outside_its_folder(memory, name):
    url, files = memory
    text = files.cat_file("/data/mix.json").replace(b"shards/real-00000.tar", name.encode())
    files.pipe("/data/mix.json", text)
    with pytest.raises(UnsafeInput, match="outside"):
        MixedDataset(url, 5)


def test_urls_that_are_not_read():
    for url in ("ssh://host/out", "pipe://cat", "zip::memory://a", "memory://a::zip://b", "ftp://host/x"):
        with pytest.raises(UnsafeInput, match="not from this one"):
            place(url)
    with pytest.raises(ConfigError, match="query"):
        place("https://host/out?token=1")
    assert place("file:///a%20b/c") == Path("/a b/c")
    assert place("out/mix.json") == Path("out/mix.json")
    at = place("s3://bucket/out/")
    assert isinstance(at, RemotePath)
    assert str(at / "shards" / "real-00000.tar") == "s3://bucket/out/shards/real-00000.tar"
    assert str((at / "real-00000.tar").with_suffix(".idx")) == "s3://bucket/out/real-00000.idx"


def test_a_report_asks_for_local_files():
    for url in ("https://host/out", Path("https://host/out"), "memory://out"):
        with pytest.raises(ConfigError, match=r"is a URL, and .* needs local files"):
            write_report(url)


def counts(report: Report) -> tuple[int, int, int, list[str]]:
    return report.shards, report.samples, report.hands, [p.message for p in report.damaged]


def test_a_mix_or_a_shard_at_a_url_is_verified(folder, memory, serve, monkeypatch, capsys):
    wanted = (3, 15, 19, [])
    assert counts(verify(folder)) == wanted
    told: list[int] = []
    assert counts(verify(memory[0], progress=told.append)) == wanted
    assert told == [1, 1, 1]
    url = serve(Ranges)
    assert counts(verify(f"{url}/mix.json")) == wanted
    assert counts(verify(f"{url}/shards/syn-00000.tar")) == (1, 6, 6, [])
    assert counts(verify(f"file://{folder}")) == wanted
    with pytest.raises(ConfigError, match="not written anew"):
        verify(memory[0], rebuild=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        verify("memory://nowhere")
    with pytest.raises(ConfigError, match="is no folder"):
        verify(Path("https://host/out"))  # a path cannot hold a URL
    monkeypatch.setattr("sys.argv", ["pam-aug", "verify", memory[0]])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "3 shards, 15 samples, 19 hands: whole" in capsys.readouterr().out


def test_a_shard_that_two_sources_read_is_verified_once(memory):
    url, files = memory
    mix = read_mix(url)
    half = tuple(MixSource(f"real-{n}", "1/2", mix.sources[0].shards) for n in range(2))
    files.pipe("/data/mix.json", orjson.dumps(asdict(Mix(half))))
    assert counts(verify(url)) == (2, 9, 13, [])


def test_damage_at_a_url_is_found_and_named(memory, monkeypatch, tmp_path):
    """Each file of a shard, flipped or gone; no temporary file stays."""
    url, files = memory
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    (tmp_path / "copies").mkdir()
    for suffix, at in (("tar", 700), ("tar", 3000), ("json", 60), ("idx", 200)):
        name = f"/data/shards/real-00001.{suffix}"
        whole = files.cat_file(name)
        files.pipe(name, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert "real-00001" in verify(url).damaged[0].message
        files.rm(name)
        assert "real-00001" in verify(url).damaged[0].message
        files.pipe(name, whole)
    name, text = "/data/mix.json", files.cat_file("/data/mix.json")
    files.pipe(name, text.replace(b'"sha256": "', b'"sha256": "f', 1))
    assert "run the mix again" in verify(url).damaged[0].message
    files.pipe(name, text)
    assert verify(url).ok
    assert list((tmp_path / "copies").iterdir()) == []


def test_a_local_mix_may_name_shards_at_a_url(folder, memory, tmp_path):
    text = (folder / "mix.json").read_text().replace('"shards/', f'"{memory[0]}/shards/')
    (tmp_path / "mix.json").write_text(text)
    assert keys_of(MixedDataset(tmp_path, 5)) == keys_of(MixedDataset(folder, 5))
    report = verify(tmp_path)
    assert report.ok
    assert report.elsewhere == [f"{memory[0]}/shards/{n}.tar" for n in ("real-00000", "real-00001", "syn-00000")]
    assert materialize(tmp_path, tmp_path / "written", samples_per_shard=10).samples == len(
        keys_of(MixedDataset(folder, 5))
    )
    assert verify(tmp_path / "written").ok


def test_caps_and_missing_packages(memory, monkeypatch):
    with pytest.raises(UnsafeInput, match="over the limit"):
        read_whole(RemotePath(f"{memory[0]}/mix.json"), limit=100)

    def missing(*_: object, **__: object) -> None:
        raise ImportError("no s3fs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(AssetMissing, match="pip install s3fs"):
        MixedDataset("s3://bucket/out", 5)


def test_a_lost_connection_is_tried_again(memory, monkeypatch):
    url, files = memory
    calls = []

    def flaky(path: str, start: int | None = None, end: int | None = None) -> bytes:
        calls.append(path)
        if len(calls) % 3 == 1:
            raise ConnectionResetError("reset")
        return type(files).cat_file(files, path, start, end)

    monkeypatch.setattr("pam_aug.shards.files.time.sleep", lambda _: None)
    monkeypatch.setattr(files, "cat_file", flaky)
    monkeypatch.setattr("pam_aug.shards.files._filesystem", lambda _: files)
    assert len(read_mix(url).sources) == 2
    assert len(calls) == 2

    def dead(path: str, start: int | None = None, end: int | None = None) -> bytes:
        raise ConnectionResetError("reset")

    monkeypatch.setattr(files, "cat_file", dead)
    with pytest.raises(PamAugError, match="ConnectionResetError"):
        read_mix(url)
