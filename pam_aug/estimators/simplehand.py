"""The `simplehand` backend: SimpleHand's design with a small backbone, on weights that our own recipe trained.

The bundled weights know rendered hands. They rank candidates of one input; they are no state-of-the-art estimator.
A hand can lie any way up in an image. A small network looks first and finds which, and a second one sees every hand
upright: it learns as much from the same time as one that sees them all ways up learns from 2.7 times as much.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from pam_aug.errors import AssetMissing, BackendError, ConfigError, SchemaError
from pam_aug.estimators.base import Estimates, HandQuery
from pam_aug.estimators.crop import PerspectiveCrop, perspective_crop, upright_turn
from pam_aug.estimators.joint_map import JOINT_DEFINITIONS
from pam_aug.estimators.simplehand_net import NetConfig, SimpleHandNet, fold_batch_norm, normalise_pixels
from pam_aug.hand import load_open_hand
from pam_aug.hand.joints import TIP_SETS, TIPS_21

__all__ = [
    "BUNDLED_TURN_WEIGHTS",
    "BUNDLED_WEIGHTS",
    "SimpleHandEstimator",
    "SimpleHandOptions",
    "load_net",
    "predict",
    "read_info",
    "save_net",
]

BUNDLED_WEIGHTS = Path(__file__).with_name("simplehand_small.safetensors")
BUNDLED_TURN_WEIGHTS = Path(__file__).with_name("simplehand_turn.safetensors")

_SPREAD_RAD = np.pi / 12  # between the views of an upright hand


@dataclass(frozen=True)
class SimpleHandOptions:
    """`weights` is a safetensors file with its .json beside it; "" means the bundled one. `turn_weights` is that of the
    network that looks first where `weights` wants upright hands.

    A hand is seen `views` times, turned about the line of sight, and the results averaged, because a network's errors
    under different turns are not the same: all ways up in equal steps, or within what an upright network knows.
    """

    weights: str = ""
    turn_weights: str = ""
    views: int = 2

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ConfigError(f"views: {self.views}; a hand is seen once or more")


class SimpleHandEstimator:
    """Root-relative hands from label boxes, fingertips from the label's own tip set. Right-handed inside: left hands
    are mirrored in and out.

    Single precision on the calling thread's torch settings, in blocks of 30 crops, so results repeat bit for bit on one
    machine. `requires` names a missing weight file.
    """

    name: ClassVar[str] = "simplehand"
    Options: ClassVar[type] = SimpleHandOptions
    batch: ClassVar[int] = 30

    def __init__(self, options: SimpleHandOptions | None = None) -> None:
        options = options or SimpleHandOptions()
        self.weights, self._views = Path(options.weights or BUNDLED_WEIGHTS), options.views
        self.turn_weights = Path(options.turn_weights or BUNDLED_TURN_WEIGHTS)

    @property
    def version(self) -> str:
        """The recipe's name, the hashes of its weights and the number of views, for provenance."""
        files = (self.weights, self.turn_weights) if self._upright else (self.weights,)
        hashes = "-".join(read_info(path)["weights_sha256"][:12] for path in files)
        return f"{read_info(self.weights)['recipe']}-{hashes}-{self._views}"

    @property
    def joint_definition(self) -> str:
        """How its joints follow from its mesh, in words: as its network was trained."""
        return JOINT_DEFINITIONS[self.net.config.joints]

    def requires(self) -> list[str]:
        """The weight files that are missing; [] where the estimator is ready."""
        missing = _missing(self.weights, "simplehand_small")
        if not missing and self._upright:
            missing = _missing(self.turn_weights, "simplehand_turn")
        return missing

    @cached_property
    def net(self) -> SimpleHandNet:
        """The network, loaded at the first use and ready for inference."""
        return _ready(self.weights)

    @cached_property
    def turn_net(self) -> SimpleHandNet:
        """The network that finds how a hand is turned."""
        return _ready(self.turn_weights)

    @cached_property
    def _upright(self) -> bool:
        return bool(read_info(self.weights)["net"].get("upright", False))

    def estimate(self, images: Sequence[np.ndarray], queries: Sequence[HandQuery]) -> Estimates:
        """Hands in RGB images, one query each. A box that makes no crop gives a row that is not valid."""
        if len(images) != len(queries):
            raise BackendError(f"{len(images)} images and {len(queries)} hand boxes; give one box per image")
        reasons = [""] * len(images)
        straight: list[tuple[int, PerspectiveCrop]] = []
        size = (self.turn_net if self._upright else self.net).config.input_px
        for i, (image, query) in enumerate(zip(images, queries, strict=True)):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise BackendError(f"an image of {image.dtype} {image.shape}; simplehand reads (h, w, 3) uint8 RGB")
            if query.tips not in TIP_SETS:
                raise BackendError(f"a label with the tip set {query.tips!r}; known are {', '.join(TIP_SETS)}")
            try:
                straight.append((i, _crop(query, size)))
            except SchemaError as error:
                reasons[i] = str(error)
        n = len(images)
        joints, verts, px = np.zeros((n, 21, 3)), np.zeros((n, 778, 3)), np.zeros((n, 21, 2))
        crops = [
            (i, _crop(queries[i], self.net.config.input_px, turn))
            for i, first in self._first_turns(images, straight)
            for turn in self._turns(first)
        ]
        for i, crop, uv, v, j in self._seen(self.net, images, crops):
            root, found = j[:1], j.copy()
            if queries[i].tips != self.net.config.tips:
                found[list(TIPS_21)] = v[list(TIP_SETS[queries[i].tips][queries[i].side])]
            joints[i] += crop.vectors_to_camera(found - root) / self._views
            verts[i] += crop.vectors_to_camera(v - root) / self._views
            px[i] += crop.points_to_image(uv * crop.size_px - 0.5) / self._views
        valid = np.array([not reason for reason in reasons], bool)
        return Estimates(joints, px, verts, valid, tuple(reasons), load_open_hand("right").f)

    def _first_turns(
        self, images: Sequence[np.ndarray], straight: Sequence[tuple[int, PerspectiveCrop]]
    ) -> list[tuple[int, float]]:
        """Each image's turn (rad) that puts the hand upright, or 0 for a network that needs none."""
        if not self._upright:
            return [(i, 0.0) for i, _ in straight]
        seen = self._seen(self.turn_net, images, straight)
        return [(i, upright_turn(crop.vectors_to_camera(j) @ crop.R_crop_cam.T)) for i, crop, _, _, j in seen]

    def _turns(self, first: float) -> list[float]:
        step = _SPREAD_RAD if self._upright else 2 * np.pi / self._views
        middle = (self._views - 1) / 2 if self._upright else 0
        return [first + step * (k - middle) for k in range(self._views)]

    def _seen(
        self, net: SimpleHandNet, images: Sequence[np.ndarray], crops: Sequence[tuple[int, PerspectiveCrop]]
    ) -> Iterator[tuple[int, PerspectiveCrop, np.ndarray, np.ndarray, np.ndarray]]:
        """What a network says of each crop, in blocks of `batch`: `uv`, vertices and joints, as `predict` has them."""
        for start in range(0, len(crops), self.batch):
            block = crops[start : start + self.batch]
            found = predict(net, np.stack([crop.image(images[i]) for i, crop in block]))
            yield from ((i, crop, *row) for (i, crop), row in zip(block, zip(*found, strict=True), strict=True))


def _crop(query: HandQuery, size_px: int, turn_rad: float = 0.0) -> PerspectiveCrop:
    return perspective_crop(query.K_px, query.box_px, size_px, flip=query.side == "left", turn_rad=turn_rad)


def _ready(weights: Path) -> SimpleHandNet:
    net = fold_batch_norm(load_net(weights))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _missing(weights: Path, recipe: str) -> list[str]:
    files = (weights, weights.with_suffix(".json"))
    lost = [path for path in files if not path.is_file()]
    return [f"{path}: SimpleHand weights; train them with `pam-aug train {recipe}`" for path in lost]


def predict(
    net: SimpleHandNet, crops: Float[np.ndarray, "n s s 3"]
) -> tuple[Float[np.ndarray, "n 21 2"], Float[np.ndarray, "n 778 3"], Float[np.ndarray, "n 21 3"]]:
    """`uv` (crop units), vertices and joints (metres, crop camera's axes) of right-hand crops (n,s,s,3) uint8."""
    with torch.inference_mode():
        out = net(normalise_pixels(torch.from_numpy(np.ascontiguousarray(crops)), net.config.pixels))
    return tuple(t.double().numpy() for t in (out.uv, out.verts_m, out.joints_m))  # type: ignore[return-value]


def save_net(net: SimpleHandNet, path: Path, info: dict[str, Any]) -> None:
    """Write weights (float16; float32 for buffers and norms) to `path` and what they are to the .json beside it.

    `info` gives at least `recipe`; the network's configuration and the weights' sha256 are added.
    """
    import hashlib

    from safetensors.torch import save

    state = {k: v.detach().contiguous() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    half = {k: v.half() if v.ndim > 1 and k != "joint_map" else v.float() for k, v in state.items()}
    data = save(half)
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(net.config).items()}
    full = {**info, "net": config, "weights_sha256": hashlib.sha256(data).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.with_suffix(".json").write_text(json.dumps(full, indent=2) + "\n")


def read_info(path: Path) -> dict[str, Any]:
    """What is written beside a weight file. Raises AssetMissing or ConfigError."""
    file = path.with_suffix(".json")
    try:
        info = json.loads(file.read_text())
    except OSError as error:
        raise AssetMissing(
            f"{file}: not there; weights are a .safetensors file and the .json that training wrote beside it",
            path=str(file),
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}: not JSON ({error}); copy it again", path=str(file)) from error
    missing = [k for k in ("recipe", "net", "weights_sha256") if k not in info]
    if missing:
        raise ConfigError(f"{file}: has no {', '.join(missing)}; it was not written by training", path=str(file))
    return info


def load_net(path: Path) -> SimpleHandNet:
    """The network of a weight file, in evaluation mode. Raises AssetMissing, ConfigError or SchemaError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    info = read_info(path)
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise AssetMissing(
            f"{path}: not there; train it with `pam-aug train simplehand_small`", path=str(path)
        ) from error
    except SafetensorError as error:
        raise SchemaError(f"{path}: not a safetensors file ({error}); copy it again", path=str(path)) from error
    try:
        config = NetConfig.of(info["net"])
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{path.with_suffix('.json')}: not a network of this version ({error})") from error
    net = SimpleHandNet(config, torch.zeros(21, 778))
    try:
        found = net.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    except RuntimeError as error:
        raise SchemaError(f"{path}: its shapes differ from its .json: {error}", path=str(path)) from error
    absent = [k for k in found.missing_keys if not k.endswith("num_batches_tracked")]
    if absent or found.unexpected_keys:
        raise SchemaError(f"{path}: lacks {absent[:3]}, has unknown {found.unexpected_keys[:3]}", path=str(path))
    return net.eval()
