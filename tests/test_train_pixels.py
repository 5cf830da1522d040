"""Photometric augmentation and the domain gap's options: colours change, places do not."""

import pickle

import cv2
import numpy as np
import pytest

from pam_aug.errors import ConfigError
from pam_aug.train.augment_pixels import PixelAugmentation
from pam_aug.train.domain_gap import draw_background, mix_spectrum, paste_occluder, swap_background
from pam_aug.train.mixed_config import GapConfig, PixelConfig

NEUTRAL = {"gain": [1, 1], "brightness": [0, 0], "contrast": [0, 0]}


def spots() -> tuple[np.ndarray, np.ndarray]:
    """Bright round spots at known, fractional places of a dark image: (image, places)."""
    places = np.array([[20.3, 18.6], [60.8, 22.1], [24.5, 61.2], [66.0, 67.7]])
    v, u = np.mgrid[0:88, 0:88]
    light = sum(np.exp(-((u - x) ** 2 + (v - y) ** 2) / 18) for x, y in places)
    return np.rint(60 + 120 * light[..., None] * [1, 0.9, 0.7]).astype(np.uint8), places


def found_at(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The spots' centres of mass over the ground's level."""
    level = image.astype(np.float64).sum(2)
    level = np.maximum(level - np.median(level) - 0.1 * np.ptp(level), 0)
    v, u = np.mgrid[0:88, 0:88]
    near = [(np.hypot(u - x, v - y) < 12) * level for x, y in places]
    return np.array([[(w * u).sum() / w.sum(), (w * v).sum() / w.sum()] for w in near])


# Point operations and the symmetric blur move nothing; what is left of 0.01 px is the rounding to bytes. Lower
# resolution, noise and compression redraw pixels, so spots are found a little elsewhere, while labels stay true.
BARS = {
    "gain": ({**NEUTRAL, "gain": [0.6, 1.4]}, 0.05),
    "brightness": ({**NEUTRAL, "brightness": [-0.15, 0.1]}, 0.05),
    "contrast": ({**NEUTRAL, "contrast": [-0.2, 0.2]}, 0.05),
    "gamma": ({**NEUTRAL, "gamma": 1.0}, 0.05),
    "gray": ({**NEUTRAL, "gray": 1.0}, 0.05),
    "blur": ({**NEUTRAL, "blur": 1.0}, 0.05),
    "downscale": ({**NEUTRAL, "downscale": 1.0}, 0.2),
    "noise": ({**NEUTRAL, "noise": 1.0}, 0.5),
    "jpeg": ({**NEUTRAL, "jpeg": 1.0}, 0.3),
}


@pytest.mark.parametrize("name", BARS)
def test_photometric_transforms_leave_places(name):
    options, bar = BARS[name]
    image, places = spots()
    assert np.abs(found_at(image, places) - places).max() < 0.02
    augment = PixelAugmentation(PixelConfig(**options))
    changed = [augment(image, seed) for seed in range(4)]
    assert any((out != image).any() for out in changed)
    for out in changed:
        assert (out.shape, out.dtype) == (image.shape, np.uint8)
        assert np.abs(found_at(out, places) - found_at(image, places)).max() < bar


def test_keypoints_pass_through_untouched():
    """Compared by albumentations itself: the whole of a recipe's transforms, keypoints given along."""
    from pam_aug.train import augment_pixels

    config = PixelConfig(gamma=1, gray=1, blur=1, noise=1, jpeg=1, downscale=1)
    A = augment_pixels.import_albumentations()
    transforms = augment_pixels._compose(config).transforms
    image, places = spots()
    both = A.Compose(transforms, keypoint_params=A.KeypointParams("xy", remove_invisible=False), seed=3)
    out = both(image=image, keypoints=places)
    assert np.abs(np.asarray(out["keypoints"]) - places).max() < 1e-4  # its keypoints are float32
    assert (out["image"] != image).any()


def test_an_images_outcome_is_of_its_seed():
    image = spots()[0]
    augment = PixelAugmentation(PixelConfig(noise=1.0))
    first = [augment(image, seed) for seed in (1, 2, 1)]
    assert np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    elsewhere = pickle.loads(pickle.dumps(augment))  # as a worker gets it
    assert np.array_equal(elsewhere(image, 2), first[1])
    assert np.array_equal(image, spots()[0])


def test_spectrum_mix_takes_the_amplitude_and_keeps_the_phase():
    rng = np.random.default_rng(0)
    image, places = spots()
    real = cv2.resize(rng.integers(40, 120, (5, 5, 3), np.uint8), (88, 88), interpolation=cv2.INTER_CUBIC)
    mixed = mix_spectrum(image, real, 0.02)
    assert mixed.mean((0, 1)) == pytest.approx(real.mean((0, 1)), abs=1.5)  # the lowest frequency is the mean
    spectra = [np.fft.fft2(x[..., 0].astype(float)) for x in (image, real, mixed)]
    assert abs(spectra[2][1, 0]) == pytest.approx(abs(spectra[1][1, 0]), rel=0.1)
    for place in ((9, 4), (0, 12)):
        assert np.angle(spectra[2][place] / spectra[0][place]) == pytest.approx(0, abs=0.1)
    # The field changes smoothly, so spots stay where they are, up to the slope of the light under them.
    high = [
        cv2.GaussianBlur(x, (0, 0), 1) - cv2.GaussianBlur(x, (0, 0), 6)
        for x in (image.astype(float), mixed.astype(float))
    ]
    peaks = [
        [
            np.unravel_index(h.sum(2)[int(y) - 5 : int(y) + 6, int(x) - 5 : int(x) + 6].argmax(), (11, 11))
            for x, y in places
        ]
        for h in high
    ]
    assert np.abs(np.array(peaks[0]) - np.array(peaks[1])).max() <= 1
    assert np.abs(mix_spectrum(image, image, 0.05).astype(int) - image).max() <= 1


def test_background_swap_keeps_what_is_not_background():
    image, _ = spots()
    kept = np.zeros((88, 88), np.float32)
    kept[20:60, 30:70] = 1
    background = draw_background(np.random.default_rng(1), "", 88)
    out = swap_background(image, kept, background)
    assert np.array_equal(out[20:60, 30:70], image[20:60, 30:70])
    assert np.array_equal(out[kept == 0], background[kept == 0])


def test_backgrounds_come_from_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="holds no"):
        draw_background(np.random.default_rng(0), str(tmp_path / "empty"), 32)
    (tmp_path / "some").mkdir()
    red = np.zeros((50, 70, 3), np.uint8)
    red[..., 2] = 200  # OpenCV's order
    cv2.imwrite(str(tmp_path / "some" / "a.png"), red)
    out = draw_background(np.random.default_rng(0), str(tmp_path / "some"), 32)
    assert out.shape == (32, 32, 3)
    assert (out == [200, 0, 0]).all()


def test_an_occluder_covers_a_part_of_the_hand_only():
    image, other = np.zeros((88, 88, 3), np.uint8), np.full((88, 88, 3), 255, np.uint8)
    joints = np.random.default_rng(0).uniform(25, 65, (21, 2))
    shares = []
    for seed in range(20):
        out = paste_occluder(np.random.default_rng(seed), image, other, joints)
        shares.append((out > 127).mean())
    assert min(shares) > 0
    assert max(shares) < 0.2
    assert np.ptp(shares) > 0.01


def test_chances_and_ranges_are_checked():
    for wrong in ({"gain": [1.4, 0.6]}, {"jpeg": 2.0}, {"brightness": [0.0]}):
        with pytest.raises(ConfigError):
            PixelConfig(**wrong)
    with pytest.raises(ConfigError, match="spectrum_radius"):
        GapConfig(spectrum_radius=0.6)
