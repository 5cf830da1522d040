"""How a hand touches an object: contact, penetration, and which fingers, measured on the meshes.

D-Grasp's, GraspXL's and most recorded grasps say little or nothing about contact. It is measured here as a hand label
would have it: a vertex touches where it lies within 5 mm of the object's surface or inside; a grasp is in contact where
some vertex touches. Penetration is the depth of hand vertices below the object's surface.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pam_aug.hand import FINGER_NAMES, HandAssets
from pam_aug.rollouts.mesh_queries import signed_distance_m

__all__ = ["CONTACT_M", "Contact", "ContactSummary", "hand_parts", "measure_contact", "summarize"]

CONTACT_M = 0.005
"""A vertex this close to the surface counts as touching it."""

# Row in FINGER_NAMES of each of MANO's 16 joints; the wrist joint carries the palm, which comes after the fingers.
_PART_OF_JOINT = np.array([5, *[1] * 3, *[2] * 3, *[4] * 3, *[3] * 3, *[0] * 3])
PARTS = (*FINGER_NAMES, "palm")


class Contact(NamedTuple):
    """One hand against one object. Depths are 0 where nothing penetrates."""

    in_contact: bool
    nearest_mm: float  # signed: negative is the deepest vertex's depth
    touching_share: float  # of the hand's vertices
    depth_max_mm: float
    depth_mean_mm: float  # over the vertices that are inside
    parts: tuple[str, ...]  # of "thumb" to "little" and "palm", those with a touching vertex


class ContactSummary(NamedTuple):
    """Over many grasps."""

    grasps: int
    share_in_contact: float
    depth_max_mm: float  # mean over grasps of each grasp's deepest vertex
    depth_mean_mm: float  # mean over grasps of each grasp's mean depth
    parts_touching: float  # mean number of fingers and palm that touch, over grasps


def hand_parts(assets: HandAssets) -> Int[np.ndarray, "778"]:
    """For each vertex the row in `PARTS` of the finger (or palm) whose joints carry most of its weight."""
    carried = np.zeros((len(assets.weights), len(PARTS)))
    np.add.at(carried.T, _PART_OF_JOINT, assets.weights.T)
    return carried.argmax(1)


def measure_contact(
    hand_verts_m: Float[np.ndarray, "778 3"],
    parts: Int[np.ndarray, "778"],
    object_verts_m: Float[np.ndarray, "v 3"],
    object_faces: Int[np.ndarray, "f 3"],
    contact_m: float = CONTACT_M,
) -> Contact:
    """The contact of a posed hand with an object in the same frame; `parts` from `hand_parts`."""
    distance = signed_distance_m(hand_verts_m, object_verts_m, object_faces)
    touching = distance <= contact_m
    inside = -distance[distance < 0.0] * 1e3
    names = tuple(name for i, name in enumerate(PARTS) if touching[parts == i].any())
    return Contact(
        in_contact=bool(touching.any()),
        nearest_mm=float(distance.min() * 1e3),
        touching_share=float(touching.mean()),
        depth_max_mm=float(inside.max()) if len(inside) else 0.0,
        depth_mean_mm=float(inside.mean()) if len(inside) else 0.0,
        parts=names,
    )


def summarize(contacts: Sequence[Contact]) -> ContactSummary:
    """Means over grasps; a grasp without penetration counts with depth 0. All zero for no grasps."""
    if not contacts:
        return ContactSummary(0, 0.0, 0.0, 0.0, 0.0)
    return ContactSummary(
        grasps=len(contacts),
        share_in_contact=float(np.mean([c.in_contact for c in contacts])),
        depth_max_mm=float(np.mean([c.depth_max_mm for c in contacts])),
        depth_mean_mm=float(np.mean([c.depth_mean_mm for c in contacts])),
        parts_touching=float(np.mean([len(c.parts) for c in contacts])),
    )
