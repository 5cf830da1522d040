"""Names, orders and vertex ids of hand joints. Numbers only: nothing here needs an array library.

Two orders occur. MANO's 16 kinematic joints go wrist, index, middle, *little, ring*, thumb (Romero et al. 2017, the
official files). The 21 joints of this library go wrist, thumb, index, middle, ring, little, each finger base to tip.
"""

from typing import Final, Literal

Side = Literal["left", "right"]

SIDES: Final[tuple[Side, Side]] = ("left", "right")

FINGER_NAMES: Final = ("thumb", "index", "middle", "ring", "little")

JOINT_NAMES_21: Final = (
    "wrist",
    "thumb_cmc",
    "thumb_mcp",
    "thumb_ip",
    "thumb_tip",
    *(f"{finger}_{part}" for finger in FINGER_NAMES[1:] for part in ("mcp", "pip", "dip", "tip")),
)
"""The 21 joints, in the order of every `(…, 21, …)` array of this library."""

MANO16_NAMES: Final = (
    "wrist",
    *(f"{finger}_{part}" for finger in ("index", "middle", "little", "ring") for part in ("mcp", "pip", "dip")),
    "thumb_cmc",
    "thumb_mcp",
    "thumb_ip",
)
"""The 16 kinematic joints in MANO's order; 45 pose values are the axis-angles of joints 1 to 15."""

MANO_PARENTS: Final = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
"""Parent of each of the 16 kinematic joints."""

MANO16_TO_21: Final = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
"""For each of the 21 joints, its row in `concat(joints16, tips)`, tips being thumb, index, middle, ring, little."""

JOINTS21_TO_MANO16: Final = (0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3)
"""For each of MANO's 16 joints, its row among the 21."""

TIPS_21: Final = (4, 8, 12, 16, 20)
"""Rows of the fingertips among the 21, thumb to little."""

FINGERS: Final = {name: tuple(range(1 + 4 * i, 5 + 4 * i)) for i, name in enumerate(FINGER_NAMES)}
"""Rows of each finger among the 21, base to tip."""

BONES: Final = tuple(-1 if j == 0 else (0 if j % 4 == 1 else j - 1) for j in range(21))
"""Parent of each of the 21 joints; the wrist's is -1."""

TIP_SETS: Final[dict[str, dict[Side, tuple[int, ...]]]] = {
    "smplx": {"right": (744, 320, 443, 554, 671), "left": (744, 320, 443, 554, 671)},
    "freihand": {"right": (744, 320, 443, 555, 672), "left": (744, 320, 443, 555, 672)},
    "manopth": {"right": (745, 317, 444, 556, 673), "left": (745, 317, 445, 556, 673)},
}
"""Fingertip vertices (thumb to little) by convention: smplx (also HaMeR), FreiHAND (also SimpleHand), and manopth,
which DexYCB's `joint_3d` was made with and whose two sides differ in the middle finger."""
