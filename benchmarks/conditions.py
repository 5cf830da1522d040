"""Depth and segmentation per frame: our z-buffer beside trimesh's ray casting (embreex), on the same meshes and rays.

    python benchmarks/conditions.py [--quick] [--json]

Frames are 480x720: the bundled hand (1538 faces) in front of an object (5120 faces), whose vertices change each
frame. Both give depth and the id of the nearest mesh in every pixel of the meshes' bounding box in the image; ray
casting gets only the rays of that box. Both run on one core. A last row says how long one candidate of the bundled
generator takes.
"""

import statistics
import sys
import time
from importlib import metadata
from typing import Any

import numpy as np
import trimesh
from rows import parser, print_rows, row

from pam_aug.hand import load_open_hand
from pam_aug.render.appearance import Piece, prepare, shade
from pam_aug.render.camera_noise import encode_jpeg
from pam_aug.render.conditions import Part, merge_parts
from pam_aug.render.rasterizer import rasterize

WIDTH, HEIGHT = 720, 480
K_PX = np.array([[910.0, 0.0, 371.0], [0.0, 905.0, 233.0], [0.0, 0.0, 1.0]])
PEER = "trimesh+embreex"


def frame_parts(k: int) -> list[Part]:
    """Hand and object of frame k, slowly turning."""
    hand = load_open_hand("right")
    sphere = trimesh.creation.icosphere(subdivisions=4)
    turn = trimesh.transformations.rotation_matrix(0.1 * k, (0.3, 1.0, 0.2))[:3, :3]
    ball = sphere.vertices * (0.05, 0.035, 0.06)
    return [
        Part(hand.v_template.astype(np.float64) @ turn.T + (0.0, 0.0, 0.5), hand.f, 1),
        Part(ball @ turn.T + (-0.04, -0.06, 0.52), np.asarray(sphere.faces), 16),
    ]


def draw(parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
    verts, faces, which = merge_parts(parts)
    raster = rasterize(verts, faces, K_PX, WIDTH, HEIGHT)
    ids = np.append(np.array([p.seg_id for p in parts])[which], 0).astype(np.uint8)
    return raster.depth_m, ids[raster.face]


def cast(parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
    from trimesh.ray.ray_pyembree import RayMeshIntersector

    verts, faces, which = merge_parts(parts)
    mesh = trimesh.Trimesh(verts, faces, process=False)
    uv = verts @ K_PX.T
    uv = uv[:, :2] / uv[:, 2:]
    low = np.clip(np.floor(uv.min(0)), 0, (WIDTH - 1, HEIGHT - 1)).astype(int)
    high = np.clip(np.ceil(uv.max(0)), 0, (WIDTH - 1, HEIGHT - 1)).astype(int)
    u, v = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
    rays = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], 1) @ np.linalg.inv(K_PX).T
    at, ray, face = RayMeshIntersector(mesh, scale_to_box=False).intersects_location(
        np.zeros_like(rays), rays, multiple_hits=False
    )
    depth, seg = np.zeros((HEIGHT, WIDTH), np.float32), np.zeros((HEIGHT, WIDTH), np.uint8)
    depth[v.ravel()[ray], u.ravel()[ray]] = at[:, 2]
    seg[v.ravel()[ray], u.ravel()[ray]] = np.array([p.seg_id for p in parts])[which[face]]
    return depth, seg


def measure(quick: bool) -> list[dict[str, Any]]:
    frames = [frame_parts(k) for k in range(10 if quick else 60)]
    draw(frames[0])
    cast(frames[0])
    mine: list[float] = []
    theirs: list[float] = []
    worst_m, odd, seen = 0.0, 0, 0
    for parts in frames:
        start = time.perf_counter()
        depth, seg = draw(parts)
        middle = time.perf_counter()
        peer_depth, peer_seg = cast(parts)
        theirs.append(1 / (time.perf_counter() - middle))
        mine.append(1 / (middle - start))
        same = (seg == peer_seg) & (seg > 0)
        worst_m = max(worst_m, float(np.abs(depth - peer_depth)[same].max()))
        odd += int((seg != peer_seg).sum())
        seen += int((peer_seg > 0).sum())
    rows = [row("frames_per_s", mine, "frames/s", PEER, statistics.median(theirs))]
    rows.append(row("seg_differing_pixel_share", [odd / seen], "1"))
    rows.append(row("depth_max_abs_diff_m", [worst_m], "m"))
    rows.append(row("rendered_candidates_per_s", candidates(10 if quick else 30, 1 if quick else 4), "images/s"))
    return rows


def candidates(per_input: int, inputs: int) -> list[float]:
    """Images per second of the bundled generator at 256x256 for inputs of hand and object, JPEG included; per input."""
    k_px = np.array([[400.0, 0, 127.5], [0, 400.0, 127.5], [0, 0, 1]])
    hand = load_open_hand("right")
    rates = []
    for k in range(inputs + 1):
        parts = frame_parts(3 * k)
        rest = trimesh.creation.icosphere(subdivisions=4).vertices * (0.05, 0.035, 0.06)
        pieces = [Piece(parts[0], hand.v_template, "hand", hand), Piece(parts[1], np.asarray(rest), "object")]
        start = time.perf_counter()
        prepared = prepare(pieces, k_px, 256, 256)
        for seed in range(per_input):
            encode_jpeg(shade(prepared, 1000 * k + seed), 92, "420")
        rates.append(per_input / (time.perf_counter() - start))
    return rates[1:]  # the first input pays for loading the kernels


def main() -> int:
    options = parser(__doc__).parse_args()
    try:
        metadata.version("embreex")
    except metadata.PackageNotFoundError:
        print("embreex is needed for the comparison: pip install 'pam_aug[dev]'", file=sys.stderr)
        return 2
    import cv2

    cv2.setNumThreads(1)
    print_rows(measure(options.quick), options.json, ("pam_aug", "numpy", "numba", "trimesh", "embreex"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
