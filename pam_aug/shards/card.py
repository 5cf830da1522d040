"""The dataset card: what a build holds, whose licences bind it, and how to read it, as Markdown for people and hubs."""

from pathlib import Path

from pam_aug.shards.manifest import Mix

__all__ = ["dataset_card"]

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
"""


def dataset_card(title: str, mix: Mix, manifest: Path) -> str:
    """The text of `card.md` for a build, counted from its `manifest.parquet`: the same tables give the same text."""
    import pyarrow.parquet as pq

    columns = ["synthetic", "dataset", "licence", "generator"]
    table = pq.ParquetFile(manifest).read(columns=[*columns, "hands"])
    groups = table.group_by(columns).aggregate([("hands", "count"), ("hands", "sum")]).to_pylist()
    groups.sort(key=lambda g: tuple(g[c] for c in columns))
    rows = [
        f"| {'generated' if g['synthetic'] else 'of the source'} | {g['dataset']} | {g['generator'] or '-'} "
        f"| {g['licence']} "
        f"| {g['hands_count']} | {g['hands_sum']} |"
        for g in groups
    ]
    sources = [f"| {s.name} | {s.share} | {s.keep} | {len(s.shards)} | {s.samples} | {s.hands} |" for s in mix.sources]
    lines = [
        *("---", "license: other", "task_categories: [keypoint-detection]"),
        *("tags: [hand-pose-estimation, webdataset, synthetic]", "---", ""),
        *(f"# {title}", "", "## What it holds", ""),
        *("| images | labels from | generator | licence | samples | hands |", "|---|---|---|---|---|---|", *rows, ""),
        "Synthetic images carry the licence of the labels that they were made from, and the terms of their generator.",
        *("", "## How it is mixed", ""),
        *("| source | share | sequences kept | shards | images | hands |", "|---|---|---|---|---|---|", *sources, ""),
        f"Seed {mix.seed}; a source with too few samples for an epoch: {mix.when_short}.",
        *("", _READING.format(name=title)),
    ]
    return "\n".join(lines)
