"""Small SVG plots without a plotting library: they open anywhere and stay sharp."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["axis_step", "histogram"]

_W, _H, _LEFT, _RIGHT, _BOTTOM, _TOP = 560, 260, 44, 22, 52, 12


def axis_step(span: float, most: int = 5) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides `span` (above 0) into at most `most` parts, rounded up."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(power * f for f in (1, 2, 5, 10) if math.ceil(span / (power * f) - 1e-9) <= most)


def histogram(series: Mapping[str, Sequence[float]], label: str, bins: int = 40) -> str:
    """Stacked histogram of finite values, one colour (CSS class) per series, x from 0 past the 99.5th percentile.

    Values beyond the axis are counted in the last bin, and its end is marked with "+".
    """
    finite = {name: np.asarray(v, float)[np.isfinite(np.asarray(v, float))] for name, v in series.items()}
    everything = np.concatenate([*finite.values(), np.zeros(0)])
    if not len(everything):
        return f"<p>{html.escape(label)}: nothing was scored.</p>"
    far = max(float(np.percentile(everything, 99.5)), 1e-6)
    step = axis_step(far)
    steps = math.ceil(far / step - 1e-9)
    top = step * steps
    edges = np.linspace(0.0, top, bins + 1)
    counts = {name: np.histogram(np.minimum(v, top), edges)[0] for name, v in finite.items()}
    highest = max(int(np.sum(list(counts.values()), axis=0).max()), 1)
    width, base_y = (_W - _LEFT - _RIGHT) / bins, _H - _BOTTOM
    body: list[str] = []
    up = max(axis_step(highest, 3), 1.0)
    for k in range(1, int(highest // up) + 1):
        count = k * up
        y = base_y - count / highest * (base_y - _TOP)
        body.append(f'<text x="{_LEFT - 6}" y="{y + 5:.0f}" text-anchor="end">{count:g}</text>')
        body.append(f'<line class="grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    base = np.zeros(bins)
    for name, c in counts.items():
        for i in range(bins):
            if c[i]:
                height = c[i] / highest * (base_y - _TOP)
                y = base_y - (base[i] + c[i]) / highest * (base_y - _TOP)
                title = f"{name}: {c[i]} from {edges[i]:.1f} to {edges[i + 1]:.1f}"
                body.append(
                    f'<rect class="{name}" x="{_LEFT + i * width:.1f}" y="{y:.1f}" width="{max(width - 1, 0.5):.1f}" '
                    f'height="{height:.1f}"><title>{html.escape(title)}</title></rect>'
                )
        base += c
    for k in range(steps + 1):
        x = _LEFT + k / steps * width * bins
        plus = "+" if k == steps and everything.max() > top else ""
        body.append(f'<text x="{x:.0f}" y="{base_y + 18}" text-anchor="middle">{step * k:g}{plus}</text>')
    body.append(f'<line class="axis" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{base_y}" y2="{base_y}"/>')
    body.append(f'<text x="{_W / 2}" y="{_H - 8}" text-anchor="middle">{html.escape(label)}</text>')
    return (
        f'<svg class="plot" viewBox="0 0 {_W} {_H}" role="img" aria-label="{html.escape(label)}">{"".join(body)}</svg>'
    )
