"""The library: what `from tune_lung import ...` gives, and a search as a guest in the process of a script."""

import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tune_lung
from tune_lung import InputError, Run, SearchSpace, read_run, run_search, write_report
from tune_lung.errors import in_arguments, speaking_of_arguments
from tune_lung.results.layout import TABLES
from tune_lung.search import library
from tune_lung.search.options import SearchOptions
from tune_lung.tuning import cluster
from tune_lung.tuning.cluster import RayHere, require_fits

from tests.small_search import metrics_of
from tests.tuned_run import TUNED, write_tuned_run

NAMES = sorted(set(tune_lung.__all__) - {"__version__"})


def answer_of(code: str, *, timeout: float = 60) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_alone_is_quick_and_loads_nothing() -> None:
    code = "import sys, time; began = time.process_time(); import tune_lung; print(time.process_time() - began, *sys.modules)"
    seconds, *modules = answer_of(code).split()
    assert float(seconds) < 0.2
    own = {name for name in modules if name.partition(".")[0] == "tune_lung"}
    assert own == {"tune_lung", "tune_lung.version"}


def test_all_names_but_those_of_networks_load_no_framework() -> None:
    names = sorted(set(NAMES) - {"LoadedNetwork", "load_network"})
    modules = answer_of(f"import sys; from tune_lung import {', '.join(names)}; print(*sys.modules)").split()
    assert not {"torch", "ray", "optuna", "torchvision", "matplotlib"} & set(modules)


def test_no_module_bears_a_name_of_the_library() -> None:
    """Importing a module sets its name in the package, over whatever stood there."""
    assert not {module.name for module in pkgutil.iter_modules(tune_lung.__path__)} & set(NAMES)


@pytest.mark.parametrize(
    "first",
    [
        "import tune_lung.search.__main__, tune_lung.report, tune_lung.runs, tune_lung.space",
        "import tune_lung.results.reader, tune_lung.search.library",
        "from tune_lung.space import Arm; import tune_lung.search",
        f"from tune_lung import {', '.join(reversed(NAMES))}",
    ],
)
def test_the_names_hold_after_any_order_of_imports(first: str) -> None:
    said = answer_of(f"{first}\nimport tune_lung\nfor name in {NAMES}: print(name, getattr(tune_lung, name).__name__)")
    assert said.splitlines() == [f"{name} {name}" for name in NAMES]


def test_a_name_that_is_not_there_is_said_as_python_says_it() -> None:
    with pytest.raises(AttributeError, match="module 'tune_lung' has no attribute 'run_serch'"):
        _ = tune_lung.run_serch
    assert set(NAMES) <= set(dir(tune_lung))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epochs": "x"}, "max_epochs must be a whole number, not x."),
        ({"limit": 0}, "limit must be at least 1, not 0."),
        ({"seed": True}, "seed cannot be True."),
        ({"strict_data": "yes"}, "strict_data must be True or False, not 'yes'."),
        ({"scheduler": "asa"}, "scheduler cannot be 'asa'. Did you mean 'asha'? Allowed: asha, median, none."),
        ({"time_budget": "5"}, "time_budget 5: write a number and a unit, such as 90s, 30m, 8h or 2d."),
        ({"address": 5}, "address must be a text, not 5."),
        ({"cache": 3}, "cache must be a path, not 3."),
        ({"tracker": "wand"}, "tracker cannot be 'wand'. Did you mean 'wandb'? Allowed: mlflow, tensorboard, wandb."),
        ({"set": {"max_epochs": 3}}, "set max_epochs: use max_epochs instead."),
        ({"set": {"batch_sise": 3}}, "There is no field 'batch_sise'. Did you mean 'batch_size'?"),
        ({"samples": 3}, "samples: 'freeze_grid' samples nothing; each of its 11 cells is one point."),
        ({"repeats": 3, "scheduler": "asha"}, "repeats 3 needs scheduler none: asha would stop some seeds of a point"),
        ({"image_size": 16}, "image_size 16 is too small for this CNN: its 5 stages need at least 100 pixels. Raise image_size"),
        ({"allow_other_numbers": True}, "allow_other_numbers goes with resume alone"),
    ],
)
def test_what_cannot_be_searched_is_told_in_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        run_search(out=tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["max_epoch", "dry_run", "list_spaces", "no_report"])
def test_an_argument_that_is_not_there_is_a_type_error(name: str) -> None:
    with pytest.raises(TypeError, match=rf"run_search\(\) has no argument '{name}'"):
        run_search(**{name: True})


def test_a_run_that_goes_on_is_told_nothing_by_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`out` has a default in the signature, and is not compared with the run's."""
    root = write_tuned_run(tmp_path / "run", samples=2, still_running=2)
    monkeypatch.setattr(library, "check_trackers", lambda options: pytest.fail(f"Goes on: {options.max_epochs}"))
    with pytest.raises(pytest.fail.Exception, match="Goes on: 200"):
        run_search(resume=read_run(root), max_epochs=200)
    with pytest.raises(pytest.fail.Exception, match="Goes on: None"):
        run_search(TUNED, resume=root)
    with pytest.raises(InputError, match=r"^resume: .* in 'run' and .* here\. Leave it out, or begin a new run\.$"):
        run_search(SearchSpace(arms=TUNED.arms[:1]), resume=root)
    with pytest.raises(InputError, match=r"^resume: seed is 0 in 'run' and 5 here"):
        run_search(resume=root, seed=5)
    with pytest.raises(InputError, match=r"^out does not go together with resume: the run goes on in its own folder\.$"):
        run_search(resume=str(root), out=tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Lower --max-epochs, or choose --scheduler none.", "Lower max_epochs, or choose scheduler none."),
        ("--set batch_size=8", "set batch_size=8"),
        ("To go on: --resume runs/a--b-c", "To go on: resume runs/a--b-c"),
        ("a - b -- c --- d", "a - b -- c --- d"),
    ],
)
def test_options_are_written_as_arguments(text: str, told: str) -> None:
    assert in_arguments(text) == told
    with pytest.raises(InputError) as refused, speaking_of_arguments():
        raise InputError(text)
    assert str(refused.value) == told


def test_a_process_searches_once_at_a_time() -> None:
    with library._ONE_AT_A_TIME, pytest.raises(InputError, match="A search runs in this process already"):
        run_search()


@pytest.mark.parametrize("address", [None, "auto", "10.0.0.1:6379"])
def test_the_ray_of_the_program_is_used_where_it_fits(address: str | None) -> None:
    require_fits(address, RayHere(address="10.0.0.1:6379", is_joined=True))


def test_another_ray_than_that_of_the_program_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys.modules.get("ray", object()))
    monkeypatch.setattr(cluster, "ray_here", lambda: RayHere(address="10.0.0.1:6379", is_joined=True))
    with pytest.raises(
        InputError, match=r"^address 10\.0\.0\.2:6379: Ray is initialised in this process already, at 10\.0\.0\.1"
    ):
        run_search(address="10.0.0.2:6379")


def test_a_search_joins_the_cluster_that_the_program_has_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys.modules.get("ray", object()))
    given = library.read_arguments({})
    monkeypatch.setattr(cluster, "ray_here", lambda: RayHere(address="10.0.0.1:6379", is_joined=False))
    assert library._where_ray_is(given).options == SearchOptions()
    monkeypatch.setattr(cluster, "ray_here", lambda: RayHere(address="10.0.0.1:6379", is_joined=True))
    assert library._where_ray_is(given).options == SearchOptions(address="10.0.0.1:6379")


def test_a_run_tells_itself_its_path_and_its_best_cell(tmp_path: Path) -> None:
    run = read_run(write_tuned_run(tmp_path / "run", samples=2))
    assert isinstance(run, Run)
    assert run.path == tmp_path / "run"
    scores = run.trials[run.trials["status"] != "failed"].groupby("cell")["selection_score"].max()
    assert run.best_cell == scores.idxmax()
    assert repr(run) == f"<Run 'run': completed, 6 trials, best cell '{run.best_cell}'; synthetic X-rays>"


def test_a_report_is_written_of_runs_and_of_folders(tmp_path: Path) -> None:
    first, second = (write_tuned_run(tmp_path / name, samples=2) for name in ("first", "second"))
    report = write_report(read_run(first))
    assert report.figures == (first / "figures" / "figure4.png",)
    assert "SYNTHETIC" in str(report)
    compared = write_report([str(first), read_run(second)], out=str(tmp_path / "figures"))
    assert compared.figures == (tmp_path / "figures" / "figure4_compared.png",)
    (tmp_path / "figures" / "figure4.png").write_text("mine")
    with pytest.raises(InputError, match=r"is no figure that tune_lung drew\. Move it away, or give another out\.$"):
        write_report(first, out=tmp_path / "figures")


SCRIPT = """
import json, os, signal, sys, threading
from pathlib import Path
from tune_lung import Arm, Grid, InputError, SearchSpace, read_run, run_search, write_report

SPACE = SearchSpace(
    arms=(
        Arm(model="cnn", depth=3, base_channels=Grid(4, 8), batch_size=16, learning_rate=0.002),
        Arm(model="resnet18", frozen_blocks=Grid(4), batch_size=16),
    ),
    name="two_tiny",
)
SMALL = {"image_size": 64, "limit": 100, "max_epochs": 2, "seed": 3}
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OF_IMPORTS = {"TORCHINDUCTOR_CACHE_DIR", "RAY_CLIENT_MODE"}

def state():
    own = {name: value for name, value in os.environ.items() if name not in OF_IMPORTS}
    return own, [signal.getsignal(each) for each in ENDING], os.getcwd(), sys.unraisablehook

out, before = Path(sys.argv[1]), state()
run = run_search(SPACE, out=out, name="first", **SMALL)
facts = {"as_before": state() == before, "tables": {name: len(getattr(run, name)) for name in sys.argv[2].split(",")}}
facts["status"], facts["figures"] = run.manifest["status"], [path.name for path in write_report(run).figures]

import ray

facts["ray_is_left"] = ray.is_initialized()
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
before, found = state(), []
alone = {"space": SPACE, "set": {"model": "cnn"}, "out": out, "name": "second"}
thread = threading.Thread(target=lambda: found.append(run_search(**alone, **SMALL)))
thread.start()
thread.join()
facts["in_a_thread"], facts["as_before_the_thread"] = found[0].manifest["status"], state() == before
facts["ray_of_the_program_is_left"] = ray.is_initialized() and ray.get(ray.remote(lambda: 7).remote()) == 7
print("FACTS", json.dumps(facts))
"""


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A script without a guard that searches on a Ray of ours, and then in a thread on its own; its facts and its output."""
    folder = tmp_path_factory.mktemp("scripted")
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "script.py"), str(folder / "runs"), ",".join(TABLES)]
    # Ray writes a token under HOME for the program's own, but for one in the environment.
    environment = os.environ | {"RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs", json.loads(done.stdout.partition("FACTS")[2]), done.stdout


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_script_finds_what_the_command_finds(
    scripted: tuple[Path, dict[str, Any], str], finished_search: tuple[Path, str]
) -> None:
    root, facts, output = scripted
    assert facts["status"] == facts["in_a_thread"] == "completed"
    assert facts["tables"]["trials"] == 3
    assert facts["figures"] == ["figure4.png"]
    pd.testing.assert_frame_equal(metrics_of(root / "first"), metrics_of(finished_search[0]), check_exact=True)
    again, first = (metrics_of(root / name).set_index("trial_id") for name in ("second", "first"))
    pd.testing.assert_frame_equal(again, first.loc[again.index], check_exact=True)
    assert "[3/3]" in output  # progress


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_search_leaves_the_program_as_it_was(scripted: tuple[Path, dict[str, Any], str]) -> None:
    _, facts, _ = scripted
    assert facts["as_before"]
    assert facts["as_before_the_thread"]
    assert not facts["ray_is_left"]
    assert facts["ray_of_the_program_is_left"]


INTERRUPTED = """
import sys, time
from tune_lung import Arm, SearchSpace, run_search

began = time.monotonic()
space = SearchSpace(arms=(Arm(model="cnn", depth=2, base_channels=4, batch_size=16),), name="tiny")
small = {"image_size": 64, "limit": 100}
try:
    run_search(space, out=sys.argv[1], name="cut", max_epochs=100_000, patience=100_000, **small)
except KeyboardInterrupt:
    print("INTERRUPTED", flush=True)
run = run_search(resume=f"{sys.argv[1]}/cut", time_budget=time.monotonic() - began + 3)
print("ENDED", run.manifest["status"], run.manifest["attempt"], *run.trials["stop_reason"])
"""


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_ctrl_c_is_an_exception_of_the_program_and_the_run_goes_on_in_the_same_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    epochs, deadline = tmp_path / "cut" / "epochs", time.monotonic() + 150
    while len(list(epochs.glob("*.parquet"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "To go on: resume " in output
    assert "\nINTERRUPTED\n" in output
    assert output.splitlines()[-1] == "ENDED completed 2 time"


TERMINATED = """
import os, sys, time
from tune_lung.interrupts import said_to_the_process
with said_to_the_process():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(20)
    finally:
        print("closed", flush=True)
print("alive")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_a_process_ends_it_once_all_is_closed(number: signal.Signals) -> None:
    command = [sys.executable, "-c", TERMINATED, str(int(number))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup may have let the tests ignore it
    )
    assert (done.returncode, done.stdout, done.stderr) == (-number, "closed\n", "")


def test_a_notebook_is_shown_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream says that it is a terminal: a live view would be drawn anew below itself, every half second."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    screen = library._screen()
    assert (screen.is_jupyter, screen.is_terminal, screen.is_interactive) == (False, False, False)
    screen.print("To go on: --resume")


def test_ray_is_as_it_was_after_a_session() -> None:
    """Under `uv run` it would pack the working folder, with all runs in it, and hand it to its workers."""
    from ray._private import ray_constants, worker

    def state() -> tuple[object, ...]:
        return ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV, worker.print_to_stdstream, dict(os.environ)

    before = state()
    with cluster._settled_ray():
        assert not ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
        assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
    assert state() == before


def test_a_thread_leaves_the_working_folder_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    folders: list[Path] = []
    monkeypatch.setattr(ray, "init", lambda **_: folders.append(Path.cwd()))

    def begin() -> None:
        cluster._begin("local", working=str(tmp_path), folder=tmp_path)

    begin()
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert folders == [tmp_path, Path.cwd()]
