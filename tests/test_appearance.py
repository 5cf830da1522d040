"""Shaded pictures: true to their labels, a pure function of the seed, and lit as they should be."""

import numpy as np
import pytest
import trimesh

from pam_aug.render import lighting
from pam_aug.render.appearance import Piece, draw_light, prepare, shade
from pam_aug.render.camera_noise import _motion_kernel, draw_camera, take_picture
from pam_aug.render.conditions import Part
from pam_aug.render.surface import corner_normals, see_surface
from pam_aug.render.textures import noise_volume, to_linear

K_PX = np.array([[140.0, 0, 47.5], [0, 140.0, 47.5], [0, 0, 1]])
SIZE = 96


def _ball_over_plate():
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.05)
    plate = trimesh.creation.box((0.4, 0.01, 0.4))
    return [
        Piece(
            Part(ball.vertices + np.array([0, -0.03, 0.5]), np.asarray(ball.faces), 16),
            np.asarray(ball.vertices),
            "object",
        ),
        Piece(
            Part(plate.vertices + np.array([0, 0.06, 0.5]), np.asarray(plate.faces), 17),
            np.asarray(plate.vertices),
            "object",
        ),
    ]


@pytest.fixture(scope="module")
def prepared():
    return prepare(_ball_over_plate(), K_PX, SIZE, SIZE)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_picture(prepared):
    first = shade(prepared, 2**63 - 1)
    shade(prepared, 5)  # what was shaded before has no influence
    again = shade(prepare(_ball_over_plate(), K_PX, SIZE, SIZE), 2**63 - 1)
    assert first.dtype == np.uint8
    assert first.shape == (SIZE, SIZE, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, shade(prepared, 2**63 - 2))


def test_the_caller_s_random_state_and_prepared_arrays_are_left_alone(prepared):
    before = [a.tobytes() for a in (prepared.surface.normal, prepared.transfer, prepared.tex_m, prepared.uv)]
    shade(prepared, 1)
    assert before == [a.tobytes() for a in (prepared.surface.normal, prepared.transfer, prepared.tex_m, prepared.uv)]


def test_samples_cover_each_seen_pixel_and_weigh_one_inside(prepared):
    s = prepared.surface
    assert s.coverage.max() == pytest.approx(1.0)
    assert (s.coverage[s.depth_m > 0] > 0).mean() > 0.999
    inner = np.zeros((SIZE, SIZE), bool)
    inner[1:-1, 1:-1] = (
        (s.depth_m > 0)[1:-1, 1:-1] & (s.depth_m > 0)[:-2, 1:-1] & (s.depth_m > 0)[2:, 1:-1]
        & (s.depth_m > 0)[1:-1, :-2] & (s.depth_m > 0)[1:-1, 2:]
    )  # fmt: skip
    assert (s.coverage[inner] >= 0.5).all()
    assert s.coverage[40, 47] == 1.0


def test_normals_face_the_camera_on_a_ball_and_keep_the_edges_of_a_box():
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.05)
    s = see_surface([Part(ball.vertices + np.array([0, 0, 0.5]), np.asarray(ball.faces), 16)], K_PX, SIZE, SIZE)
    exact = (s.pos_m - np.array([0, 0, 0.5])) / 0.05
    assert np.abs(s.normal - exact).max() < 0.06
    box = trimesh.creation.box()
    normals = corner_normals(box.vertices, np.asarray(box.faces))
    assert np.allclose(normals, box.face_normals[:, None], atol=1e-6)


def test_an_open_surface_reflects_what_an_even_sky_sends():
    # A white ball alone under a sky of radiance 1 reflects 1 everywhere: its transfer is the bare cosine lobe.
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.05)
    s = see_surface([Part(ball.vertices + np.array([0, 0, 0.5]), np.asarray(ball.faces), 16)], K_PX, SIZE, SIZE)
    sky = np.zeros((9, 3), np.float32)
    sky[0] = np.sqrt(4 * np.pi)
    reflected = lighting.light_transfer(s) @ sky
    assert np.abs(reflected - 1).max() < 0.08


def test_a_ball_shadows_the_plate_below_it(prepared):
    s = prepared.surface
    lamp = lighting.Lamp(np.array([0.0, -1.0, 0.0]), np.inf, np.ones(3), 0.01)
    n = len(s.pixel)
    white, gloss = np.ones((n, 3), np.float32), np.tile(np.array([1, 0, 0], np.float32), (n, 1))
    out = np.zeros((n, 3), np.float32)
    arrays = (np.array([0, -1, 0], np.float32), np.zeros(4, np.float32), np.ones(3, np.float32))
    shadow = lighting.lamp_shadow(s, lamp, prepared.ball)
    lighting.add_lamp(s.pos_m, s.normal, white, gloss, np.zeros(n, np.float32), *arrays, shadow, 4, out)
    top = (s.part == 1) & (s.normal[:, 1] < -0.99)
    distance = np.hypot(s.pos_m[:, 0], s.pos_m[:, 2] - 0.5)
    assert out[top & (distance < 0.035)].max() < 1e-6
    assert np.abs(out[top & (distance > 0.065) & (distance < 0.15)] - 1).max() < 1e-3
    # The fixed environment is dimmer there, too.
    sky = np.zeros((9, 3), np.float32)
    sky[0] = np.sqrt(4 * np.pi)
    ambient = (prepared.transfer @ sky)[:, 0]
    blocked = (0.05 / 0.085) ** 2  # share of a flat receiver's cosine lobe that a ball hides: (radius / distance)^2
    assert ambient[top & (distance < 0.01)].mean() == pytest.approx(1 - blocked, abs=0.1)
    assert ambient[top & (distance > 0.12)].mean() > 0.93


@pytest.mark.parametrize("seed", range(40))
def test_a_camera_moves_no_pixel(seed):
    """The centroid of what any camera makes of a bright square stays within a tenth of a pixel."""
    look = draw_camera(np.random.default_rng(seed))._replace(vignette=0.0, shot=0.0, read=0.0, jpeg=(0, "444"))
    light = np.full((41, 61, 3), 0.02, np.float32)
    light[12:20, 25:37] = 0.5
    image = take_picture(light, look, 1.0).astype(float).sum(2)
    image = np.abs(image - np.median(image))
    y, x = np.mgrid[0:41, 0:61]
    assert abs((image * x).sum() / image.sum() - 30.5) < 0.1
    assert abs((image * y).sum() / image.sum() - 15.5) < 0.1


def test_motion_blur_is_symmetric_and_short():
    for angle in np.linspace(0, np.pi, 7):
        kernel = _motion_kernel(3.0, float(angle))
        assert np.allclose(kernel, kernel[::-1, ::-1])
        assert kernel.sum() == pytest.approx(1.0)


def test_exposure_brightens_and_an_8_bit_tone_curve_never_falls():
    look = draw_camera(np.random.default_rng(1))
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32)[None, :, None], (8, 1, 3))
    clean = look._replace(
        shot=0.0, read=0.0, vignette=0.0, blur_px=0.0, motion_px=(0.0, 0.0), sharpen=0.0, jpeg=(0, "444")
    )
    a, b = take_picture(ramp, clean, 0.5).astype(int), take_picture(ramp, clean, 1.0).astype(int)
    assert (np.diff(a, axis=1) >= 0).all()
    assert (b >= a).all()
    assert (b > a).any()


def test_noise_volume_is_periodic_and_standardised():
    v = noise_volume()
    assert v.shape == (64, 64, 64, 4)
    assert np.allclose(v.reshape(-1, 4).mean(0), 0, atol=1e-4)
    assert np.allclose(v.reshape(-1, 4).std(0), 1, atol=1e-3)
    seam = np.abs(v[0] - v[-1]).mean((0, 1))
    inside = np.abs(v[31] - v[32]).mean((0, 1))
    assert (seam < 1.3 * inside).all()


def test_lamps_stand_above_the_table_and_srgb_is_inverted():
    up = np.array([0.0, -1.0, 0.0])
    for seed in range(50):
        sh, lamps = draw_light(np.random.default_rng(seed), up)
        assert np.isfinite(sh).all()
        assert 1 <= len(lamps) <= 3
        assert all(lamp.towards @ up > 0.05 for lamp in lamps)
    assert to_linear(np.array([0.0, 0.5, 1.0])) == pytest.approx([0.0, 0.21404, 1.0], abs=1e-5)


def test_what_is_out_of_view_or_behind_the_camera_still_gives_a_picture():
    pieces = _ball_over_plate()
    aside = K_PX.copy()
    aside[0, 2] += 5000
    empty = prepare(pieces, aside, 40, 30)
    assert len(empty.surface.pixel) == 0
    assert shade(empty, 3).shape == (30, 40, 3)
    through = [p._replace(part=p.part._replace(verts_cam_m=p.part.verts_cam_m - np.array([0, 0, 0.5]))) for p in pieces]
    assert shade(prepare(through, K_PX, 40, 30), 3).shape == (30, 40, 3)


def test_the_number_of_opencv_threads_changes_no_byte(prepared):
    import cv2

    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = [shade(prepared, s).tobytes() for s in range(8)]
        cv2.setNumThreads(3)
        assert [shade(prepared, s).tobytes() for s in range(8)] == one
    finally:
        cv2.setNumThreads(threads)
