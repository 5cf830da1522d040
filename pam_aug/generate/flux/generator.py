"""The generator `flux`: PAM's stage II, many candidates of one input with as little repeated work as possible.

Once per input: text, condition images, hint tokens. Per batch of candidates: the steps and the decoding. A candidate's
noise is its seed's alone, so batches change nothing but rounding.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import simplejpeg
import torch
from torch import Tensor

from pam_aug.checkpoint import weights_dir
from pam_aug.errors import BackendError, ConfigError, SourceError
from pam_aug.generate.base import GeneratedImage
from pam_aug.generate.flux.captions import CaptionBook
from pam_aug.generate.flux.checkpoint import load_control
from pam_aug.generate.flux.controlnet import unpack_tokens
from pam_aug.generate.flux.fingerprint import FLUX_FILES, captions_digest, fingerprint
from pam_aug.generate.flux.looks import LOOKS, condition_images, condition_tensor, stretch_back
from pam_aug.generate.flux.models import TextEncoders, decode_latents, load_transformer, load_vae, missing_files
from pam_aug.generate.flux.prompts import OFFICIAL_PROMPT, drawn_prompt
from pam_aug.generate.flux.sampling import Prompt, candidate_noise, denoise
from pam_aug.generate.flux.schedule import MU_RULES, schedule_times, shift_mu
from pam_aug.render.conditions import Conditions
from pam_aug.render.pieces import scene_conditions
from pam_aug.rollouts.scene import Scene

__all__ = ["FluxGenerator", "FluxOptions"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_JPEG_QUALITY = 95
_MISSING_CAPTIONS = ("refuse", "prompt")

_PRESETS: dict[int, dict[str, Any]] = {
    24: {"batch": 1, "keep_text_encoders": False, "offload": True, "vae_tiling": True},
    40: {"batch": 2, "keep_text_encoders": False},
    80: {"batch": 10},
}
"""By GPU memory in GB. At 24 the 24 GB transformer itself moves in and out by layers (accelerate), which is slow."""


@dataclass(frozen=True)
class FluxOptions:
    """`base` is the folder of FLUX.1-dev, `control` PAM's controlnet.bin (or safetensors); without them, those that
    `pam-aug fetch-weights` names.

    `prompt`: a text, or "drawn" for one of our templates per candidate. `captions`: a caption list or a folder of
    descriptions.json (`captions.CaptionBook`), whose text of an input is then the prompt of all its candidates; an
    input without one fails with that reason, or is painted by `prompt` where `missing_caption` is "prompt". `look` is
    the dataset whose condition images the ControlNets are shown. `mu` is the schedule's shift: "official" as PAM's code
    has it, "token_count" as FLUX means it. `width` and `height` are what is painted; the image is stretched back to the
    scene's camera. `memory_gb` (24, 40 or 80) sets `batch` and what stays on the GPU; the single fields are then
    ignored.
    """

    base: str = ""
    control: str = ""
    prompt: str = OFFICIAL_PROMPT
    captions: str = ""
    missing_caption: str = "refuse"
    look: str = "dexycb"
    steps: int = 28
    guidance: float = 4.0
    mu: str = "official"
    width: int = 640
    height: int = 480
    dtype: str = "bfloat16"
    device: str = "auto"
    batch: int = 6
    memory_gb: int = 0
    keep_text_encoders: bool = True
    offload: bool = False
    vae_tiling: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.look not in LOOKS:
            problems.append(f"look {self.look!r}: choose one of {', '.join(LOOKS)}")
        if self.mu not in MU_RULES:
            problems.append(f"mu {self.mu!r}: choose one of {', '.join(MU_RULES)}")
        if self.dtype not in _DTYPES:
            problems.append(f"dtype {self.dtype!r}: choose one of {', '.join(_DTYPES)}")
        if self.missing_caption not in _MISSING_CAPTIONS:
            problems.append(f"missing_caption {self.missing_caption!r}: choose one of {', '.join(_MISSING_CAPTIONS)}")
        if self.memory_gb not in (0, *_PRESETS):
            problems.append(f"memory_gb {self.memory_gb}: choose one of {', '.join(map(str, _PRESETS))}, or 0")
        if self.width % 16 or self.height % 16 or min(self.width, self.height) < 16:
            problems.append(f"{self.width}x{self.height}: FLUX paints multiples of 16")
        if min(self.steps, self.batch) < 1:
            problems.append("steps and batch are 1 or more")
        if problems:
            raise ConfigError("; ".join(problems), problems=problems)

    def resolved(self) -> "FluxOptions":
        """With the memory preset in the single fields."""
        return replace(self, memory_gb=0, **_PRESETS[self.memory_gb]) if self.memory_gb else self


class FluxGenerator:
    """FLUX.1-dev under PAM's control pair, loaded when the first image is asked for."""

    name: ClassVar[str] = "flux"
    version: ClassVar[str] = "1"
    Options: ClassVar[type] = FluxOptions
    fills_gpu: ClassVar[bool] = True  # a build's second worker would load FLUX a second time

    def __init__(self, options: FluxOptions | None = None) -> None:
        self.options = (options or FluxOptions()).resolved()
        self._batch = self.options.batch
        self._prompts: dict[str, Prompt] = {}

    def requires(self) -> list[str]:
        """FLUX.1-dev's folder and PAM's checkpoint, where they are missing."""
        o = self.options
        missing = missing_files(self._base)
        if not self._control_file.is_file():
            missing.append(
                f"{self._control_file}: PAM's ControlNets are missing; download controlnet.bin from "
                "https://huggingface.co/GasaiYU/PAM and put it there, or give its path as generate.options.control"
            )
        if o.captions and not Path(o.captions).exists():
            missing.append(f"{o.captions}: the captions are missing (generate.options.captions)")
        elif o.captions:
            _ = self._book  # a file of another form is told before any work, too
        return missing

    def content(self) -> dict[str, str]:
        """Of FLUX's folder (by the ends of its files), the ControlNets and the captions."""
        with open(self._control_file, "rb") as file:
            control = hashlib.file_digest(file, "sha256").hexdigest()
        found = {"base": fingerprint(self._base, FLUX_FILES), "control": control}
        return found | ({"captions": captions_digest(Path(self.options.captions))} if self.options.captions else {})

    def conditions(self, scene: Scene) -> Conditions:
        """Depth and segmentation of hands, forearms and objects; nothing else is asked of the model."""
        return scene_conditions(scene)

    def generate(
        self, scene: Scene, seeds: Sequence[int], size: tuple[int, int] | None = None
    ) -> Iterator[GeneratedImage]:
        """One image per seed, in order. See `Generator.generate`.

        A batch that does not fit is halved and tried again; raises BackendError where one candidate alone does not fit.
        """
        o = self.options
        texts = [self.prompt(scene, seed) for seed in seeds]
        self._encode(texts)
        images = condition_images(scene, self.conditions(scene), o.look)
        hints = self._hints(condition_tensor(images, o.width, o.height))
        camera = scene.sample.camera
        width, height = size or (camera.width, camera.height)
        start = 0
        while start < len(seeds):
            end = min(start + self._batch, len(seeds))
            pixels = self._paint(seeds[start:end], texts[start:end], hints)
            if pixels is None:
                continue
            for rgb, text in zip(pixels.numpy(), texts[start:end], strict=True):
                image = stretch_back(rgb, width, height)
                jpeg = simplejpeg.encode_jpeg(image, quality=_JPEG_QUALITY, colorsubsampling="444")
                yield GeneratedImage(simplejpeg.decode_jpeg(jpeg, colorspace="RGB"), jpeg, text)
            start = end

    def prompt(self, scene: Scene, seed: int) -> str:
        """The text that a candidate is painted by. Raises SourceError where captions are given and have none for it."""
        o = self.options
        if o.captions:
            try:
                return self._book.of(scene.sample)
            except SourceError:
                if o.missing_caption == "refuse":
                    raise
        return drawn_prompt(scene, seed) if o.prompt == "drawn" else o.prompt

    @property
    def _base(self) -> Path:
        return Path(self.options.base) if self.options.base else weights_dir() / "FLUX.1-dev"

    @property
    def _control_file(self) -> Path:
        return Path(self.options.control) if self.options.control else weights_dir() / "controlnet.bin"

    @cached_property
    def _book(self) -> CaptionBook:
        return CaptionBook(Path(self.options.captions))

    @cached_property
    def _device(self) -> torch.device:
        name = self.options.device
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)

    @cached_property
    def _dtype(self) -> torch.dtype:
        return _DTYPES[self.options.dtype]

    @cached_property
    def _transformer(self) -> Any:
        transformer: Any = load_transformer(self._base, self._dtype)
        if self.options.offload and self._device.type == "cuda":
            from accelerate import cpu_offload

            return cpu_offload(transformer, self._device)
        transformer = transformer.to(self._device)
        if self.options.compile:
            transformer.compile_repeated_blocks()
        return transformer

    @cached_property
    def _control(self) -> Any:
        return load_control(self._control_file, self._transformer.config, self._dtype).to(self._device)

    @cached_property
    def _vae(self) -> Any:
        vae: Any = load_vae(self._base, self._dtype)
        vae = vae.to(self._device)
        if self.options.vae_tiling:
            vae.enable_tiling()
        return vae

    @cached_property
    def _encoders(self) -> TextEncoders:
        return TextEncoders(self._base, self._dtype, self._device)

    def _encode(self, texts: Sequence[str]) -> None:
        """Encode what is new, all at once; for the first input, before the transformer takes the memory.

        Only the current input's prompts are kept, 4 MB each.
        """
        o = self.options
        new = list(dict.fromkeys(text for text in texts if text not in self._prompts))
        if new:
            self._prompts |= dict(zip(new, self._encoders.encode(new), strict=True))
            if not (o.keep_text_encoders and (o.prompt == "drawn" or o.captions)):
                self._encoders.free()
        self._prompts = {text: self._prompts[text] for text in dict.fromkeys(texts)}

    @torch.inference_mode()
    def _hints(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        return self._control.hints(conditions.to(self._device, self._dtype))

    def _paint(self, seeds: Sequence[int], texts: Sequence[str], hints: tuple[Tensor, Tensor]) -> Tensor | None:
        """Images (n,h,w,3) of a batch, or None where it did not fit and the next one is to be smaller."""
        o = self.options
        prompts = [self._prompts[text] for text in texts]
        prompt = Prompt(
            *(torch.cat([getattr(p, name) for p in prompts]).to(self._device) for name in ("text", "pooled"))
        )
        noise = candidate_noise(seeds, o.width, o.height, self._vae.config["latent_channels"])
        times = schedule_times(o.steps, shift_mu(o.width, o.height, o.mu))
        try:
            tokens = denoise(self._transformer, self._control, noise, hints, prompt, times, o.guidance)
        except torch.OutOfMemoryError as error:
            if len(seeds) == 1:
                raise self._too_large("one candidate") from error
            self._batch = max(1, len(seeds) // 2)
        else:
            return self._decoded(unpack_tokens(tokens, noise.shape[2], noise.shape[3]))
        torch.cuda.empty_cache()
        return None

    def _decoded(self, latents: Tensor) -> Tensor:
        """Images (n,h,w,3). Where they do not fit together, halves of what stays painted are decoded by themselves."""
        try:
            return decode_latents(self._vae, latents)
        except torch.OutOfMemoryError as error:
            if len(latents) == 1:
                raise self._too_large("one image's decoding") from error
        torch.cuda.empty_cache()
        return torch.cat([self._decoded(half) for half in latents.tensor_split(2)])

    def _too_large(self, what: str) -> BackendError:
        return BackendError(
            f"flux: {what} does not fit the GPU's memory; set generate.options.memory_gb to 24 or 40",
            device=str(self._device),
        )
