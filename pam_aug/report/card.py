"""The dataset card: what the shards are, where they came from and under which licences, in the folder itself."""

from collections import Counter
from pathlib import Path

from pam_aug.report.summary import Summary
from pam_aug.shards.atomic import write_atomic

__all__ = ["write_card"]


def write_card(folder: Path, summary: Summary, command: str, notes: tuple[str, ...]) -> Path:
    """Write `card.md` from the summary and the manifest. Returns its path."""
    import pyarrow.parquet as pq

    columns = pq.read_table(folder / "manifest.parquet", columns=["dataset", "licence", "synthetic"]).to_pydict()
    kinds = Counter(zip(columns["dataset"], columns["licence"], columns["synthetic"]))
    rows = [
        f"| {dataset} | {'generated' if synthetic else 'images of the source'} | {count} | {licence or 'not stated'} |"
        for (dataset, licence, synthetic), count in sorted(kinds.items())
    ]
    s = summary
    lines = [
        "# Dataset card",
        "",
        f"Made by `{command}`. Every sample has an image and a JSON label with its provenance; see `manifest.parquet`.",
        "",
        "| labels from | images | samples | licence |",
        "|---|---|---|---|",
        *rows,
        "",
        f"* {s.kept} of {s.candidates} generated candidates kept, {s.rejected} rejected "
        f"({s.failed} of them failed); median error {s.kept_err_mm:.1f} mm kept, "
        f"{s.rejected_err_mm:.1f} mm rejected.",
        f"* Mixed at a ratio of {s.ratio} (share of real hands): an epoch reads {s.epoch_hands} hands, each "
        f"real one {s.real_reads_per_epoch:.2f} times, each synthetic one {s.synthetic_reads_per_epoch:.2f} times.",
        "* A generated image inherits the licence of the labels and meshes that it was made from, and that of its "
        "generator's weights.",
        *(f"* {note}" for note in notes),
        "",
    ]
    path = folder / "card.md"
    write_atomic(path, "\n".join(lines).encode())
    return path
