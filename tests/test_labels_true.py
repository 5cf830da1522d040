import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pam_aug.converters.demo import DemoRollouts
from pam_aug.evaluate.label_check import check_labels
from pam_aug.generate.rendered import RenderedGenerator
from pam_aug.rollouts.scene import build_scene

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import labels


def test_joints_lie_on_what_the_images_show():
    found = labels.measure(30)
    assert found.inside > 500
    assert found.on_scene >= 0.995 * found.inside
    assert found.visible > 0.4 * found.inside
    assert found.depth_true >= 0.99 * found.visible


@pytest.mark.parametrize("shift", [(12.0, 0.0), (0.0, -12.0)])
def test_the_check_sees_labels_that_are_off(shift):
    source, generator = DemoRollouts(DemoRollouts.Options(count=8, split="test")), RenderedGenerator()
    right = wrong = inside = 0
    for i in range(8):
        scene = build_scene(source.item(i), source.hand_assets())
        drawn = generator.conditions(scene)
        hands = tuple(replace(h, joints_px=h.joints_px + np.float32(shift)) for h in scene.sample.hands)
        right += check_labels(scene, drawn).on_scene
        found = check_labels(replace(scene, sample=replace(scene.sample, hands=hands)), drawn)
        wrong, inside = wrong + found.on_scene, inside + found.inside
    assert wrong < 0.9 * inside < right
