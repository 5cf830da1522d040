"""The dataset card: what a build holds, whose licences bind it, and how to read it, as Markdown for people and hubs."""

from collections.abc import Mapping
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

from pam_aug.shards.atomic import write_atomic
from pam_aug.shards.files import inside
from pam_aug.shards.manifest import Mix, write_manifest

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["dataset_card", "write_card"]

_READING = """\
## Reading it

The exact mix, for training:

```python
from torch.utils.data import DataLoader
from pam_aug.mix import MixedDataset

dataset = MixedDataset("{name}", batch_size=64, crop_px=224)
for batch in DataLoader(dataset, batch_size=None, num_workers=4):
    batch["image"], batch["joints_cam_m"]
```

The shards as they are, for any WebDataset reader: `webdataset.WebDataset("shards/real-00000.tar")` gives `__key__`, the
image file (`jpg` or `png`) and its labels (`json`). Units are metres, radians and pixels; the camera is OpenCV's. Keys
that end in `@` and two digits are synthetic. Hugging Face `datasets` reads them too; give it the types
(`pam_aug.shards.arrow.webdataset_arrow_schema`), because it cannot guess those of lists that are empty at first.

`manifest.parquet` has a row per image: key, shard, sizes, source, licence, sha256; of generated ones also input, seed
and score.
"""
_KINDS = ["synthetic", "dataset", "split", "generator", "estimator", "licence"]
_FIGURES = [("hands", "count"), ("hands", "sum"), ("image_bytes", "sum"), ("err_mm", "sum")]
_FIGURES += [(side, end) for side in ("width", "height") for end in ("min", "max")]
_HEAD = ["images", "labels from", "split", "generator", "pixels", "number", "hands", "MB", "mean error, mm", "licence"]


def write_card(folder: Path, mix: Mix, known: "Mapping[tuple[str, str], pa.Table] | None" = None) -> None:
    """Writes `manifest.parquet` and `card.md` of a folder from the shards of its mix.

    `known` are the manifest's rows (`manifest_table`) of shards that need not be read, by the tar's name and sha256.
    Raises ShardDamaged where they cannot be read, StorageError where the disk refuses.
    """
    manifest = folder / "manifest.parquet"
    shards = [(inside(folder, shard.path), shard.sha256) for source in mix.sources for shard in source.shards]
    tables = {path: (known or {}).get((path.name, sha256)) for path, sha256 in shards}
    write_manifest(manifest, [path for path, _ in shards], tables)
    write_atomic(folder / "card.md", dataset_card(folder.resolve().name, mix, manifest).encode())


def dataset_card(title: str, mix: Mix, manifest: Path) -> str:
    """The text of `card.md` for a build, counted from its `manifest.parquet`: the same tables give the same text.

    Memory does not grow with the manifest. "mean error" is the estimator's distance from the labels of what was kept.
    """
    sources = [f"| {s.name} | {s.share} | {s.keep} | {len(s.shards)} | {s.samples} | {s.hands} |" for s in mix.sources]
    lead = next((s.name for s in mix.sources if s.share != "0"), "")
    shuffled = f"{mix.window_shards} shards at a time" if mix.window_shards else "over all shards of a source"
    lines = [
        *("---", "license: other", "task_categories: [keypoint-detection]"),
        *("tags: [hand-pose-estimation, webdataset, synthetic]", "---", ""),
        *(f"# {title}", "", "## What it holds", ""),
        *(f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|", *_content(manifest), ""),
        "Generated images carry the licence of the labels that they were made from, and the terms of their generator.",
        "The error is that of the named estimator, from whose point of view they were selected; -: not scored.",
        *("", "## How it is mixed", ""),
        *("| source | share of what is read | share of its sequences kept | shards | images | hands |",),
        *("|---|---|---|---|---|---|", *sources, ""),
        f"An epoch is one pass over the hands of `{lead}`, shuffled {shuffled} with the seed {mix.seed}. Where another "
        f"source is too small for it: {mix.when_short}.",
        *("", _READING.format(name=title)),
    ]
    return "\n".join(lines)


def _content(manifest: Path) -> list[str]:
    """The table's rows, one per kind of images and licence, counted a part of the manifest at a time."""
    import pyarrow.parquet as pq

    totals: dict[tuple, dict[str, float]] = {}
    with pq.ParquetFile(manifest) as file:
        for number in range(file.num_row_groups):
            part = file.read_row_group(number, [*_KINDS, *{name for name, _ in _FIGURES}])
            for group in part.group_by(_KINDS).aggregate(_FIGURES).to_pylist():
                total = totals.setdefault(tuple(group[name] for name in _KINDS), {})
                for name, how in _FIGURES:
                    column, join = f"{name}_{how}", {"min": min, "max": max}.get(how, add)
                    total[column] = join(total[column], group[column]) if column in total else group[column]
    rows = []
    for kind in sorted(totals):
        synthetic, dataset, split, generator, estimator, licence = kind
        t = totals[kind]
        pixels = " × ".join(
            f"{t[f'{side}_min']}" + (f" to {t[f'{side}_max']}" if t[f"{side}_max"] > t[f"{side}_min"] else "")
            for side in ("width", "height")
        )
        scored = f"{t['err_mm_sum'] / t['hands_count']:.1f} ({estimator})" if estimator else "-"
        cells = ["generated" if synthetic else "of the source", dataset, split or "-", generator or "-", pixels]
        cells += [f"{t['hands_count']}", f"{t['hands_sum']}", f"{t['image_bytes_sum'] / 1e6:.1f}", scored, licence]
        rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return rows
