"""Small SVG plots without a plotting library: they open anywhere and stay sharp."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["histogram"]

_W, _H, _LEFT, _BOTTOM, _TOP = 560, 220, 44, 34, 10


def histogram(series: Mapping[str, Sequence[float]], label: str, bins: int = 40) -> str:
    """Stacked histogram of finite values, one colour (CSS class) per series, x from 0 to the 99.5th percentile.

    Values beyond it are counted in the last bin, which the axis marks with "+".
    """
    finite = {name: np.asarray(v, float)[np.isfinite(np.asarray(v, float))] for name, v in series.items()}
    everything = np.concatenate([*finite.values(), np.zeros(0)])
    if not len(everything):
        return f"<p>{html.escape(label)}: nothing was scored.</p>"
    top = max(float(np.percentile(everything, 99.5)), 1e-6)
    edges = np.linspace(0.0, top, bins + 1)
    counts = {name: np.histogram(np.minimum(v, top), edges)[0] for name, v in finite.items()}
    highest = max(int(np.sum(list(counts.values()), axis=0).max()), 1)
    width = (_W - _LEFT - 10) / bins
    body: list[str] = []
    base = np.zeros(bins)
    for name, c in counts.items():
        for i in range(bins):
            if c[i]:
                height = c[i] / highest * (_H - _BOTTOM - _TOP)
                y = _H - _BOTTOM - (base[i] + c[i]) / highest * (_H - _BOTTOM - _TOP)
                title = f"{name}: {c[i]} from {edges[i]:.1f} to {edges[i + 1]:.1f}"
                body.append(
                    f'<rect class="{name}" x="{_LEFT + i * width:.1f}" y="{y:.1f}" width="{max(width - 1, 0.5):.1f}" '
                    f'height="{height:.1f}"><title>{html.escape(title)}</title></rect>'
                )
        base += c
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _LEFT + fraction * width * bins
        plus = "+" if fraction == 1.0 else ""
        body.append(f'<text x="{x:.0f}" y="{_H - 18}" text-anchor="middle">{top * fraction:.3g}{plus}</text>')
    for fraction in (0.5, 1.0):
        y = _H - _BOTTOM - fraction * (_H - _BOTTOM - _TOP)
        body.append(f'<text x="{_LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{highest * fraction:.0f}</text>')
        body.append(f'<line class="grid" x1="{_LEFT}" x2="{_W - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
    base_y = _H - _BOTTOM
    body.append(f'<line class="axis" x1="{_LEFT}" x2="{_W - 10}" y1="{base_y}" y2="{base_y}"/>')
    body.append(f'<text x="{_W / 2}" y="{_H - 3}" text-anchor="middle">{html.escape(label)}</text>')
    return (
        f'<svg class="plot" viewBox="0 0 {_W} {_H}" role="img" aria-label="{html.escape(label)}">{"".join(body)}</svg>'
    )
