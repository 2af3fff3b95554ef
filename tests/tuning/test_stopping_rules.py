"""Which trials go on: the rungs, ASHA's verdicts, and the median rule."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tune_lung.results.schema import Verdict
from tune_lung.space_files import load_space
from tune_lung.strategy import SCHEDULERS, Strategy
from tune_lung.tuning.scheduler import rule_of
from tune_lung.tuning.stopping_rules import Asha, Decision, MedianStopping, StoppingRule, asha_cutoff, rung_epochs


@pytest.mark.parametrize(
    ("grace", "most", "factor", "expected"),
    [
        (1, 243, 3, (1, 3, 9, 27, 81)),  # an exact power: int(log(243) / log(3)) is 4, and 81 would be lost
        (4, 100, 4, (4, 16, 64)),
        (4, 64, 4, (4, 16)),  # at max_epochs nothing is decided
        (1, 1, 2, ()),
        (5, 5, 2, ()),
        (2, 9, 2, (2, 4, 8)),
    ],
)
def test_rungs_are_whole_powers_below_the_last_epoch(grace: int, most: int, factor: int, expected: tuple[int, ...]) -> None:
    assert rung_epochs(grace_epochs=grace, max_epochs=most, reduction_factor=factor) == expected


@given(grace=st.integers(1, 20), most=st.integers(1, 2000), factor=st.integers(2, 6))
def test_each_rung_is_the_one_before_times_the_factor(grace: int, most: int, factor: int) -> None:
    most = max(grace, most)
    rungs = rung_epochs(grace_epochs=grace, max_epochs=most, reduction_factor=factor)
    assert all(later == earlier * factor for earlier, later in itertools.pairwise(rungs))
    assert all(grace <= rung < most for rung in rungs)
    assert (rungs[-1] if rungs else grace) * factor >= most or not rungs


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"grace_epochs": 0, "max_epochs": 9, "reduction_factor": 2}, "grace_epochs must be at least 1, not 0"),
        ({"grace_epochs": 4, "max_epochs": 3, "reduction_factor": 2}, r"max_epochs must be at least grace_epochs \(4\), not 3"),
        ({"grace_epochs": 1, "max_epochs": 9, "reduction_factor": 1}, "reduction_factor must be at least 2, not 1"),
    ],
)
def test_rungs_out_of_range_are_refused(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rung_epochs(**numbers)


def test_the_first_trial_at_a_rung_has_no_rival() -> None:
    assert asha_cutoff([], reduction_factor=4) is None
    (decision,) = Asha((2,), reduction_factor=4).judge("a", "cell", 2, 0.1)
    assert (decision.cutoff, decision.verdict) == (None, Verdict.CONTINUE)


def test_a_trial_below_the_best_quarter_stops_at_its_rung() -> None:
    rule = Asha((1, 4), reduction_factor=4)
    for trial, score in (("a", 0.4), ("b", 0.6), ("c", 0.8)):
        rule.judge(trial, "cell", 1, score)
    (decision,) = rule.judge("d", "cell", 1, 0.69)
    # the 3/4 quantile of 0.4, 0.6, 0.8 lies halfway between 0.6 and 0.8
    assert decision == Decision(trial="d", group="cell", rung_epoch=1, value=0.69, cutoff=0.7, verdict=Verdict.STOP)


def test_a_trial_that_reaches_the_cutoff_goes_on() -> None:
    rule = Asha((1,), reduction_factor=2)
    rule.judge("a", "cell", 1, 0.5)
    (decision,) = rule.judge("b", "cell", 1, 0.5)
    assert decision.verdict is Verdict.CONTINUE


def test_groups_are_compared_apart() -> None:
    rule = Asha((1,), reduction_factor=2)
    rule.judge("a", "one cell", 1, 0.9)
    (decision,) = rule.judge("b", "another cell", 1, 0.1)
    assert (decision.cutoff, decision.verdict) == (None, Verdict.CONTINUE)


def test_a_trial_that_ended_by_itself_stands_in_later_rungs_with_its_best_score() -> None:
    rule = Asha((1, 2, 4), reduction_factor=2)
    rule.judge("a", "cell", 1, 0.9)
    stood = rule.completed("a", "cell", 0.9)
    assert [(decision.rung_epoch, decision.verdict) for decision in stood] == [(2, Verdict.STAND), (4, Verdict.STAND)]
    rule.judge("b", "cell", 1, 0.9)
    (decision,) = rule.judge("b", "cell", 2, 0.8)
    assert (decision.cutoff, decision.verdict) == (0.9, Verdict.STOP)


def test_a_trial_is_judged_once_at_each_rung() -> None:
    rule = Asha((1, 2), reduction_factor=2)
    epochs = [len(rule.judge("a", "cell", epoch, 0.5)) for epoch in (1, 2, 3, 4)]
    assert epochs == [1, 1, 0, 0]


@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 6), st.floats(0, 1, allow_nan=False).map(lambda score: round(score, 2))), max_size=60
    ),
    factor=st.integers(2, 4),
)
def test_verdicts_equal_an_independent_replay_of_the_decisions(arrivals: list[tuple[int, float]], factor: int) -> None:
    rule, epochs, best, stopped = Asha((1, 2, 4), reduction_factor=factor), dict.fromkeys(range(7), 0), {}, set()
    decisions: list[Decision] = []
    for trial, score in arrivals:
        if trial in stopped:
            continue
        epochs[trial] += 1
        best[trial] = max(score, best.get(trial, score))
        decisions += rule.judge(str(trial), "cell", epochs[trial], best[trial])
        stopped |= {int(decision.trial) for decision in decisions if decision.verdict is Verdict.STOP}
    for number, decision in enumerate(decisions):
        rivals = [earlier.value for earlier in decisions[:number] if earlier.rung_epoch == decision.rung_epoch]
        if not rivals:
            assert decision.cutoff is None
            continue
        assert decision.cutoff == pytest.approx(np.percentile(rivals, 100 - 100 / factor))
        assert decision.verdict is (Verdict.STOP if decision.value < decision.cutoff else Verdict.CONTINUE)


def test_the_median_rule_needs_three_rivals_and_compares_with_their_running_means() -> None:
    rule = MedianStopping(grace_epochs=2, max_epochs=100)
    for trial, scores in (("a", (0.2, 0.6)), ("b", (0.4, 0.8)), ("c", (0.6, 1.0))):
        for epoch, score in enumerate(scores, start=1):
            decisions = rule.judge(trial, "cell", epoch, score)
            assert all(decision.cutoff is None for decision in decisions)
    assert rule.judge("d", "cell", 1, 0.0) == []  # within the grace
    (decision,) = rule.judge("d", "cell", 2, 0.55)
    # the running means at epoch 2 are 0.4, 0.6 and 0.8
    assert decision.cutoff == pytest.approx(0.6)
    assert decision.verdict is Verdict.STOP


# What every rule owes: one contract

TUNED = load_space("freeze_tuned")
RULES = {
    name: (lambda name=name: rule_of(Strategy.for_space(TUNED, scheduler=name, grace_epochs=2, reduction_factor=2), max_epochs=9))
    for name in SCHEDULERS
    if name != "none"
}
ARRIVALS = st.lists(
    st.lists(st.floats(0, 1, allow_nan=False, width=32), min_size=1, max_size=9), min_size=1, max_size=6
)  # each trial's best scores by epoch, made to rise


def heard(rule: StoppingRule, trials: list[list[float]]) -> dict[tuple[str, int], Decision]:
    """Let trials run side by side, an epoch of each in turn, until the rule ends them."""
    decisions: dict[tuple[str, int], Decision] = {}
    stopped: set[int] = set()
    for epoch in range(1, 10):
        for number, scores in enumerate(trials):
            if number in stopped or epoch > len(scores):
                continue
            for decision in rule.judge(str(number), "cell", epoch, max(scores[:epoch])):
                assert (decision.trial, decision.rung_epoch) not in decisions  # once
                decisions[decision.trial, decision.rung_epoch] = decision
                stopped |= {number} if decision.verdict is Verdict.STOP else set()
    return decisions


@pytest.mark.parametrize("name", RULES)
@given(trials=ARRIVALS)
def test_a_rule_decides_at_its_epochs_alone_and_the_same_each_time(name: str, trials: list[list[float]]) -> None:
    rule = RULES[name]()
    assert set(rule.foreseen_epochs) | set(rule.restored_epochs) <= set(rule.compared_epochs) <= rule.judged_epochs
    decisions = heard(rule, trials)
    assert {epoch for _, epoch in decisions} <= set(rule.compared_epochs)
    assert all((decision.verdict is Verdict.STOP) <= (decision.cutoff is not None) for decision in decisions.values())
    assert heard(RULES[name](), trials) == decisions


@pytest.mark.parametrize("name", RULES)
@given(trials=ARRIVALS, newcomer=st.lists(st.floats(0, 1, width=32), min_size=9, max_size=9))
def test_a_rule_that_was_told_of_earlier_trials_judges_as_one_that_heard_them(
    name: str, trials: list[list[float]], newcomer: list[float]
) -> None:
    whole, restored = RULES[name](), RULES[name]()
    decisions = heard(whole, trials)
    for number, scores in enumerate(trials):
        own = {epoch: decision.value for (trial, epoch), decision in decisions.items() if trial == str(number)}
        stop = max((epoch for epoch in own if decisions[str(number), epoch].verdict is Verdict.STOP), default=len(scores))
        best = {epoch: max(scores[:epoch]) for epoch in range(1, stop + 1)}
        restored.remember(str(number), "cell", best, own)
    for epoch in range(1, 10):
        score = max(newcomer[:epoch])
        assert restored.judge("new", "cell", epoch, score) == whole.judge("new", "cell", epoch, score)
