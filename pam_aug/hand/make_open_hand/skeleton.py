"""Rest skeleton of the open hand: joints, bones and the frames of the five digits, from published measures.

Phalanx and metacarpal lengths are close to the means of Buryanov and Kotiuk, "Proportions of Hand Segments", Int. J.
Morphol. 28(3), 2010 (radiographs). A joint centre lies inside the head of the proximal bone, so a
centre-to-centre MCP distance is some millimetres longer than the phalanx and the wrist-MCP distance as much shorter.
Overall sizes (hand length 187 mm, breadth at the knuckles 84 mm, finger breadths) are mid-way between the male and
female means of Greiner, "Hand Anthropometry of U.S. Army Personnel", Natick TR-92/011, 1991.

Frame (right hand, metres): fingers along -x, palm facing -y, thumb towards +z.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DIGITS = ("index", "middle", "little", "ring", "thumb")  # the model's joint order: 1 + 3 * position
PARENTS = np.array([-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14], dtype=np.int32)
WRIST = np.array([0.0955, 0.0060, 0.0060])
CUT_X = 0.114  # the wrist loop lies in this plane, as far up the forearm as other 778-vertex hands go

# base joint (MCP; CMC for the thumb), three segment lengths with the soft tissue of the tip, direction in the palm's
# plane in degrees from -x towards +z, slope towards the palm of each segment in degrees, roll of the nail about -x
# towards +z in degrees.
_BASE = {
    "index": (0.0084, 0.0060, 0.0265),
    "middle": (0.0055, 0.0085, 0.0045),
    "ring": (0.0146, 0.0060, -0.0150),
    "little": (0.0285, 0.0005, -0.0315),
    "thumb": (0.0735, -0.0060, 0.0270),
}
_LENGTHS = {
    "index": (0.0425, 0.0240, 0.0215),
    "middle": (0.0475, 0.0280, 0.0225),
    "ring": (0.0440, 0.0270, 0.0225),
    "little": (0.0350, 0.0200, 0.0205),
    "thumb": (0.0460, 0.0330, 0.0290),
}
# The rest hand is loosely spread, about half of the largest angles between neighbours (17, 14 and 32 degrees:
# Chatzioglou et al., "Biometric analysis hand parameters in young adults", Anat. Cell Biol. 57(2), 2024), so that no
# two fingers touch.
_HEADING = {
    "index": (6.0, 5.0, 4.0),
    "middle": (0.0, 0.0, 0.0),
    "ring": (-9.0, -9.0, -8.0),
    "little": (-22.0, -22.0, -20.0),
    "thumb": (46.0, 41.0, 36.0),
}
_SLOPE = {
    "index": (2.0, 5.0, 9.0),
    "middle": (2.0, 5.0, 9.0),
    "ring": (2.0, 6.0, 10.0),
    "little": (3.0, 7.0, 11.0),
    "thumb": (13.0, 12.0, 14.0),
}
_ROLL = {"index": 5.0, "middle": 0.0, "ring": -5.0, "little": -11.0, "thumb": 48.0}


@dataclass(frozen=True)
class Digit:
    """One digit at rest. `points` are its three joints and its tip; `axes` has rows (along, lateral, dorsal).

    `u` is the coordinate along `axes[0]` from the first joint, `b` the one along `axes[2]`: `joint_u`, `joint_b` hold
    those of the four points.
    """

    name: str
    points: Float[np.ndarray, "4 3"]
    axes: Float[np.ndarray, "3 3"]
    joint_u: Float[np.ndarray, "4"]
    joint_b: Float[np.ndarray, "4"]

    def to_local(self, points_m: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Coordinates (along, lateral, dorsal) in metres from the digit's first joint."""
        return (points_m - self.points[0]) @ self.axes.T

    def to_world(self, local_m: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """The inverse of `to_local`."""
        return self.points[0] + local_m @ self.axes


def build_digit(name: str) -> Digit:
    """The rest joints and the frame of one digit, by name."""
    heading, slope = np.radians(_HEADING[name]), np.radians(_SLOPE[name])
    directions = np.stack([-np.cos(slope) * np.cos(heading), -np.sin(slope), np.cos(slope) * np.sin(heading)], axis=1)
    steps = directions * np.array(_LENGTHS[name])[:, None]
    points = np.vstack([[0, 0, 0], np.cumsum(steps, axis=0)]) + np.array(_BASE[name])
    along = points[3] - points[0]
    along /= np.linalg.norm(along)
    roll = np.radians(_ROLL[name])
    # the thumb's nail looks outwards, at right angles to its heading, when rolled; the fingers' heading is near -x
    outward = np.array([np.sin(heading[1]), 0.0, np.cos(heading[1])])
    dorsal = np.cos(roll) * np.array([0.0, 1.0, 0.0]) + np.sin(roll) * outward
    dorsal -= along * (along @ dorsal)
    dorsal /= np.linalg.norm(dorsal)
    lateral = np.cross(along, dorsal)
    axes = np.stack([along, -lateral if lateral[2] < 0 else lateral, dorsal])
    local = (points - points[0]) @ axes.T
    return Digit(name, points, axes, local[:, 0], local[:, 2])


def build_digits() -> dict[str, Digit]:
    """All five digits in the model's joint order."""
    return {name: build_digit(name) for name in DIGITS}


def rest_joints(digits: dict[str, Digit]) -> Float[np.ndarray, "16 3"]:
    """The 16 rest joints in metres: wrist, then three per digit in the model's order."""
    return np.vstack([WRIST[None], *[digits[name].points[:3] for name in DIGITS]])


def joint_frame(digits: dict[str, Digit], k: int) -> Float[np.ndarray, "3 3"]:
    """Rows: axis of flexion (positive towards the palm), of abduction (towards the thumb's side, +), of twist, for
    joint k >= 1."""
    digit = digits[DIGITS[(k - 1) // 3]]
    step = (k - 1) % 3
    bone = digit.points[step + 1] - digit.points[step]
    bone /= np.linalg.norm(bone)
    flexion = np.cross(bone, -digit.axes[2])
    flexion /= np.linalg.norm(flexion)
    return np.stack([flexion, np.cross(bone, flexion), bone])
