"""The command that looks after runs: what it lists, writes and reads, and how it ends."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from tune_lung.report import main as report
from tune_lung.results.ledger import Ledger
from tune_lung.results.reader import read_run
from tune_lung.runs import main

from tests.fabricated_run import write_fabricated_run
from tests.results.test_ray_results import PARAMS, results_of, write_trial
from tests.tuned_run import write_tuned_run

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, one with a damaged part; two folders with a broken manifest; one that is not finished or no run, and a file."""
    folder = tmp_path_factory.mktemp("runs")
    write_fabricated_run(folder / "phantoms", failed=["cnn"], missing=["resnet18 frozen_blocks=1"])
    write_fabricated_run(folder / "real", synthetic=False, weights="resnet18-5c.pth")
    write_tuned_run(folder / "tuned", still_running=2)
    for name, moment in (("phantoms", "2026-03-01T10:00:00"), ("real", "2026-02-01T10:00:00"), ("tuned", "2026-03-01T11:30:59")):
        manifest = json.loads((folder / name / "run.json").read_text())
        del manifest["sha256"]
        (folder / name / "run.json").write_text(json.dumps(manifest | {"started_utc": f"{moment}+00:00"}))
    (folder / "real" / "trials" / "broken.parquet").write_bytes(b"no parquet")
    for name, text in (("torn", '{"schema_ver'), ("empty", '{"schema_version": 1}'), ("newer", '{"schema_version": 99}')):
        (folder / name).mkdir()
        (folder / name / "run.json").write_text(text)
    shutil.copytree(folder / "phantoms", folder / ".unfinished.0123abcd")
    (folder / "notes").mkdir()
    (folder / "readme.txt").write_text("no run")
    return folder


def test_list_shows_every_run_the_earliest_first(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", str(runs)]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].split() == ["run", "search", "trials", "best", "on", "validation"]
    table = "\n".join(lines)
    assert max(map(len, lines[:10])) <= 80
    assert table.index("real") < table.index("phantoms") < table.index("tuned")
    (phantoms,) = [number for number, line in enumerate(lines) if line.startswith("phantoms")]
    assert lines[phantoms].split() == ["phantoms", "completed", "9", "completed", "resnet34", "frozen_blocks=1"]
    assert lines[phantoms + 1].split() == ["freeze_grid,", "synthetic", "1", "failed", "95.0%", "macro", "recall"]
    assert lines[phantoms + 2].split() == ["2026-03-01", "10:00", "UTC"]
    assert "freeze_grid, data c0ffeec0" in table
    assert "2 running" in table


def test_list_names_what_is_damaged_and_passes_over_what_is_no_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(runs)]) == 0
    out = capsys.readouterr().out
    damaged = [line.removeprefix("damaged: ") for line in out.splitlines() if line.startswith("damaged: ")]
    assert len(damaged) == 4
    assert "real/trials/broken.parquet" in damaged
    for name, reason in (
        ("torn", "cannot be read (DamagedFileError)"),
        ("empty", "lacks what a run must say"),
        ("newer", "newer"),
    ):
        assert [line for line in damaged if name in line and reason in line]
    assert out.count("freeze_grid, synthetic") == 1  # the other one is not finished
    assert "notes" not in out
    assert "readme" not in out


def test_list_of_a_folder_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    assert main(["list", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.startswith("There is no run in ")


def test_list_of_runs_without_a_score_leaves_the_best_cell_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space_cells = ["cnn", *(f"resnet{depth} frozen_blocks={k}" for depth in (18, 34) for k in range(5))]
    write_fabricated_run(tmp_path / "broken", failed=space_cells)
    write_fabricated_run(tmp_path / "fresh", missing=space_cells)
    assert main(["list", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["broken", "completed", "11", "failed", "-"] in rows
    assert ["fresh", "completed", "none", "-"] in rows


def test_list_imports_no_framework(runs: Path) -> None:
    program = (
        "import sys; from tune_lung.runs import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'ray', 'optuna'} & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else status)"
    )
    command = [sys.executable, "-c", program, "list", str(runs)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_export_says_what_is_in_the_file(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-optuna", str(runs / "tuned"), str(tmp_path / "study.db")]) == 0
    assert capsys.readouterr().out == (
        f"Study 'tuned' with 22 trials: 11 COMPLETE, 6 PRUNED, 5 FAIL; 2 still running left out\nFile: {tmp_path / 'study.db'}\n"
    )
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path / 'study.db'}") == ["tuned"]


def test_export_names_damaged_parts(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-optuna", str(runs / "real"), str(tmp_path / "study.db")]) == 0
    assert "Left out, since damaged: trials/broken.parquet\n" in capsys.readouterr().out


def test_an_exported_run_is_imported_and_reported_as_it_was(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-optuna", str(runs / "phantoms"), str(tmp_path / "study.db")]) == 0
    assert main(["import", str(tmp_path / "study.db"), "--out", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith(f"10 trials: 9 completed, 1 failed\nRun: {tmp_path / 'runs' / 'phantoms'}\n")
    assert report([str(tmp_path / "runs" / "phantoms")]) == 0
    assert "* resnet34 frozen_blocks=1    36/16  23.1 21.06 M  95.0" in capsys.readouterr().out


def test_a_ray_results_folder_is_imported_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = tmp_path / "old experiment"
    write_trial(experiment / "trial_a", PARAMS, results_of(0.5, 0.7, 0.6))
    write_trial(experiment / "trial_b", PARAMS | {"batch_size": 32}, results_of(0.4))
    assert main(["import", str(experiment), "--out", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out == (
        "2 trials: 1 completed, 1 stopped\n"
        "Ignored, as no field of a trial has the name: dropout\n"
        f"Run: {tmp_path / 'runs' / 'old-experiment'}\n"
    )
    assert len(read_run(tmp_path / "runs" / "old-experiment").epochs) == 4
    assert report([str(tmp_path / "runs" / "old-experiment")]) == 0
    shown = capsys.readouterr().out
    assert "old-experiment: Ray results folder 'old experiment', imported" in shown
    assert "* resnet18      3/2     -       -  70.0" in shown
    assert "None" not in shown
    assert main(["list", str(tmp_path / "runs")]) == 0
    assert "data not known" in capsys.readouterr().out


def test_import_takes_another_name(runs: Path, tmp_path: Path) -> None:
    assert main(["export-optuna", str(runs / "phantoms"), str(tmp_path / "study.db")]) == 0
    assert main(["import", str(tmp_path / "study.db"), "--out", str(tmp_path / "runs"), "--name", "again"]) == 0
    assert read_run(tmp_path / "runs" / "again").name == "again"


def test_a_study_imported_twice_is_two_runs_unless_the_name_was_given(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-optuna", str(runs / "phantoms"), str(tmp_path / "study.db")]) == 0
    for name in ("phantoms", "phantoms-2"):
        assert main(["import", str(tmp_path / "study.db"), "--out", str(tmp_path / "runs")]) == 0
        assert capsys.readouterr().out.endswith(f"Run: {tmp_path / 'runs' / name}\n")
        assert read_run(tmp_path / "runs" / name).name == name
    assert main(["import", str(tmp_path / "study.db"), "--out", str(tmp_path / "runs"), "--name", "phantoms"]) == 2
    assert capsys.readouterr().err == ("error: The run folder 'phantoms' exists already. Choose another --name or remove it.\n")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["phantoms", "phantoms-2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "nowhere"], "There is no folder 'nowhere'."),
        (["export-optuna", "nowhere", "study.db"], "'nowhere' is no run"),
        (["import", "nowhere"], "There is neither a file nor a folder 'nowhere'."),
        (["import", "empty"], "'empty' is no results folder of Ray Tune"),
        (["import", "empty", "--study", "first"], "--study chooses from an Optuna file"),
        (["import", "text.db", "--name", "a/b"], "--name 'a/b' cannot be a run's folder: write one name"),
        (["import", "text.db", "--name", ""], "--name '' cannot be a run's folder: write one name"),
        (["import", "text.db"], "'text.db' is no sqlite file of Optuna that can be read"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.db").write_text("no database" * 100)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text.db"]


def test_list_marks_a_run_whose_trials_were_not_all_computed_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger.open(write_fabricated_run(tmp_path / "mixed"))
    numerics = {"device": "cpu", "threads": 1, "precision": "fp32"}
    attempt = {name: ledger.read_manifest()[name] for name in ("command", "attempt", "versions", "git_commit", "started_utc")}
    before = {**attempt, "ended_utc": None, "status": "interrupted", "numerics": numerics}
    now = {"numerics": numerics | {"threads": 2}, "allow_other_numbers": True, "earlier_attempts": [before]}
    ledger.write_manifest({**ledger.read_manifest(), **now})
    assert main(["list", str(tmp_path)]) == 0
    assert "other numbers" in " ".join(capsys.readouterr().out.split())
