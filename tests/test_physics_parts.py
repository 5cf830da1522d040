"""Convex parts of meshes: what is one part, what is split, what is kept, and what is refused with a reason."""

import numpy as np
import pytest
import trimesh

from pam_aug.errors import SourceError
from pam_aug.rollouts.convex_parts import MAX_FACES, _is_convex, _read, check_mesh, convex_hull, convex_parts


def mesh(made: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(made.vertices, np.float64), np.asarray(made.faces, np.int64)


def volume(parts: list) -> float:
    return float(sum(trimesh.Trimesh(v, f, process=False).volume for v, f in parts))


def l_shape() -> tuple[np.ndarray, np.ndarray]:
    """Two boxes of 8 x 2 x 2 cm and 2 x 6 x 2 cm that share an edge face: a prism over an L, 56 cm3."""
    outline = np.array([[0, 0], [8, 0], [8, 2], [2, 2], [2, 8], [0, 8]]) * 0.01
    verts = np.concatenate([np.c_[outline, np.zeros(6)], np.c_[outline, np.full(6, 0.02)]])
    cap = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5]])
    sides = [[[i, (i + 1) % 6, 6 + (i + 1) % 6], [i, 6 + (i + 1) % 6, 6 + i]] for i in range(6)]
    return verts, np.concatenate([cap[:, ::-1], cap + 6, np.array(sides).reshape(-1, 3)])


@pytest.mark.parametrize(
    "made",
    [
        trimesh.creation.box((0.06, 0.05, 0.1)),
        trimesh.creation.cylinder(0.03, 0.1),
        trimesh.creation.icosphere(2, 0.04),
    ],
)
def test_a_convex_mesh_is_one_part_with_its_volume(made, tmp_path):
    parts = convex_parts(*mesh(made), tmp_path)
    assert len(parts) == 1
    assert volume(parts) == pytest.approx(made.volume, rel=1e-9)
    assert not list(tmp_path.iterdir())  # nothing to keep


def test_an_open_shell_on_its_hull_is_not_taken_for_a_solid():
    verts, faces = mesh(trimesh.creation.icosphere(3, 0.04))
    bowl = faces[verts[faces].mean(1)[:, 2] < 0]
    assert _is_convex(verts, faces, convex_hull(verts))
    used = verts[np.unique(bowl)]
    assert not _is_convex(verts, bowl, convex_hull(used))


def test_a_dented_mesh_is_split_and_kept(tmp_path):
    pytest.importorskip("coacd")
    verts, faces = l_shape()
    first = convex_parts(verts, faces, tmp_path)
    assert len(first) == 2
    assert volume(first) == pytest.approx(56e-6, rel=0.02)
    (kept,) = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    again = convex_parts(verts, faces, tmp_path)
    assert kept.stat().st_mtime_ns == before
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)
    kept.write_bytes(b"damaged")
    assert _read(kept) is None


def test_faces_of_a_hull_point_outwards():
    verts, faces = convex_hull(np.random.default_rng(0).normal(size=(50, 3)) * 0.02)
    assert trimesh.Trimesh(verts, faces, process=False).volume > 0


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda v, f: (v * 1000.0, f), "millimetres"),
        (lambda v, f: (v * [1, 1, 0], f), "flat"),
        (lambda v, f: (np.where(v == v[0], np.nan, v), f), "finite"),
        (lambda v, f: (v, np.tile(f, (MAX_FACES // 12 + 1, 1))), "decimate"),
        (lambda v, f: (v, f + 8), "lacks"),
        (lambda v, f: (v, f[:0]), "no triangles"),
        (lambda v, f: (v * 1e-4, f), "zero volume"),
    ],
)
def test_a_mesh_that_no_engine_can_use_is_named(spoil, reason):
    verts, faces = spoil(*mesh(trimesh.creation.box((0.06, 0.05, 0.1))))
    with pytest.raises(SourceError, match=reason):
        convex_parts(verts, faces)


def test_a_sound_mesh_passes():
    check_mesh(*mesh(trimesh.creation.box((0.06, 0.05, 0.1))))
