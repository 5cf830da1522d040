"""Condition images and prompts of the generator `flux`: expected pixels computed by hand from PAM's rules."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from pam_aug.errors import ConfigError
from pam_aug.generate.flux.looks import (
    PALETTE,
    condition_images,
    condition_tensor,
    object_label,
    seg_image,
    stretch_back,
)
from pam_aug.generate.flux.prompts import OFFICIAL_PROMPT, drawn_prompt, object_words
from pam_aug.registry import load
from pam_aug.render.conditions import (
    DEXYCB_KEYPOINTS,
    OAKINK2_LEFT_KEYPOINTS,
    OAKINK2_RIGHT_KEYPOINTS,
    draw_keypoints,
)
from pam_aug.render.pieces import scene_conditions
from pam_aug.rollouts.scene import build_scene

# Limb colours of the three drawings, limb 0 (thumb's first) to 19 (little finger's last).
DEXYCB = [(139, 53, 255), (174, 88, 255), (209, 123, 255), (244, 158, 255), (0, 56, 255), (35, 91, 255), (70, 126, 255),
          (105, 161, 255), (43, 140, 237), (78, 175, 255), (113, 210, 255), (148, 245, 255), (37, 168, 36),
          (72, 203, 71), (107, 238, 106), (142, 255, 141), (147, 147, 0), (182, 182, 35), (217, 217, 70),
          (252, 252, 105)]  # fmt: skip
RIGHT = [(255, 0, 0), (34, 35, 35), (69, 70, 70), (104, 105, 105), (255, 85, 85), (34, 120, 120), (69, 155, 155),
         (104, 190, 190), (255, 170, 170), (34, 205, 205), (69, 240, 240), (104, 19, 19), (255, 255, 255), (34, 34, 34),
         (69, 69, 69), (104, 104, 104), (200, 200, 200), (235, 235, 235), (14, 14, 14), (49, 49, 49)]  # fmt: skip
LEFT = [(139, 53, 255), (174, 88, 34), (209, 123, 69), (244, 158, 104), (0, 56, 255), (35, 91, 34), (70, 126, 69),
        (105, 161, 104), (43, 140, 237), (78, 175, 16), (113, 210, 51), (148, 245, 86), (37, 168, 36), (72, 203, 71),
        (107, 238, 106), (142, 17, 141), (147, 147, 0), (182, 182, 35), (217, 217, 70), (252, 252, 105)]  # fmt: skip


@pytest.mark.parametrize(
    ("look", "colours", "half_widths"),
    [
        (DEXYCB_KEYPOINTS, DEXYCB, (6, 3)),
        (OAKINK2_RIGHT_KEYPOINTS, RIGHT, (4, 2)),
        (OAKINK2_LEFT_KEYPOINTS, LEFT, (4, 2)),
    ],
)
def test_limbs_have_pams_colours_and_widths(look, colours, half_widths):
    joints = np.zeros((21, 2))
    joints[0] = (150, 400)
    for finger in range(5):
        for step in range(4):
            joints[1 + 4 * finger + step] = (30 + 60 * finger, 300 - 60 * step)
    image = draw_keypoints([(joints, np.zeros(21))], 320, 420, [look])
    for limb in range(20):
        start, end = joints[0 if limb % 4 == 0 else limb], joints[limb + 1]
        if np.hypot(*(end - start)) >= 150:
            continue
        x, y = ((start + end) / 2).astype(int)
        assert tuple(image[y, x]) == colours[limb], limb
        if limb % 4:  # upright limbs: the row through the middle is 2 · half width + 1 pixels of the colour
            row = (image[y] == colours[limb]).all(1)
            assert row.sum() == 2 * half_widths[0 if limb < 4 else 1] + 1


def test_tip_discs_take_the_next_fingers_row():
    far = np.full((21, 2), -100.0)
    for j, colour in ((0, (139, 53, 255)), (4, (0, 56, 255)), (20, (70, 17, 145))):
        joints = far.copy()
        joints[j] = (20, 20)
        image = draw_keypoints([(joints, np.zeros(21))], 40, 40)
        assert tuple(image[20, 20]) == colour
        assert (image.any(2)).sum() == 29  # a filled disc of radius 3


def test_segmentation_has_ade20ks_colours():
    assert [tuple(PALETTE[i]) for i in (0, 1, 2, 14, 21, 149, 150)] == [
        (120, 120, 120), (180, 120, 120), (6, 230, 230), (8, 255, 51), (61, 230, 250), (92, 0, 255), (0, 0, 0),
    ]  # fmt: skip
    assert len(PALETTE) == 151
    assert object_label("ycb/025_mug") == 14
    assert object_label("003_cracker_box.obj") == 2
    assert object_label("061_foam_brick") == 21
    assert 1 <= object_label("something else") <= 21
    seg = np.array([[0, 1, 2], [3, 16, 17]], np.uint8)
    labels = {16: 14, 17: 2}
    assert seg_image(seg, labels).tolist() == [
        [[0, 0, 0], [92, 0, 255], [92, 0, 255]],
        [[0, 0, 0], [8, 255, 51], [6, 230, 230]],
    ]
    assert seg_image(seg, {}, "oakink2")[0].tolist() == [[0, 0, 0], [61, 230, 250], [61, 230, 250]]
    assert tuple(seg_image(seg, {16: 1, 17: 2}, "oakink2")[1, 1]) == tuple(PALETTE[22])


def test_stretching_follows_each_conditions_rule():
    depth = np.zeros((2, 2, 3), np.uint8)
    depth[:, 1] = 200
    seg = np.zeros((2, 2, 3), np.uint8)
    seg[:, 1] = (92, 0, 255)
    keypoints = np.array([[[255, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 255, 0]]], np.uint8)
    out = condition_tensor({"depth": depth, "seg": seg, "keypoints": keypoints}, 8, 4)
    assert out.shape == (1, 12, 4, 8)
    assert (out[:, 3:6] == -1).all()  # no normals
    assert torch.equal(out[0, 6, 0], torch.tensor([1.0] * 4 + [-1.0] * 4))  # nearest
    assert out[0, 9, 0].tolist() == pytest.approx([-1.0] * 4 + [92 / 127.5 - 1] * 4)
    assert (out[0, :3, :, :4] == -1).all()  # the blur into the background is cut
    assert out[0, 0, 0, 7] == pytest.approx(200 / 127.5 - 1)
    assert -1 < out[0, 0, 0, 4] < out[0, 0, 0, 7]  # bilinear inside
    assert condition_tensor({}, 16, 16).eq(-1).all()
    assert stretch_back(np.full((48, 64, 3), 9, np.uint8), 80, 60).shape == (60, 80, 3)


@pytest.fixture(scope="module")
def scene():
    converter = load("converters", "demo-rollouts")
    source = converter(converter.Options(count=1, size=[160, 120], grasp_share=1.0))
    return build_scene(source.item(0), source.hand_assets())


@pytest.mark.parametrize("look", ["dexycb", "oakink2"])
def test_a_scenes_conditions(scene, look):
    conditions = scene_conditions(scene)
    images = condition_images(scene, conditions, look)
    hand = np.isin(conditions.seg, [1, 2])
    colour = (92, 0, 255) if look == "dexycb" else (61, 230, 250)
    assert (images["seg"][hand] == colour).all()
    foreground = images["seg"].any(2)
    assert np.array_equal(foreground, images["depth"].any(2))
    assert not foreground[conditions.seg == 3].any()  # no forearm
    near, far = conditions.depth_m[foreground].argmin(), conditions.depth_m[foreground].argmax()
    assert images["depth"][foreground][near].sum() > images["depth"][foreground][far].sum()
    assert images["keypoints"].any()
    with pytest.raises(ConfigError, match="look"):
        condition_images(scene, conditions, "ho3d")


def test_drawn_prompts_say_what_is_there_and_vary(scene):
    prompts = [drawn_prompt(scene, seed) for seed in range(50)]
    assert prompts == [drawn_prompt(scene, seed) for seed in range(50)]
    assert len(set(prompts)) > 45
    side, thing = scene.hands[0].side, object_words(scene.objects[0].mesh.name)
    assert all(f"a {side} hand" in p and thing in p for p in prompts)
    assert object_words("ycb/003_cracker_box") == "a cracker box"
    assert object_words("ycb/035_ice_tool") == "an ice tool"
    assert object_words("00000054c36d44a2") == "an object"
    assert OFFICIAL_PROMPT == "A hand is trying to grasp something"
