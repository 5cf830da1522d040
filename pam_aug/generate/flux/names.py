"""Names of FLUX's tensors: the original release's (and x-flux's, which PAM's checkpoint has) and diffusers'.

Both describe one network. diffusers keeps query, key and value apart, and its last modulation has scale before shift.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pam_aug.errors import SchemaError

__all__ = ["to_diffusers", "to_original"]

_EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_DOUBLE_SCALES = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
}
_DOUBLE_JOINED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_SINGLE = {"modulation.lin": "norm.linear", "linear2": "proj_out"}
_SINGLE_SCALES = {"norm.query_norm.scale": "attn.norm_q.weight", "norm.key_norm.scale": "attn.norm_k.weight"}
_SINGLE_JOINED = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
_LAST_MODULATION = ("final_layer.adaLN_modulation.1", "norm_out.linear")


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A FLUX transformer's, or one ControlNet's, tensors under diffusers' names. Unknown names are kept as they are.

    Joined tensors are split without a copy. Raises SchemaError where a joined tensor cannot be split.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        out.update(_renamed(name, value))
    return out


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_diffusers`."""
    out: dict[str, Tensor] = {}
    for original, names, join in _plan(state):
        missing = [name for name in names if name not in state]
        if missing:
            raise SchemaError(f"{original}: {', '.join(missing)} is missing, so it cannot be joined", missing=missing)
        out[original] = join([state[name] for name in names])
    return out


def _renamed(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    stem, _, kind = name.rpartition(".")
    if stem == _LAST_MODULATION[0]:
        return [(f"{_LAST_MODULATION[1]}.{kind}", _swap_halves(value))]
    if stem in _EMBEDDERS:
        return [(f"{_EMBEDDERS[stem]}.{kind}", value)]
    for group, target, plain, scales, joined in (
        ("double_blocks", "transformer_blocks", _DOUBLE, _DOUBLE_SCALES, _DOUBLE_JOINED),
        ("single_blocks", "single_transformer_blocks", _SINGLE, _SINGLE_SCALES, _SINGLE_JOINED),
    ):
        if not name.startswith(f"{group}."):
            continue
        _, number, rest = name.split(".", 2)
        block, inner = f"{target}.{number}", rest.rpartition(".")[0]
        if rest in scales:
            return [(f"{block}.{scales[rest]}", value)]
        if inner in plain:
            return [(f"{block}.{plain[inner]}.{kind}", value)]
        if inner in joined:
            parts = _split(value, len(joined[inner]), name)
            return [(f"{block}.{part}.{kind}", piece) for part, piece in zip(joined[inner], parts, strict=True)]
    return [(name, value)]


def _split(value: Tensor, parts: int, name: str) -> list[Tensor]:
    """Equal parts; of four the last is the MLP's, four times as wide."""
    widths = 3 if parts == 3 else 7
    if len(value) % widths:
        raise SchemaError(f"{name}: {tuple(value.shape)} does not split into {parts} parts", name=name)
    width = len(value) // widths
    return list(value.split([width] * 3 + [4 * width] * (parts - 3)))


def _swap_halves(value: Tensor) -> Tensor:
    return torch.cat(value.chunk(2)[::-1])


def _plan(state: Mapping[str, Tensor]) -> list[tuple[str, tuple[str, ...], Callable[[list[Tensor]], Tensor]]]:
    """For every original tensor: its name, what it is made of, and how."""
    single = {ours: original for original, ours in _EMBEDDERS.items()}
    plans: dict[str, tuple[tuple[str, ...], Callable[[list[Tensor]], Tensor]]] = {}

    def first(tensors: list[Tensor]) -> Tensor:
        return tensors[0]

    for name in state:
        stem, _, kind = name.rpartition(".")
        if stem == _LAST_MODULATION[1]:
            plans[f"{_LAST_MODULATION[0]}.{kind}"] = ((name,), lambda tensors: _swap_halves(tensors[0]))
        elif stem in single:
            plans[f"{single[stem]}.{kind}"] = ((name,), first)
        elif name.startswith(("transformer_blocks.", "single_transformer_blocks.")):
            group, number, rest = name.split(".", 2)
            tables = (_DOUBLE, _DOUBLE_SCALES, _DOUBLE_JOINED)
            if group.startswith("single"):
                tables = (_SINGLE, _SINGLE_SCALES, _SINGLE_JOINED)
            original = _original_of(rest, *tables)
            if original is None:
                plans[name] = ((name,), first)
                continue
            block = f"{'single' if group.startswith('single') else 'double'}_blocks.{number}"
            inner, parts, kind = original
            target = f"{block}.{inner}" + (f".{kind}" if kind else "")
            sources = tuple(f"{group}.{number}.{part}" + (f".{kind}" if kind else "") for part in parts)
            plans[target] = (sources, torch.cat if len(sources) > 1 else first)
        else:
            plans[name] = ((name,), first)
    return [(original, names, join) for original, (names, join) in plans.items()]


def _original_of(
    rest: str, plain: Mapping[str, str], scales: Mapping[str, str], joined: Mapping[str, tuple[str, ...]]
) -> tuple[str, tuple[str, ...], str] | None:
    inner, _, kind = rest.rpartition(".")
    for original, target in scales.items():
        if rest == target:
            return original, (target,), ""
    for original, target in plain.items():
        if inner == target:
            return original, (target,), kind
    for original, parts in joined.items():
        if inner in parts:
            return original, parts, kind
    return None
