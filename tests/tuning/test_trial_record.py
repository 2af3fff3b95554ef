"""A trial's record is written and read back in one place."""

from datetime import UTC, datetime

from tune_lung.results.schema import FailureKind, StopReason, TrialStatus
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.trial_record import TrialRecord


def test_a_row_is_read_back_as_it_was(setup: SearchSetup) -> None:
    plan = setup.plan_trial("cnn", {"model": "cnn", "padding": "same"}, repeat=2)
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    record = TrialRecord(
        plan=plan,
        resources=Resources(cpus_per_trial=2, gpus_per_trial=0.5, max_concurrent=1),
        status=TrialStatus.FAILED,
        stop_reason=StopReason.FAILURE,
        failure="hung: nothing moved.",
        failure_kind=FailureKind.HUNG,
        attempts=2,
        proposed_order=3,
        ended_order=9,
        started=moment,
        ended=moment,
        slot=1,
        concurrent_trials=2,
        facts={"total_params": 7, "trainable_params": 5, "mult_adds": 11, "device": "cpu", "prefix_seconds": 0.5},
        test_scores={"test_macro_recall": 0.5, "test_micro_recall": 0.25, "test_cohen_kappa": -0.1},
    )
    row = record.row()
    again = TrialRecord.from_row({name: value for name, value in row.items() if value is not None}, plan)
    assert again.row() == row
    assert all(value is not None for name, value in row.items() if name in ("started", "slot", "test_cohen_kappa", "mult_adds"))
