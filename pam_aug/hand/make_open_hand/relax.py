"""Lay the open hand's connected mesh onto its surface: relaxation, and the cut of quads into outward triangles."""

import numpy as np
from jaxtyping import Float, Int

from pam_aug.hand.make_open_hand.mesh import Mesh
from pam_aug.hand.make_open_hand.surface import Field, field_gradient


def _edges(faces: list[tuple[int, ...]]) -> Int[np.ndarray, "e 2"]:
    pairs = {tuple(sorted((f[k], f[(k + 1) % len(f)]))) for f in faces for k in range(len(f))}
    return np.array(sorted(pairs))


def relax(mesh: Mesh, fields: dict[str, Field], rounds: int = 120) -> Float[np.ndarray, "v 3"]:
    """Slide free vertices to their neighbours' mean and back onto their field; the wrist loop stays in its plane."""
    v = np.array(mesh.points)
    edges = _edges([*mesh.quads, *mesh.triangles])
    owners = {name: np.array([i for i, o in enumerate(mesh.owner) if o == name]) for name in sorted(set(mesh.owner))}
    free = np.array([i not in mesh.fixed for i in range(len(v))])
    wrist = np.array(mesh.wrist)
    home, hold = v.copy(), np.zeros(len(v))
    hold[list(mesh.anchor)] = list(mesh.anchor.values())
    on_loop = np.isin(edges, wrist).all(axis=1)
    touches_loop = np.isin(edges[:, 0], wrist) | np.isin(edges[:, 1], wrist)
    for n in range(rounds):
        total, count = np.zeros_like(v), np.zeros(len(v))
        for ends, mask in ((edges, np.ones(len(edges), bool)), (edges[:, ::-1], np.ones(len(edges), bool))):
            # a loop vertex listens to its loop alone
            keep = mask & (~np.isin(ends[:, 0], wrist) | on_loop | ~touches_loop)
            np.add.at(total, ends[keep, 0], v[ends[keep, 1]])
            np.add.at(count, ends[keep, 0], 1)
        pull = (1 - hold[:, None]) * (total / count[:, None] - v) + hold[:, None] * (home - v)
        v = v + 0.6 * pull * free[:, None]
        for _ in range(3 if n in (0, rounds - 1) else 1):
            for name, ids in owners.items():
                sub = ids if n in (0, rounds - 1) else ids[free[ids]]
                value, gradient = fields[name](v[sub]), field_gradient(fields[name], v[sub])
                is_loop = np.isin(sub, wrist)
                gradient[is_loop, 0] = 0.0
                step = -value[:, None] * gradient / np.maximum((gradient**2).sum(1), 0.05)[:, None]
                length = np.linalg.norm(step, axis=1, keepdims=True)
                v[sub] += step * np.minimum(1, 0.006 / np.maximum(length, 1e-12))
    return v


def triangulate(mesh: Mesh, v: Float[np.ndarray, "v 3"]) -> Int[np.ndarray, "f 3"]:
    """Cut each quad along the diagonal that makes the flatter, better shaped pair, outward winding."""
    faces = list(mesh.triangles)
    for a, b, c, d in mesh.quads:
        first = min(_quality(v, a, b, c), _quality(v, a, c, d))
        second = min(_quality(v, a, b, d), _quality(v, b, c, d))
        faces += [(a, b, c), (a, c, d)] if first >= second - 1e-3 else [(a, b, d), (b, c, d)]
    f = _orient(np.array(faces))
    volume = np.einsum("ij,ij->", v[f[:, 0]], np.cross(v[f[:, 1]], v[f[:, 2]]))
    return f if volume > 0 else f[:, ::-1].copy()


def _orient(faces: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "f 3"]:
    """One winding for all faces: neighbours must run along their shared edge in opposite directions."""
    at_edge: dict[tuple[int, int], list[int]] = {}
    for n, (a, b, c) in enumerate(faces):
        for i, j in ((a, b), (b, c), (c, a)):
            at_edge.setdefault((min(i, j), max(i, j)), []).append(n)
    out = faces.copy()
    done, stack = {0}, [0]
    while stack:
        n = stack.pop()
        a, b, c = (int(i) for i in out[n])
        for i, j in ((a, b), (b, c), (c, a)):
            for other in at_edge[(min(i, j), max(i, j))]:
                if other not in done:
                    x, y, z = (int(k) for k in out[other])
                    if (i, j) in ((x, y), (y, z), (z, x)):
                        out[other] = (z, y, x)
                    done.add(other)
                    stack.append(other)
    return out


def _quality(v: Float[np.ndarray, "v 3"], a: int, b: int, c: int) -> float:
    """Area over squared edges, 1 for an equilateral triangle."""
    e = v[[b, c, a]] - v[[a, b, c]]
    return float(2 * np.sqrt(3) * np.linalg.norm(np.cross(e[0], e[1])) / (e**2).sum())
