"""The open hand's mesh: 778 vertices in rings that follow the fingers and the palm, laid onto the implicit surface.

The palm is a tube of 20-vertex rings from the finger bases to the wrist; each finger leaves it through a block of two
by two quads and runs in rings of eight, the thumb through a block of three by three on the radial side. Four triangles
narrow the palm to the 16-vertex wrist loop. Vertices slide over the surface until they are evenly spread, then each
quad is cut along its better diagonal.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from pam_aug.hand.make_open_hand.skeleton import CUT_X, Digit
from pam_aug.hand.make_open_hand.surface import Tube

FINGERS_BY_COLUMN = ("index", "middle", "ring", "little")  # from the thumb's side to the little finger's
PALM_ROWS = 14  # row 0 holds the finger bases, row 14 the wrist loop
_DROPPED = {8: (6,), 9: (6,), **dict.fromkeys(range(10, 14), (6, 16)), 14: (6, 16, 2, 12)}
_THUMB_ROWS = (4, 7)
_KNUCKLE_ROW = 3  # the palm row over the knuckles' summits
_RIM_U, _RIM_LEAN = 0.022, 0.013  # where the thumb leaves the palm, metres along it, and how much that line leans
_WEB_MM = {"index": 20.0, "middle": 21.0, "ring": 20.0, "little": 15.5}
# Ring positions as (joint, offset mm): joint 0 is the MCP, 1 the PIP, 2 the DIP, 3 the tip.
_FINGER_RINGS = (
    (0, 27.5),
    (1, -9.5),
    (1, -4.5),
    (1, 0.3),
    (1, 5.2),
    (2, -10.0),
    (2, -4.6),
    (2, -0.4),
    (2, 3.8),
    (3, -9.5),
    (3, -4.0),
    (3, -0.75),
)
# The web beside the ring finger reaches further along the little finger than its outer side: its first rings lean.
_LEAN_MM = {("little", 0): 3.5, ("little", 1): 1.5, ("little", 2): 0.5}
_LITTLE_RINGS = (
    (0, 23.5),
    (1, -5.8),
    (1, -1.8),
    (1, 1.7),
    (1, 5.7),
    (2, -8.8),
    (2, -4.0),
    (2, 0.2),
    (3, -12.5),
    (3, -4.0),
    (3, -0.7),
)
_THUMB_RINGS = (
    (1, -10.0),
    (1, -4.0),
    (1, 1.5),
    (1, 8.5),
    (2, -15.0),
    (2, -7.5),
    (2, -1.0),
    (2, 5.5),
    (3, -13.5),
    (3, -5.5),
    (3, -1.2),
)
# The ids that the tip sets of other hand models use: the first of each is the pole of the fingertip.
TIP_IDS = {
    "index": (320, 317),
    "middle": (444, 443, 445),
    "little": (672, 671, 673),
    "ring": (555, 554, 556),
    "thumb": (744, 745),
}


@dataclass
class Mesh:
    """A mesh under construction: vertices with their field's name, rings, quads and triangles (vertex ids)."""

    points: list[Float[np.ndarray, "3"]] = field(default_factory=list)
    owner: list[str] = field(default_factory=list)
    quads: list[tuple[int, int, int, int]] = field(default_factory=list)
    triangles: list[tuple[int, int, int]] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    poles: dict[str, list[int]] = field(default_factory=dict)
    wrist: list[int] = field(default_factory=list)
    anchor: dict[int, float] = field(default_factory=dict)  # how firmly a vertex keeps to its first guess

    def add(self, points: Float[np.ndarray, "n 3"], owner: str, fixed: bool = False) -> list[int]:
        ids = list(range(len(self.points), len(self.points) + len(points)))
        self.points += list(points)
        self.owner += [owner] * len(points)
        if fixed:
            self.fixed.update(ids)
        return ids

    def join(self, outer: list[int], inner: list[int]) -> None:
        """Faces between two rings of the same direction; equal counts give quads, else a strip of triangles."""
        n, m = len(outer), len(inner)
        if n == m:
            self.quads += [(outer[i], outer[(i + 1) % n], inner[(i + 1) % n], inner[i]) for i in range(n)]
            return
        p = np.array(self.points)
        outer_at, inner_at = (np.arange(n) + 0.5) / n, (np.arange(m) + 0.5) / m
        nearest = np.abs(outer_at[:, None] - inner_at[None]).argmin(axis=1)
        cost = [np.linalg.norm(p[outer] - p[np.roll(inner, -shift)][nearest], axis=1).sum() for shift in range(m)]
        inner = list(np.roll(inner, -int(np.argmin(cost))))
        i = j = 0
        while i < n or j < m:
            a, b = outer[i % n], int(inner[j % m])
            if (i + 1) * m <= (j + 1) * n and i < n:
                self.triangles.append((a, outer[(i + 1) % n], b))
                i += 1
            else:
                self.triangles.append((a, int(inner[(j + 1) % m]), b))
                j += 1


def _ring(tube: Tube, u: float, angles_deg: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 3"]:
    """Points on a tube's section at u, by angle from its lateral axis towards the dorsal one."""
    lateral, dorsal, palmar, centre = tube.profile(np.array([u]))[0]
    t = max(u - tube.end[0], 0) / tube.end[1]
    cap = np.sqrt(max(1 - t * t, 0.0))
    c, s = np.cos(np.radians(angles_deg)), np.sin(np.radians(angles_deg))
    p = tube.power
    depth = np.where(s > 0, dorsal, palmar)
    radius = cap / ((np.abs(c) / lateral) ** p + (np.abs(s) / depth) ** p) ** (1 / p)
    local = np.stack([np.full_like(c, u), radius * c, centre + radius * s], axis=1)
    return tube.origin + local @ tube.axes


def _palm_start(digits: dict[str, Digit], tubes: dict[str, Tube]) -> Float[np.ndarray, "20 3"]:
    """First guess of row 0: around the four finger bases, top columns 0-8, side, bottom columns 8-0, side."""
    ring = np.zeros((20, 3))
    angles = np.array([45.0, 90, 135, 180, 225, 270, 315, 0])
    for j, name in enumerate(FINGERS_BY_COLUMN):
        at = _ring(tubes[name], _WEB_MM[name] * 1e-3, angles)
        share = [1.0 if j == 0 else 0.5, 1.0, 1.0 if j == 3 else 0.5]
        for k in range(3):
            ring[2 * j + k] += share[k] * at[k]
            ring[18 - 2 * j - k] += share[k] * at[6 - k]
        if j == 0:
            ring[19] = at[7]
        if j == 3:
            ring[9] = at[3]
    return ring


def _knuckle_ring(digits: dict[str, Digit]) -> Float[np.ndarray, "20 3"]:
    """Twenty points around the knuckles: odd columns over and under the joints, even ones between them."""
    ring = np.zeros((20, 3))
    for j, name in enumerate(FINGERS_BY_COLUMN):
        d = digits[name]
        over, under = d.to_world(np.array([[-0.001, 0.0, 0.011], [0.004, 0.0, -0.015]]))
        side = d.axes[1] * 0.0105
        for column, weight, shift in ((2 * j, 0.5, side), (2 * j + 1, 1.0, 0 * side), (2 * j + 2, 0.5, -side)):
            weight = 1.0 if column in (0, 8) else weight
            ring[column] += weight * (over + shift)
            ring[18 - column] += weight * (under + shift)
        if j in (0, 3):
            ring[19 if j == 0 else 9] = d.points[0] + side * (1.25 if j == 0 else -1.25) - 0.002 * d.axes[2]
    return ring


def _palm_row(guides: tuple[Float[np.ndarray, "20 3"], ...], r: int) -> Float[np.ndarray, "20 3"]:
    """First guess of palm row r: from the finger bases over the knuckles to the wrist."""
    start, knuckles, stop = guides
    if r <= _KNUCKLE_ROW:
        return start + (knuckles - start) * r / _KNUCKLE_ROW
    return knuckles + (stop - knuckles) * (r - _KNUCKLE_ROW) / (PALM_ROWS - _KNUCKLE_ROW)


def _anchor_strength(r: int, column: int) -> float:
    """How firmly a palm vertex keeps to its guide: the columns follow the bones on the back of the hand and near the
    knuckles."""
    if r in (0, PALM_ROWS) or column in (0, 9, 17, 18, 19):
        return 0.0
    if column <= 8:
        return 0.5 if r <= 6 else 0.25
    return 0.4 if r <= 4 else 0.0


def _wrist_virtual() -> Float[np.ndarray, "20 3"]:
    """Twenty points around the wrist that correspond to the palm's columns."""
    angles = np.radians(np.concatenate([np.linspace(28, 152, 9), [180], np.linspace(208, 332, 9), [360]]))
    return np.stack([np.full(20, CUT_X), 0.002 + 0.018 * np.sin(angles), 0.0045 + 0.027 * np.cos(angles)], axis=1)


def build_mesh(digits: dict[str, Digit], tubes: dict[str, Tube]) -> Mesh:
    """The connected mesh with first-guess positions."""
    mesh = Mesh()
    guides = _palm_start(digits, tubes), _knuckle_ring(digits), _wrist_virtual()
    rows: list[dict[int, int]] = []
    for r in range(PALM_ROWS + 1):
        keep = [i for i in range(20) if i not in _DROPPED.get(r, ())]
        ids = mesh.add(_palm_row(guides, r)[keep], "all")
        mesh.anchor.update({i: a for c, i in zip(keep, ids, strict=True) if (a := _anchor_strength(r, c)) > 0})
        rows.append(dict(zip(keep, ids, strict=True)))
    mesh.wrist = list(rows[-1].values())
    low, high = _THUMB_ROWS
    for r in range(PALM_ROWS):
        a, b = rows[r], rows[r + 1]
        if len(a) == len(b):
            keys = list(a)
            for k, nxt in zip(keys, [*keys[1:], keys[0]], strict=True):
                if not (low <= r < high and k in (17, 18, 19)):
                    mesh.quads.append((a[k], a[nxt], b[nxt], b[k]))
        else:
            _join_narrower(mesh, a, b)
    mids = [mesh.add((_web_middle(mesh, rows[0][2 * j], rows[0][18 - 2 * j]))[None], "all")[0] for j in (1, 2, 3)]
    for j, name in enumerate(FINGERS_BY_COLUMN):
        first, last = rows[0][19] if j == 0 else mids[j - 1], rows[0][9] if j == 3 else mids[j]
        top, bottom = [rows[0][2 * j + k] for k in range(3)], [rows[0][18 - 2 * j - k] for k in range(3)]
        ring = [*top, last, *bottom[::-1], first]
        angles = np.array([45.0, 90, 135, 180, 225, 270, 315, 0])
        spec = _LITTLE_RINGS if name == "little" else _FINGER_RINGS
        for n, (joint, offset) in enumerate(spec):
            u = digits[name].joint_u[joint] + offset * 1e-3
            lean = _LEAN_MM.get((name, n), 0.0) * 1e-3 * np.cos(np.radians(angles))
            points = _ring(tubes[name], u, angles) + lean[:, None] * digits[name].axes[0]
            inner = mesh.add(points, name, fixed=n > 0)
            mesh.join(ring, inner)
            ring = inner
        tip = digits[name].to_world(np.array([[digits[name].joint_u[3], 0.0, digits[name].joint_b[3]]]))
        pole = mesh.add(tip, name, fixed=True)[0]
        mesh.quads += [(ring[(k - 1) % 8], ring[k], ring[k + 1], pole) for k in (0, 2, 4, 6)]
        # beside the pole: two neighbours on the pad
        mesh.poles[name] = [pole, ring[5], ring[4]]
    _add_thumb(mesh, digits["thumb"], tubes["thumb"], rows, digits["index"].points[0])
    return _without_orphans(mesh)


def _web_middle(mesh: Mesh, i: int, j: int) -> Float[np.ndarray, "3"]:
    """The middle of a web, pushed a little towards the fingertips so that it starts outside the skin."""
    return 0.5 * (mesh.points[i] + mesh.points[j]) + np.array([-0.002, 0.0, 0.0])


def _join_narrower(mesh: Mesh, a: dict[int, int], b: dict[int, int]) -> None:
    """Quads where both rows have the column, one triangle where the second row lost it."""
    keys = list(b)
    for k, nxt in zip(keys, [*keys[1:], keys[0]], strict=True):
        between = [i for i in a if (k < i < nxt) or (nxt < k < i)]
        if between:
            middle = a[between[0]]
            mesh.triangles += [(a[k], middle, b[k]), (middle, b[nxt], b[k]), (middle, a[nxt], b[nxt])]
        else:
            mesh.quads.append((a[k], a[nxt], b[nxt], b[k]))


def _add_thumb(
    mesh: Mesh, digit: Digit, tube: Tube, rows: list[dict[int, int]], web_side: Float[np.ndarray, "3"]
) -> None:
    low, high = _THUMB_ROWS
    columns = (17, 18, 19, 0)
    ring = [rows[low][c] for c in columns] + [rows[r][0] for r in range(low + 1, high)]
    ring += [rows[high][c] for c in columns[::-1]] + [rows[r][17] for r in range(high - 1, low, -1)]
    around = digit.to_local(np.array(mesh.points)[ring])
    # the ball's rim leans: far along the thumb in the web, near the wrist on the outer side
    inwards = digit.to_local(web_side[None])[0, 1:]
    section = around[:, 1:] - around[:, 1:].mean(axis=0)
    section /= np.linalg.norm(section, axis=1, keepdims=True)
    lean = section @ inwards / np.linalg.norm(inwards)
    rim = np.column_stack([_RIM_U + _RIM_LEAN * lean, 0.017 * section])
    for i, place in zip(ring, digit.to_world(rim), strict=True):
        mesh.points[i] = place
        mesh.anchor[i] = 0.2
    turn = np.arctan2(around[:, 2] - around[:, 2].mean(), around[:, 1] - around[:, 1].mean())
    sign = np.sign(np.sum((np.diff(turn, append=turn[:1]) + np.pi) % (2 * np.pi) - np.pi))
    for n, (joint, offset) in enumerate(_THUMB_RINGS):
        count = 11 if n == 0 else 10
        u = digit.joint_u[joint] + offset * 1e-3
        angles = sign * (np.arange(count) * 360 / count - 144)
        inner = mesh.add(_ring(tube, u, angles), "thumb", fixed=n > 2)
        mesh.join(ring, inner)
        ring = inner
    u, b = digit.joint_u[3], digit.joint_b[3]
    across = 0.0012
    i0, i1 = mesh.add(digit.to_world(np.array([[u, -across, b], [u, across, b]])), "thumb", fixed=True)
    r = ring
    mesh.quads += [(r[0], r[1], i0, r[9]), (r[1], r[2], i1, i0), (r[2], r[3], r[4], i1)]
    mesh.quads += [(r[9], i0, r[7], r[8]), (i0, i1, r[6], r[7]), (i1, r[4], r[5], r[6])]
    mesh.poles["thumb"] = [i0, i1]


def _without_orphans(mesh: Mesh) -> Mesh:
    """Drop the vertices that the thumb's opening left without faces, and close the numbering."""
    used = sorted({i for face in [*mesh.quads, *mesh.triangles] for i in face})
    new = {old: i for i, old in enumerate(used)}
    return Mesh(
        points=[mesh.points[i] for i in used],
        owner=[mesh.owner[i] for i in used],
        quads=[(new[a], new[b], new[c], new[d]) for a, b, c, d in mesh.quads],
        triangles=[(new[a], new[b], new[c]) for a, b, c in mesh.triangles],
        fixed={new[i] for i in mesh.fixed},
        poles={name: [new[i] for i in ids] for name, ids in mesh.poles.items()},
        wrist=[new[i] for i in mesh.wrist],
        anchor={new[i]: a for i, a in mesh.anchor.items() if i in new},
    )


def number_vertices(mesh: Mesh) -> Int[np.ndarray, "v"]:
    """`order[new] = old`, with the fingertips at the ids that every published tip set names."""
    count = len(mesh.points)
    order = np.arange(count)
    where = np.arange(count)
    for name, ids in TIP_IDS.items():
        for new, old in zip(ids, mesh.poles[name], strict=False):
            displaced, from_slot = order[new], where[old]
            order[new], order[from_slot] = old, displaced
            where[old], where[displaced] = new, from_slot
    return order
