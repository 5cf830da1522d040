"""The MANO layer: hand models, their files, and the function from pose to mesh."""

from pam_aug.hand.assets import HandAssets, LeftShapedirs, load_mano, load_npz, mano_model_name, save_npz
from pam_aug.hand.joints import (
    BONES,
    FINGER_NAMES,
    FINGERS,
    JOINT_NAMES_21,
    JOINTS21_TO_MANO16,
    MANO16_NAMES,
    MANO16_TO_21,
    MANO_PARENTS,
    TIP_SETS,
    TIPS_21,
    Side,
)
from pam_aug.hand.model import HandLayer, HandOutput, JointDefinition, mirror_params
from pam_aug.hand.open_hand import fit_hand, load_hand, load_open_hand

__all__ = [
    "BONES",
    "FINGERS",
    "FINGER_NAMES",
    "JOINTS21_TO_MANO16",
    "JOINT_NAMES_21",
    "MANO16_NAMES",
    "MANO16_TO_21",
    "MANO_PARENTS",
    "TIPS_21",
    "TIP_SETS",
    "HandAssets",
    "HandLayer",
    "HandOutput",
    "JointDefinition",
    "LeftShapedirs",
    "Side",
    "fit_hand",
    "load_hand",
    "load_mano",
    "load_npz",
    "load_open_hand",
    "mano_model_name",
    "mirror_params",
    "save_npz",
]
