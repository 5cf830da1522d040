"""One reader of `loader.py`, alone in its process and its environment: needs torch, numpy, simplejpeg, orjson, and it.

    python loader_readers.py write READER DATA      DATA/raw in the reader's own format, as DATA/READER
    python loader_readers.py read READER DATA       one JSON line: {"0": samples/s, "2": …, "pairs": [[…], …]}
    python loader_readers.py million FOLDER         one JSON line: opening a large dataset of ours

Every reader gives batches of 64: uint8 images (B,3,224,224), channels-last, and the same seven float32 label tensors.
All decode with simplejpeg straight into the batch's memory; all but ours read in file order, which is their fastest.
Labels lie in the form that a reader decodes fastest: one block of float32 where it takes bytes, JSON (by orjson) in the
folder. `pairs` are CRC-32s of the first labels and their images, by which the caller sees that all deliver the same.
"""

import json
import multiprocessing
import os
import resource
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import simplejpeg
import torch

SIZE_PX, BATCH, PER_SHARD = 224, 64, 1000
LABELS = {
    **{"joints_cam_m": (21, 3), "joints_px": (21, 2), "K_px": (3, 3), "global_orient": (3,)},
    **{"hand_pose": (45,), "betas": (10,), "transl": (3,)},
}
SPLITS = np.cumsum([int(np.prod(shape)) for shape in LABELS.values()])
Batch = tuple[torch.Tensor, dict[str, torch.Tensor]]
Item = tuple[bytes, np.ndarray]


def raw(data: Path) -> Iterator[Item]:
    """(JPEG bytes, label of 175 float32) of every sample."""
    labels, ends = np.load(data / "raw" / "labels.npy"), np.load(data / "raw" / "ends.npy")
    with open(data / "raw" / "images.bin", "rb") as file:
        for label, size in zip(labels, np.diff(ends, prepend=0)):
            yield file.read(size), label


def named(block: np.ndarray) -> dict[str, np.ndarray]:
    """The (…, 175) block as arrays of LABELS."""
    parts = np.split(block, SPLITS[:-1], axis=-1)
    return {n: p.reshape(*block.shape[:-1], *shape) for (n, shape), p in zip(LABELS.items(), parts)}


def collate(items: list[Item]) -> Batch:
    images = np.empty((len(items), SIZE_PX, SIZE_PX, 3), np.uint8)
    for (data, _), out in zip(items, images):
        simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
    labels = named(np.stack([label for _, label in items]))
    return torch.from_numpy(images).permute(0, 3, 1, 2), {n: torch.from_numpy(a) for n, a in labels.items()}


# ------------------------------------------------------------------------------------------------------------ writing


def write_webdataset(data: Path, out: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(f"{out}/%05d.tar", maxcount=PER_SHARD, mtime=0, verbose=0) as shards:
        for k, (image, label) in enumerate(raw(data)):
            shards.write({"__key__": f"{k:08d}", "jpg": image, "f32": label.tobytes()})


def write_mosaicml(data: Path, out: Path) -> None:
    import streaming

    with streaming.MDSWriter(out=str(out), columns={"image": "bytes", "label": "bytes"}) as shards:
        for image, label in raw(data):
            shards.write({"image": image, "label": label.tobytes()})


def write_litdata(data: Path, out: Path) -> None:
    import litdata

    jobs = [(str(data), start) for start in range(0, len(np.load(data / "raw" / "ends.npy")), PER_SHARD)]
    litdata.optimize(litdata_samples, jobs, str(out), chunk_bytes="64MB", num_workers=1, keep_data_ordered=True)


def litdata_samples(job: tuple[str, int]) -> Iterator[dict[str, bytes]]:
    for k, (image, label) in enumerate(raw(Path(job[0]))):
        if job[1] <= k < job[1] + PER_SHARD:
            yield {"image": image, "label": label.tobytes()}


def write_folder(data: Path, out: Path) -> None:
    for k, (image, label) in enumerate(raw(data)):
        path = out / f"{k // PER_SHARD:05d}" / f"{k:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
        tree = {n: np.ascontiguousarray(a) for n, a in named(label).items()}
        path.with_suffix(".json").write_bytes(orjson.dumps(tree, option=orjson.OPT_SERIALIZE_NUMPY))


# ------------------------------------------------------------------------------------------------------------ reading


def read_pam_aug(data: Path, workers: int) -> Iterable[Batch]:
    from torch.utils.data import DataLoader

    from pam_aug.mix import MixedDataset

    threads = 1 if workers else 2
    dataset = MixedDataset(data / "pam_aug", BATCH, decode_threads=threads)
    for batch in DataLoader(dataset, batch_size=None, num_workers=workers):
        yield batch["image"].permute(0, 3, 1, 2), {n: batch[n] for n in LABELS}


def read_webdataset(data: Path, workers: int) -> Iterable[Batch]:
    import webdataset

    def item(sample: dict[str, bytes]) -> Item:
        return sample["jpg"], np.frombuffer(sample["f32"], np.float32)

    shards = sorted(str(p) for p in (data / "webdataset").glob("*.tar"))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
        .map(item)
        .batched(BATCH, collation_fn=collate)
    )
    return webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)


def read_mosaicml(data: Path, workers: int) -> Iterable[Batch]:
    import streaming
    from torch.utils.data import DataLoader

    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(local=str(data / "mosaicml"), shuffle=False, batch_size=BATCH)
    return DataLoader(dataset, BATCH, num_workers=workers, collate_fn=from_bytes)


def read_litdata(data: Path, workers: int) -> Iterable[Batch]:
    import litdata

    dataset = litdata.StreamingDataset(str(data / "litdata"), shuffle=False)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=from_bytes)


def from_bytes(items: list[dict[str, bytes]]) -> Batch:
    return collate([(i["image"], np.frombuffer(i["label"], np.float32)) for i in items])


class Folder(torch.utils.data.Dataset):
    """A JPEG and a JSON file per sample."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(str(p) for p in folder.glob("*/*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> Item:
        path = self.paths[k]
        with open(path, "rb") as image, open(path[:-3] + "json", "rb") as label:
            tree = orjson.loads(label.read())
            return image.read(), np.concatenate([np.asarray(tree[n], np.float32).ravel() for n in LABELS])


def read_folder(data: Path, workers: int) -> Iterable[Batch]:
    from torch.utils.data import DataLoader

    return DataLoader(Folder(data / "folder"), BATCH, num_workers=workers, collate_fn=collate)


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    **{"webdataset": write_webdataset, "mosaicml": write_mosaicml, "litdata": write_litdata, "folder": write_folder},
}
READERS: dict[str, Callable[[Path, int], Iterable[Batch]]] = {
    **{"pam_aug": read_pam_aug, "webdataset": read_webdataset, "mosaicml": read_mosaicml},
    **{"litdata": read_litdata, "folder": read_folder},
}


def epoch_rate(loader: Iterable[Batch], wanted: int) -> float:
    """Samples per second of a whole epoch, workers' start included."""
    started, seen = time.perf_counter(), 0
    for image, _ in loader:
        seen += len(image)
    seconds = time.perf_counter() - started
    if seen != wanted:
        raise SystemExit(f"{seen} samples were delivered, {wanted} are there")
    return seen / seconds


def first_pairs(loader: Iterable[Batch], batches: int = 4) -> list[tuple[int, int]]:
    """CRC-32 of the label block and of the pixels of the first samples; also warms the reader up."""
    pairs = []
    for number, (image, labels) in enumerate(loader):
        if image.dtype != torch.uint8 or image.shape[1:] != (3, SIZE_PX, SIZE_PX) or image.stride(1) != 1:
            raise SystemExit(f"images are {image.dtype} {tuple(image.shape)}, not channels-last uint8")
        if any(labels[n].dtype != torch.float32 or labels[n].shape[1:] != s for n, s in LABELS.items()):
            raise SystemExit("labels are not the seven float32 tensors")
        for j in range(len(image)):
            block = np.concatenate([labels[n][j].numpy().ravel() for n in LABELS])
            pixels = np.ascontiguousarray(image[j].permute(1, 2, 0).numpy())
            pairs.append((zlib.crc32(block.tobytes()), zlib.crc32(pixels.tobytes())))
        if number + 1 >= batches:
            break
    return pairs


# ------------------------------------------------------------------------------------------- ceiling and large data


def decode_share(images: list[bytes], start: Any, done: Any) -> None:
    """Decode all images into one reused picture; tells when."""
    out = np.empty((SIZE_PX, SIZE_PX, 3), np.uint8)
    simplejpeg.decode_jpeg(images[0], colorspace="RGB", buffer=out)
    start.wait()
    began = time.perf_counter()
    for data in images:
        simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
    done.put((began, time.perf_counter()))


def decode_ceiling(data: Path, processes: int) -> float:
    """Images per second of bare decoding from memory in that many processes: no reading, no labels, no batches."""
    images = [image for image, _ in raw(data)]
    context = multiprocessing.get_context("fork")
    start, done = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=decode_share, args=(images[k::processes], start, done)) for k in range(processes)]
    for worker in workers:
        worker.start()
    times = [done.get() for _ in workers]
    for worker in workers:
        worker.join()
    return len(images) / (max(end for _, end in times) - min(began for began, _ in times))


def measure_million(folder: Path) -> dict[str, float]:
    """Seconds to open a large dataset and every shard's index, and to its first shuffled batch; then its memory."""
    from pam_aug.mix import MixedDataset

    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    dataset = MixedDataset(folder, BATCH, decode_threads=2)
    items = dataset.sources[0]
    for first in range(0, len(items), PER_SHARD):
        reader, number = items.find(first)
        reader.row(number)
    opened = time.perf_counter()
    dataset = MixedDataset(folder, BATCH, decode_threads=2)
    dataset.set_epoch(1)
    began = time.perf_counter()
    batches = iter(dataset)
    next(batches)
    first_batch = time.perf_counter()
    count = 200
    for _ in range(count):
        next(batches)
    seconds = time.perf_counter() - first_batch
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "samples": len(items),
        "open_s": opened - started,
        "epoch_start_s": first_batch - began,
        "samples_per_s": count * BATCH / seconds,
        "peak_rss_mb": (peak - idle) / 1024,
    }


def lean_torchvision() -> None:
    """Two peers import torchvision, whose CUDA build cannot register its operators beside a CPU torch: name them here.

    Nothing of torchvision is called. Where it is sound this does nothing.
    """
    import importlib.util

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(found.origin).parent / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        lean_torchvision.kept = library  # type: ignore[attr-defined]  # the definitions go when it does


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    what, *rest = arguments
    out = os.fdopen(os.dup(1), "w")  # peers print remarks; only the result goes to standard output
    os.dup2(2, 1)
    result: Any = {}
    if what == "million":
        result = measure_million(Path(rest[0]))
    else:
        reader, data = rest[0], Path(rest[1])
        if reader in ("litdata", "mosaicml"):
            lean_torchvision()
        if what == "write":
            (data / reader).mkdir(parents=True, exist_ok=True)
            WRITERS[reader](data, data / reader)
        elif reader == "decode_ceiling":
            result = {"1": decode_ceiling(data, 1), "2": decode_ceiling(data, 2)}
        else:
            wanted = len(np.load(data / "raw" / "ends.npy"))
            result["pairs"] = first_pairs(READERS[reader](data, 0))
            for workers in (0, 2):
                # The first epoch fetches what the page cache lost to other readers; training has many.
                result[str(workers)] = [epoch_rate(READERS[reader](data, workers), wanted) for _ in range(2)][1]
    print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
