"""Mesh work for the stand-in's pictures: the arm that continues a hand, and a finer, smoother skin."""

import numpy as np

from pam_aug.render.forearm import ForearmShape, build_forearm

__all__ = ["halved", "refined", "vertex_normals", "with_arm"]


def with_arm(
    verts: np.ndarray, joints21: np.ndarray, hand_faces: np.ndarray, loop: np.ndarray, arm: ForearmShape
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Hand and bare arm as one mesh that shares the wrist's vertices; the sleeve, where there is one, as another."""
    tube = build_forearm(verts, loop, joints21[0], joints21[9], arm)
    n = len(loop)
    row = np.concatenate([loop, len(verts) + np.arange(len(tube.verts_m) - n)])
    skin_faces = np.concatenate([hand_faces, row[tube.faces[~tube.is_cloth]]])
    merged = np.concatenate([verts, tube.verts_m[n:]])
    cloth = None
    if tube.is_cloth.any():
        used, faces = np.unique(tube.faces[tube.is_cloth], return_inverse=True)
        cloth = (tube.verts_m[used], faces.reshape(-1, 3))
    return merged, skin_faces, cloth


def halved(values: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every triangle as four; returns values with midpoints appended, faces, and the edges that were halved."""
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges, row = np.unique(pairs, axis=0, return_inverse=True)
    ab, bc, ca = row.reshape(3, -1) + len(values)
    a, b, c = faces.T
    finer = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    return np.concatenate([values, values[edges].mean(1)]), finer, edges


def refined(verts: np.ndarray, faces: np.ndarray, edges: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The posed hand refined, new vertices lifted onto the smooth surface (Boubekeur and Alexa, "Phong Tessellation",
    2008), and its normals."""
    normals = vertex_normals(verts, faces)
    for edge in edges:
        a, b = verts[edge[:, 0]], verts[edge[:, 1]]
        na, nb = normals[edge[:, 0]], normals[edge[:, 1]]
        middle = 0.5 * (a + b)
        on_a = middle - np.einsum("ei,ei->e", middle - a, na)[:, None] * na
        on_b = middle - np.einsum("ei,ei->e", middle - b, nb)[:, None] * nb
        verts = np.concatenate([verts, 0.4 * middle + 0.6 * 0.5 * (on_a + on_b)])
        between = na + nb
        normals = np.concatenate([normals, between / np.linalg.norm(between, axis=1, keepdims=True)])
    return verts, normals


def vertex_normals(verts: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (v,3), area-weighted means over the faces around."""
    a, b, c = (verts[faces[:, i]] for i in range(3))
    cross = np.cross(b - a, c - a)
    out = np.zeros_like(verts)
    for i in range(3):
        np.add.at(out, faces[:, i], cross)
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
