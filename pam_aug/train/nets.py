"""The networks that training on mixed shards knows: SimpleHand with the small backbone, or with the released one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pam_aug.errors import AssetMissing, ConfigError
from pam_aug.estimators import simplehand_fastvit
from pam_aug.estimators.crop import ENLARGE
from pam_aug.estimators.joint_map import fit_joint_map
from pam_aug.estimators.simplehand import save_net
from pam_aug.estimators.simplehand_fastvit import FastViTSimpleHand
from pam_aug.estimators.simplehand_net import NetConfig, NetOutput, SimpleHandNet
from pam_aug.hand import HandAssets
from pam_aug.shards.atomic import write_atomic

__all__ = ["FastViTConfig", "FastViTNet", "NetSpec", "make_net", "net_spec", "save_weights"]

_ROOTS = {"wrist": 0, "middle_mcp": 9}


@dataclass(frozen=True)
class FastViTConfig:
    """SimpleHand with FastViT-MA36 as it was released, 224 pixels, vertices in metres (extra `backbones`).

    `pixels`, `root`, `joints` and `tips` are `NetConfig`'s. `pretrained` starts the backbone from ImageNet, which timm
    downloads. `drop_path` is the backbone's stochastic depth.
    """

    backbone: str = "fastvit_ma36"
    pixels: str = "imagenet_rgb"
    root: str = "middle_mcp"
    joints: str = "kinematic_fit"
    tips: str = "smplx"
    pretrained: bool = True
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        NetConfig(pixels=self.pixels, root=self.root, joints=self.joints)  # raises ConfigError


@dataclass(frozen=True)
class NetSpec:
    """How a network reads a hand: crops of `input_px` in the form `pixels`, `enlarge` times the box wide, the camera's
    axis at `centre_px`; points relative to joint `root_index`; joints by the definition `joints`, tips from `tips`."""

    input_px: int
    pixels: str
    enlarge: float
    centre_px: float
    root_index: int
    joints: str
    tips: str


class FastViTNet(FastViTSimpleHand):
    """The released network with joints, for training: parameters under the published names, `joint_map` (21,778) a
    buffer outside the state. The backbone's classifier, which nothing uses, is frozen, so that no parameter waits for a
    gradient."""

    joint_map: Tensor

    def __init__(self, backbone: nn.Module, joint_map: Float[Tensor, "21 778"]) -> None:
        super().__init__(backbone)
        self.register_buffer("joint_map", joint_map.float(), persistent=False)
        nn.init.constant_(self.keypoints_2d_head.bias, 0.5)
        if isinstance(head := getattr(backbone, "head", None), nn.Module):
            head.requires_grad_(False)

    def forward(self, x: Float[Tensor, "n 3 224 224"]) -> NetOutput:  # type: ignore[override]
        feature = self.backbone.forward_features(x)  # type: ignore[operator]
        uv = self.keypoints_2d_head(feature.mean((2, 3))).float().view(-1, 21, 2)
        verts = self.mesh_head(self.mesh_head.deconv(feature), uv)
        with torch.autocast(verts.device.type, enabled=False):
            return NetOutput(uv, verts, self.joint_map @ verts)


def net_spec(fields: Mapping[str, Any]) -> NetSpec:
    """What a recipe's `net` section reads. Raises ConfigError for a network that is not known."""
    config = _config(fields)
    if isinstance(config, FastViTConfig):
        size, enlarge, centre = simplehand_fastvit.INPUT_PX, simplehand_fastvit.ENLARGE, simplehand_fastvit.INPUT_PX / 2
    else:
        size, enlarge, centre = config.input_px, ENLARGE, (config.input_px - 1) / 2
    return NetSpec(size, config.pixels, enlarge, centre, _ROOTS[config.root], config.joints, config.tips)


def make_net(fields: Mapping[str, Any], hand: HandAssets) -> SimpleHandNet | FastViTNet:
    """A new network whose joints follow from its vertices as `hand`'s do; weights are drawn from torch's generator.

    Raises AssetMissing where FastViT lacks timm.
    """
    config = _config(fields)
    joint_map = torch.from_numpy(fit_joint_map(hand, config.joints, config.tips))  # type: ignore[arg-type]
    if isinstance(config, NetConfig):
        return SimpleHandNet(config, joint_map)
    return FastViTNet(_backbone(config), joint_map)


def save_weights(net: SimpleHandNet | FastViTNet, fields: Mapping[str, Any], path: Path, info: dict[str, Any]) -> None:
    """Write weights as estimators read them (FastViT's under the published names) and what they are to a .json."""
    if isinstance(net, SimpleHandNet):
        save_net(net, path, info)
        return
    import orjson
    from safetensors.torch import save

    write_atomic(path, save({k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}))
    full = {**info, "net": asdict(_config(fields))}
    write_atomic(path.with_suffix(".json"), orjson.dumps(full, option=orjson.OPT_INDENT_2) + b"\n")


def _config(fields: Mapping[str, Any]) -> NetConfig | FastViTConfig:
    if fields.get("backbone") != "fastvit_ma36":
        config = NetConfig.of(fields)
        if config.upright:
            raise ConfigError("net.upright: training on shards shows hands all ways up; leave it out")
        return config
    unknown = sorted(set(fields) - set(FastViTConfig.__dataclass_fields__))
    if unknown:
        raise ConfigError(f"net has no {', '.join(unknown)}; it has {', '.join(FastViTConfig.__dataclass_fields__)}")
    return FastViTConfig(**fields)


def _backbone(config: FastViTConfig) -> nn.Module:
    try:
        import timm  # type: ignore[import-not-found]
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
        raise AssetMissing(
            f"fastvit_ma36 needs timm and a torchvision of this torch ({error}): pip install 'pam_aug[backbones]'"
        ) from error
    return timm.create_model("fastvit_ma36", pretrained=config.pretrained, drop_path_rate=config.drop_path)
