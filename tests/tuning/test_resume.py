"""Going on from a ledger, without Ray: records, studies, rungs."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import torch

from tune_lung.errors import InputError
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.results.ranking import best_points, pareto_front, point_means
from tune_lung.results.reader import plain_rows, read_run
from tune_lung.results.schema import StopReason, TrialStatus
from tune_lung.strategy import Strategy, parse_objectives
from tune_lung.training.checkpoints import Checkpoint, Checkpoints
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.proposals.studies import Studies
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.resume import earlier_attempts, replay
from tune_lung.tuning.search_run import reopen_untestable
from tune_lung.tuning.trial_record import TrialRecord

from tests.tuned_run import TUNED, as_version_2, setup_of, write_tuned_run
from tests.tuning.conftest import LooksLikeATrial, epoch_result

SPACE = TUNED.with_fixed({"max_epochs": 3})  # as many as the made-up trials have
RESOURCES = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=1)


def strategy_of(**changes) -> Strategy:
    return Strategy.for_space(SPACE, **({"samples": 8} | changes))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 24 trials, the last 5 unfinished, each with the network of its best epoch."""
    root = write_tuned_run(tmp_path / "run", space=SPACE, still_running=5)
    for trial_id in read_run(root).trials["trial_id"]:
        Checkpoints(RunPaths(root).checkpoints(trial_id)).save_best(Checkpoint(tensors={}, state={"epoch": 2}))
    return root


def resumed(root: Path, *, seed: int | None = None, **changes):
    """Read a run, and bring new studies to where it had them."""
    setup, strategy = setup_of(root.parent), strategy_of(**changes)
    earlier = earlier_attempts(read_run(root), SPACE, strategy, setup, is_time_left=True)
    recorder = Recorder(Ledger.open(root), setup, RESOURCES, earlier=earlier)
    studies = Studies(SPACE, strategy, seed=setup.run.seed if seed is None else seed)
    return earlier, studies, replay(studies, strategy, recorder, earlier.records), recorder


def names(recorder: Recorder, proposals) -> list[str]:
    return [
        recorder.plan_of({"cell": proposal.cell.name, "point": proposal.point, "repeat": repeat}).trial_id
        for proposal, repeat in proposals
    ]


def test_unfinished_trials_go_on_in_the_order_of_their_proposal_and_nothing_else(run: Path) -> None:
    earlier, studies, replayed, recorder = resumed(run)
    running = [record.plan.trial_id for record in earlier.records if record.status is TrialStatus.RUNNING]
    assert len(running) == 5
    assert sorted(names(recorder, replayed.unfinished)) == sorted(running)
    assert studies.propose() is None


def test_the_studies_are_told_what_they_were_told(run: Path) -> None:
    earlier, studies, _, _ = resumed(run)
    told = sorted(str(trial.state) for study in studies.studies for trial in study.trials)
    undisturbed = Studies(SPACE, strategy_of(), seed=0)
    assert len(told) == len(earlier.records) == 24
    while undisturbed.propose() is not None:
        pass
    params = [[trial.params for trial in study.trials] for study in studies.studies]
    assert params == [[trial.params for trial in study.trials] for study in undisturbed.studies]


def test_samplers_that_draw_otherwise_are_given_what_was_drawn(run: Path) -> None:
    """Another seed stands for another version: the recorded points count, and no other is trained."""
    earlier, studies, replayed, recorder = resumed(run, seed=99)
    running = {record.plan.trial_id for record in earlier.records if record.status is TrialStatus.RUNNING}
    assert set(names(recorder, replayed.unfinished)) == running
    assert studies.propose() is None


def test_more_samples_add_points_to_those_that_are_there(run: Path) -> None:
    earlier, studies, replayed, _ = resumed(run, samples=10)
    more = []
    while (proposal := studies.propose()) is not None:
        more.append(proposal)
    assert len(earlier.records) == 24
    assert len(replayed.unfinished) == 5
    assert len(more) == 2 * 3


def test_a_trial_whose_row_is_lost_is_trained_again(run: Path) -> None:
    lost = sorted(path for path in (run / "trials").glob("*.parquet") if path.stem != "schema")[0]
    num_lost = len(read_run(run).trials)
    lost.write_bytes(b"")
    earlier, studies, replayed, _ = resumed(run)
    num_lost -= len(earlier.records)
    assert num_lost >= 1
    running = sum(record.status is TrialStatus.RUNNING for record in earlier.records)
    num_more = 0
    while studies.propose() is not None:
        num_more += 1
    assert len(replayed.unfinished) + num_more == running + num_lost


def test_a_finished_trial_whose_epochs_are_lost_goes_on_from_its_checkpoint(run: Path) -> None:
    for path in (run / "epochs").glob("*.parquet"):
        if path.stem != "schema":
            path.write_bytes(b"")
    earlier, _, _, _ = resumed(run)
    statuses = {record.status for record in earlier.records}
    assert statuses == {TrialStatus.RUNNING, TrialStatus.FAILED}


def test_a_run_of_other_weights_or_data_is_none_of_the_search(run: Path) -> None:
    setup = replace(setup_of(run.parent), data_fingerprint="e" * 64)
    with pytest.raises(InputError, match="is none of this search"):
        earlier_attempts(read_run(run), SPACE, strategy_of(), setup, is_time_left=True)


def test_more_epochs_reopen_only_what_ended_for_want_of_them(run: Path) -> None:
    longer = TUNED.with_fixed({"max_epochs": 200})
    earlier = earlier_attempts(read_run(run), longer, strategy_of(), setup_of(run.parent), is_time_left=True)
    before = {row.trial_id: row.stop_reason for row in read_run(run).trials.itertuples() if row.status == "completed"}
    for record in earlier.records:
        if before.get(record.plan.trial_id) == StopReason.MAX_EPOCHS:
            assert record.status is TrialStatus.RUNNING
        elif record.plan.trial_id in before:
            assert record.status is TrialStatus.COMPLETED


@pytest.mark.parametrize("objectives", ["", "val_macro_recall:max,trainable_params:min"])
def test_what_is_to_be_tested_and_has_no_good_network_is_trained_again(
    tmp_path: Path, objectives: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of every repeat of each cell's best point and of the front; networks of others are not needed."""
    changes = {"repeats": 2, "samples": 4} | ({"objectives": parse_objectives(objectives)} if objectives else {})
    root = write_tuned_run(tmp_path / "run", space=SPACE, **changes)
    trials = read_run(root).trials
    trained = trials[trials["status"] != "failed"]
    points = set(best_points(trained)["point_id"])
    if objectives:
        points |= set(pareto_front(point_means(trials, changes["objectives"]), changes["objectives"])["point_id"])
    needed = sorted(trained.loc[trained["point_id"].isin(points), "trial_id"])
    damaged, lost, outdated, *good = needed
    for trial_id in (damaged, outdated, *good):
        save_network(root, trial_id, epoch=1 if trial_id == outdated else 2)
    (root / "checkpoints" / damaged / "best.safetensors").write_bytes(b"")
    _, _, _, recorder = resumed(root, **changes)
    assert reopen_untestable(recorder, strategy_of(**changes), setup_of(tmp_path), Ledger.open(root))
    reopened = {record.plan.trial_id for record in recorder.records if record.status is TrialStatus.RUNNING}
    assert reopened == {damaged, lost, outdated}
    for text in ("cannot be read", "Its network was not kept.", "is of epoch 1 instead of 2"):
        assert text in caplog.text
    for trial_id in reopened:
        save_network(root, trial_id)
    _, _, _, recorder = resumed(root, **changes)
    assert not reopen_untestable(recorder, strategy_of(**changes), setup_of(tmp_path), Ledger.open(root))


def save_network(root: Path, trial_id: str, *, epoch: int = 2) -> Checkpoints:
    """Write a trial's best network, with a frozen part that all share."""
    paths = RunPaths(root)
    checkpoints = Checkpoints(paths.checkpoints(trial_id), shared=paths.frozen_parts)
    digest = checkpoints.frozen_parts.keep({"prefix.w": torch.ones(1)})
    checkpoints.save_best(Checkpoint(tensors={}, state={"epoch": epoch, "frozen": digest}))
    return checkpoints


def test_a_network_whose_frozen_part_is_gone_or_was_never_kept_is_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second is what earlier versions left; where nothing is frozen, they left all."""
    root = write_tuned_run(tmp_path / "run", space=SPACE, samples=4)
    trials = read_run(root).trials
    tested = best_points(trials[trials["status"] != "failed"])
    for trial_id in tested["trial_id"]:
        save_network(root, trial_id)
    has_frozen_part = set(tested.loc[tested["frozen_blocks"].fillna(0) > 0, "trial_id"])
    assert 0 < len(has_frozen_part) < len(tested)
    shutil.rmtree(root / "frozen")
    _, _, _, recorder = resumed(root, samples=4)
    assert reopen_untestable(recorder, strategy_of(samples=4), setup_of(tmp_path), Ledger.open(root))
    assert "The frozen part of its network was not kept." in caplog.text
    for trial_id in tested["trial_id"]:
        checkpoints = Checkpoints(RunPaths(root).checkpoints(trial_id))
        checkpoints.save_best(Checkpoint(tensors={}, state={"epoch": 2}))
    _, _, _, recorder = resumed(root, samples=4)
    assert reopen_untestable(recorder, strategy_of(samples=4), setup_of(tmp_path), Ledger.open(root))
    assert {record.plan.trial_id for record in recorder.records if record.status is TrialStatus.RUNNING} == has_frozen_part
    assert "An earlier version of tune_lung kept its network without the frozen part." in caplog.text


def test_moments_and_slots_come_back_and_a_trial_that_goes_on_keeps_its_first_start(run: Path) -> None:
    earlier, _, _, recorder = resumed(run)
    before = read_run(run).trials.set_index("trial_id")
    assert [record.started for record in earlier.records] == [before.loc[one.plan.trial_id, "started"] for one in earlier.records]
    goes_on = next(record for record in earlier.records if record.status is TrialStatus.RUNNING)
    begin(recorder, goes_on)
    recorder.flush()
    row = read_run(run).trials.set_index("trial_id").loc[goes_on.plan.trial_id]
    assert (row["started"], row["attempts"]) == (before.loc[goes_on.plan.trial_id, "started"], 2)
    assert (row["slot"], row["concurrent_trials"]) == (0, 1)


def test_a_trial_that_is_opened_again_has_not_ended_until_it_ends_again(run: Path) -> None:
    longer = TUNED.with_fixed({"max_epochs": 200})
    setup = setup_of(run.parent)
    earlier = earlier_attempts(read_run(run), longer, strategy_of(), setup, is_time_left=True)
    recorder = Recorder(Ledger.open(run), setup, RESOURCES, earlier=earlier)
    reopened = next(record for record in earlier.records if record.status is TrialStatus.RUNNING and record.ended is not None)
    begin(recorder, reopened)
    row = read_run(run).trials.set_index("trial_id").loc[reopened.plan.trial_id]
    assert row[["ended", "ended_order"]].isna().all()
    assert row["started"] == reopened.started


def test_a_run_of_version_2_goes_on_and_what_it_did_not_note_stays_null(run: Path) -> None:
    """The start of a trial that goes on was in the attempt of the older version: nobody knows it."""
    old = read_run(as_version_2(run))
    earlier, studies, replayed, recorder = resumed(run)
    assert len(replayed.unfinished) == 5
    assert studies.propose() is None
    goes_on = next(record for record in earlier.records if record.status is TrialStatus.RUNNING)
    begin(recorder, goes_on)
    trial = LooksLikeATrial(trial_id=goes_on.plan.trial_id, config={}, last_result=epoch_result(3, 0.5, stop_reason="max_epochs"))
    recorder.on_trial_result(0, [], trial, trial.last_result)
    recorder.on_trial_complete(0, [], trial)
    trials = read_run(run).trials.set_index("trial_id")
    row = trials.loc[goes_on.plan.trial_id]
    assert pd.isna(row["started"])
    assert abs(datetime.now(UTC) - row["ended"]) < timedelta(minutes=1)
    assert (row["slot"], row["concurrent_trials"]) == (0, 1)
    others = trials.drop(goes_on.plan.trial_id)
    assert others[["started", "ended", "slot", "concurrent_trials"]].isna().all(axis=None)
    assert others["selection_score"].equals(old.trials.set_index("trial_id")["selection_score"].drop(goes_on.plan.trial_id))
    ended = read_run(run).epochs.query("trial_id == @goes_on.plan.trial_id").sort_values("epoch")["ended"]
    assert ended.isna().to_list() == [True, True, False]  # the third was trained now


def test_a_trial_that_was_stopped_when_the_kill_came_ended_with_its_last_epoch(run: Path) -> None:
    """Its decision to stop is written, its row is not."""
    trials, last = read_run(run).trials, datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    row = plain_rows(trials[trials["status"] == "running"])[0]
    ledger = Ledger(run)
    own = {"selection_score": 0.2, "epoch_seconds": 1.0}
    rows = [own | {"epoch": epoch, "ended": last + timedelta(seconds=epoch)} for epoch in (1, 2, 3)]
    ledger.write_epochs(row["trial_id"], rows)
    names = ("trial_id", "cell")
    ledger.write_decisions(
        [{name: row[name] for name in names} | {"decision": 1, "rung_epoch": 3, "value": 0.2, "verdict": "stop"}]
    )
    earlier, _, _, _ = resumed(run)
    (settled,) = earlier.settled
    assert (settled.status, settled.ended) == (TrialStatus.STOPPED, last + timedelta(seconds=3))


def begin(recorder: Recorder, record: TrialRecord) -> None:
    """Let a trial of an earlier attempt start again."""
    plan = record.plan
    config = {"cell": plan.cell, "point": plan.trial.columns(), "repeat": plan.repeat, "proposed_order": record.proposed_order}
    point = {name: value for name, value in config["point"].items() if value is not None}
    recorder.on_trial_start(0, [], LooksLikeATrial(trial_id=plan.trial_id, config=config | {"point": point}))


@pytest.mark.parametrize("kind", ["unfit_node", "damaged_cache", "bad_data", "lost_worker", "lost_node", "hung"])
@pytest.mark.parametrize("final", ["bug", "diverged", "out_of_memory"])
def test_what_failed_for_a_cause_outside_of_its_trial_is_tried_again_and_nothing_else(run: Path, kind: str, final: str) -> None:
    found = read_run(run)
    first, *others = found.trials.loc[found.trials["status"] == "failed", "trial_id"]
    kinds = {first: kind} | dict.fromkeys(others, final)
    found.trials["failure_kind"] = found.trials["trial_id"].map(kinds)
    earlier = earlier_attempts(found, SPACE, strategy_of(), setup_of(run.parent), is_time_left=True)
    statuses = {record.plan.trial_id: record.status for record in earlier.records}
    assert statuses[first] is TrialStatus.RUNNING
    assert {statuses[trial_id] for trial_id in others} == {TrialStatus.FAILED}
