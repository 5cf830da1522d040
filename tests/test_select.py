"""Selection: exact verdicts on small lists, and invariants over random ones."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_aug.errors import ConfigError
from pam_aug.schema import Candidate, Verdict
from pam_aug.select import PRESETS, SelectConfig, select

KEY = "demo/s/q/c/f"


def row(
    index: int, err_mm: float, key: str = KEY, failure: str = "", pa: float = 0.0, err_2d: float = 0.0
) -> Candidate:
    return Candidate(key, index, index, "rendered", "simplehand", err_mm, pa, err_2d, -1.0, failure)


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
    assert PRESETS["pam"].scope == "build"
    verdicts = select(rows, PRESETS["pam"])
    assert kept(verdicts) == [0, 1, 2, 3, 4, 5]
    assert verdicts[7].reason == "rank 8 of 8: 13.0 mm"


def test_other_errors_rank_by_their_own_unit():
    rows = [row(0, 1.0, pa=3.0, err_2d=0.10), row(1, 2.0, pa=1.0, err_2d=0.25)]
    assert select(rows, SelectConfig(by="pa_err_mm"))[0].reason == "rank 2 of 2: 3.0 mm"
    assert select(rows, SelectConfig(by="err_2d"))[1].reason == "rank 2 of 2: 0.250"


def test_no_candidates_no_verdicts():
    assert select([]) == []


@pytest.mark.parametrize(
    "wrong", [{"reject": "1"}, {"reject": "-0.1"}, {"reject": "a"}, {"reject": "1/0"}, {"by": "x"}, {"scope": "y"},
              {"gate": math.nan}]
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
