"""What every benchmark prints: one object with the machine, the versions and rows that have the peer beside us."""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

__all__ = ["parser", "print_rows", "row"]


def parser(doc: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="fewer repetitions; under two minutes on two cores")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def row(
    name: str,
    values: float | Sequence[float],
    unit: str,
    peer: str | None = None,
    peer_value: float | None = None,
    spread: float | None = None,
) -> dict[str, Any]:
    """One figure: the median of `values` and their interquartile range, or a value with its own `spread`."""
    listed = sorted([values] if isinstance(values, int | float) else values)
    value = float(statistics.median(listed))
    if spread is None:
        spread = listed[(3 * len(listed)) // 4] - listed[len(listed) // 4] if len(listed) > 3 else 0.0
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "spread": float(spread),
        "peer": peer,
        "peer_value": None if peer_value is None else float(peer_value),
        "ratio": value / peer_value if peer_value else None,
    }


def print_rows(rows: Sequence[dict[str, Any]], as_json: bool, packages: Sequence[str]) -> None:
    """Print the result: one JSON object, or a line per row."""
    if as_json:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "system": platform.platform(),
        }
        versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
        print(json.dumps({"machine": machine, "versions": versions, "rows": list(rows)}))
        return
    for r in rows:
        beside = f"   {r['peer']}: {r['peer_value']:,.4g}, ratio {r['ratio']:.2f}" if r["peer"] else ""
        print(f"{r['name']:32} {r['value']:12,.6g} {r['unit']}  (± {r['spread']:,.3g}){beside}")
