"""What another tool recorded becomes a run that says only what its source says."""

from pathlib import Path
from typing import Any

import pytest

from tune_lung.errors import InputError
from tune_lung.results.imported import (
    ForeignSearch,
    ForeignTrial,
    RecordedRun,
    RecordedTrial,
    folder_name,
    run_of,
    write_run,
)
from tune_lung.results.reader import plain_rows, read_run
from tune_lung.results.schema import TrialStatus
from tune_lung.space import Choice, LogUniform, SearchSpace, Uniform
from tune_lung.strategy import SELECTION, recorded_objectives


def search_of(*params: dict[str, Any], **changes: Any) -> ForeignSearch:
    trials = tuple(
        ForeignTrial(name=str(number), params=one, status=TrialStatus.COMPLETED, score=number / 10, measured={}, epochs=())
        for number, one in enumerate(params)
    )
    facts: dict[str, Any] = {"name": "theirs", "source": "notebook", "axes": {}, "select_by": "accuracy", "started_utc": None}
    return ForeignSearch(**(facts | {"trials": trials} | changes))


def arms_of(recorded: RecordedRun) -> list[dict[str, Any]]:
    return [dict(arm.fields) for arm in SearchSpace.from_json(recorded.manifest["space"]).arms]


def test_what_was_tried_becomes_a_space() -> None:
    recorded = run_of(
        search_of(
            {"batch_size": 16, "learning_rate": 0.1, "optimizer": "sgd"},
            {"batch_size": 64, "learning_rate": 0.02, "optimizer": "sgd"},
            {"batch_size": 32, "learning_rate": 0.3, "optimizer": "sgd"},
        )
    )
    expected = {"model": "cnn", "batch_size": Choice(16, 32, 64), "learning_rate": Uniform(0.02, 0.3), "optimizer": "sgd"}
    assert arms_of(recorded) == [expected]


def test_an_axis_that_the_source_knows_is_taken_as_it_is() -> None:
    rates = LogUniform(1e-5, 1.0)
    assert arms_of(run_of(search_of({"learning_rate": 0.1}, axes={"learning_rate": rates})))[0]["learning_rate"] == rates


def test_whole_floats_and_json_text_are_read_as_the_fields_type() -> None:
    recorded = run_of(search_of({"batch_size": 32.0, "channels": "[4, 8]", "kernel_sizes": [3, 3], "learning_rate": 1}))
    row = recorded.trials[0].row
    assert (row["batch_size"], row["channels"], row["kernel_sizes"], row["learning_rate"]) == (32, (4, 8), (3, 3), 1.0)
    assert type(row["batch_size"]) is int


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"channels": "4, 8"}, "channels must be a list of whole numbers, not '4, 8'"),
        ({"batch_size": 16.5}, "batch_size must be a whole number, not 16.5"),
        ({"batch_size": 1}, "batch_size must be at least 2, not 1"),
        ({"frozen_blocks": 2}, "frozen_blocks does not apply to cnn"),
        ({"lr": 0.1}, r"None of its parameters \(lr\) is a field of a trial: model"),
        ({}, r"None of its parameters \(it has none\) is a field"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"Nothing in the notebook 'theirs' can be read as a trial of tune_lung. {message}"):
        run_of(search_of(params))
    assert f"Left out 1 of 2 trials that cannot be built: {message[:9]}".replace("\\", "") in str(
        run_of(search_of({"batch_size": 16}, params)).notes
    )


def test_a_search_without_ended_trials_is_refused() -> None:
    with pytest.raises(InputError, match="It has no ended trial"):
        run_of(search_of())


def test_the_manifest_says_what_is_not_known() -> None:
    manifest = run_of(search_of({"batch_size": 16})).manifest
    assert [manifest[name] for name in ("protocol", "image_size", "seed", "git_commit")] == [None] * 4
    assert manifest["data"]["fingerprint"] is None
    assert (manifest["select_by"], manifest["imported_from"]) == ("accuracy", "notebook 'theirs'")
    assert recorded_objectives(manifest) == (SELECTION,)


def test_a_written_run_is_read_back_as_any_other(tmp_path: Path) -> None:
    write_run(run_of(search_of({"batch_size": 16}, {"batch_size": 32})), tmp_path / "runs" / "mine")
    run = read_run(tmp_path / "runs" / "mine")
    assert run.name == "mine"
    assert sorted((row["batch_size"], row["selection_score"]) for row in plain_rows(run.trials)) == [(16, 0.0), (32, 0.1)]
    assert run.damaged == ()


def test_an_existing_run_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="The run folder 'mine' exists already"):
        write_run(run_of(search_of({"batch_size": 16})), tmp_path / "mine")


def test_a_link_to_nothing_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to("disk")
    with pytest.raises(InputError, match="The run folder 'mine' exists already"):
        write_run(run_of(search_of({"batch_size": 16})), tmp_path / "mine")
    assert (tmp_path / "mine").is_symlink()


def test_a_name_that_nobody_chose_gets_a_number_where_it_is_taken(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    recorded = run_of(search_of({"batch_size": 16}))
    places = [write_run(recorded, tmp_path / "theirs", is_named=False) for _ in range(2)]
    assert [path.name for path in places] == [read_run(path).name for path in places] == ["theirs-2", "theirs-3"]
    assert list((tmp_path / "theirs").iterdir()) == []


def test_a_manifest_without_classes_is_no_run(tmp_path: Path) -> None:
    sound = run_of(search_of({"batch_size": 16}))
    with pytest.raises(InputError, match="What was read is no run of tune_lung: command: Field required"):
        write_run(RecordedRun(manifest={"name": "theirs"}, trials=sound.trials), tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "row",
    [
        {"trial_id": "../outside", "status": "completed"},
        {"trial_id": "a1", "status": "splendid"},
        {"trial_id": "a1", "status": "completed", "batch_size": "many"},
        {"status": "completed"},
    ],
)
def test_a_run_that_the_tables_cannot_hold_leaves_nothing_behind(row: dict[str, Any], tmp_path: Path) -> None:
    sound = run_of(search_of({"batch_size": 16}))
    tampered = RecordedRun(manifest=sound.manifest, trials=(*sound.trials, RecordedTrial(row=row, epochs=())))
    with pytest.raises(InputError, match="What was read is no run of tune_lung"):
        write_run(tampered, tmp_path / "runs" / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my/study of nets", "my-study-of-nets"),
        ("../up", "up"),
        (".hidden", "hidden"),
        ("a_b-1.0", "a_b-1.0"),
        ("?!", "imported"),
        ("n" * 300, "n" * 200),
    ],
)
def test_any_name_becomes_a_folders(name: str, expected: str) -> None:
    assert folder_name(name) == expected
