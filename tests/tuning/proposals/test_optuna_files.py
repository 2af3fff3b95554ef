"""Runs as Optuna files and back: nothing lost, nothing invented, nothing executed."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_lung.errors import InputError
from tune_lung.results.imported import RecordedRun, write_run
from tune_lung.results.reader import plain_rows, read_run
from tune_lung.space import Arm, Choice, Grid, IntRange, LogUniform, SearchSpace, Uniform
from tune_lung.space_files import load_space, shipped_space_files
from tune_lung.strategy import Objective
from tune_lung.tuning.proposals.optuna_files import export_study, read_study, study_distributions

from tests.tuned_run import BEGINNING, TRIAL_TIME, as_version_2, write_tuned_run

PARETO = (Objective("val_macro_recall", "max"), Objective("trainable_params", "min"))


def study_in(path: Path) -> optuna.Study:
    (name,) = optuna.get_all_study_names(f"sqlite:///{path}")
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}")


def exported(run: Path, path: Path) -> optuna.Study:
    export_study(read_run(run), path)
    return study_in(path)


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of the table trials in the order of their proposal."""
    return sorted(plain_rows(read_run(run).trials), key=lambda row: row["proposed_order"])


def attributes_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a study keeps it: moments as text."""
    return row | {name: row[name].isoformat() for name in ("started", "ended")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two arms with grid, sampled and tuple axes; trials end in turn as completed, stopped, completed, failed."""
    return write_tuned_run(tmp_path_factory.mktemp("runs") / "tuned", still_running=2)


@pytest.fixture(scope="module")
def study_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("studies") / "tuned.db"
    # 24 trials end in turn; the last two, one that would have completed and one that would have failed, still run
    assert export_study(read_run(run), path) == {TrialState.COMPLETE: 11, TrialState.PRUNED: 6, TrialState.FAIL: 5}
    return path


@pytest.fixture(scope="module")
def study(study_file: Path) -> optuna.Study:
    return study_in(study_file)


@pytest.fixture
def own_file(study_file: Path, tmp_path: Path) -> Path:
    """A copy of the exported study that a test may change."""
    return shutil.copy(study_file, tmp_path / "study.db")


def test_every_trial_that_ended_is_in_the_study_with_its_state_and_value(run: Path, study: optuna.Study) -> None:
    states = {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    ended = [row for row in rows_of(run) if row["status"] != "running"]
    assert len(ended) == 3 * 8 - 2
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE]
    for row, trial in zip(ended, study.trials, strict=True):
        assert trial.state is states[row["status"]]
        assert trial.values == ([row["selection_score"]] if row["status"] == "completed" else None)
        assert trial.intermediate_values == {1: 0.25, 2: row["selection_score"], 3: 0.28}
        assert trial.user_attrs == attributes_of(row)
    assert [trial.user_attrs["trial_id"] for trial in study.trials] != sorted(row["trial_id"] for row in ended)


def test_params_are_the_axes_and_a_list_is_json_text(study: optuna.Study) -> None:
    for trial in study.trials:
        attributes = trial.user_attrs
        if attributes["model"] == "cnn":
            expected = {"channels": json.dumps(attributes["channels"]), "learning_rate": attributes["learning_rate"]}
        else:
            expected = {name: attributes[name] for name in ("model", "frozen_blocks", "batch_size", "learning_rate")}
        assert trial.params == expected


def test_the_same_run_gives_the_same_moments_whenever_it_is_exported(run: Path, study: optuna.Study, tmp_path: Path) -> None:
    again = exported(run, tmp_path / "again.db")
    assert again.trials == study.trials
    for number, trial in enumerate(study.trials):
        started = (BEGINNING + number * timedelta(minutes=1)).replace(tzinfo=None)
        assert (trial.datetime_start, trial.datetime_complete) == (started, started + TRIAL_TIME)


def test_a_run_of_version_2_has_moments_that_stand_in_for_those_nobody_noted(tmp_path: Path) -> None:
    run = as_version_2(write_tuned_run(tmp_path / "old", samples=4))
    study = exported(run, tmp_path / "old.db")
    begun = datetime.fromisoformat(read_run(run).manifest["started_utc"]).replace(tzinfo=None)
    ends = {(trial.datetime_start, trial.datetime_complete) for trial in study.trials}
    assert ends == {(begun, begun + timedelta(seconds=3 * 0.125))}  # 3 epochs each, all from the run's start
    assert [trial.user_attrs["proposed_order"] for trial in study.trials] == list(range(1, 2 * 12, 2))
    assert not {"started", "ended", "slot", "concurrent_trials"} & {name for one in study.trials for name in one.user_attrs}


def test_a_study_that_version_2_wrote_comes_back_without_moments_and_without_its_wish(own_file: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(own_file)) as database, database:
        database.execute("DELETE FROM trial_user_attributes WHERE key IN ('started', 'ended', 'slot')")
        database.execute(
            "UPDATE study_user_attributes SET value_json = replace(value_json, '\"schema_version\": 3', '\"schema_version\": 2')"
        )
    write_run(read_study(own_file), tmp_path / "back")
    trials = read_run(tmp_path / "back").trials
    assert len(trials) == 22
    assert trials[["started", "ended", "slot", "concurrent_trials"]].isna().all(axis=None)


@pytest.mark.parametrize("value", ["yesterday", 7, "9999-12-31T23:59:59-23:00"])
def test_a_moment_that_is_none_is_refused_in_one_line(own_file: Path, value: Any) -> None:
    with closing(sqlite3.connect(own_file)) as database, database:
        database.execute("UPDATE trial_user_attributes SET value_json = ? WHERE key = 'ended'", (json.dumps(value),))
    with pytest.raises(
        InputError, match=r"^The study in 'study\.db' is none that can be read \(ended: It is no moment of a search\.\)\.$"
    ):
        read_study(own_file)


def test_exporting_importing_and_exporting_again_changes_nothing(
    run: Path, study: optuna.Study, study_file: Path, tmp_path: Path
) -> None:
    write_run(read_study(study_file), tmp_path / run.name)
    again = exported(tmp_path / run.name, tmp_path / "second.db")
    assert [vars(trial) for trial in again.trials] == [vars(trial) for trial in study.trials]
    assert (again.study_name, again.user_attrs) == (study.study_name, study.user_attrs)
    assert rows_of(tmp_path / run.name) == [row for row in rows_of(run) if row["status"] != "running"]


def test_several_objectives_survive_the_round_trip(tmp_path: Path) -> None:
    run = write_tuned_run(tmp_path / "pareto", samples=4, objectives=PARETO)
    study = exported(run, tmp_path / "first.db")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["val_macro_recall", "trainable_params"]
    for trial in study.trials:
        assert trial.intermediate_values == {}
        if trial.state is TrialState.COMPLETE:
            assert trial.values == [trial.user_attrs["val_macro_recall"], trial.user_attrs["trainable_params"]]
    write_run(read_study(tmp_path / "first.db"), tmp_path / "again" / "pareto")
    assert exported(tmp_path / "again" / "pareto", tmp_path / "second.db").trials == study.trials


def test_a_completed_trial_without_its_objective_is_told_as_failed_and_stays_completed(tmp_path: Path) -> None:
    run = write_tuned_run(tmp_path / "run", samples=4)
    manifest = json.loads((run / "run.json").read_text())
    manifest["strategy"]["objectives"] = [{"column": "mult_adds", "direction": "min"}]  # the made-up run has none
    del manifest["sha256"]
    (run / "run.json").write_text(json.dumps(manifest))
    study = exported(run, tmp_path / "study.db")
    told = Counter((trial.state, trial.user_attrs["status"]) for trial in study.trials)
    assert told[TrialState.FAIL, "completed"] == 6  # every second of 3 x 4
    assert not [trial for trial in study.trials if trial.state is TrialState.COMPLETE]


def test_an_existing_file_is_never_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("mine")
    with pytest.raises(InputError, match=r"The file 'notes.db' exists already"):
        export_study(read_run(run), tmp_path / "notes.db")
    assert (tmp_path / "notes.db").read_text() == "mine"


def test_a_link_to_nothing_is_never_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "study.db").symlink_to(tmp_path / "disk" / "study.db")
    with pytest.raises(InputError, match=r"The file 'study.db' exists already"):
        export_study(read_run(run), tmp_path / "study.db")
    assert (tmp_path / "study.db").is_symlink()


def test_a_file_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("no folder")
    with pytest.raises(InputError, match=r"The file 'study.db' cannot be written"):
        export_study(read_run(run), tmp_path / "taken" / "study.db")


def test_any_file_name_will_do(tmp_path: Path) -> None:
    run = write_tuned_run(tmp_path / "runs" / "small", samples=1)
    path = tmp_path / "files" / "50% of it? #1.db"
    export_study(read_run(run), path)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert len(read_study(path).trials) == 3


def response_of(app: Any, path: str) -> dict[str, Any]:
    """Ask a WSGI application as a browser would."""
    environment: dict[str, Any] = {}
    setup_testing_defaults(environment)
    environment["PATH_INFO"] = path
    statuses: list[str] = []
    body = b"".join(app(environment, lambda status, headers, error=None: statuses.append(status)))  # noqa: ARG005
    assert statuses == ["200 OK"], body
    return json.loads(body)


def test_optuna_dashboard_shows_the_ledgers_trials(run: Path, own_file: Path) -> None:
    app = optuna_dashboard.wsgi(f"sqlite:///{own_file}")
    (summary,) = response_of(app, "/api/studies")["study_summaries"]
    assert (summary["study_name"], summary["directions"]) == ("tuned", ["maximize"])
    detail = response_of(app, f"/api/studies/{summary['study_id']}")
    assert detail["objective_names"] == ["selection_score"]
    shown = {"completed": "Complete", "stopped": "Pruned", "failed": "Fail"}
    rows = [row for row in rows_of(run) if row["status"] != "running"]
    for row, trial in zip(rows, detail["trials"], strict=True):
        assert trial["state"] == shown[row["status"]]
        assert trial.get("values") == ([row["selection_score"]] if row["status"] == "completed" else None)
        for param in trial["params"]:
            assert param["param_external_value"] == str(row[param["name"]])
        steps = {point["step"]: point["value"] for point in trial["intermediate_values"]}
        assert steps == {1: 0.25, 2: row["selection_score"], 3: 0.28}
        attributes = {one["key"]: one["value"] for one in trial["user_attrs"]}
        assert attributes["trial_id"] == row["trial_id"]
        assert float(attributes["val_macro_recall"]) == row["val_macro_recall"]


@pytest.mark.parametrize("name", sorted(shipped_space_files()))
def test_every_shipped_space_fits_into_one_study(name: str) -> None:
    first: dict[str, BaseDistribution] = {}
    for distributions in study_distributions(load_space(name)):
        for param, distribution in distributions.items():
            check_distribution_compatibility(first.setdefault(param, distribution), distribution)  # raises where it does not


RATE, LOWER_RATE = LogUniform(1e-4, 1e-2), LogUniform(1e-5, 1e-3)


@pytest.mark.parametrize(
    ("name", "axes", "expected"),
    [
        ("batch_size", (Choice(16, 32), Grid(64)), [CategoricalDistribution((16, 32, 64))] * 2),
        ("learning_rate", (RATE, LOWER_RATE), [FloatDistribution(1e-4, 1e-2, log=True), FloatDistribution(1e-5, 1e-3, log=True)]),
        ("learning_rate", (RATE, Uniform(1e-3, 1e-1)), [FloatDistribution(1e-4, 1e-1, log=True)] * 2),
        ("learning_rate", (RATE, Grid(0.05)), [FloatDistribution(1e-4, 0.05, log=True)] * 2),
        ("weight_decay", (Uniform(0.0, 0.1), Grid(0.5)), [FloatDistribution(0.0, 0.5)] * 2),
        ("frozen_blocks", (IntRange(0, 2), Grid(4)), [IntDistribution(0, 4)] * 2),
    ],
)  # fmt: skip
def test_arms_that_share_a_name_share_a_kind(name: str, axes: tuple[Any, Any], expected: list[BaseDistribution]) -> None:
    space = SearchSpace(
        arms=tuple(Arm(model=model, **{name: axis}) for model, axis in zip(("resnet18", "resnet34"), axes, strict=True))
    )
    assert [distributions[name] for distributions in study_distributions(space)] == expected


def make_study(path: Path, name: str = "foreign", *, direction: str = "minimize") -> optuna.Study:
    return optuna.create_study(storage=f"sqlite:///{path}", study_name=name, direction=direction)


def foreign_trial(
    state: TrialState, value: float | None, *, rate: float = 0.01, batch_size: float = 32, **more: Any
) -> FrozenTrial:
    params = {"learning_rate": rate, "batch_size": batch_size, "dropout": 0.5}
    distributions = {
        "learning_rate": FloatDistribution(1e-4, 100, log=True),
        "batch_size": CategoricalDistribution((16, 32, 1)),
        "dropout": FloatDistribution(0, 1),
    }
    return create_trial(state=state, value=value, params=params, distributions=distributions, **more)


@pytest.fixture
def foreign(tmp_path: Path) -> RecordedRun:
    """A study of somebody who minimises a loss, counts steps from 0, and has trials of every state."""
    study = make_study(tmp_path / "foreign.db")
    study.add_trial(foreign_trial(TrialState.COMPLETE, 0.4, intermediate_values={0: 0.9, 1: 0.3, 2: 0.4}))
    study.add_trial(foreign_trial(TrialState.COMPLETE, 0.5))
    study.add_trial(foreign_trial(TrialState.PRUNED, None, rate=0.02, intermediate_values={0: 0.8}))
    study.add_trial(foreign_trial(TrialState.FAIL, None, rate=0.03))
    study.add_trial(foreign_trial(TrialState.COMPLETE, 0.6, rate=50.0))
    study.ask()
    return read_study(tmp_path / "foreign.db")


def test_a_foreign_study_keeps_what_has_our_names_and_counts_the_rest(foreign: RecordedRun) -> None:
    assert [trial.row["status"] for trial in foreign.trials] == ["completed", "completed", "stopped", "failed"]
    assert foreign.notes == (
        "Left out 1 of 6 trials that have not ended",
        "Ignored, as no field of a trial has the name: dropout",
        "Left out 1 of 5 trials that cannot be built: learning_rate must be above 0 and at most 10, not 50.0.",
        "No trial names its model: fields are taken for those of the handcrafted CNN",
    )
    fields = {name for trial in foreign.trials for name in trial.row}
    assert {"learning_rate", "batch_size"} <= fields
    assert not {"dropout", "optimizer", "precision"} & fields  # what nobody said is null, not a default


def test_a_foreign_value_to_minimise_ranks_the_other_way_round(foreign: RecordedRun) -> None:
    scores = [trial.row["selection_score"] for trial in foreign.trials]
    assert scores == [-0.4, -0.5, -0.8, None]
    assert foreign.trials[0].epochs == (
        {"epoch": 1, "selection_score": -0.9},
        {"epoch": 2, "selection_score": -0.3},
        {"epoch": 3, "selection_score": -0.4},
    )
    assert (foreign.trials[0].row["best_epoch"], foreign.trials[0].row["epochs_run"]) == (2, 3)


def test_foreign_trials_of_one_point_are_its_repeats(foreign: RecordedRun) -> None:
    first, second, third, _ = (trial.row for trial in foreign.trials)
    assert first["point_id"] == second["point_id"] != third["point_id"]
    assert [first["repeat"], second["repeat"], third["repeat"]] == [0, 1, 0]
    assert len({trial.row["trial_id"] for trial in foreign.trials}) == 4


def test_a_foreign_study_becomes_a_space_over_its_distributions(foreign: RecordedRun) -> None:
    (arm,) = SearchSpace.from_json(foreign.manifest["space"]).arms
    assert arm.fields == {"model": "cnn", "learning_rate": LogUniform(1e-4, 100.0), "batch_size": Choice(16, 32, 1)}


def test_a_foreign_run_is_written_and_exported_as_any_other(foreign: RecordedRun, tmp_path: Path) -> None:
    write_run(foreign, tmp_path / "foreign")
    study = exported(tmp_path / "foreign", tmp_path / "again.db")
    assert Counter(trial.state.name for trial in study.trials) == {"COMPLETE": 2, "PRUNED": 1, "FAIL": 1}
    assert study.best_value == -0.4


def test_networks_become_arms_with_the_fields_they_were_tried_with(tmp_path: Path) -> None:
    study = make_study(tmp_path / "nets.db", direction="maximize")
    models = CategoricalDistribution(("cnn", "resnet18"))
    layers = CategoricalDistribution(("[4, 8]", "[8, 16]"))
    sizes = CategoricalDistribution(("[3, 3]",))
    cnn = {"model": "cnn", "channels": "[4, 8]", "kernel_sizes": "[3, 3]"}
    study.add_trial(
        create_trial(value=0.6, params=cnn, distributions={"model": models, "channels": layers, "kernel_sizes": sizes})
    )
    resnet = {"model": "resnet18", "frozen_blocks": 3}
    study.add_trial(
        create_trial(value=0.7, params=resnet, distributions={"model": models, "frozen_blocks": IntDistribution(0, 4)})
    )
    recorded = read_study(tmp_path / "nets.db")
    first, second = SearchSpace.from_json(recorded.manifest["space"]).arms
    assert first.fields == {"model": "cnn", "channels": Choice((4, 8), (8, 16)), "kernel_sizes": (3, 3)}
    assert second.fields == {"model": "resnet18", "frozen_blocks": IntRange(0, 4)}
    assert [trial.row["cell"] for trial in recorded.trials] == ["cnn", "resnet18"]


def test_a_named_metric_goes_to_its_column(tmp_path: Path) -> None:
    study = make_study(tmp_path / "named.db", direction="maximize")
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["val_macro_recall"])
    study.add_trial(foreign_trial(TrialState.COMPLETE, 0.8))
    recorded = read_study(tmp_path / "named.db")
    assert (recorded.trials[0].row["val_macro_recall"], recorded.manifest["select_by"]) == (0.8, "val_macro_recall")


def test_reading_a_study_leaves_its_file_as_it_was(own_file: Path, tmp_path: Path) -> None:
    before = own_file.read_bytes()
    own_file.chmod(0o400)
    read_study(own_file)
    assert own_file.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["study.db"]


def test_trials_that_somebody_added_to_our_study_are_left_out(own_file: Path) -> None:
    study_in(own_file).add_trial(create_trial(value=0.99))
    recorded = read_study(own_file)
    assert len(recorded.trials) == 22
    assert recorded.notes == ("Left out 1 of 23 trials that tune_lung did not write",)


def test_a_study_of_a_newer_version_is_refused(own_file: Path) -> None:
    study = study_in(own_file)
    study.set_user_attr("tune_lung_manifest", {**study.user_attrs["tune_lung_manifest"], "schema_version": 99})
    with pytest.raises(InputError, match=r"written by a newer tune_lung \(tables of version 99\)"):
        read_study(own_file)


def test_of_several_studies_one_must_be_named(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_study(tmp_path / "two.db", name).add_trial(foreign_trial(TrialState.COMPLETE, 0.5))
    with pytest.raises(InputError, match=r"holds 2 studies\. Choose one with --study: first, second"):
        read_study(tmp_path / "two.db")
    with pytest.raises(InputError, match=r"holds no study 'secnd'\. Did you mean 'second'"):
        read_study(tmp_path / "two.db", "secnd")
    assert read_study(tmp_path / "two.db", "second").manifest["name"] == "second"


def test_a_study_without_our_names_is_refused_with_them(tmp_path: Path) -> None:
    study = make_study(tmp_path / "svm.db")
    study.add_trial(create_trial(value=0.1, params={"C": 1.0}, distributions={"C": FloatDistribution(0, 2)}))
    with pytest.raises(InputError, match=r"None of its parameters \(C\) is a field of a trial: model, channels"):
        read_study(tmp_path / "svm.db")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no database" * 100, "'study.db' is no sqlite file of Optuna that can be read"),
        (b"", "'study.db' holds no study of Optuna"),
    ],
)
def test_a_file_that_is_no_study_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_study(tmp_path / "study.db")


def test_tables_of_another_optuna_are_refused_with_what_to_do(tmp_path: Path) -> None:
    make_study(tmp_path / "old.db")
    connection = sqlite3.connect(tmp_path / "old.db")
    with connection:
        connection.execute("update alembic_version set version_num = 'v2.6.0.a'")
    connection.close()
    with pytest.raises(InputError, match=r"'old.db' was written by another Optuna than .* 'optuna storage upgrade'"):
        read_study(tmp_path / "old.db")


def test_exchanging_studies_loads_no_ray_and_no_torch() -> None:
    code = "import sys, tune_lung.tuning.proposals.optuna_files; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert not set(done.stdout.split()) & {"ray", "torch", "torchvision"}


ENDLESS = (
    "with recursive c(x) as (select 1 union all select x + 1 from c) select x as trial_id, x as number, 1 as study_id,"
    " 'COMPLETE' as state, null as datetime_start, null as datetime_complete from c"
)
HOSTILE = {
    "a view without end": ["alter table trials rename to t", f"create view trials as {ENDLESS}"],
    "a trigger": ["create trigger a after insert on trials begin delete from trials; end"],
    "a column that is computed": ["alter table trials add column x text as (hex(zeroblob(100000000)))"],
    "a text in every row": [f"alter table trials add column x text default '{'x' * 100_000}'"],
    "an index of a program": ["create virtual table x using fts5(y)"],
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_database_that_is_more_than_tables_is_refused(own_file: Path, name: str) -> None:
    with sqlite3.connect(own_file) as database:
        for statement in HOSTILE[name]:
            database.execute(statement)
    database.close()
    with pytest.raises(InputError, match=r"can be read \(it holds more than tables\)"):
        read_study(own_file)


@pytest.mark.timeout(60)
def test_a_database_of_pages_that_hold_each_other_is_refused(tmp_path: Path) -> None:
    make_study(tmp_path / "study.db").add_trial(foreign_trial(TrialState.COMPLETE, 0.5))
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("create table filler (x text)")
        database.executemany("insert into filler values (?)", [("x" * 500,)] * 2000)
        (root,) = database.execute("select rootpage from sqlite_master where name = 'filler'").fetchone()
        (size,) = database.execute("pragma page_size").fetchone()
    database.close()
    content = bytearray((tmp_path / "study.db").read_bytes())
    page = (root - 1) * size
    assert content[page] == 5  # an inner page: each of its cells names a child
    for cell in range(int.from_bytes(content[page + 3 : page + 5])):
        place = page + int.from_bytes(content[page + 12 + 2 * cell : page + 14 + 2 * cell])
        content[place : place + 4] = content[page + 8 : page + 12]
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(InputError, match="its pages are damaged"):
        read_study(tmp_path / "study.db")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("beside", ["", "-wal", "-journal"])
def test_a_database_of_pipes_is_not_waited_for(own_file: Path, beside: str) -> None:
    path = own_file.with_name(own_file.name + beside)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(InputError, match="no regular file"):
        read_study(own_file)


def test_a_database_with_more_rows_than_a_search_is_refused(own_file: Path) -> None:
    many = "with recursive c(x) as (select 1 union all select x + 1 from c limit 4100000) select * from c"
    with sqlite3.connect(own_file) as database:
        database.execute(f"create table filler as {many}")
    database.close()
    with pytest.raises(InputError, match=r"it has 41\d{5} rows"):
        read_study(own_file)
