"""What an image generator is: from a scene and a list of seeds to pictures that show the scene."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import UInt8
from numpy import ndarray

from pam_aug.render.conditions import Conditions
from pam_aug.rollouts.scene import Scene

__all__ = ["Filed", "GeneratedImage", "Generator", "Prompted"]


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedImage:
    """One candidate: its file's bytes, and exactly those bytes decoded (what an estimator is to see)."""

    rgb: UInt8[ndarray, "h w 3"]
    jpeg: bytes
    prompt: str = ""


@runtime_checkable
class Generator(Protocol):
    """A generator backend. `name` and `version` go into every sample; another version may give other pixels.

    `Options` is a frozen dataclass, read from the configuration's `generate.options`.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    Options: ClassVar[type]

    def __init__(self, options: Any = None) -> None: ...

    def requires(self) -> list[str]:
        """What is missing before it can run, one sentence each (which file, from where, under which licence)."""
        ...

    def conditions(self, scene: Scene) -> Conditions:
        """Depth and segmentation as this generator's images of the scene show them."""
        ...

    def generate(
        self, scene: Scene, seeds: Sequence[int], size: tuple[int, int] | None = None
    ) -> Iterator[GeneratedImage]:
        """One image per seed, in order, each a function of the scene, its seed and the size only.

        `size` is (width, height) of the images; None means the size of the scene's camera. The labels of an image
        of another size are the scene's, with `K_px` scaled (pixel centres at integers).
        """
        ...


@runtime_checkable
class Prompted(Protocol):
    """A generator that reads a text: what it read is recorded with each sample."""

    def prompt(self, scene: Scene, seed: int) -> str:
        """The text of a candidate, a function of the scene and the seed only."""
        ...


@runtime_checkable
class Filed(Generator, Protocol):
    """A generator whose images depend on files of the user's: a build goes on only with the same content."""

    def content(self) -> dict[str, str]:
        """A hash of each such file or folder by the option that names it. Asked for where nothing is missing."""
        ...
