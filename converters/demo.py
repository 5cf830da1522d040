"""Sources that need no input at all: synthetic rollouts, and a path-traced stand-in for a real dataset.

Both pose the bundled hand on objects made in code. `DemoRollouts` has no images: it feeds a generator, and the training
of the bundled estimator. `DemoReal` renders its images and is called "demo-real" wherever its data goes: it stands
where a real dataset would, in tests and in the tutorial, and is not real data.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from pam_aug.errors import AssetMissing, ConfigError, SourceError
from pam_aug.hand import HandAssets, Side
from pam_aug.rollouts.cameras import CameraRanges
from pam_aug.rollouts.scene import Item
from pam_aug.schema import Sample, Source, make_key
from pam_aug.seeds import derived_seed

from .demo_scenes import above_table, demo_hands, make_interaction, observe, place, random_rotation
from .demo_sequences import Sequence, make_sequence

__all__ = ["DemoReal", "DemoRollouts"]

ROLLOUT_LICENCE = "Apache-2.0: made by pam_aug from its own hand model and objects; no dataset enters"
REAL_LICENCE = "Apache-2.0: path-traced by pam_aug from its own hand model and objects; not real photographs"


def _one_of(name: str, value: str, known: list[str]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{name} = {value!r} is none of {', '.join(known)}; did you mean {near!r}?", value=value)


def _pair(name: str, values: list) -> tuple:
    if len(values) != 2:
        raise ConfigError(f"{name} = {values} should have two values", value=values)
    return values[0], values[1]


class DemoRollouts:
    """Hands that hold, touch or are near procedural objects, seen from sampled cameras."""

    name: ClassVar[str] = "demo-rollouts"
    has_images: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Options:
        """`split` "train" and "test" share no object family and no seed.

        `views`: "sphere" sees the hand from everywhere under any roll, "table" from above a table, upright. `sides`:
        "both", "right" or "left". `fill` is the share of the shorter image side that the hand's box takes,
        `grasp_share` how many hands hold their object. `betas_sigma` spreads the hands' shapes.
        """

        count: int = 64
        seed: int = 0
        split: str = "train"
        views: str = "sphere"
        sides: str = "both"
        size: list[int] = field(default_factory=lambda: [256, 256])
        fill: list[float] = field(default_factory=lambda: [0.3, 0.6])
        grasp_share: float = 0.65
        betas_sigma: float = 1.0
        max_hidden: float = 0.6

    def __init__(self, options: Options) -> None:
        self.options = options
        _one_of("split", options.split, ["train", "test"])
        _one_of("views", options.views, ["sphere", "table"])
        _one_of("sides", options.sides, ["both", "right", "left"])
        if options.count < 1:
            raise ConfigError(f"count = {options.count}: at least one rollout is needed")
        width, height = _pair("size", options.size)
        sphere = options.views == "sphere"
        self._ranges = CameraRanges(
            width=width,
            height=height,
            elevation_deg=(-90.0, 90.0) if sphere else (10.0, 75.0),
            roll_deg=(-180.0, 180.0) if sphere else (-15.0, 15.0),
            fill=_pair("fill", options.fill),
            max_hidden=options.max_hidden,
            max_behind=0.9 if sphere else 0.75,
        )

    def __len__(self) -> int:
        return self.options.count

    def hand_assets(self) -> Mapping[str, HandAssets]:
        """The bundled open hand, both sides."""
        return demo_hands()

    def item(self, index: int) -> Item:
        """Rollout `index`: a pure function of the options but `count`, and of `index`."""
        if not 0 <= index < len(self):
            raise SourceError(f"{self.name}: item {index} of {len(self)}", index=index)
        o = self.options
        rng = np.random.default_rng(derived_seed("demo-rollouts", o.split, o.seed, index))
        side: Side = {"right": "right", "left": "left"}.get(o.sides, "left" if rng.random() < 0.5 else "right")  # type: ignore[assignment]
        betas = np.clip(rng.normal(0.0, o.betas_sigma, 10), -3.0, 3.0)
        held = bool(rng.random() < o.grasp_share)
        interaction = make_interaction(rng, o.split, f"{o.seed}-{index:06d}", side, held, betas)
        turn = random_rotation(rng) if o.views == "sphere" else above_table(rng, side)
        hand = place(interaction, turn, np.array([0.0, 0.0, 0.25]))
        camera, label, objects, hidden = observe(rng, interaction, hand, self._ranges)
        mesh = interaction.mesh
        sample = Sample(
            key=make_key("demo", f"{o.split}-{o.seed}", f"{interaction.kind}-{index:06d}", "view-00", "000000"),
            camera=camera,
            hands=(label,),
            objects=objects,
            source=Source(
                dataset="demo",
                name=f"{o.split}/{o.seed}/{index}",
                licence=ROLLOUT_LICENCE,
                converter=self.name,
                split=o.split,
                group=mesh.name if mesh is not None else f"demo/alone-{o.seed}-{index:06d}",
                notes=(f"hand: {interaction.kind}", f"joints hidden: {round(hidden * 21)} of 21"),
            ),
        )
        return Item(sample, b"", {} if mesh is None else {mesh.name: mesh})


class DemoReal:
    """A path-traced stand-in for a real dataset, in sequences of one hand, object, room and camera that move.

    Its objects, hand shapes, skins, textures, lights and camera noise are drawn otherwise than the bundled generator's.
    """

    name: ClassVar[str] = "demo-real"
    has_images: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Options:
        """`frames` per sequence; `spp` light paths per pixel: fewer is faster and grainier."""

        count: int = 64
        frames: int = 8
        seed: int = 0
        size: list[int] = field(default_factory=lambda: [256, 256])
        spp: int = 9

    def __init__(self, options: Options) -> None:
        if min(options.count, options.frames, options.spp) < 1:
            raise ConfigError("demo-real: count, frames and spp are 1 or more")
        _pair("size", options.size)
        try:
            from .demo_pathtrace import render_jpeg
        except ImportError as error:
            raise AssetMissing(
                f"demo-real renders with mitsuba, which cannot be imported ({error}); pip install 'pam_aug[rgb]'",
                package="mitsuba",
            ) from error
        self._render = render_jpeg
        self.options = options
        self._latest: tuple[int, Sequence] | None = None

    def __len__(self) -> int:
        return self.options.count

    def hand_assets(self) -> Mapping[str, HandAssets]:
        """The bundled open hand, both sides."""
        return demo_hands()

    def item(self, index: int) -> Item:
        """Frame `index % frames` of sequence `index // frames`, rendered; the same bytes in any process."""
        if not 0 <= index < len(self):
            raise SourceError(f"{self.name}: item {index} of {len(self)}", index=index)
        o = self.options
        number, frame = divmod(index, o.frames)
        if self._latest is None or self._latest[0] != number:
            self._latest = (number, make_sequence(o.seed, number, o.frames, o.size[0], o.size[1]))
        sequence = self._latest[1]
        view = sequence.view(frame)
        key = make_key(
            "demo-real", f"subject-{sequence.subject:03d}", f"seq-{o.seed}-{number:05d}", "cam-0", f"{frame:06d}"
        )
        image = self._render(sequence, view, derived_seed("demo-real", o.seed, number, frame, "camera-noise"), o.spp)
        mesh = sequence.mesh
        sample = Sample(
            key=key,
            camera=view.camera,
            hands=(view.label,),
            objects=view.objects,
            source=Source(
                dataset="demo-real",
                name=f"{o.seed}/{number}/{frame}",
                licence=REAL_LICENCE,
                converter=self.name,
                group=f"demo-real/seq-{o.seed}-{number:05d}",
                notes=("rendered stand-in, not a photograph",),
            ),
        )
        return Item(sample, image, {mesh.name: mesh})
