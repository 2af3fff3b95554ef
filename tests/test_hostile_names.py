"""Whatever a stranger's run, study, results or data folder are called, and whatever is in them, a terminal only shows it."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from matplotlib.text import Text
from optuna.distributions import FloatDistribution

from tune_lung.__main__ import main
from tune_lung.analysis.figures import figure4, save_figure
from tune_lung.analysis.pareto import pareto_figure
from tune_lung.analysis.profile import profile_figure
from tune_lung.data.phantoms import write_phantoms
from tune_lung.results.ledger import Ledger
from tune_lung.results.reader import plain_rows, read_run
from tune_lung.strategy import parse_objectives

from tests.fabricated_run import write_fabricated_run, write_sampled_run
from tests.hostile_text import HOSTILE_NAMES, OBEYED

MATH = r"$\frac{ $x_{1}$ [/bold]"
NAME = f"{'|'.join(HOSTILE_NAMES.values())}|{MATH}\nRun: forged\terror: forged"
IN_TABLES = NAME.replace(HOSTILE_NAMES["half a letter"], "")
"""Parquet files, sqlite and manifests hold no halves of letters."""
LONG = f"begin{'x' * 100_000}end"


def assert_only_shown(printed: str) -> None:
    assert "degnarts" in printed
    assert not (OBEYED - {"\n"}) & set(printed), ascii(printed)
    assert not [line for line in printed.splitlines() if line.startswith(("Run: forged", "error: forged"))]
    assert max(map(len, printed.splitlines())) < 3000


def forge(root: Path, name: str) -> Path:
    """Give a run, its weights, one of its cells and a failure such a name."""
    in_tables = name.replace(NAME, IN_TABLES)
    write_fabricated_run(root, weights=in_tables[:1000])
    ledger = Ledger(root)
    ledger.write_manifest(ledger.read_manifest() | {"name": in_tables[:1000]})
    first, second, *_ = plain_rows(read_run(root).trials)
    ledger.write_trial(first | {"cell": in_tables})
    ledger.write_trial(second | {"status": "failed", "stop_reason": "failure", "failure": in_tables})
    ledger.write_profile(first["trial_id"], [{"epoch": 1, "part": "step", "seconds": 1.0}])
    return root


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forge(tmp_path_factory.mktemp("runs") / "run", NAME)


def test_a_report_of_one_run_and_of_two(forged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_fabricated_run(tmp_path / "other")
    for roots in ([forged], [forged, other], [other, forged]):
        assert main(["report", *map(str, roots), "--out", str(tmp_path / "out")]) == 0
        assert_only_shown("".join(capsys.readouterr()))


def test_a_list_of_runs(forged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", str(forged.parent)]) == 0
    printed = capsys.readouterr().out
    assert "[31mred" in printed
    assert not (OBEYED - {"\n"}) & set(printed), ascii(printed)


def test_a_name_without_end_fills_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = forge(tmp_path / "run", LONG)
    for command in (["runs", "list", str(tmp_path)], ["report", str(root), "--out", str(tmp_path)]):
        assert main(command) == 0
        printed = "".join(capsys.readouterr())
        assert "begin" in printed
        assert len(printed) < 30_000


def test_an_export_and_its_import(forged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "export-optuna", str(forged), str(tmp_path / "study.db")]) == 0
    assert main(["runs", "import", str(tmp_path / "study.db"), "--out", str(tmp_path)]) == 0
    assert_only_shown("".join(capsys.readouterr()))


def test_an_import_of_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = IN_TABLES.replace("\x00", "")
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}", study_name=named)
    values = {"learning_rate": 0.01, named: 0.5}
    study.add_trial(optuna.create_trial(params=values, distributions=dict.fromkeys(values, FloatDistribution(0, 1)), value=1.0))
    assert main(["runs", "import", str(tmp_path / "study.db"), "--out", str(tmp_path), "--study", "none"]) == 2
    assert main(["runs", "import", str(tmp_path / "study.db"), "--out", str(tmp_path), "--name", "run"]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    assert_only_shown("".join(capsys.readouterr()))


@pytest.mark.parametrize("params", [{NAME: 1, "batch_size": 16}, {"model": NAME}, {"padding": NAME}, {NAME: NAME}])
def test_an_import_of_a_results_folder(params: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = tmp_path / "\x1b[31m\u202edegnarts" / "trial"
    trial.mkdir(parents=True)
    (trial / "params.json").write_text(json.dumps(params))
    (trial / "result.json").write_text(json.dumps({"training_iteration": 1, "val_macro_recall": 0.5, NAME: 1}) + "\n")
    status = main(["runs", "import", str(trial.parent), "--out", str(tmp_path / "runs")])
    assert status == (0 if "batch_size" in params else 2)
    assert_only_shown("".join(capsys.readouterr()))


def test_folders_that_are_not_there_or_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[31m\u202edegnarts\nerror: forged"
    (tmp_path / name).mkdir()
    for words in (["report"], ["runs", "list"], ["data", "scan"], ["search", "--resume"], ["search", "--warm-start"]):
        assert main([*words, str(tmp_path / "none" / name)]) == 2
    for words in (["report"], ["data", "scan"], ["search", "--resume"], ["search", "--warm-start"]):
        assert main([*words, str(tmp_path / name)]) == 2
    assert main(["runs", "list", str(tmp_path / name)]) == 0
    printed = "".join(capsys.readouterr())
    assert_only_shown(printed)
    assert len(printed.splitlines()) == 10


def test_a_run_that_is_gone_on_with(forged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--resume", str(forged), "--max-epochs", "1"]) == 2
    printed = capsys.readouterr().err
    assert not (OBEYED - {"\n"}) & set(printed), ascii(printed)
    assert len(printed.splitlines()) == 1


def test_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_phantoms(tmp_path, seed=0, num_images=16)
    theirs = tmp_path / "\x1b[31m\u202edegnarts\nerror: forged"
    (tmp_path / "COVID").rename(theirs)
    for number, image in enumerate((theirs / "images").iterdir()):
        image.rename(image.with_name(f"\u2066\x9b{number}\r\u2028{image.name}"))
    (theirs / "images" / "\udcff\x1b]0;title\x07.png").write_bytes(b"no image")
    for command in ("scan", "audit"):
        assert main(["data", command, str(tmp_path)]) in (0, 2)
        printed = "".join(capsys.readouterr())
        assert not (OBEYED - {"\n"}) & set(printed), ascii(printed)
        assert not [line for line in printed.splitlines() if line.startswith("error: forged")]


def texts_of(figure: Any) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_figures_show_names_as_they_are_written(forged: Path, tmp_path: Path) -> None:
    run, other = read_run(forged), read_run(write_fabricated_run(tmp_path / "other"))
    for figure in (figure4(run), figure4(run, other), profile_figure(run)):
        save_figure(figure, tmp_path / "figure.png")
        texts = texts_of(figure)
        assert MATH in texts
        assert not (OBEYED - {"\n"}) & set(texts), ascii(texts)
        assert not [text for text in figure.findobj(Text) if MATH in text.get_text() and text.get_parse_math()]


def test_a_front_shows_names_as_they_are_written(tmp_path: Path) -> None:
    objectives = parse_objectives("val_macro_recall:max,trainable_params:min")
    root = write_sampled_run(tmp_path / "run", objectives=objectives, samples=5, num_test=20)
    ledger = Ledger(root)
    for row in plain_rows(read_run(root).trials):
        ledger.write_trial(row | {"cell": IN_TABLES})
    figure = pareto_figure(read_run(root))
    save_figure(figure, tmp_path / "figure.png")
    assert "degnarts" in texts_of(figure)
    assert not (OBEYED - {"\n"}) & set(texts_of(figure))
