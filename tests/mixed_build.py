"""A small build with real and synthetic hands of both sides, whose pictures show the pose: skeletons in colour."""

from pathlib import Path

import cv2
import numpy as np
import orjson
from test_export import MODELS, hand

from pam_aug.hand.joints import BONES
from pam_aug.schema import Camera, Generation, Hand, Sample, Source, make_key
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, write_mix
from pam_aug.shards.writer import ShardWriter

SIZE = 64
# Unequal focal lengths, a skew and an axis off the image's middle: what a real calibration may have.
CAMERA = Camera(SIZE, SIZE, np.array([[80.0, 0.4, 36], [0, 72.0, 29], [0, 0, 1]]), np.eye(4))


def drawing(label: Hand, number: int) -> np.ndarray:
    """The bones over a plain ground; colours go by the finger and the number."""
    image = np.full((SIZE, SIZE, 3), 40 + (37 * number) % 60, np.uint8)
    for joint, parent in enumerate(BONES):
        if parent >= 0:
            ends = [tuple(int(v) for v in np.rint(label.joints_px[k])) for k in (parent, joint)]
            colour = tuple(int(c) for c in np.random.default_rng(joint // 4).integers(90, 255, 3))
            cv2.line(image, ends[0], ends[1], colour, 2, cv2.LINE_AA)
    return image


def write_build(out: Path, real: int, synthetic: int, ratio: str = "1/2", seg: bool = False, **changes) -> Path:
    """A build's folder; every third hand is a left one. `changes` are of the labels (`mano_valid=False`)."""
    for kind, count, first in (("real", real, 0), ("syn", synthetic, 500)):
        with ShardWriter(out / "shards" / f"{kind}-00000.tar", kind) as shard:  # type: ignore[arg-type]
            for n in range(count):
                side = "left" if n % 3 == 2 else "right"
                label = hand(first + n, side, CAMERA)
                label = Hand(**{f: changes.get(f, getattr(label, f)) for f in Hand.__dataclass_fields__})
                key = make_key("demo", kind, f"take{n // 4}", "c", f"{n:06d}") + ("@00" if kind == "syn" else "")
                made = Generation("fake", "1", key[:-3], 0, 1) if kind == "syn" else Generation()
                sample = Sample(
                    key, CAMERA, (label,), (), Source("demo", str(n), "CC0", "test"), kind == "syn", made
                )  # fmt: skip
                image = drawing(label, first + n)
                jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
                mask = (image.max(2) > 110).astype(np.uint8)
                extras = {"seg.png": cv2.imencode(".png", mask)[1].tobytes()} if seg else {}
                shard.add(sample, jpeg, "jpg", extras)
    shards = {kind: collect_shards(out / "shards", kind, out) for kind in ("real", "syn")}
    num, _, den = ratio.partition("/")
    rest = f"{int(den or 1) - int(num)}/{den or 1}"
    sources = (MixSource("real", ratio, shards["real"]), MixSource("synthetic", rest, shards["syn"]))
    write_mix(out / "mix.json", Mix(tuple(s for s in sources if s.hands), seed=3))
    record = {"identity": {"hands": {name: assets.sha256 for name, assets in MODELS.items()}}}
    (out / "build.json").write_bytes(orjson.dumps(record))
    return out
