import dataclasses

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pam_aug.errors import SchemaError
from pam_aug.schema import (
    Camera,
    Generation,
    Hand,
    Object,
    Sample,
    Score,
    Source,
    candidate_key,
    clean_key_part,
    make_key,
    sample_from_json,
    sample_to_json,
)
from pam_aug.seeds import candidate_seed

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def array(*shape):
    return hnp.arrays(np.float32, shape, elements=floats)


cameras = st.builds(
    Camera, width=st.integers(1, 4096), height=st.integers(1, 4096), K_px=array(3, 3), T_world_cam=array(4, 4)
)
hands = st.builds(
    Hand,
    side=st.sampled_from(["right", "left"]),
    hand_model=st.just("open_hand"),
    joints_cam_m=array(21, 3),
    joints_px=array(21, 2),
    in_view=hnp.arrays(np.bool_, 21),
    global_orient=array(3),
    hand_pose=array(45),
    betas=array(10),
    transl=array(3),
)
objects = st.builds(
    Object, id=st.text(max_size=5), mesh=st.just("m.obj"), seg_id=st.integers(16, 255), T_cam_obj=array(4, 4)
)
samples = st.builds(
    Sample,
    key=st.just("a/b/c/d/e@07"),
    camera=cameras,
    hands=st.lists(hands, min_size=1, max_size=2).map(tuple),
    objects=st.lists(objects, max_size=3).map(tuple),
    source=st.builds(Source, dataset=st.text(max_size=5), name=st.text(), licence=st.just(""), converter=st.just("x")),
    generation=st.builds(Generation, seed=st.integers(-1, 2**63 - 1)),
    score=st.builds(Score, err_mm=floats),
)


@given(samples)
def test_json_round_trip_is_exact(sample):
    assert sample_from_json(sample_to_json(sample)) == sample


def test_floats_are_the_shortest_text_of_their_float32():
    assert orjson.loads(sample_to_json(_sample()))["score"]["err_mm"] == 0.1
    assert b'"err_mm":0.1,' in sample_to_json(_sample())


def test_no_record_but_the_score_has_single_floats_which_json_takes_for_float64():
    records = (Camera, Generation, Hand, Object, Sample, Source)
    assert [f.name for kind in records for f in dataclasses.fields(kind) if f.type in (float, "float")] == []


def test_arrays_that_are_turned_or_cut_are_written_as_they_read():
    turned, cut = np.arange(16.0).reshape(4, 4).T, np.zeros((4, 8), np.float32)[:, ::2]
    for T_cam_obj in (turned, np.asfortranarray(turned, np.float32), cut):
        sample = dataclasses.replace(_sample(), objects=(Object("a", "m.obj", 16, T_cam_obj),))
        assert orjson.loads(sample_to_json(sample))["objects"][0]["T_cam_obj"] == T_cam_obj.tolist()


def test_json_has_no_null_and_always_every_key():
    tree = orjson.loads(sample_to_json(_sample()))
    assert b"null" not in sample_to_json(_sample())
    assert set(tree["generation"]) == {"generator", "version", "input_key", "candidate", "seed", "prompt"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.pop("text"), "text"),
        (lambda t: t.update(extra=1), "extra"),
        (lambda t: t.update(schema_version=99), "version 99"),
        (lambda t: t["hands"][0].update(side="middle"), "side"),
        (lambda t: t["hands"][0].update(betas=[1.0]), "betas"),
        (lambda t: t["camera"].update(width="640"), "width"),
        (lambda t: t.update(text=None), "text"),
    ],
)
def test_a_json_of_another_form_is_refused_by_name(change, word):
    tree = orjson.loads(sample_to_json(_sample()))
    change(tree)
    with pytest.raises(SchemaError, match=word):
        sample_from_json(orjson.dumps(tree))


def test_nan_is_refused():
    with pytest.raises(SchemaError, match="betas"):
        _hand(betas=np.full(10, np.nan))


def test_keys():
    assert (
        make_key("DexYCB", "20200709-subject-01", "A.B", "cam", "000001") == "dexycb/20200709-subject-01/a-b/cam/000001"
    )
    assert clean_key_part("Müller@07") == "m-ller-07"
    assert candidate_key("a/b/c/d/e", 7) == "a/b/c/d/e@07"
    for bad in (("a", "b", "c", "d", ""), ("a" * 81, "b", "c", "d", "e"), ("a" * 60, "b" * 60, "c" * 60, "d", "e")):
        with pytest.raises(SchemaError):
            make_key(*bad)
    with pytest.raises(SchemaError):
        candidate_key("a/b/c/d/e", 100)
    with pytest.raises(SchemaError):
        candidate_key("a/b/c/d/e@07", 1)


def test_seed_is_the_documented_function():
    from hashlib import blake2b

    expected = int.from_bytes(blake2b(b"0\0a/b/c/d/e\x003", digest_size=8).digest(), "little") >> 1
    assert candidate_seed(0, "a/b/c/d/e", 3) == expected < 2**63


def _hand(**changes):
    values = dict(
        side="right",
        hand_model="open_hand",
        joints_cam_m=np.zeros((21, 3)),
        joints_px=np.zeros((21, 2)),
        in_view=np.ones(21),
    )
    return Hand(**(values | changes))


def _sample():
    return Sample(
        key="a/b/c/d/e",
        camera=Camera(width=64, height=48, K_px=np.eye(3), T_world_cam=np.eye(4)),
        hands=(_hand(),),
        objects=(),
        source=Source(dataset="d", name="n", licence="", converter="c"),
        score=Score(err_mm=0.1),
    )
