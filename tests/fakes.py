"""Backends for tests of the build: quick, exact, and able to fail on demand. Registered by `install`."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import simplejpeg
import torch

from pam_aug import registry
from pam_aug.build.config import BuildConfig
from pam_aug.config import resolve
from pam_aug.errors import SourceError
from pam_aug.estimators.base import Estimates
from pam_aug.geometry import project
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.render.pieces import scene_conditions
from pam_aug.rollouts.scene import Item
from pam_aug.schema import Camera, Hand, Sample, Source, make_key

SIZE = 48


def label(seed: int, dataset: str) -> Sample:
    """A right open hand in front of a camera, posed by the seed."""
    rng = np.random.default_rng(seed)
    pose = (0.2 * rng.standard_normal((1, 45))).astype(np.float32)
    orient = (0.5 * rng.standard_normal((1, 3))).astype(np.float32)
    transl = np.array([[0.0, 0.0, 0.5]], np.float32)
    layer = HandLayer(load_open_hand("right"), dtype=torch.float64)
    arrays = [torch.from_numpy(a.astype(np.float64)) for a in (orient, pose, np.zeros((1, 10)), transl)]
    joints = layer(*arrays).joints21[0].numpy()
    K_px = np.array([[60.0, 0, (SIZE - 1) / 2], [0, 60.0, (SIZE - 1) / 2], [0, 0, 1]])
    joints_px = project(joints, K_px)
    return Sample(
        key=make_key(dataset, "s", f"seq{seed // 4}", "c", f"{seed:06d}"),
        camera=Camera(width=SIZE, height=SIZE, K_px=K_px, T_world_cam=np.eye(4)),
        hands=(
            Hand(
                side="right",
                hand_model="open_hand",
                joints_cam_m=joints,
                joints_px=joints_px,
                in_view=np.all((joints_px >= 0) & (joints_px <= SIZE - 1), -1),
                global_orient=orient[0],
                hand_pose=pose[0],
                transl=transl[0],
            ),
        ),
        objects=(),
        source=Source(dataset=dataset, name=str(seed), licence="test", converter=dataset),
    )


def picture(seed: int) -> bytes:
    """A JPEG that depends on the seed only."""
    rng = np.random.default_rng(seed)
    return simplejpeg.encode_jpeg(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8), quality=90)


@dataclass(frozen=True)
class SourceOptions:
    count: int = 6
    bad: int = -1  # this item raises SourceError


class FakeRollouts:
    name = "fake-rollouts"
    Options = SourceOptions
    has_images = False

    def __init__(self, options: SourceOptions) -> None:
        self.options = options

    def __len__(self) -> int:
        return self.options.count

    def item(self, index: int) -> Item:
        if index == self.options.bad:
            raise SourceError(f"item {index} is broken")
        return Item(label(index, self.name), b"", {})

    def hand_assets(self):
        return {"open_hand/right": load_open_hand("right")}


class FakeReal(FakeRollouts):
    name = "fake-real"
    has_images = True

    def item(self, index: int) -> Item:
        item = super().item(index)
        return Item(item.sample, picture(index), {})


@dataclass(frozen=True)
class NoOptions:
    pass


class FakeGenerator:
    name = "fake"
    version = "1"
    Options = NoOptions
    seconds = 0.0
    log: Path | None = None

    def __init__(self, options: NoOptions) -> None:
        pass

    def requires(self) -> list[str]:
        return []

    def conditions(self, scene):
        return scene_conditions(scene)

    def generate(self, scene, seeds):
        for seed in seeds:
            time.sleep(self.seconds)
            if self.log is not None:
                with open(self.log, "a") as file:
                    file.write(f"{seed}\n")
            yield SimpleNamespace(jpeg=picture(seed), prompt="")


class FakeEstimator:
    """Finds the label plus an error that depends on the image only: 0 to 25.5 mm along x, all joints but the wrist."""

    name = "fake"
    version = "1"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        pass

    def requires(self) -> list[str]:
        return []

    def estimate(self, images, queries):
        n = len(images)
        joints = np.zeros((n, 21, 3))
        for i, image in enumerate(images):
            joints[i, 1:, 0] = hashlib.sha256(image.tobytes()).digest()[0] * 1e-4
        return Estimates(joints, np.zeros((n, 21, 2)), None, np.ones(n, bool), ("",) * n)


class OtherEstimator(FakeEstimator):
    """Another opinion: it looks at another byte of the image's hash."""

    name = "other"

    def estimate(self, images, queries):
        found = super().estimate(images, queries)
        for i, image in enumerate(images):
            found.joints_m[i, 1:, 0] = hashlib.sha256(image.tobytes()).digest()[1] * 1e-4
        return found


_BACKENDS = {
    ("converters", "fake-rollouts"): FakeRollouts,
    ("converters", "fake-real"): FakeReal,
    ("generators", "fake"): FakeGenerator,
    ("estimators", "fake"): FakeEstimator,
    ("estimators", "other"): OtherEstimator,
}


def install() -> None:
    """Make the fakes known under their names, beside the registered backends."""
    real_load = registry.load
    registry.load = lambda kind, name: _BACKENDS.get((kind, name)) or real_load(kind, name)


CONFIG = {
    "source": {"converter": "fake-rollouts", "count": 5},
    "real": {"converter": "fake-real", "count": 7},
    "generate": {"generator": "fake", "candidates": 8},
    "score": {"estimator": "fake"},
    "shards": {"inputs_per_shard": 2, "samples_per_shard": 4},
}


def config(*overrides: str) -> BuildConfig:
    """A build of the fakes, with changes."""
    return resolve(BuildConfig, CONFIG, overrides)
