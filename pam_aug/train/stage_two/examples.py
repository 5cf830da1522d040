"""Training examples of stage II: an image, its label, the condition images in PAM's look, and a caption."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pam_aug import registry
from pam_aug.config import resolve, to_dict
from pam_aug.errors import ConfigError, SourceError
from pam_aug.generate.flux.fingerprint import captions_digest
from pam_aug.generate.flux.looks import condition_images
from pam_aug.render.conditions import Conditions
from pam_aug.render.pieces import scene_conditions
from pam_aug.rollouts.scene import Mesh, ObjectMesh, Scene, build_scene
from pam_aug.schema import Sample
from pam_aug.shards.images import Suffix, decode_depth_mm, decode_image, decode_plane
from pam_aug.shards.manifest import collect_shards
from pam_aug.shards.reader import ShardReader
from pam_aug.train.stage_two.config import ExampleConfig

__all__ = ["Example", "Examples"]

_NO_VERTICES, _NO_FACES = np.zeros((0, 3)), np.zeros((0, 3), np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """`images` are "depth", "keypoints" and "seg", RGB like `rgb` and of its size, the camera's."""

    sample: Sample
    rgb: UInt8[np.ndarray, "h w 3"]
    images: Mapping[str, UInt8[np.ndarray, "h w 3"]]
    prompt: str


class Examples:
    """The chosen examples of a source by number. `identity` says what they are: equal for equal examples.

    Raises ConfigError, and the source's own errors, where it cannot be opened.
    """

    def __init__(self, config: ExampleConfig) -> None:
        self._config = config
        self._source: Any = _Shards(config) if config.shards else _Converter(config)
        if not len(self._source):
            raise ConfigError(f"{config.shards or config.source}: holds no images; choose another split or part")
        size = len(self._source)
        count = size if config.inputs == -1 else min(config.inputs, size)
        self._numbers = [i * size // count for i in range(count)]
        self.identity: dict[str, Any] = {
            **self._source.identity,
            "items": size,
            "inputs": count,
            "look": config.look,
            "prompt": config.prompt,
            "captions": captions_digest(Path(config.captions)) if config.captions else "",
        }

    def __len__(self) -> int:
        return len(self._numbers)

    def example(self, index: int) -> Example:
        """Example `index`. Raises SourceError and its like for one that cannot be made."""
        sample, rgb, scene, conditions = self._source.read(self._numbers[index])
        camera = sample.camera
        if rgb.shape[:2] != (camera.height, camera.width):
            raise SourceError(f"{sample.key}: an image of {rgb.shape[1]}x{rgb.shape[0]}, the label has another size")
        return Example(sample, rgb, condition_images(scene, conditions, self._config.look), self._prompt(sample))

    def _prompt(self, sample: Sample) -> str:
        if self._book is not None:
            return self._book.of(sample)
        if sample.generation.prompt:
            return sample.generation.prompt
        if self._config.prompt != "label":
            return self._config.prompt
        if not sample.text:
            raise SourceError(f"{sample.key}: its label has no text; give data.prompt or data.captions")
        return sample.text

    @cached_property
    def _book(self) -> Any:
        if not self._config.captions:
            return None
        from pam_aug.generate.flux.captions import CaptionBook

        return CaptionBook(Path(self._config.captions))


class _Converter:
    """A converter's items; conditions are rendered from its labels and meshes."""

    def __init__(self, config: ExampleConfig) -> None:
        section = dict(config.source)
        name = str(section.pop("converter", ""))
        converter = registry.load("converters", name)
        if not converter.has_images:
            raise ConfigError(f"source {name!r} has no images to train on; choose one with images, or shards")
        options = resolve(converter.Options, section, where="source")
        self._source = converter(options)
        self._hands = self._source.hand_assets()
        if not self._hands:
            raise ConfigError(f"{name}: its hands have no model to be drawn with; give mano_dir or $MANO_DIR")
        self.identity = {"source": {"converter": name, **to_dict(options)}}

    def __len__(self) -> int:
        return len(self._source)

    def read(self, number: int) -> tuple[Sample, np.ndarray, Scene, Conditions]:
        item = self._source.item(number)
        suffix: Suffix = "png" if item.image.startswith(b"\x89PNG") else "jpg"
        scene = build_scene(item, self._hands)
        return item.sample, decode_image(item.image, suffix, item.sample.key), scene, scene_conditions(scene)


class _Shards:
    """A folder's committed shards; conditions come from the depth and segmentation beside each image."""

    def __init__(self, config: ExampleConfig) -> None:
        folder = Path(config.shards)
        kinds = {"real": ("real",), "synthetic": ("syn",), "all": ("real", "syn")}[config.part]
        shards = [shard for kind in kinds for shard in collect_shards(folder / "shards", kind, folder)]  # type: ignore[arg-type]
        if not shards:
            raise ConfigError(f"{folder}: no committed shard of part {config.part!r}; build or convert it first")
        self._paths = [folder / shard.path for shard in shards]
        self._ends = list(accumulate(shard.samples for shard in shards))
        self._open: tuple[int, ShardReader] | None = None
        self.identity = {"shards": [shard.sha256 for shard in shards], "part": config.part}

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, number: int) -> tuple[Sample, np.ndarray, Scene, Conditions]:
        shard = bisect_right(self._ends, number)
        reader, row = self._reader(shard), number - (self._ends[shard - 1] if shard else 0)
        sample = reader.sample(row)
        if set(reader.extras(row)) != {"depth.png", "seg.png"}:
            raise ConfigError(
                f"{reader.path}: has no depth.png and seg.png; write the shards again with --depth drawn --seg",
                path=str(reader.path),
            )
        depth = decode_depth_mm(reader.extra(row, "depth.png"), sample.key)
        seg = decode_plane(reader.extra(row, "seg.png"), np.uint8, sample.key)
        # Of objects, the look needs names and ids only; the pixels are drawn already.
        objects = tuple(
            ObjectMesh(Mesh(o.mesh, _NO_VERTICES, _NO_FACES, ""), o.seg_id, np.asarray(o.T_cam_obj))
            for o in sample.objects
            if o.valid
        )
        conditions = Conditions(depth.astype(np.float32) / 1000.0, seg, np.zeros((*seg.shape, 3), np.uint8))
        return sample, reader.image(row), Scene(sample, (), objects), conditions

    def _reader(self, shard: int) -> ShardReader:
        if self._open is None or self._open[0] != shard:
            if self._open is not None:
                self._open[1].close()
            self._open = shard, ShardReader(self._paths[shard])
        return self._open[1]
