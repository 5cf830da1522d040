"""HaMeR's crops and cameras, by hand."""

import numpy as np
import pytest
from fake_hamer import K

from pam_aug.estimators.hamer import AffineCrop, camera_translation, crop_points, hamer_crop
from pam_aug.geometry import project


@pytest.mark.parametrize(("box", "side"), [((10, 20, 70, 140), 240.0), ((10, 20, 100, 80), 240.0), ((5, 5, 5, 5), 2.0)])
def test_the_crop_pads_the_box_to_three_by_four_and_doubles_it(box, side):
    crop = hamer_crop(np.array(box, float), 300, flip=False)
    assert crop.side_px == side
    scale = 256 / side
    at = crop.affine @ [13.0, 47.0, 1.0]
    expected = [128 + (13 - (box[0] + box[2]) / 2) * scale, 128 + (47 - (box[1] + box[3]) / 2) * scale]
    assert at.tolist() == pytest.approx(expected)
    ours = hamer_crop(np.array(box, float), 300, flip=False, pixel_centres="library")
    assert (ours.affine @ [13.0, 47.0, 1.0]).tolist() == pytest.approx([e - 0.5 for e in expected])


def test_crop_pixels_come_from_where_the_crop_says():
    rgb = np.zeros((180, 300, 3), np.uint8)
    rgb[..., 0] = np.minimum(np.arange(300), 255)
    rgb[..., 1] = np.arange(180)[:, None]
    for flip in (False, True):
        crop = hamer_crop(np.array([90.0, 50, 138, 114]), 300, flip=flip)  # 128 pixels, doubled
        view = crop.image(rgb).astype(float)
        for spot in ((20.0, 100.0), (100.0, 30.0), (201.0, 177.0)):
            found = crop.points_to_image(np.array([spot]))[0]
            assert view[int(spot[1]), int(spot[0]), :2] == pytest.approx(found, abs=0.51)
    outside = hamer_crop(np.array([-60.0, -60, -20, -20]), 300, flip=False).image(rgb + 9)
    assert outside[0, 0].tolist() == [0, 0, 0]


def test_the_camera_by_hand():
    points = np.array([[0.01, -0.02, 0.03], [-0.05, 0.0, 0.0]])
    s, tx, ty = 8.0, 0.02, -0.01
    z = 2 * 5000 / (256 * s + 1e-9)
    by_hand = [[((5000 / 256) * (x + tx) / (d + z) + 0.5) * 256, ((5000 / 256) * (y + ty) / (d + z) + 0.5) * 256]
               for x, y, d in points]  # fmt: skip
    assert crop_points(points, np.array([s, tx, ty])) == pytest.approx(np.array(by_hand), abs=1e-12)
    crop = AffineCrop(np.array([210.0, 70.0]), 160.0, False, 300, 128.0)
    t = camera_translation(np.array([s, tx, ty]), crop, K)
    assert t[2] == pytest.approx(2 * 300 / (160 * s), rel=1e-9)
    assert t[:2] == pytest.approx([tx + 2 * (210 - 150) / (160 * s), ty + 2 * (70 - 90) / (160 * s)], rel=1e-9)
    # A point at the camera's own depth lands where the crop's camera puts it.
    flat = np.array([[0.01, -0.02, 0.0]])
    assert project(flat + t, K) == pytest.approx(crop.points_to_image(crop_points(flat, np.array([s, tx, ty]))))
