"""How `open_hand.npz`, the hand model that ships with the library, is made: `python -m pam_aug.hand.make_open_hand`.

A mesh and skinning of our own with the interface of a 778-vertex parametric hand (arrays, joint order, rest axes,
vertex ids of the fingertips), made from published anthropometric measures. The same input gives the same file.
"""

from pam_aug.hand.make_open_hand.assemble import make_open_hand, write_npz

__all__ = ["make_open_hand", "write_npz"]
