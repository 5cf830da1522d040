"""Clip scores of made-up motions, with exact values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_aug.clip_score import ClipErrors, clip_errors, jitter_mm, worst_clip
from pam_aug.errors import SchemaError

HAND = np.random.default_rng(0).normal(0, 0.04, (21, 3))


def motion(frames: int) -> np.ndarray:
    """A hand that flies on a parabola and grows: smooth, but with acceleration of its own."""
    t = np.arange(frames)[:, None, None]
    return HAND * (1 + 0.01 * t**2) + 0.001 * t**2 * np.array([1.0, 2.0, 0.5])


def shifted(label: np.ndarray, mm) -> np.ndarray:
    """Every joint but the wrist moved along x, frame by frame."""
    found = label.copy()
    found[:, 1:, 0] += np.asarray(mm, float)[:, None] / 1000
    return found


def test_mean_worst_frame_and_jitter_are_exact():
    label = motion(5)
    clip = clip_errors(shifted(label, [0, 0, 21, 0, 0]), label)
    assert (clip.err_mm, clip.worst_err_mm) == pytest.approx((4.0, 20.0))  # the wrist is one of 21 and does not move
    assert (clip.worst_frame, clip.frames, clip.failed) == (2, 5, 0)
    assert clip.jitter_mm == pytest.approx((21 + 42 + 21) / 3)


def test_a_steady_error_and_the_labels_own_motion_are_no_jitter():
    label = motion(6)
    assert clip_errors(label, label).jitter_mm == 0
    assert jitter_mm(shifted(label, [8.0] * 6), label) == pytest.approx(0, abs=1e-9)
    assert jitter_mm(shifted(label, 3.0 * np.arange(6)), label) == pytest.approx(0, abs=1e-9)  # steady drift
    assert jitter_mm(shifted(label, [1, -1] * 3), label) == pytest.approx(4.0)
    assert jitter_mm(label[:2], label[:2]) == 0


def test_a_lost_hand_fails_the_clip_and_a_frame_without_label_does_not():
    label = motion(7)
    lost = shifted(label, [1.0] * 7)
    lost[3, 5, 1] = np.nan
    clip = clip_errors(lost, label)
    assert (clip.err_mm, clip.worst_err_mm, clip.jitter_mm) == (math.inf,) * 3
    assert (clip.worst_frame, clip.frames, clip.failed) == (3, 7, 1)
    absent = label.copy()
    absent[3] = np.nan
    clip = clip_errors(lost, absent)
    assert clip.err_mm == pytest.approx(20 / 21)
    assert (clip.frames, clip.failed) == (6, 0)
    assert clip.jitter_mm == pytest.approx(0, abs=1e-9)  # frames 0-2 and 4-6 only


def test_nothing_labelled_is_no_score():
    nothing = clip_errors(motion(3), np.full((3, 21, 3), np.nan))
    assert nothing == ClipErrors(math.inf, math.inf, -1, math.inf, 0, 0)
    with pytest.raises(SchemaError):
        clip_errors(motion(3), motion(4))
    with pytest.raises(SchemaError):
        worst_clip([nothing])


def test_the_worst_hand_decides():
    label = motion(4)
    hands = [clip_errors(shifted(label, [mm] * 4), label) for mm in (2.0, 9.0, 9.0)]
    nothing = clip_errors(label, np.full((4, 21, 3), np.nan))
    assert worst_clip([*hands, nothing]) is hands[1]


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8))
def test_invariants(mm):
    label = motion(len(mm))
    clip = clip_errors(shifted(label, mm), label)
    errors = np.abs(mm) * 20 / 21
    assert clip.err_mm == pytest.approx(errors.mean(), abs=1e-6)
    assert clip.worst_err_mm == pytest.approx(errors.max(), abs=1e-6)
    assert errors[clip.worst_frame] == pytest.approx(errors.max(), abs=1e-6)
    assert clip.err_mm <= clip.worst_err_mm + 1e-9
    backwards = clip_errors(shifted(label, mm)[::-1], label[::-1])
    assert backwards.jitter_mm == pytest.approx(clip.jitter_mm, abs=1e-6)
