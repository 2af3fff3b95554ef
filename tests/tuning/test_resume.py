"""Going on from a ledger, without Ray: records, studies, rungs."""

from dataclasses import replace
from pathlib import Path

import pytest

from tune_lung.errors import InputError
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.results.reader import read_run
from tune_lung.results.schema import StopReason, TrialStatus
from tune_lung.strategy import Strategy
from tune_lung.training.checkpoints import Checkpoint, Checkpoints
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.proposals.studies import Studies
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.resume import earlier_attempts, replay

from tests.tuned_run import TUNED, setup_of, write_tuned_run

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


def test_a_cells_best_trial_whose_checkpoint_is_damaged_is_trained_again(run: Path) -> None:
    trials = read_run(run).trials
    cell = trials[(trials["cell"] == "cnn") & trials["status"].isin(["completed", "stopped"])]
    best = cell.loc[cell["selection_score"].idxmax(), "trial_id"]
    for path in run.glob("checkpoints/*/best.safetensors"):  # those that are not a cell's best stay as they are
        if path.parent.name in (best, cell["trial_id"].iloc[0]):
            path.write_bytes(b"")
    earlier, _, _, _ = resumed(run)
    changed = {record.plan.trial_id for record in earlier.records if record.status is TrialStatus.RUNNING}
    assert changed == {best, *trials.loc[trials["status"] == "running", "trial_id"]}


def test_a_trial_whose_nodes_were_unfit_is_tried_again_and_one_with_a_bug_is_not(run: Path) -> None:
    found = read_run(run)
    first, *others = found.trials.loc[found.trials["status"] == "failed", "trial_id"]
    kinds = {first: "unfit_node"} | dict.fromkeys(others, "bug")
    found.trials["failure_kind"] = found.trials["trial_id"].map(kinds)
    earlier = earlier_attempts(found, SPACE, strategy_of(), setup_of(run.parent), is_time_left=True)
    statuses = {record.plan.trial_id: record.status for record in earlier.records}
    assert statuses[first] is TrialStatus.RUNNING
    assert {statuses[trial_id] for trial_id in others} == {TrialStatus.FAILED}
