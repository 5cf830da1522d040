"""A made-up hand with MANO's shapes, and files of it in the forms that MANO comes in. No MANO data is involved."""

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pam_aug.hand.assets import HandAssets, assets_from_arrays
from pam_aug.hand.joints import MANO_PARENTS, TIP_SETS


def tube_faces() -> np.ndarray:
    """1538 faces on 778 vertices with one open loop of 16: an open tube whose far end is closed and made finer."""
    faces: list[tuple[int, int, int]] = []
    rings = 40
    for ring in range(rings - 1):
        for i in range(16):
            a, b = 16 * ring + i, 16 * ring + (i + 1) % 16
            faces += [(a, b, a + 16), (b, b + 16, a + 16)]
    last = 16 * (rings - 1)
    top = 16 * rings
    faces += [(last + i, last + (i + 1) % 16, top) for i in range(16)]
    for new in range(top + 1, 778):  # a vertex put into a face makes two faces more
        a, b, c = faces.pop(0)
        faces += [(a, b, new), (b, c, new), (c, a, new)]
    return np.array(faces, np.int64)


def fake_hand(seed: int = 0) -> HandAssets:
    """A right hand of random arrays in float64; joints and weights are believable enough to pose."""
    rng = np.random.default_rng(seed)
    joints = np.zeros((16, 3))
    joints[0] = 0.09, 0.005, 0.005
    for finger in range(5):
        for level in range(3):
            joints[1 + 3 * finger + level] = -0.03 * level + 0.0, 0.002 * finger, 0.03 - 0.018 * finger
    owner = np.arange(778) % 16
    ends = joints + np.array([-0.03, 0, 0])
    along = rng.uniform(size=(778, 1))
    v_template = joints[owner] * (1 - along) + ends[owner] * along + rng.normal(scale=0.006, size=(778, 3))
    weights = rng.dirichlet(np.full(16, 0.05), size=778) * 0.3
    weights[np.arange(778), owner] += 0.7
    for ids in TIP_SETS.values():
        for vertex, last in zip(ids["right"], (15, 3, 6, 12, 9), strict=True):
            weights[vertex] = np.eye(16)[last]
            v_template[vertex] = ends[last] + rng.normal(scale=0.001, size=3)
    J_regressor = np.zeros((16, 778))
    for k in range(16):
        chosen = rng.choice(np.flatnonzero(owner == k), 20, replace=False)
        J_regressor[k, chosen] = rng.dirichlet(np.ones(20))
    scale = np.geomspace(1.3, 0.04, 45)
    raw = {
        "v_template": v_template,
        "f": tube_faces(),
        "f_cap": np.array([(0, i + 1, i) for i in range(1, 15)]),
        "shapedirs": rng.normal(scale=0.002, size=(778, 3, 10)),
        "posedirs": rng.normal(scale=0.001, size=(778, 3, 135)),
        "J_regressor": J_regressor,
        "weights": weights,
        "parents": np.array(MANO_PARENTS),
        "hands_mean": rng.normal(scale=0.2, size=45),
        "hands_components": scale[:, None] * np.linalg.qr(rng.normal(size=(45, 45)))[0],
        "joint_limits_rad": np.sort(rng.normal(size=(15, 3, 2)), axis=2),
    }
    return assets_from_arrays(raw, name="fake-right", side="right", where="fake")


def mano_fields(assets: HandAssets) -> dict[str, Any]:
    """The fields of an official file, in plain numpy."""
    parents = np.array(assets.parents, np.int64)
    parents[0] = 4294967295
    return {
        "v_template": assets.v_template,
        "f": assets.f.astype(np.uint32),
        "shapedirs": assets.shapedirs,
        "posedirs": assets.posedirs,
        "J_regressor": assets.J_regressor,
        "weights": assets.weights,
        "kintree_table": np.stack([parents, np.arange(16)]),
        "hands_mean": assets.hands_mean,
        "hands_components": assets.hands_components,
        "hands_coeffs": np.zeros((3, 45)),
        "J": assets.rest_joints_m,
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


@contextmanager
def _foreign_classes() -> Iterator[types.SimpleNamespace]:
    """Stub classes under the names that the official pickles refer to."""
    made = {}
    before = {}
    names = [("chumpy.reordering", "Select"), ("chumpy.ch", "Ch"), ("scipy.sparse.csc", "csc_matrix")]
    for module, name in names:
        cls = type(name, (), {"__module__": module, "__qualname__": name})
        before[module] = sys.modules.get(module)
        sys.modules[module] = types.ModuleType(module)
        setattr(sys.modules[module], name, cls)
        made[name] = cls
    packages = {name: sys.modules.get(name) for name in ("chumpy",)}
    sys.modules["chumpy"] = types.ModuleType("chumpy")
    try:
        yield types.SimpleNamespace(**made)
    finally:
        for module, old in {**before, **packages}.items():
            if old is None:
                del sys.modules[module]
            else:
                sys.modules[module] = old


def write_official(assets: HandAssets, path: Path, *, protocol: int = 2, shapedirs: np.ndarray | None = None) -> Path:
    """A pickle in the form of `MANO_{SIDE}.pkl`: chumpy shape directions, a sparse regressor, Python 2 protocol."""
    content = mano_fields(assets)
    wanted = assets.shapedirs if shapedirs is None else shapedirs
    rows, columns = np.nonzero(assets.J_regressor.T)[::-1]
    with _foreign_classes() as foreign:
        inner = foreign.Ch()
        inner.x = np.concatenate([wanted, np.full_like(wanted, 7.0)], axis=2)
        select = foreign.Select()
        select.a = inner
        select.idxs = np.arange(778 * 3 * 20).reshape(778, 3, 20)[..., :10].ravel()
        select.preferred_shape = (778, 3, 10)
        sparse = foreign.csc_matrix()
        sparse._shape = (16, 778)
        sparse.data = assets.J_regressor[rows, columns]
        sparse.indices = rows.astype(np.int32)
        sparse.indptr = np.searchsorted(columns, np.arange(779)).astype(np.int32)
        content.update(shapedirs=select, J_regressor=sparse)
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def write_clean(assets: HandAssets, path: Path) -> Path:
    """A pickle of plain numpy arrays, or an `.npz`, by the suffix."""
    if path.suffix == ".npz":
        np.savez(path, **mano_fields(assets))
    else:
        path.write_bytes(pickle.dumps(mano_fields(assets), protocol=2))
    return path
