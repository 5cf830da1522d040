"""HaMeR's checkpoint: checked entry by entry, and put into the network.

A checkpoint (`hamer.ckpt`) is a torch archive with one `state_dict`: the backbone, the head, MANO's right hand as smplx
keeps it, and a discriminator that only training needs. A `.safetensors` file with the same entries is read as well.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pam_aug.checkpoint import check_entries
from pam_aug.errors import SchemaError
from pam_aug.estimators.hamer_net import HamerConfig, HamerNet, entry_dtype
from pam_aug.hand.assets import HandAssets, assets_from_arrays, wrist_cap

__all__ = ["check_hamer", "expected_entries", "hand_of", "load_hamer"]

_USED = ("backbone.", "mano_head.")
_MANO = {
    "v_template": "v_template",
    "f": "faces_tensor",
    "shapedirs": "shapedirs",
    "posedirs": "posedirs",
    "J_regressor": "J_regressor",
    "weights": "lbs_weights",
    "parents": "parents",
    "hands_mean": "hand_mean",
    "hands_components": "hand_components",
}
_MANO_SHAPES = {
    "mano.v_template": (778, 3),
    "mano.shapedirs": (778, 3, 10),
    "mano.posedirs": (135, 2334),
    "mano.J_regressor": (16, 778),
    "mano.lbs_weights": (778, 16),
    "mano.faces_tensor": (1538, 3),
    "mano.parents": (16,),
    "mano.hand_mean": (45,),
    "mano.hand_components": (6, 45),
}
_SHOWN = 5


def expected_entries(config: HamerConfig) -> dict[str, Tensor]:
    """The entries that the network takes from a checkpoint, without values: 503 at the published depths."""
    with torch.device("meta"):
        return HamerNet(config).state_dict()


def check_hamer(state: Mapping[str, Tensor], config: HamerConfig, *, where: str) -> None:
    """Refuse a checkpoint of another network. Raises SchemaError with the first differences; `where` is its file."""
    advice = "Give HaMeR's own checkpoint, or this one's sizes as `net`."
    check_entries(state, expected_entries(config), prefixes=_USED, where=where, advice=advice)


def load_hamer(
    state: Mapping[str, Tensor], config: HamerConfig, dtype: torch.dtype = torch.float32, *, where: str
) -> HamerNet:
    """The network with a checkpoint's weights, the backbone in `dtype`, the rest as `entry_dtype` says; for inference.

    Tensors that keep their type are not copied. Entries outside the network (discriminator, MANO) are left alone.
    Raises SchemaError as `check_hamer` does.
    """
    check_hamer(state, config, where=where)
    with torch.device("meta"):
        net = HamerNet(config)
    kept = {name: entry_dtype(name, dtype) for name in net.state_dict()}
    net.load_state_dict({name: state[name].to(kind) for name, kind in kept.items()}, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def hand_of(state: Mapping[str, Tensor], *, where: str) -> HandAssets | None:
    """MANO's right hand as a checkpoint carries it; None where it carries none.

    A checkpoint keeps six pose components; the other rows are zero (the network gives rotations, and needs none).
    Raises SchemaError where some of its arrays are missing or differ.
    """
    if not any(name.startswith("mano.") for name in state):
        return None
    wrong = [
        f"{name} is {tuple(state[name].shape) if name in state else 'missing'}, expected {shape}"
        for name, shape in _MANO_SHAPES.items()
        if name not in state or tuple(state[name].shape) != shape
    ]
    if wrong:
        raise SchemaError(f"{where}: its MANO arrays differ: {'; '.join(wrong[:_SHOWN])}", differences=wrong)
    tensors = {ours: state[f"mano.{theirs}"] for ours, theirs in _MANO.items()}
    raw = {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in tensors.items()}
    raw["posedirs"] = raw["posedirs"].T.reshape(778, 3, 135)
    raw["hands_components"] = np.concatenate([raw["hands_components"], np.zeros((39, 45), np.float32)])
    raw["f_cap"] = wrist_cap(raw["f"], where)
    return assets_from_arrays(raw, name="mano-right", side="right", where=where)
