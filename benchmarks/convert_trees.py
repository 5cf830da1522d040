"""Trees of DexYCB and OAKINK2 in the published form, as large as a benchmark wants them.

Real in size and form: names, calibration, label archives (members, types, compression, segmentation shapes), the
annotation pickle with all its tensors, JPEG images of natural entropy (70 to 100 kB), depth images with a sensor's
noise and holes (90 to 130 kB). Not real: what the images show, and that frames share files by hard links (64 images,
some labels), so that making a tree takes seconds; reading them costs the same system calls and the same bytes. The
sequences of a small OAKINK2 tree are shorter than real ones, so that there are four.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import fake_dexycb
import fake_oakink2

__all__ = ["files_read", "write_dexycb", "write_oakink2"]

_IMAGES, _DEPTHS = 64, 16
_SEQUENCE_FRAMES = 72  # of a DexYCB sequence
_OAK_FRAMES = 1600  # images per camera of an OAKINK2 sequence, at most


def natural_jpegs(folder: Path, width: int, height: int, count: int) -> list[Path]:
    """JPEG files of pictures whose spectrum falls off as that of photographs, each of another size of 70 to 100 kB."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    paths = []
    fall = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1.0 / width
    for k in range(count):
        waves = rng.normal(size=(3, *fall.shape)) + 1j * rng.normal(size=(3, *fall.shape))
        planes = np.fft.irfft2(waves / fall**1.2, s=(height, width))
        planes[1:] = 0.8 * planes[:1] + 0.2 * planes[1:]  # colours of a picture go together
        picture = 128 + 45 * (planes - planes.mean()) / planes.std()
        pixels = np.clip(np.moveaxis(picture, 0, 2), 0, 255).astype(np.uint8)
        low, high = 30, 100
        wanted = rng.integers(70_000, 100_000)
        while high - low > 1:  # the quality that gives the size
            middle = (low + high) // 2
            size = len(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, middle])[1])
            low, high = (middle, high) if size <= wanted else (low, middle)
        path = folder / f"{k}.jpg"
        path.write_bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, low])[1].tobytes())
        paths.append(path)
    return paths


def sensor_depths(folder: Path, count: int) -> list[Path]:
    """16-bit PNG files of 640x480 as a depth sensor gives them: a table and things on it in millimetres, noise, 18 %
    without a measurement (0) and some saturated pixels (65535)."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    paths = []
    for k in range(count):
        rough = [cv2.GaussianBlur(rng.normal(size=(480, 640)), (0, 0), s) * s for s in (1, 6, 40)]
        things = np.where(rough[1] > 0.35, 60.0, 0.0) + 120 * rough[2]
        wanted, low, high = rng.integers(90_000, 130_000), 0.0, 20.0
        data = b""
        for _ in range(8):  # the noise that gives the size
            noise = (low + high) / 2
            mm = (900 + np.linspace(-150, 150, 480)[:, None] + things + noise * rough[0]).astype(np.uint16)
            mm[rough[1] < np.quantile(rough[1], 0.18)] = 0
            mm.ravel()[rng.integers(0, mm.size, 261)] = 65535
            data = cv2.imencode(".png", mm)[1].tobytes()
            low, high = (noise, high) if len(data) <= wanted else (low, noise)
        paths.append(folder / f"{k}.png")
        paths[-1].write_bytes(data)
    return paths


def segmentation(rng: np.random.Generator) -> np.ndarray:
    """Outlines of a hand and some objects, as ragged as those that are drawn from meshes."""
    seg = np.zeros((480, 640), np.uint8)
    for value in (2, 5, 14, 255):
        turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        radius = rng.uniform(40, 70) * (1 + 0.25 * rng.normal(size=60).cumsum() / 8)
        outline = np.stack([np.cos(turn), np.sin(turn)], 1) * radius[:, None] + rng.uniform([150, 130], [490, 350])
        cv2.fillPoly(seg, [outline.astype(np.int32)], value)
    return seg


def write_dexycb(folder: Path, images: int) -> dict[str, Any]:
    """A DexYCB tree of `images` images (eight cameras, 72 frames a sequence). Returns the converter's options."""
    rng = np.random.default_rng(0)
    fake = fake_dexycb.write_dexycb(folder)
    jpegs, depths = natural_jpegs(folder / "jpegs", 640, 480, _IMAGES), sensor_depths(folder / "depths", _DEPTHS)
    model = fake.sequences[0]
    source = fake.root / model.subject / model.name
    labels: dict[str, list[Path]] = {}
    for serial in fake_dexycb.SERIALS:
        for frame in (1, 2, 3, 5):
            path = source / serial / f"labels_{frame:06d}.npz"
            label = {**np.load(path), "seg": segmentation(rng)}
            path.unlink()
            np.savez_compressed(path, **label)
            labels.setdefault(serial, []).append(path)
    meta = (source / "meta.yml").read_text().replace("num_frames: 6", f"num_frames: {_SEQUENCE_FRAMES}")
    lines = []
    for number in range(images // (8 * _SEQUENCE_FRAMES)):
        name, position = f"20200709_{150000 + number:06d}", [i for i in range(100) if i % 5 != 4][number % 80]
        subject = list(fake_dexycb.EXTRINSICS)[number // 80]
        sequence = fake.root / subject / name
        sequence.mkdir()
        lines.append(f"{subject}/{name} {position}")
        (sequence / "meta.yml").write_text(meta)
        np.savez(sequence / "pose.npz", pose_m=np.ones((_SEQUENCE_FRAMES, 1, 51), np.float32))
        for k, serial in enumerate(fake_dexycb.SERIALS):
            (sequence / serial).mkdir()
            for frame in range(_SEQUENCE_FRAMES):
                os.link(jpegs[(11 * k + 5 * number + frame) % _IMAGES], sequence / serial / f"color_{frame:06d}.jpg")
                os.link(labels[serial][frame % 4], sequence / serial / f"labels_{frame:06d}.npz")
                depth = depths[(k + 3 * number + frame) % _DEPTHS]
                os.link(depth, sequence / serial / f"aligned_depth_to_color_{frame:06d}.png")
    for s in fake.sequences[1:]:
        shutil.rmtree(fake.root / s.subject / s.name)
    shutil.rmtree(source)
    fake.table.write_text("\n".join(lines) + "\n")
    subjects = sorted({list(fake_dexycb.EXTRINSICS).index(line.split("/")[0]) + 1 for line in lines})
    return {
        "converter": "dexycb",
        "root": str(fake.root),
        "subjects": subjects,
        "sequence_table": str(fake.table),
        "mano_dir": str(fake.mano_dir),
    }


def write_oakink2(folder: Path, images: int) -> dict[str, Any]:
    """An OAKINK2 tree of `images` images of four cameras, in four sequences or more of up to 1,600 frames."""
    root = folder / "oakink2"
    frames = min(images // 16, _OAK_FRAMES)
    ids = list(range(5, 5 + 4 * frames, 4))
    jpegs = natural_jpegs(folder / "jpegs", fake_oakink2.WIDTH, fake_oakink2.HEIGHT, _IMAGES)
    first = fake_oakink2.make_sequence(
        fake_oakink2.KEY_A, 1, tuple(fake_oakink2.SERIALS), ids, list(range(5, 5 + 4 * frames))
    )
    whole = fake_oakink2.annotation_of(first, as_torch=True, whole_body=True)
    annotation = root / "annotation.pkl"
    fake_oakink2.write_annotation(annotation, whole)
    for number in range(images // (4 * frames)):
        token = f"scene_01__A001++seq__{number:020x}__2023-04-27-20-38-16"
        (root / "anno_preview").mkdir(exist_ok=True)
        os.link(annotation, root / "anno_preview" / f"{token}.pkl")
        for k, serial in enumerate(fake_oakink2.SERIALS):
            (root / "data" / token / serial).mkdir(parents=True)
            for at, frame in enumerate(ids):
                os.link(
                    jpegs[(11 * k + 5 * number + at) % _IMAGES], root / "data" / token / serial / f"{frame:06d}.jpg"
                )
        key = f"(({ids[0]}, {ids[-1]}), None)"
        fake_oakink2.write_programme(
            root / "program", token, {key: fake_oakink2.primitive("hold", None, "C12001")}, {key: "Hold the bowl."}
        )
    fake_oakink2.write_meshes(root)
    fake_oakink2.write_mano(root / "mano")
    return {"converter": "oakink2", "root": str(root), "mano_dir": str(root / "mano")}


def files_read(name: str, root: Path, depth: bool) -> list[Path]:
    """What a conversion reads of the dataset: no meshes, no segmentation beyond the label archives."""
    if name == "dexycb":
        files = [p for p in sorted(root.rglob("*")) if p.is_file() and "models" not in p.parts]
        return [p for p in files if depth or p.suffix != ".png"]
    folders = [p for part in ("data", "anno_preview", "program") for p in sorted((root / part).rglob("*"))]
    return [p for p in folders if p.is_file()]
