"""The report command shows a run without torch or Ray, and ends with a status that tells what happened."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tune_lung.report import main
from tune_lung.strategy import parse_objectives

from tests.fabricated_run import write_fabricated_run, write_sampled_run

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_fabricated_run(tmp_path_factory.mktemp("runs") / "random")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return write_fabricated_run(tmp_path_factory.mktemp("runs") / "pretrained", weights="resnet18-cifar10-64px.pth")


@pytest.fixture(scope="module")
def traded(tmp_path_factory):
    objectives = parse_objectives("val_macro_recall:max,trainable_params:min")
    return write_sampled_run(tmp_path_factory.mktemp("runs") / "traded", objectives=objectives, num_test=20)


def test_report_prints_the_table_and_the_figures_path(run, capsys):
    assert main([str(run)]) == 0
    shown = capsys.readouterr()
    assert "* resnet34 frozen_blocks=1" in shown.out
    assert shown.out.endswith(f"Figure: {run / 'figures' / 'figure4.png'}\n")
    assert shown.err == ""
    assert (run / "figures" / "figure4.png").is_file()


def test_report_shows_a_path_below_the_working_folder_relative_to_it(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert main([run.name]) == 0
    assert capsys.readouterr().out.endswith("Figure: random/figures/figure4.png\n")


def test_report_compares_several_runs(run, pretrained, tmp_path, capsys):
    assert main([str(run), str(pretrained), "--out", str(tmp_path / "figures")]) == 0
    assert "From random (weights: random) to pretrained (weights: resnet18-cifar10-64px.pth)" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["figure4_compared.png"]


def test_report_of_several_objectives_prints_the_front_after_the_comparison_and_draws_it(traded, capsys):
    assert main([str(traded)]) == 0
    shown = capsys.readouterr().out
    order = ["Tried in each cell", "* leads on validation", "Front of traded", "Validation alone decides", "Figure: "]
    assert sorted(order, key=shown.index) == order
    figures = [traded / "figures" / name for name in ("figure4.png", "pareto.png")]
    assert shown.endswith("".join(f"Figure: {path}\n" for path in figures))
    assert all(path.stat().st_size > 10_000 for path in figures)
    assert max(map(len, shown.split("Figure: ")[0].splitlines())) <= 100


def test_of_runs_compared_each_with_several_objectives_has_a_front_of_its_own(run, traded, tmp_path, capsys):
    assert main([str(run), str(traded), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("Front of ") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure4_compared.png", "pareto_2.png"]


def test_report_imports_neither_torch_nor_ray(traded):
    program = (
        "import sys; from tune_lung.report import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'ray', 'optuna'} & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(traded)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_is_no_run_is_one_line_and_status_2(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert shown.err.startswith("error: ")
    assert "holds no run.json" in shown.err


def test_a_figure_that_cannot_be_written_is_one_line_and_status_2(run, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    assert main([str(run), "--out", str(tmp_path / "taken")]) == 2
    assert "The figure cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("thing", ["picture", "text", "link", "link to nothing", "folder", "pipe"])
@pytest.mark.parametrize("place", ["--out", "the run's own folder"])
def test_no_figure_is_written_over_what_is_not_ours(run, tmp_path, capsys, thing, place):
    other = tmp_path / "picture.png"
    Image.new("L", (9, 9)).save(other)
    if place == "--out":
        options, path = ["--out", str(tmp_path)], tmp_path / "figure4.png"
    else:
        run = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("figures")))
        options, path = [], run / "figures" / "figure4.png"
        path.parent.mkdir()
    plant = {
        "picture": lambda: shutil.copy(other, path),
        "text": lambda: path.write_text("mine"),
        "link": lambda: path.symlink_to(other),
        "link to nothing": lambda: path.symlink_to(tmp_path / "nothing"),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
    }
    plant[thing]()
    before, content = path.lstat(), other.read_bytes()
    is_taken = place != "--out" and path.is_file() and not path.is_symlink()
    assert main([str(run), *options]) == (0 if is_taken else 2)
    if not is_taken:
        assert capsys.readouterr().err == (
            f"error: 'figures/{path.name}' in the run 'run' is a link, and nothing is written through links. Put what it leads to"
            " in its place, or remove it.\n"
            if place != "--out" and path.is_symlink()
            else f"error: '{path}' is there and is no figure that tune_lung drew. Move it away, or give another --out.\n"
        )
        assert os.path.samestat(path.lstat(), before)
        assert path.lstat().st_mtime_ns == before.st_mtime_ns
    assert other.read_bytes() == content
    assert not (tmp_path / "nothing").exists()


def test_a_figure_of_ours_is_drawn_again(run, tmp_path):
    for _ in range(2):
        assert main([str(run), "--out", str(tmp_path)]) == 0


def test_more_runs_than_one_figure_tells_apart_are_status_2(run, capsys):
    assert main([str(run)] * 4) == 2
    assert capsys.readouterr().err == "error: A report compares 1 to 3 runs, not 4.\n"
