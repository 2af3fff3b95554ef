"""`--dry-run`: what it prints, what it refuses, and that it leaves nothing; then against a real search."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tune_lung.errors import InputError
from tune_lung.results.layout import KeepName
from tune_lung.space import Arm, Choice, Grid, IntRange, LogUniform, SearchSpace
from tune_lung.space_files import load_space, shipped_space_files
from tune_lung.strategy import Strategy
from tune_lung.tuning.cluster import NodeOffer, Resources
from tune_lung.tuning.forecasting import dry_run as dry_run_module
from tune_lung.tuning.forecasting.dry_run import dry_run
from tune_lung.tuning.forecasting.forecast import TrialCost
from tune_lung.tuning.forecasting.probe import ProbeRequest
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.search_plan import SearchPlan

from tests.small_search import search_command

GB = 10**9
Say = Callable[..., str]


def a_cost(request: ProbeRequest) -> TrialCost:
    """Numbers that are easy to add up: an epoch takes a tenth of a second for each image of a batch."""
    batch_size = int(request.point.get("batch_size", 128))  # type: ignore[arg-type]
    return TrialCost(
        start_seconds=0,
        features_seconds=30,
        features_to_build=(f"features of {request.point.get('frozen_blocks')}",) * request.repeats,
        features_bytes=50 * 10**6,
        epoch_seconds=batch_size / 10,
        validation_seconds=0,
        best_seconds=0,
        last_seconds=0,
        test_seconds=0,
        memory_bytes=2 * GB,
        gpu_memory_bytes=0,
        gpu_bytes=0,
    )


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[ProbeRequest]:
    """Stand in for probes, the store, the disk and the nodes; note what was probed."""
    requests: list[ProbeRequest] = []

    def probe(asked: Sequence[ProbeRequest], *_: Any, **__: Any) -> tuple[list[TrialCost], float]:
        requests.extend(asked)
        return [a_cost(request) for request in asked], 0.0

    store = SimpleNamespace(classes=("a", "b", "c", "d"), num_images={"train": 400})
    monkeypatch.setattr(dry_run_module, "probe", probe)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=2000 * GB, used=1000 * GB, free=1000 * GB))
    monkeypatch.setattr(dry_run_module, "PixelStore", SimpleNamespace(open=lambda _: store))
    monkeypatch.setattr(dry_run_module, "node_offers", lambda **_: [NodeOffer(slots=2, memory_bytes=16 * GB)])
    return requests


@pytest.fixture
def say(setup: SearchSetup, probed: list[ProbeRequest]) -> Say:  # noqa: ARG001 - it stands in
    """Run a dry run at 128 pixels and return what it prints."""
    setup = replace(setup, run=replace(setup.run, image_size=128))

    def run(space: SearchSpace, *, width: int = 80, max_concurrent: int = 2, keep: KeepName = "leaders", **options: Any) -> str:
        console = Console(file=StringIO(), width=width)
        resources = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=max_concurrent)
        dry_run(
            SearchPlan(space=space, strategy=Strategy.for_space(space, **options), setup=setup, resources=resources, keep=keep),
            console=console,
        )
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    return run


def rows(output: str, heading: str) -> list[list[str]]:
    """The rows of the table that begins with a heading, cut where two blanks stand."""
    lines = output.splitlines()
    start = next(number for number, line in enumerate(lines) if re.match(rf"\s*{heading}\b", line))
    table = lines[start + 1 : lines.index("", start)]
    return [re.split(r"\s{2,}", line.strip()) for line in table]


def test_it_says_cells_epochs_and_time_of_a_grid(say: Say) -> None:
    output = say(load_space("freeze_grid").with_fixed({"max_epochs": 4, "batch_size": 10}))
    assert output.lstrip().startswith("11 cells, 1 point each: cnn; resnet18 frozen_blocks=0;")
    assert "No scheduler: every trial runs to its own end." in output
    # 11 trials of 4 epochs of 1 s on 2 slots, and 30 s once for each of six features: none and k = 0 ... 4. The longest come
    # first: resnet34 k = 0, 1, 2; resnet18 k = 0, 1, 2; resnet34 k = 3; cnn; resnet18 k = 3; resnet34 k = 4; resnet18 k = 4.
    # One slot has 34 + 34 + 34 + 4, the other 34 + 4 + 4 + 4 + 34 + 4 + 34 s.
    assert rows(output, "epochs") == [
        ["least", "44", "1 min 58 s"],
        ["expected", "44", "1 min 58 s"],
        ["most", "44", "1 min 58 s"],
    ]


def test_it_shows_the_exact_rungs(say: Say) -> None:
    output = say(load_space("freeze_tuned"), samples=4, grace_epochs=4, reduction_factor=4)
    table = rows(output, "rung")
    assert [row[:2] for row in table] == [["1", "4"], ["2", "16"], ["3", "64"]]
    assert table[0][2] == "about 44"
    assert "asha compares a trial with those of its cell and lets one in 4 go on." in output


def test_it_names_each_network_with_the_spread_of_its_epochs(say: Say) -> None:
    space = SearchSpace(arms=(Arm(model="resnet18", frozen_blocks=Grid(0, 4), batch_size=Choice(10, 20)),))
    table = rows(say(space, samples=2, scheduler="none"), "network")
    assert table == [
        ["resnet18 frozen_blocks=0", "2", "1.5 (1 to 2)", "267", "30"],
        ["resnet18 frozen_blocks=4", "2", "1.5 (1 to 2)", "267", "30"],
    ]


def test_a_long_list_of_cells_is_shortened(say: Say) -> None:
    space = SearchSpace(arms=(Arm(model="cnn", learning_rate=Grid(*(0.001 * number for number in range(1, 31)))),))
    output = say(space)
    assert output.count("learning_rate=") == 20
    assert "and 10 more" in output


def test_cells_of_different_size_say_so_one_by_one(say: Say) -> None:
    space = SearchSpace(
        arms=(Arm(model="cnn", depth=IntRange(2, 4)), Arm(model="resnet18", learning_rate=LogUniform(1e-4, 1e-2)))
    )
    assert "2 cells, 11 points: cnn (3); resnet18 (8)" in say(space, samples=8)


@pytest.mark.parametrize("name", ["freeze_grid", "freeze_tuned", "everything", "cnn_architecture", "training", "inputs"])
@pytest.mark.parametrize("width", [80, 100])
def test_every_line_fits_the_terminal(say: Say, name: str, width: int) -> None:
    output = say(load_space(name), width=width)
    assert max(map(len, output.splitlines())) <= width


def test_the_time_budget_is_named(say: Say) -> None:
    output = say(load_space("freeze_tuned"), samples=1, time_budget_seconds=1800.0)
    assert "--time-budget starts nothing new after 30 min" in output


def test_no_more_slots_are_counted_than_the_nodes_have(say: Say) -> None:
    space = load_space("training").with_fixed({"max_epochs": 1, "batch_size": 10})
    one, two, many = (rows(say(space, max_concurrent=count), "epochs")[0][2] for count in (1, 2, 24))
    # 8 cells are left, each an epoch of 1 s; the features' 30 s come first.
    assert (one, two, many) == ("38 s", "31 s", "31 s")


def test_each_kind_of_trial_is_probed_once(say: Say, probed: list[ProbeRequest]) -> None:
    say(load_space("training"))  # 4 rates x 3 batch sizes x 2 patiences
    assert sorted(request.point["batch_size"] for request in probed) == [32, 64, 128]


def test_the_largest_points_are_probed_first_and_for_their_memory(say: Say, probed: list[ProbeRequest]) -> None:
    space = SearchSpace(arms=(Arm(model="resnet18", frozen_blocks=IntRange(0, 4), batch_size=Choice(16, 32, 64, 128)),))
    say(space, samples=16)
    assert (probed[0].point["frozen_blocks"], probed[0].point["batch_size"]) == (0, 128)


def test_a_full_disk_is_refused_before_anything_is_probed(
    say: Say, probed: list[ProbeRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10 * GB, used=9 * GB, free=GB))
    with pytest.raises(InputError, match=r"may write \d\.\d GB of checkpoints, and 1\.0 GB are free there"):
        say(load_space("freeze_grid"))
    assert probed == []


@pytest.mark.parametrize("name", shipped_space_files())
def test_every_shipped_space_fits_at_its_defaults_into_10_gb(say: Say, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=500 * GB, used=490 * GB, free=10 * GB))
    assert re.search(r"disk of --out +checkpoints \d[\d.]* [MG]B at most +10 GB", say(load_space(name)))


def test_what_is_kept_decides_what_a_search_needs(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=500 * GB, used=490 * GB, free=10 * GB))
    space = load_space("freeze_tuned")
    assert "checkpoints 3.0 GB at most" in say(space)
    with pytest.raises(InputError, match=r"may write 17 GB of checkpoints.*10 GB are free.* train fewer at once with --max-conc"):
        say(space, keep="best")
    with pytest.raises(InputError, match=r"may write 1\d\d GB of checkpoints"):
        say(space, keep="all")


def test_too_little_memory_is_refused_with_what_fits(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run_module, "node_offers", lambda **_: [NodeOffer(slots=4, memory_bytes=5 * GB)])
    with pytest.raises(
        InputError, match=r"4 trials at once need 8\.0 GB of memory, and 5\.0 GB are free\. Use --max-concurrent 2"
    ):
        say(load_space("freeze_grid"), max_concurrent=4)


def test_no_run_is_made(say: Say, setup: SearchSetup) -> None:
    assert "no run was made" in say(load_space("freeze_grid"))
    assert not setup.run_root.exists()


# As a user starts it


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """A dry run of the small search with a cache of its own: what it printed, and what it left."""
    folder = tmp_path_factory.mktemp("dry")
    command = [*search_command(folder / "runs"), "--cache", str(folder / "cache"), "--dry-run"]
    (folder / "work").mkdir()
    environment = os.environ | {"HOME": str(folder / "work"), "COLUMNS": "80"}
    before = files_of(folder)
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False, cwd=folder / "work", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, sorted(files_of(folder) - before)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.ray
def test_a_dry_run_writes_the_pixel_store_and_nothing_outside_the_cache(dry: tuple[str, list[str]]) -> None:
    _, left = dry
    assert {path.split("/")[0] for path in left} == {"cache"}
    assert {path.split("/")[1] for path in left if "/" in path} == {
        ".tune_lung-cache",
        *("digests", "locks", "phantoms", "probes", "stores"),
    }
    assert not any(path.startswith("cache/probes/") for path in left)


@pytest.mark.ray
def test_a_dry_run_counts_what_the_search_then_runs(dry: tuple[str, list[str]], finished_search: tuple[Path, str]) -> None:
    (said, _), (run, _) = dry, finished_search
    assert "3 cells, 1 point each: cnn base_channels=4; cnn base_channels=8;" in said
    assert [row[1] for row in rows(said, "epochs")] == ["6", "6", "6"]  # 3 cells x 2 epochs
    size = float(re.search(r"checkpoints ([\d.]+) MB at most", said)[1])  # type: ignore[index]
    written = sum(path.stat().st_size for path in checkpoint_files(run)) / 1e6
    assert 0.9 * size < written < size  # what the ResNet leaves out; beside it three networks, and two trials' ten more files


@pytest.mark.ray
def test_a_dry_run_foresees_the_time_of_the_search(dry: tuple[str, list[str]], finished_search: tuple[Path, str]) -> None:
    (said, _), (run, _) = dry, finished_search
    manifest = json.loads((run / "run.json").read_text())
    began, ended = (datetime.fromisoformat(manifest[name]) for name in ("started_utc", "ended_utc"))
    foreseen = seconds_of(rows(said, "epochs")[1][2])
    # The machine's load may have changed in between; without the workers' start it would be a tenth.
    assert 0.25 < foreseen / (ended - began).total_seconds() < 4


def checkpoint_files(run: Path) -> Iterable[Path]:
    return [path for folder in ("checkpoints", "frozen") for path in (run / folder).rglob("*.safetensors")]


def seconds_of(text: str) -> int:
    units = {"s": 1, "min": 60, "h": 3600}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+) (s|min|h)", text))


def test_it_says_how_far_it_is_where_no_bar_can_be_drawn(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    space = SearchSpace(arms=(Arm(model="resnet18", frozen_blocks=Grid(0, 2, 4)),))

    def slow_probe(asked: Sequence[ProbeRequest], *_: Any, progress: Any, **__: Any) -> tuple[list[TrialCost], float]:
        for done in range(1, len(asked) + 1):
            progress(done)
        return [a_cost(request) for request in asked], 0.0

    monkeypatch.setattr(dry_run_module, "probe", slow_probe)
    assert "Training 3 kinds of trial for a few steps each, to see what they take\n" in say(space)
    assert "of 3 done" not in say(space)  # it took no time
    monkeypatch.setattr(dry_run_module, "_SECONDS_BETWEEN_LINES", 0.0)
    assert "1 of 3 done\n2 of 3 done\n3 of 3 done\n" in say(space)
