"""Which checkpoints a search keeps, told by files: of trials that only look like Ray's, with workers that only write."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tune_lung.results.layout import KeepName, RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import DataFacts, SearchFacts, new_manifest
from tune_lung.results.ownership import Ownership, SupersededError
from tune_lung.results.ranking import best_points
from tune_lung.results.reader import read_run
from tune_lung.results.schema import TrialStatus
from tune_lung.space import Arm, Choice, Grid, SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.training.checkpoints import Checkpoint, Checkpoints, save
from tune_lung.training.frozen_parts import FrozenParts
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.resume import earlier_attempts
from tune_lung.tuning.retention import Retention

from tests.tuned_run import setup_of
from tests.tuning.conftest import RESOURCES, LooksLikeATrial, epoch_result

SCORES = {8: 0.3, 16: 0.5, 24: 0.4, 32: 0.6}
"""What a trial scores, by its batch size, in the order in which they are tried."""
SPACE = SearchSpace(
    arms=(Arm(model="cnn", depth=Grid(2, 3), batch_size=Choice(*SCORES), max_epochs=2),),
    name="scripted",
)
STRATEGY = Strategy.for_space(SPACE, sampler="exhaustive", scheduler="none")
PREDICTIONS = pd.DataFrame({"image_id": ["1"], "label": ["a"], "p_a": [0.75], "p_b": [0.25]})
STATE = {"last", "previous", "previous_best"}


class KilledError(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class FakeSearch:
    """One attempt at the search: trials one after another, each with the files that a worker writes."""

    def __init__(self, folder: Path, *, keep: KeepName = "leaders", attempt: int = 0, strategy: Strategy = STRATEGY) -> None:
        self.setup: SearchSetup = setup_of(folder, weights={}, attempt=attempt)
        root, earlier = self.setup.run_root, None
        if (root / "run.json").exists():
            ledger = Ledger.open(root)
            earlier = earlier_attempts(read_run(root), SPACE, strategy, self.setup, is_time_left=True, keep=keep)
        else:
            facts = DataFacts(
                fingerprint="f" * 64, synthetic=True, classes=("a", "b"), counts=dict.fromkeys(("train", "validation", "test"), 4)
            )
            ledger = Ledger.create(
                root,
                new_manifest(
                    SearchFacts(space=SPACE, strategy=strategy, sampler_options={}, run=self.setup.run),
                    name="run",
                    arguments=[],
                    data=facts,
                    weights={},
                ),
            )
        self.ledger, retention = ledger, Retention(keep, strategy, self.setup)
        self.recorder = Recorder(ledger, self.setup, RESOURCES, earlier=earlier, retention=retention)
        self.recorder.tidy()

    def run(self, num_cells: int = 2) -> None:
        """Train what has not ended: of each cell a point in turn."""
        ended = {record.plan.trial_id for record in self.recorder.records if record.status is not TrialStatus.RUNNING}
        for batch_size in SCORES:
            for cell in SPACE.cells()[:num_cells]:
                config = {"cell": cell.name, "point": cell.with_values({"batch_size": batch_size}), "repeat": 0}
                if self.recorder.plan_of(config).trial_id not in ended:
                    self.train(config)

    def train(self, config: dict[str, Any], *, stop_reason: str | None = "max_epochs") -> str:
        """Begin a trial, write its files and report its epochs; end it unless there is no reason to."""
        config = self.recorder.config_of(config["cell"], config["point"], config["repeat"])
        plan, score = self.recorder.plan_of(config), SCORES[config["point"]["batch_size"]]
        trial = LooksLikeATrial(trial_id=f"ray {plan.trial_id}", config=config)
        self.recorder.on_trial_start(0, [], trial)
        checkpoints = self.setup.checkpoints(plan)
        for epoch, own in ((1, score / 2), (2, score)):
            checkpoints.save_best(Checkpoint(tensors={"network.w": torch.tensor([own])}, state={"epoch": epoch}))
            checkpoints.save_last(Checkpoint(tensors={}, state={"epoch": epoch, "best_epoch": epoch}))
            reason = stop_reason if epoch == 2 else None
            trial.last_result = epoch_result(epoch, own, stop_reason=reason, done=reason is not None)
            self.recorder.on_trial_result(0, [], trial, trial.last_result)
        self.ledger.write_validation_predictions(plan.trial_id, PREDICTIONS)
        if stop_reason is not None:
            self.recorder.on_trial_complete(0, [], trial)
        return plan.trial_id


def files_of(root: Path) -> dict[str, set[str]]:
    """Names of each trial's checkpoints."""
    folders = (root / "checkpoints").iterdir() if (root / "checkpoints").exists() else ()
    return {folder.name: {path.name.removesuffix(".safetensors") for path in folder.iterdir()} for folder in folders}


def promised(root: Path) -> set[str]:
    """The ended trials whose network the rows on the disk promise: of each cell's best point and first."""
    trials = read_run(root).trials
    ended = trials[trials["status"] != "running"]
    return set(best_points(ended)["trial_id"]) | set(trials.loc[trials.groupby("cell")["proposed_order"].idxmin(), "trial_id"])


@contextmanager
def killed_at(number: int, *, after: bool) -> Iterator[None]:
    """Kill at the n-th deletion, before or after it; nothing is cleaned up."""
    unlink, count = os.unlink, iter(range(1, 1000))

    def deadly(path: Any, *, dir_fd: int | None = None) -> None:
        is_next = dir_fd is not None and next(count) == number
        if is_next and not after:
            raise KilledError
        unlink(path, dir_fd=dir_fd)
        if is_next:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", deadly)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a search that nothing befell."""
    search = FakeSearch(tmp_path_factory.mktemp("undisturbed"))
    search.run()
    return search.setup.run_root


@pytest.fixture(scope="module")
def undisturbed_cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of the first cell alone."""
    search = FakeSearch(tmp_path_factory.mktemp("undisturbed_cell"))
    search.run(num_cells=1)
    return search.setup.run_root


def test_the_first_and_the_best_network_of_each_cell_stay_and_nothing_else(undisturbed: Path) -> None:
    trials = read_run(undisturbed).trials
    kept = set(trials.loc[trials["batch_size"].eq(8), "trial_id"]) | set(best_points(trials)["trial_id"])
    assert len(kept) == 4
    assert files_of(undisturbed) == {trial_id: {"best"} for trial_id in kept}


@pytest.mark.parametrize(("keep", "names"), [("best", {"best"}), ("all", {"best", *STATE})])
def test_every_network_stays_or_all(tmp_path: Path, keep: KeepName, names: set[str]) -> None:
    search = FakeSearch(tmp_path, keep=keep)
    search.run()
    assert list(files_of(search.setup.run_root).values()) == [names] * 8


def test_a_search_that_goes_on_may_keep_less_or_more(tmp_path: Path, undisturbed: Path) -> None:
    FakeSearch(tmp_path, keep="all").run()
    FakeSearch(tmp_path, keep="best")
    assert list(files_of(tmp_path / "run").values()) == [{"best"}] * 8
    FakeSearch(tmp_path)
    assert files_of(tmp_path / "run") == files_of(undisturbed)
    FakeSearch(tmp_path, keep="all")
    assert files_of(tmp_path / "run") == files_of(undisturbed)


@pytest.mark.parametrize("keep", ["best", "all"])
def test_a_search_that_is_to_keep_every_network_trains_again_those_that_it_did_not(
    tmp_path: Path, undisturbed: Path, keep: KeepName
) -> None:
    """And nothing else; what they score stays, and so does who was first."""
    search = FakeSearch(tmp_path)
    search.run()
    before = files_of(search.setup.run_root)
    search = FakeSearch(tmp_path, keep=keep)
    anew = {record.plan.trial_id for record in search.recorder.records if record.status is TrialStatus.RUNNING}
    assert anew == set(read_run(undisturbed).trials["trial_id"]) - before.keys()
    search.run()
    there = files_of(search.setup.run_root)
    assert len(there) == 8
    assert all({"best"} <= names for names in there.values())
    one, two = (read_run(root).trials.sort_values("trial_id") for root in (search.setup.run_root, undisturbed))
    columns = ["trial_id", "status", "epochs_run", "best_epoch", "selection_score", "proposed_order"]
    assert one[columns].to_numpy().tolist() == two[columns].to_numpy().tolist()


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_deletion_every_promised_network_is_there_and_the_rest_goes_at_the_next_start(
    tmp_path: Path, undisturbed_cell: Path, after: bool
) -> None:
    """Each deletion in a run of its own; it goes on, and ends as if nothing had been."""
    num_deletions = len(SCORES) * len(STATE) + 2
    other = read_run(undisturbed_cell)
    for number in range(1, num_deletions + 2):
        folder = tmp_path / str(number)
        root = folder / "run"
        with killed_at(number, after=after):
            search = FakeSearch(folder)
            if number > num_deletions:
                search.run(num_cells=1)
                break
            with pytest.raises(KilledError):
                search.run(num_cells=1)
        there = files_of(root)
        assert {trial_id for trial_id in promised(root) if "best" not in there.get(trial_id, ())} == set()
        FakeSearch(folder).run(num_cells=1)
        assert files_of(root) == files_of(undisturbed_cell)
        for table in ("trials", "epochs"):
            one, two = (
                getattr(run, table).drop(columns=["started", "ended"], errors="ignore").sort_values("trial_id", kind="stable")
                for run in (read_run(root), other)
            )
            pd.testing.assert_frame_equal(one.reset_index(drop=True), two.reset_index(drop=True), check_exact=True)


def test_a_network_goes_only_when_the_row_of_its_successor_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, unlink, gone = FakeSearch(tmp_path), os.unlink, []
    root = search.setup.run_root

    def seen(path: Any, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None:
            trial_id = Path(f"/proc/self/fd/{dir_fd}").readlink().name
            rows = read_run(root).trials.set_index("trial_id")
            own = rows.loc[trial_id]
            if path == "best.safetensors":
                leading = best_points(rows[rows["status"] != "running"]).set_index("cell").loc[own["cell"]]
                gone.append((int(own["batch_size"]), int(leading["batch_size"])))
            assert own["status"] == "completed"
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", seen)
    search.run()
    assert sorted(gone) == 2 * [(16, 32)] + 2 * [(24, 16)]


def test_what_may_go_on_keeps_all(tmp_path: Path) -> None:
    """One that runs, one that is tried again, and one that time ended."""
    search = FakeSearch(tmp_path)
    cell = SPACE.cells()[0]
    configs = [{"cell": cell.name, "point": cell.with_values({"batch_size": size}), "repeat": 0} for size in (8, 16, 24, 32)]
    search.train(configs[0])
    running, late = search.train(configs[1], stop_reason=None), search.train(configs[2], stop_reason="time")
    again = search.train(configs[3], stop_reason=None)
    search.recorder.on_trial_error(0, [], LooksLikeATrial(trial_id=f"ray {again}", config={}))  # its worker is lost
    for trial_id in (running, late, again):
        assert files_of(search.setup.run_root)[trial_id] == {"best", *STATE}
    FakeSearch(tmp_path)
    for trial_id in (running, late, again):
        assert files_of(search.setup.run_root)[trial_id] == {"best", *STATE}


def test_a_driver_that_was_superseded_deletes_nothing_and_stops(tmp_path: Path) -> None:
    search = FakeSearch(tmp_path, attempt=1)
    root = search.setup.run_root
    cell = SPACE.cells()[0]
    config = {"cell": cell.name, "point": cell.with_values({"batch_size": 8}), "repeat": 0}
    running = search.train(config, stop_reason=None)
    trial = LooksLikeATrial(trial_id=f"ray {running}", config=config, last_result=epoch_result(2, 0.3, stop_reason="patience"))
    with (
        Ownership.claim(root, at_least=2),
        pytest.raises(SupersededError, match=r"taken over by another search \(attempt 2\)"),
    ):
        search.recorder.on_trial_complete(0, [], trial)
    assert files_of(root)[running] == {"best", *STATE}
    assert isinstance(search.recorder.halted_by, SupersededError)


def test_a_disk_that_lets_go_of_nothing_is_told_once_and_ends_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    search = FakeSearch(tmp_path)
    monkeypatch.setattr(Checkpoints, "_remove_file", refuse)
    search.run()
    assert caplog.text.count("cannot be removed: Operation not permitted. They stay.") == 1


def test_what_is_not_ours_in_a_trials_folder_stays(tmp_path: Path, undisturbed: Path) -> None:
    """Foreign files, folders and links, under our names and others, planted in a folder of which all of ours goes."""
    search = FakeSearch(tmp_path, keep="all")
    search.run()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "last.safetensors").write_text("a user's own")
    root = search.setup.run_root
    superfluous = sorted(set(files_of(root)) - set(files_of(undisturbed)))
    planted, linked, *others = (root / "checkpoints" / trial_id for trial_id in superfluous)
    for name in ("notes.txt", "best.safetensors.bak", ".last.safetensors.mine", "last.pt"):
        (planted / name).write_text("a user's own")
    (planted / "previous.safetensors").unlink()
    (planted / "previous.safetensors").mkdir()
    (planted / "last.safetensors").unlink()
    (planted / "last.safetensors").symlink_to(elsewhere / "last.safetensors")
    linked.rename(tmp_path / "moved")
    linked.symlink_to(elsewhere)
    (root / "checkpoints" / "0123456789abcdef").mkdir()
    (root / "checkpoints" / "0123456789abcdef" / "best.safetensors").write_text("of no trial of this run")
    FakeSearch(tmp_path)
    names = {"notes.txt", "best.safetensors.bak", ".last.safetensors.mine", "last.pt", "previous.safetensors", "last.safetensors"}
    assert {path.name for path in planted.iterdir()} == names
    assert (elsewhere / "last.safetensors").read_text() == "a user's own"
    assert linked.is_symlink()
    assert (root / "checkpoints" / "0123456789abcdef" / "best.safetensors").exists()
    assert not any(folder.exists() for folder in others)


def test_what_a_killed_worker_left_unfinished_goes_with_the_rest(tmp_path: Path) -> None:
    search = FakeSearch(tmp_path)
    cell = SPACE.cells()[0]
    config = {"cell": cell.name, "point": cell.with_values({"batch_size": 8}), "repeat": 0}
    folder = search.setup.checkpoints(search.recorder.plan_of(config)).directory
    folder.mkdir(parents=True)
    for name in (".last.safetensors.0a1b2c3d", ".best.safetensors.0a1b2c3d"):
        (folder / name).write_bytes(b"half")
    search.train(config)
    assert [path.name for path in folder.iterdir()] == ["best.safetensors"]


def test_a_run_folder_that_is_a_link_within_is_left_alone(tmp_path: Path) -> None:
    """`checkpoints` leads elsewhere: nothing of it is removed."""
    search = FakeSearch(tmp_path, keep="all")
    search.run()
    root = search.setup.run_root
    (root / "checkpoints").rename(tmp_path / "moved")
    (root / "checkpoints").symlink_to(tmp_path / "moved")
    before = sorted((tmp_path / "moved").rglob("*"))
    FakeSearch(tmp_path)
    assert sorted((tmp_path / "moved").rglob("*")) == before


def test_one_that_time_ended_while_it_was_trained_again_loses_no_row(tmp_path: Path) -> None:
    """More epochs and little time: what was known of the trial stays, and it goes on with more time."""
    search = FakeSearch(tmp_path)
    cell = SPACE.cells()[0]
    config = {"cell": cell.name, "point": cell.with_values({"batch_size": 8}), "repeat": 0}
    search.train(config)
    (record,) = search.recorder.records
    record.status = TrialStatus.RUNNING  # there are more epochs now
    again = LooksLikeATrial(trial_id="again", config=search.recorder.config_of(cell.name, config["point"], 0))
    search.recorder.on_trial_start(0, [], again)
    again.last_result = epoch_result(1, 0.15, stop_reason="time")
    search.recorder.on_trial_result(0, [], again, again.last_result)
    search.recorder.on_trial_complete(0, [], again)
    run = read_run(RunPaths(search.setup.run_root).root)
    assert run.epochs["epoch"].tolist() == [1, 2]
    assert run.trials[["stop_reason", "epochs_run", "best_epoch"]].to_numpy().tolist() == [["time", 2, 2]]


def test_what_was_not_kept_is_counted_where_it_is_needed_again(tmp_path: Path) -> None:
    """Every trial has run all its epochs; with more of them, those whose state is gone begin anew."""
    search = FakeSearch(tmp_path)
    search.run()
    run, setup = read_run(search.setup.run_root), search.setup
    longer = SPACE.with_fixed({"max_epochs": 3})
    assert earlier_attempts(run, longer, STRATEGY, setup, is_time_left=True).num_anew == 8
    assert earlier_attempts(run, SPACE, STRATEGY, setup, is_time_left=True).num_anew == 0
    kept = FakeSearch(tmp_path / "all", keep="all")
    kept.run()
    setup = replace(setup, run_root=kept.setup.run_root)
    assert earlier_attempts(read_run(setup.run_root), longer, STRATEGY, setup, is_time_left=True).num_anew == 0


def save_network(search: FakeSearch, trial_id: str, seed: float) -> str:
    """Let a trial's network name a frozen part, as a worker writes both; return the part's digest."""
    paths = RunPaths(search.setup.run_root)
    checkpoints = Checkpoints(paths.checkpoints(trial_id), shared=paths.frozen_parts)
    digest = checkpoints.frozen_parts.keep({"prefix.w": torch.tensor([seed])})
    save(checkpoints.best, Checkpoint(tensors={}, state={"epoch": 2, "frozen": digest}))
    return digest


@pytest.mark.parametrize("keep", ["leaders", "best", "all"])
def test_a_frozen_part_goes_with_the_last_network_that_names_it(tmp_path: Path, keep: KeepName) -> None:
    search = FakeSearch(tmp_path, keep="all")
    search.run()
    trials = read_run(search.setup.run_root).trials
    shared, own = (list(trials.loc[trials["batch_size"].eq(size), "trial_id"]) for size in (8, 16))
    kept = {save_network(search, trial_id, 1.0) for trial_id in [*shared, own[0]]}  # two of the three stay
    gone = save_network(search, own[1], 2.0)
    loose = FrozenParts(search.setup.run_root / "frozen").keep({"prefix.w": torch.tensor([3.0])})
    FakeSearch(tmp_path, keep=keep)
    there = {path.stem for path in (search.setup.run_root / "frozen").iterdir()}
    assert there == {"leaders": kept, "best": {*kept, gone}, "all": {*kept, gone, loose}}[keep]


def test_frozen_parts_are_left_alone_while_trials_run_and_where_links_lead_elsewhere(tmp_path: Path) -> None:
    search = FakeSearch(tmp_path)
    root = search.setup.run_root
    loose = FrozenParts(root / "frozen").keep({"prefix.w": torch.tensor([3.0])})
    search.run()
    assert [path.stem for path in (root / "frozen").iterdir()] == [loose]
    (root / "frozen").rename(tmp_path / "moved")
    (root / "frozen").symlink_to(tmp_path / "moved")
    FakeSearch(tmp_path)
    assert [path.stem for path in (tmp_path / "moved").iterdir()] == [loose]
    (root / "frozen").unlink()
    (tmp_path / "moved").rename(root / "frozen")
    FakeSearch(tmp_path)
    assert not (root / "frozen").exists()
