"""What objects weigh. A scan says nothing of it, and a hollow box is not water."""

from typing import Final

__all__ = ["WATER_KG_M3", "YCB_MASSES_KG"]

WATER_KG_M3: Final = 1000.0

YCB_MASSES_KG: Final[dict[str, float]] = {
    "002_master_chef_can": 0.414,
    "003_cracker_box": 0.411,
    "004_sugar_box": 0.514,
    "005_tomato_soup_can": 0.349,
    "006_mustard_bottle": 0.603,
    "007_tuna_fish_can": 0.171,
    "008_pudding_box": 0.187,
    "009_gelatin_box": 0.097,
    "010_potted_meat_can": 0.370,
    "011_banana": 0.066,
    "019_pitcher_base": 0.178,
    "021_bleach_cleanser": 1.131,
    "024_bowl": 0.147,
    "025_mug": 0.118,
    "035_power_drill": 0.895,
    "036_wood_block": 0.729,
    "037_scissors": 0.082,
    "040_large_marker": 0.0158,
    "051_large_clamp": 0.125,
    "052_extra_large_clamp": 0.202,
    "061_foam_brick": 0.028,
}
"""Masses of the 21 YCB objects of DexYCB as measured by their makers (Calli et al., "The YCB object and model set",
ICAR 2015)."""
