"""What FLUX's frozen parts say about the examples, computed once and kept in safe files.

    <cache>/cache.json              what the examples are and what read them; another run with other ones is refused
            part-000000.safetensors 32 examples: posterior moments of the VAE, condition images as PNG, labels, captions
            prompts/<hash>.safetensors   one caption: T5's states and CLIP's pooled state

A part is a fixed slice of the examples, so parts are made by any process in any order and a killed run goes on. The
moments are kept, not a sample of them: PAM draws the latents anew whenever it reads an image.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from pam_aug.config import config_hash
from pam_aug.errors import (
    BackendError,
    BudgetExceeded,
    ConfigError,
    ResumeMismatch,
    SchemaError,
    ShardDamaged,
    SourceError,
    UnsafeInput,
)
from pam_aug.generate.flux.looks import condition_tensor
from pam_aug.generate.flux.models import TextEncoders
from pam_aug.generate.flux.sampling import Prompt
from pam_aug.rollouts.scene import LeftOut
from pam_aug.schema import Sample, sample_from_json, sample_to_json
from pam_aug.shards.atomic import write_atomic
from pam_aug.shards.images import decode_image
from pam_aug.train.run_folder import write_tensors
from pam_aug.train.stage_two.examples import Example, Examples

__all__ = ["Cache", "Cached", "claim_cache", "write_parts", "write_prompts"]

_PART = 32
_IMAGES = ("depth", "keypoints", "seg")
_KEPT_PROMPTS = 64
_PER_EXAMPLE = (SourceError, SchemaError, BackendError, UnsafeInput, ShardDamaged)


class Cached(NamedTuple):
    """One example as training reads it. `images` are the condition images, RGB."""

    sample: Sample
    moments: Float[Tensor, "k h w"]
    images: dict[str, np.ndarray]
    prompt: str

    def conditions(self, width: int, height: int) -> Float[Tensor, "1 12 height width"]:
        """The tensor that the ControlNets read."""
        return condition_tensor(self.images, width, height)


def claim_cache(identity: Mapping[str, Any], folder: Path) -> str:
    """Write what a cache holds into a new folder, or check that an old one holds the same; returns its name (a hash).

    Raises ResumeMismatch, naming what differs.
    """
    path, mine = folder / "cache.json", json.loads(json.dumps(identity))
    if path.is_file():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        if changed:
            raise ResumeMismatch(
                f"{folder}: this cache was made from other inputs ({', '.join(changed)}); give another folder as "
                "cache, or remove this one",
                fields=changed,
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(mine, indent=2) + "\n").encode())
    return config_hash(mine)


def write_parts(
    examples: Examples, folder: Path, name: str, size: tuple[int, int], vae: Callable[[], Any], share: tuple[int, int]
) -> None:
    """Make the parts that `folder` lacks, of this process's `share` (rank, world). `vae` loads the VAE when needed.

    An example that cannot be made is left out, with its reason in the part's header.
    """
    starts = list(range(0, len(examples), _PART))[share[0] :: share[1]]
    todo = [start for start in starts if not _part_path(folder, start).is_file()]
    if not todo:
        return
    model = vae()
    with tqdm(total=len(todo) * _PART, unit="image", desc="latents", disable=None if share[0] == 0 else True) as bar:
        for start in todo:
            tensors: dict[str, Tensor] = {}
            items: list[dict[str, str]] = []
            skipped: list[dict[str, str]] = []
            for index in range(start, min(start + _PART, len(examples))):
                try:
                    example = examples.example(index)
                except _PER_EXAMPLE as error:
                    kind = "left out" if isinstance(error, LeftOut) else "failed"
                    skipped.append({"kind": kind, "reason": str(error)})
                    continue
                tensors |= _tensors_of(example, f"{len(items):02d}", size, model)
                items.append({"sample": sample_to_json(example.sample).decode(), "prompt": example.prompt})
            header = {"cache": name, "items": items, "skipped": skipped}
            write_tensors(_part_path(folder, start), tensors, {"part": json.dumps(header)})
            bar.update(_PART)


@torch.inference_mode()
def _tensors_of(example: Example, prefix: str, size: tuple[int, int], vae: Any) -> dict[str, Tensor]:
    pixels = torch.from_numpy(np.array(example.rgb)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    if pixels.shape[2:] != (size[1], size[0]):
        pixels = functional.interpolate(pixels, (size[1], size[0]), mode="bilinear", antialias=True)
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    moments = torch.cat([posterior.mean, posterior.logvar], 1)[0].float().cpu()
    if not bool(torch.isfinite(moments).all()):
        raise BackendError(f"{example.sample.key}: the VAE's latents are not finite; check FLUX's files", device="vae")
    out = {f"{prefix}/moments": moments.clone()}
    for name in _IMAGES:
        png = cv2.imencode(".png", example.images[name][..., ::-1])[1]
        out[f"{prefix}/{name}"] = torch.from_numpy(np.array(png, np.uint8).reshape(-1))
    return out


def write_prompts(
    texts: Iterable[str], folder: Path, name: str, encoders: TextEncoders, share: tuple[int, int]
) -> None:
    """Encode the captions that `folder` lacks, one by one: what a text gives depends on no other."""
    todo = [text for text in sorted(set(texts))[share[0] :: share[1]] if not _prompt_path(folder, text).is_file()]
    if not todo:
        return
    (folder / "prompts").mkdir(exist_ok=True)
    for text in tqdm(todo, unit="caption", desc="captions", disable=None if share[0] == 0 else True):
        prompt = encoders.encode([text])[0]
        tensors = {"text": prompt.text[0].contiguous(), "pooled": prompt.pooled[0].contiguous()}
        write_tensors(_prompt_path(folder, text), tensors, {"prompt": json.dumps({"cache": name, "text": text})})


class Cache:
    """A finished cache: examples by number, from any process. Raises ResumeMismatch for files of another cache and
    BudgetExceeded where over 1 % of the examples failed."""

    def __init__(self, folder: Path, name: str, inputs: int) -> None:
        self._folder, self._name = folder, name
        self._where: list[tuple[int, int]] = []
        self.texts: set[str] = set()
        self.skipped: list[dict[str, str]] = []
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._header: tuple[int, dict[str, Any]] | None = None
        for start in range(0, inputs, _PART):
            header = self._part(start)
            self._where += [(start, number) for number in range(len(header["items"]))]
            self.texts |= {item["prompt"] for item in header["items"]}
            self.skipped += header["skipped"]
        failed = [entry for entry in self.skipped if entry["kind"] == "failed"]
        if len(failed) > 0.01 * inputs:
            raise BudgetExceeded(
                f"{folder}: {len(failed)} of {inputs} examples could not be made, the first: {failed[0]['reason']}. "
                "Repair the source, then remove the cache and start again",
                failed=len(failed),
            )
        if not self._where:
            raise ConfigError(f"{folder}: no example is left of {inputs}", inputs=inputs)

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> Cached:
        start, number = self._where[index]
        if self._header is None or self._header[0] != start:
            self._header = start, self._part(start)
        item = self._header[1]["items"][number]
        path = _part_path(self._folder, start)
        with _opened(path) as file:
            moments = file.get_tensor(f"{number:02d}/moments")
            pngs = {name: file.get_tensor(f"{number:02d}/{name}").numpy().tobytes() for name in _IMAGES}
        images = {name: decode_image(png, "png", f"{path}:{number:02d}/{name}") for name, png in pngs.items()}
        return Cached(sample_from_json(item["sample"].encode()), moments, images, item["prompt"])

    def prompt(self, text: str) -> Prompt:
        """A caption as FLUX reads it; the last ones stay in memory."""
        if text in self._prompts:
            self._prompts.move_to_end(text)
            return self._prompts[text]
        path = _prompt_path(self._folder, text)
        with _opened(path) as file:
            header = _header(file, "prompt", path)
            self._check(header, path)
            if header.get("text") != text:
                raise SchemaError(f"{path}: holds another caption; remove it and start again", path=str(path))
            found = Prompt(file.get_tensor("text")[None], file.get_tensor("pooled")[None])
        self._prompts[text] = found
        if len(self._prompts) > _KEPT_PROMPTS:
            self._prompts.popitem(last=False)
        return found

    def _part(self, start: int) -> dict[str, Any]:
        path = _part_path(self._folder, start)
        with _opened(path) as file:
            header = _header(file, "part", path)
        self._check(header, path)
        return header

    def _check(self, header: Mapping[str, Any], path: Path) -> None:
        if header.get("cache") != self._name:
            raise ResumeMismatch(
                f"{path}: belongs to a cache of other inputs; remove it and start again", path=str(path)
            )


def _part_path(folder: Path, start: int) -> Path:
    return folder / f"part-{start:06d}.safetensors"


def _prompt_path(folder: Path, text: str) -> Path:
    return folder / "prompts" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise SchemaError(f"{path}: cannot be read ({error}); remove it and start again", path=str(path)) from error


def _header(file: Any, entry: str, path: Path) -> dict[str, Any]:
    try:
        return json.loads((file.metadata() or {})[entry])
    except (KeyError, ValueError) as error:
        raise SchemaError(f"{path}: has no header of this cache; remove it and start again", path=str(path)) from error
