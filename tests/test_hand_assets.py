"""Reading hand models: official MANO files, cleaned copies, our own format, and everything that must be refused."""

import os
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
from fake_mano import fake_hand, mano_fields, write_clean, write_official

from pam_aug.errors import AssetMissing, SchemaError, SourceError, UnsafeInput
from pam_aug.hand import HandAssets, load_mano, load_npz, load_open_hand, save_npz

RIGHT = fake_hand()
LEFT = RIGHT.mirrored()
MANO_ARRAYS = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "parents", "hands_mean",
               "hands_components")  # fmt: skip


def assert_same_model(got: HandAssets, want: HandAssets) -> None:
    assert got.side == want.side
    for key in MANO_ARRAYS:
        np.testing.assert_array_equal(getattr(got, key), getattr(want, key), err_msg=key)


def assert_closes_outwards(assets: HandAssets) -> None:
    faces = [*assets.f.tolist(), *assets.f_cap.tolist()]
    half_edges = {(a, b) for t in faces for a, b in zip(t, t[1:] + t[:1], strict=True)}
    assert len(half_edges) == 3 * len(faces) == 3 * 1552
    assert all((b, a) in half_edges for a, b in half_edges)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_official_form(tmp_path, protocol):
    write_official(RIGHT, tmp_path / "MANO_RIGHT.pkl", protocol=protocol)
    hand = load_mano(tmp_path, "right")
    assert_same_model(hand, RIGHT)
    assert_closes_outwards(hand)
    assert hand.name == "mano-right"
    assert not hand.joint_limits_rad.any()


@pytest.mark.parametrize("name", ["MANO_RIGHT.npz", "MANO_RIGHT_C.pkl", "models/MANO_RIGHT.pkl", "mano/MANO_RIGHT.pkl"])
def test_cleaned_forms_and_places(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_clean(RIGHT, tmp_path / name)
    assert_same_model(load_mano(tmp_path, "right"), RIGHT)
    assert_same_model(load_mano(tmp_path / name, "right"), RIGHT)


def test_left_shape_directions(tmp_path):
    # The official left file: everything mirrored, but the right hand's shape directions.
    write_official(RIGHT, tmp_path / "MANO_RIGHT.pkl")
    write_official(LEFT, tmp_path / "MANO_LEFT.pkl", shapedirs=RIGHT.shapedirs)
    assert_same_model(load_mano(tmp_path, "left"), LEFT)
    kept = load_mano(tmp_path, "left", left_shapedirs="as_file")
    np.testing.assert_array_equal(kept.shapedirs, RIGHT.shapedirs)
    assert_same_model(kept, RIGHT.mirrored("as_file"))
    # Alone, a left file is taken for the official one.
    (tmp_path / "MANO_RIGHT.pkl").unlink()
    assert_same_model(load_mano(tmp_path, "left"), LEFT)


def test_a_left_file_that_is_mended_already_is_left_alone(tmp_path):
    write_official(RIGHT, tmp_path / "MANO_RIGHT.pkl")
    write_official(LEFT, tmp_path / "MANO_LEFT.pkl")
    assert_same_model(load_mano(tmp_path, "left"), LEFT)


def test_mirror_twice_is_the_same_hand():
    for hand in (RIGHT, load_open_hand("right")):
        again = hand.mirrored().mirrored()
        assert again.sha256 == hand.sha256 != hand.mirrored().sha256
        assert again.name == hand.name
        assert hand.mirrored().name == hand.name.replace("right", "left")
        assert_closes_outwards(hand.mirrored())


def test_mirrored_limits_stay_ordered_and_axes_turn():
    np.testing.assert_array_equal(LEFT.joint_limits_rad[:, 1], -RIGHT.joint_limits_rad[:, 1, ::-1])
    np.testing.assert_array_equal(LEFT.joint_limits_rad[:, 0], RIGHT.joint_limits_rad[:, 0])
    assert (LEFT.joint_limits_rad[..., 0] <= LEFT.joint_limits_rad[..., 1]).all()
    np.testing.assert_array_equal(LEFT.joint_axes, RIGHT.joint_axes * [1, -1, -1])


def test_own_format_round_trip_and_equal_bytes(tmp_path):
    for i, hand in enumerate([RIGHT, LEFT, load_open_hand("left")]):
        first, second = tmp_path / f"{i}.npz", tmp_path / f"{i}-again.npz"
        save_npz(hand, first)
        save_npz(hand, second)
        assert first.read_bytes() == second.read_bytes()
        back = load_npz(first)
        assert (back.name, back.side, back.sha256) == (hand.name, hand.side, hand.sha256)
        for field in fields(hand):
            np.testing.assert_array_equal(getattr(back, field.name), getattr(hand, field.name))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".npz"] * 6  # no temporary files


def test_hash_is_of_the_content():
    assert replace(RIGHT, name="other").sha256 == RIGHT.sha256
    assert replace(RIGHT, hands_mean=RIGHT.hands_mean + 1e-9).sha256 != RIGHT.sha256
    assert load_open_hand("right").sha256 != load_open_hand("left").sha256


# --- refusals ------------------------------------------------------------------------------------------------------


def test_missing_files_say_where_to_get_them(tmp_path):
    with pytest.raises(AssetMissing, match=r"MANO_RIGHT\.pkl.*mano\.is\.tue\.mpg\.de.*\$MANO_DIR"):
        load_mano(tmp_path, "right")
    with pytest.raises(AssetMissing):
        load_mano(tmp_path / "absent" / "MANO_RIGHT.pkl", "right")
    with pytest.raises(AssetMissing):
        load_npz(tmp_path / "absent.npz")
    with pytest.raises(SchemaError, match="not a side"):
        load_mano(tmp_path, "Right")


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    file, marker = tmp_path / "MANO_RIGHT.pkl", tmp_path / "ran"
    file.write_bytes(pickle.dumps({**mano_fields(RIGHT), "extra": Evil(marker)}, protocol=2))
    with pytest.raises(UnsafeInput, match=r"MANO_RIGHT\.pkl.*system"):
        load_mano(file, "right")
    assert not marker.exists()


def test_objects_in_arrays_are_refused(tmp_path):
    content = {**mano_fields(RIGHT), "v_template": np.array([{}], dtype=object)}
    (tmp_path / "MANO_RIGHT.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UnsafeInput, match="Python objects"):
        load_mano(tmp_path, "right")
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(SourceError, match="plain arrays"):
        load_mano(tmp_path / "x.npz", "right")


def test_damaged_files(tmp_path):
    whole = write_official(RIGHT, tmp_path / "MANO_RIGHT.pkl").read_bytes()
    for cut in (0, 10, 1000, len(whole) - 1):
        (tmp_path / "MANO_RIGHT.pkl").write_bytes(whole[:cut])
        with pytest.raises(SourceError, match="truncated"):
            load_mano(tmp_path, "right")
    save_npz(RIGHT, tmp_path / "x.npz")
    data = (tmp_path / "x.npz").read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"PK" + bytes(100)):
        (tmp_path / "x.npz").write_bytes(damaged)
        with pytest.raises(SourceError, match=r"x\.npz"):
            load_npz(tmp_path / "x.npz")


def test_other_files_are_not_hands(tmp_path):
    np.savez(tmp_path / "random.npz", a=np.zeros(3))
    with pytest.raises(SchemaError, match="no 'v_template'"):
        load_mano(tmp_path / "random.npz", "right")
    with pytest.raises(SchemaError, match="no side"):
        load_npz(tmp_path / "random.npz")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(SchemaError, match="holds a list"):
        load_mano(tmp_path / "list.pkl", "right")


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_wrong_side_is_noticed(tmp_path, side):
    other = LEFT if side == "right" else RIGHT
    write_clean(other, tmp_path / f"MANO_{side.upper()}.pkl")
    with pytest.raises(SchemaError, match=f"this is a {other.side} hand.*a {side} hand was asked for"):
        load_mano(tmp_path, side)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v_template": np.zeros((6890, 3))}, r"'v_template' has shape \(6890, 3\)"),
        ({"posedirs": np.zeros((778, 3, 207))}, "'posedirs' has shape"),
        ({"weights": RIGHT.weights * 2}, "rows of 'weights' miss a sum of 1"),
        ({"v_template": np.full((778, 3), np.nan)}, "'v_template' holds NaN"),
        ({"f": RIGHT.f[:, [0, 1, 1]]}, "MANO's wrist has 16"),
        ({"f": RIGHT.f + 1}, "outside 0..777"),
        ({"hands_mean": np.array(["x"] * 45)}, "'hands_mean' has type"),
        ({"kintree_table": np.zeros((2, 16), int)}, "joint tree"),
        ({"hands_mean": 5}, "'hands_mean' has shape"),
    ],
)
def test_wrong_content_is_named(tmp_path, change, message):
    (tmp_path / "MANO_RIGHT.pkl").write_bytes(pickle.dumps({**mano_fields(RIGHT), **change}))
    with pytest.raises(SchemaError, match=message):
        load_mano(tmp_path, "right")


def test_broken_chumpy_objects_are_named(tmp_path):
    data = write_official(RIGHT, tmp_path / "MANO_RIGHT.pkl").read_bytes()
    (tmp_path / "MANO_RIGHT.pkl").write_bytes(data.replace(b"preferred_shape", b"preferred_shapf"))
    with pytest.raises(SchemaError, match="'shapedirs' cannot be rebuilt"):
        load_mano(tmp_path, "right")
