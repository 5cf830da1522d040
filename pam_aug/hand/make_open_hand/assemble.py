"""The open hand's arrays, put together from its skeleton, surface, mesh, skin, shapes and poses."""

import io
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from pam_aug.hand.make_open_hand.mesh import build_mesh, number_vertices
from pam_aug.hand.make_open_hand.poses import joint_axes, joint_ranges, pose_statistics
from pam_aug.hand.make_open_hand.relax import relax, triangulate
from pam_aug.hand.make_open_hand.shape import shape_directions
from pam_aug.hand.make_open_hand.skeleton import PARENTS, Digit, build_digits, rest_joints
from pam_aug.hand.make_open_hand.skin import joint_regressor, pose_correctives, skin_weights
from pam_aug.hand.make_open_hand.surface import finger_tube, hand_fields, thumb_tube

__all__ = ["make_open_hand", "write_npz"]


def make_open_hand() -> dict[str, np.ndarray]:
    """All arrays of the right open hand, float32 or integer, under MANO's names and shapes (see `HandAssets`)."""
    digits = build_digits()
    tubes = {name: thumb_tube(d) if name == "thumb" else finger_tube(d) for name, d in digits.items()}
    fields = hand_fields(digits)
    mesh = build_mesh(digits, tubes)
    points = relax(mesh, fields)
    faces = triangulate(mesh, points)
    order = number_vertices(mesh)
    back = np.argsort(order)
    v, f = points[order], back[faces]
    owner = [mesh.owner[i] for i in order]
    f = f[np.lexsort(f.min(axis=1, keepdims=True).T)]
    joints = rest_joints(digits)
    weights = skin_weights(v, f, owner, digits)
    regressor = joint_regressor(v, weights, joints)
    joints = regressor @ v
    arrays = {
        "v_template": v,
        "f": f.astype(np.int32),
        "f_cap": close_loop(f),
        "shapedirs": shape_directions(v, weights, digits),
        "posedirs": pose_correctives(v, weights, digits, joints),
        "J_regressor": regressor,
        "weights": weights,
        "parents": PARENTS,
        **pose_statistics(digits),
        "joint_axes": joint_axes(digits),
        "joint_ranges_rad": joint_ranges(),
        "nail": nail_mask(v, owner, digits),
        "palmar": palm_mask(v, f),
    }
    return {k: a.astype(np.float32) if a.dtype == np.float64 else a for k, a in arrays.items()}


def close_loop(f: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, "c 3"]:
    """Fourteen triangles over the wrist loop, with the winding that continues the mesh's: a zigzag, so that none is a
    sliver."""
    directed = {(int(a), int(b)) for t in f for a, b in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))}
    after = {b: a for a, b in directed if (b, a) not in directed}
    loop = [min(after)]
    while len(loop) < len(after):
        loop.append(after[loop[-1]])
    faces, low, high = [], 0, len(loop) - 1
    while low + 1 < high:
        faces.append((loop[low], loop[low + 1], loop[high]))
        low += 1
        if low + 1 < high:
            faces.append((loop[low], loop[high - 1], loop[high]))
            high -= 1
    return np.array(faces, dtype=np.int32)


def nail_mask(v: Float[np.ndarray, "v 3"], owner: list[str], digits: dict[str, Digit]) -> np.ndarray:
    """Digit number (1 thumb ... 5 little) on the vertices of each nail, else 0; uint8."""
    out = np.zeros(len(v), dtype=np.uint8)
    for number, name in enumerate(("thumb", "index", "middle", "ring", "little"), start=1):
        d = digits[name]
        u, a, b = d.to_local(v).T
        length = d.joint_u[3] - d.joint_u[2]
        above = b - np.interp(u, d.joint_u, d.joint_b)
        on_nail = (
            (u > d.joint_u[2] + 0.45 * length) & (u < d.joint_u[3] - 0.0005) & (above > 0.002) & (np.abs(a) < 0.007)
        )
        out[on_nail & np.array([o == name for o in owner])] = number
    return out


def palm_mask(v: Float[np.ndarray, "v 3"], f: Int[np.ndarray, "f 3"]) -> np.ndarray:
    """1 where the rest normal looks to the palm's side (-y), else 0; uint8."""
    normal = np.zeros_like(v)
    across = np.cross(v[f[:, 1]] - v[f[:, 0]], v[f[:, 2]] - v[f[:, 0]])
    for k in range(3):
        np.add.at(normal, f[:, k], across)
    return (normal[:, 1] < 0).astype(np.uint8)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A compressed npz with fixed dates and order, so that equal arrays give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue())
