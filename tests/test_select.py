"""Selection: exact verdicts on small lists, and invariants over random ones."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_aug.build.config import BuildConfig
from pam_aug.config import resolve, to_dict
from pam_aug.errors import ConfigError
from pam_aug.schema import Candidate, Verdict
from pam_aug.select import PRESETS, SelectConfig, select

KEY = "demo/s/q/c/f"


def row(
    index: int,
    err_mm: float,
    key: str = KEY,
    failure: str = "",
    pa: float = 0.0,
    err_2d: float = 0.0,
    vert: float = -1.0,
    pa_vert: float = -1.0,
    side_agrees: bool = True,
) -> Candidate:
    made = Candidate(key, index, index, "rendered", "simplehand", err_mm, pa, err_2d, -1.0, failure)
    return replace(made, vert_err_mm=vert, pa_vert_err_mm=pa_vert, side_agrees=side_agrees)


def test_candidates_can_be_ranked_by_how_odd_they_are_with_a_gate_on_the_error():
    rows = [replace(row(i, err_mm=20.0 - i), odd_mm=odd) for i, odd in enumerate([1.0, 2.0, 30.0, 3.0])]
    assert kept(select(rows)) == [1, 2, 3]  # by error the first goes
    verdicts = select(rows, SelectConfig(by="odd_mm", gates={"err_mm": 19.5}))
    assert kept(verdicts) == [1, 3]
    assert [v.reason for v in verdicts if not v.kept] == ["gate: err_mm 20.0 mm > 19.5 mm", "rank 4 of 4: 30.0 mm"]
    verdicts = select([row(0, 1.0), row(1, 2.0)], SelectConfig(by="odd_mm"))  # tables from before it was measured
    assert not kept(verdicts)


def kept(verdicts: list[Verdict]) -> list[int]:
    return [i for i, v in enumerate(verdicts) if v.kept]


def test_the_worst_eight_of_thirty_go():
    errors = [float((7 * i) % 30) for i in range(30)]
    verdicts = select([row(i, e) for i, e in enumerate(errors)])
    assert kept(verdicts) == [i for i, e in enumerate(errors) if e < 22]
    worst = errors.index(29.0)
    assert verdicts[worst] == Verdict(False, "rank 30 of 30: 29.0 mm")
    assert verdicts[errors.index(22.0)].reason == "rank 23 of 30: 22.0 mm"
    assert verdicts[errors.index(21.0)] == Verdict(True, "")


@pytest.mark.parametrize(("n", "gone"), [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3), (30, 8)])
def test_share_is_rounded_up_and_a_lone_candidate_has_no_rank(n, gone):
    assert len(kept(select([row(i, 1.0 + i) for i in range(n)]))) == n - gone


def test_share_is_exact_where_floats_are_not():
    assert 0.07 * 100 > 7  # what ceil would see
    rows = [row(i, float(i)) for i in range(100)]
    assert len(kept(select(rows, SelectConfig(reject="0.07")))) == 93
    rows = rows[:30]
    assert len(kept(select(rows, SelectConfig(reject="1/3")))) == 20
    assert len(kept(select(rows, SelectConfig(reject="0")))) == 30


def test_failed_candidates_use_up_the_share_first():
    rows = [row(0, math.inf, failure="no hand found"), row(1, 5.0), row(2, 9.0), row(3, 7.0)]
    verdicts = select(rows)
    assert kept(verdicts) == [1, 2, 3]
    assert verdicts[0].reason == "failed: no hand found"


def test_every_failure_goes_even_past_the_share():
    rows = [row(0, math.inf, failure="a"), row(1, math.nan), row(2, 9.0), row(3, -1.0)]
    verdicts = select(rows)
    assert kept(verdicts) == [2]
    assert [v.reason for v in verdicts] == ["failed: a", "failed: no finite error", "", "failed: no finite error"]
    assert kept(select([row(i, math.inf, failure="x") for i in range(3)])) == []
    assert kept(select([row(0, math.inf, failure="x")])) == []


def test_gate_refuses_beyond_the_share_and_beats_the_rank():
    rows = [row(0, 31.0), row(1, 26.0), row(2, 25.0), row(3, 1.0)]
    verdicts = select(rows, SelectConfig(gate=25.0))
    assert kept(verdicts) == [2, 3]
    assert verdicts[0].reason == "gate: 31.0 mm > 25 mm"
    assert kept(select([row(0, 31.0)], SelectConfig(gate=25.0))) == []
    assert kept(select([row(0, 0.0), row(1, 0.1)], SelectConfig(gate=0.0, reject="0"))) == [0]


def test_ties_break_on_the_candidate_index_whatever_the_order():
    rows = [row(i, 4.0) for i in (3, 0, 2, 1)]
    assert [v.kept for v in select(rows)] == [False, True, True, True]


def test_scopes_rank_per_input_or_over_the_build():
    other = "demo/s/q/c/g"
    rows = [row(i, float(i)) for i in range(4)] + [row(i, 10.0 + i, key=other) for i in range(4)]
    assert kept(select(rows)) == [0, 1, 2, 4, 5, 6]
    verdicts = select(rows, SelectConfig(preset="pam"))
    assert kept(verdicts) == [0, 1, 2, 3, 4, 5]
    assert verdicts[7].reason == "rank 8 of 8: 13.0 mm"


def test_other_errors_rank_by_their_own_unit():
    rows = [row(0, 1.0, pa=3.0, err_2d=0.10), row(1, 2.0, pa=1.0, err_2d=0.25)]
    assert select(rows, SelectConfig(by="pa_err_mm"))[0].reason == "rank 2 of 2: 3.0 mm"
    assert select(rows, SelectConfig(by="err_2d"))[1].reason == "rank 2 of 2: 0.250"


HANDBOOSTER = {
    "handbooster-dexycb": {"err_mm": 25.0, "vert_err_mm": 25.0, "pa_err_mm": 10.0, "pa_vert_err_mm": 10.0},
    "handbooster-ho3d": {"err_mm": 50.0, "vert_err_mm": 50.0, "pa_err_mm": 20.0, "pa_vert_err_mm": 20.0},
}


@pytest.mark.parametrize("preset", sorted(HANDBOOSTER))
def test_handboosters_four_gates(preset):
    config, limits = SelectConfig(preset=preset), HANDBOOSTER[preset]
    assert config.limits() == limits
    at = dict(zip(("err_mm", "vert", "pa", "pa_vert"), limits.values()))
    rows = [row(0, **at)]  # an error on its gate passes
    for name in at:
        rows.append(row(len(rows), **{**at, name: at[name] + 0.1}))
    verdicts = select(rows, config)
    assert kept(verdicts) == [0]  # no share goes beside the gates
    wrist, aligned = f"{limits['err_mm'] + 0.1:.1f} mm > {limits['err_mm']:g} mm", limits["pa_err_mm"]
    assert [v.reason for v in verdicts[1:3]] == [f"gate: {wrist}", f"gate: vert_err_mm {wrist}"]
    assert verdicts[3].reason == f"gate: pa_err_mm {aligned + 0.1:.1f} mm > {aligned:g} mm"
    assert verdicts[4].reason == f"gate: pa_vert_err_mm {aligned + 0.1:.1f} mm > {aligned:g} mm"


def test_handbooster_alone_tied_failed_and_not_measured():
    config = SelectConfig(preset="handbooster-dexycb")
    fine = {"err_mm": 5.0, "vert": 5.0, "pa": 3.0, "pa_vert": 3.0}
    assert kept(select([row(0, **fine)], config)) == [0]
    assert kept(select([row(0, **{**fine, "pa": 10.5})], config)) == []
    assert kept(select([row(i, **fine) for i in range(4)], config)) == [0, 1, 2, 3]
    assert kept(select([row(i, math.inf, failure="x") for i in range(4)], config)) == []
    odd = [row(0, **{**fine, "pa": math.nan}), row(1, **{**fine, "vert": -1.0}), row(2, math.nan)]
    assert [v.reason for v in select(odd, config)] == [
        "gate: pa_err_mm was not measured", "gate: vert_err_mm was not measured", "failed: no finite error",
    ]  # fmt: skip


def test_the_pam_preset_alone_tied_and_failed():
    config = SelectConfig(preset="pam")
    assert kept(select([row(0, 99.0)], config)) == [0]
    tied = [row(i, 4.0, key=key) for key in (KEY, "demo/s/q/c/e") for i in range(2)]
    assert kept(select(tied, config)) == [0, 2, 3]  # index 1 of the later key is the worst of equals
    assert kept(select([row(i, math.nan) for i in range(3)], config)) == []


def test_a_preset_is_a_start_that_fields_replace():
    given = resolve(SelectConfig, {"preset": "handbooster-dexycb"}, ["gates.err_mm=30", "gates.vert_err_mm=-1"])
    assert given.limits() == {"err_mm": 30.0, "pa_err_mm": 10.0, "pa_vert_err_mm": 10.0}
    assert (given.resolved().reject, given.resolved().scope) == ("0", "input")
    assert resolve(SelectConfig, to_dict(given)) == given  # as a build's record is read again
    assert given.resolved().resolved() == given.resolved()
    assert resolve(SelectConfig, {}, ["preset=pam", "reject=1/3"]).rule() == {
        "reject": "1/3", "gate": -1.0, "by": "err_mm", "scope": "build",
    }  # fmt: skip
    for name in PRESETS:
        spelled = {k: v for k, v in to_dict(SelectConfig(preset=name).resolved()).items() if k != "preset"}
        assert SelectConfig(**spelled).rule() == SelectConfig(preset=name).rule()


def test_a_builds_configuration_takes_a_preset():
    config = resolve(BuildConfig, {"select": {"preset": "pam"}}, ["select.reject=0.5"])
    assert config.select.rule() == {"reject": "0.5", "gate": -1.0, "by": "err_mm", "scope": "build"}
    config = resolve(BuildConfig, {}, ["select.preset=handbooster-ho3d"])
    assert config.select.limits() == HANDBOOSTER["handbooster-ho3d"]
    with pytest.raises(ConfigError, match="handbooster-dexycb"):
        resolve(BuildConfig, {}, ["select.preset=handboster"])


def test_the_lower_of_two_gates_on_one_error_counts():
    assert SelectConfig(gate=20.0, gates={"err_mm": 25.0}).limits() == {"err_mm": 20.0}
    assert SelectConfig(gate=30.0, gates={"err_mm": 25.0, "err_2d": 0.1}).limits() == {"err_mm": 25.0, "err_2d": 0.1}


def test_the_side_check_refuses_where_it_is_asked_for():
    rows = [row(0, 5.0, side_agrees=False), row(1, 6.0)]
    assert kept(select(rows, SelectConfig(reject="0"))) == [0, 1]
    verdicts = select(rows, SelectConfig(reject="0", check_side=True))
    assert kept(verdicts) == [1]
    assert verdicts[0].reason.startswith("side:")


def test_no_candidates_no_verdicts():
    assert select([]) == []


@pytest.mark.parametrize(
    "wrong", [{"reject": "1"}, {"reject": "-0.1"}, {"reject": "a"}, {"reject": "1/0"}, {"by": "x"}, {"scope": "y"},
              {"preset": "pma"}, {"gates": {"errmm": 3.0}}, {"gates": {"err_mm": math.nan}}]
)  # fmt: skip
def test_rules_that_cannot_be_run_are_refused(wrong):
    with pytest.raises(ConfigError):
        SelectConfig(**wrong)


scores = st.one_of(st.floats(0, 100), st.sampled_from([math.inf, math.nan, 5.0, 5.0]))


@given(st.lists(scores, min_size=1, max_size=40), st.sampled_from(["0", "0.25", "1/3", "0.9"]), st.randoms())
def test_invariants(errors, reject, random):
    rows = [row(i, e) for i, e in enumerate(errors)]
    config = SelectConfig(reject=reject, gate=60.0)
    verdicts = select(rows, config)
    n = len(rows)
    quota = math.ceil(config.share() * n) if n > 1 else 0
    survivors = [errors[i] for i in kept(verdicts)]
    assert all(v.kept == (v.reason == "") for v in verdicts)
    assert all(math.isfinite(e) and e <= 60 for e in survivors)
    fine = sum(math.isfinite(e) and e <= 60 for e in errors)
    assert len(survivors) == min(fine, n - quota)
    ranked_out = [errors[i] for i, v in enumerate(verdicts) if v.reason.startswith("rank")]
    assert not survivors or not ranked_out or max(survivors) <= min(ranked_out)
    order = list(range(n))
    random.shuffle(order)
    shuffled = select([rows[i] for i in order], config)
    assert [shuffled[order.index(i)] for i in range(n)] == verdicts
