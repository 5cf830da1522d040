"""A large dataset that is nearly index only: full `.idx` files and markers over tars that share one small image."""

import hashlib
import os
from pathlib import Path

import numpy as np
import orjson
from made_shards import make_jpeg, make_sample

from pam_aug.schema import SCHEMA_VERSION
from pam_aug.shards.index import hand_rows, index_bytes
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, write_mix
from pam_aug.shards.writer import ShardWriter, index_path, marker_path, shard_name


def write_index_only(root: Path, shards: int, per_shard: int, keep: str = "1") -> Path:
    """A mix of one real source of `shards` × `per_shard` hands; every row points to the same JPEG of 32 × 32 pixels.

    All tars are one file under many names, about 10 kB on the disk; the indexes have their true sizes.
    """
    folder = root / "shards"
    with ShardWriter(folder / shard_name("real", 0), "real") as shard:
        shard.add(make_sample(0), make_jpeg(0))
    first = folder / shard_name("real", 0)
    raw = first.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    row = hand_rows(make_sample(0), 0, make_jpeg(0), "jpg", 512)
    marker = {"schema_version": SCHEMA_VERSION, "kind": "real", "sha256": digest, "bytes": len(raw)}
    for s in range(shards):
        path = folder / shard_name("real", s)
        if s:
            os.link(first, path)
        rows = np.repeat(row, per_shard)
        keys = [f"demo/s1/take{s:05d}/cam{n % 4}/{n:06d}" for n in range(per_shard)]
        rows["key"], rows["sample"] = keys, np.arange(per_shard)
        rows["betas"][:, 0], rows["betas"][:, 1] = s, np.arange(per_shard)
        index_path(path).write_bytes(index_bytes(rows, len(raw), digest))
        counts = {"samples": per_shard, "hands": per_shard}
        lists = {"keys": keys, "image_sha256": [digest] * per_shard}
        marker_path(path).write_bytes(orjson.dumps({**marker, "counts": counts, "seconds": 1.0, **lists}))
    source = MixSource("real", "1", collect_shards(folder, "real", root), keep)
    write_mix(root / "mix.json", Mix((source,)))
    return root
