"""Nothing is written through a link in a run: whoever sent it may have set it to any file of the user's."""

import shutil
from pathlib import Path

import pytest

from tune_lung.__main__ import main
from tune_lung.errors import InputError
from tune_lung.results.imported import write_run
from tune_lung.results.layout import RunPaths
from tune_lung.results.ownership import Ownership
from tune_lung.results.reader import read_run

from tests.fabricated_run import write_fabricated_run

CONTENT = "the user's own"


def content_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of the user's own, with a file in it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "file").write_text(CONTENT)
    return folder


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fabricated_run(tmp_path_factory.mktemp("runs") / "run", num_test=10)


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A run to put links in."""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


FOLDERS = (
    "checkpoints",
    "checkpoints/{trial}",
    "trials",
    "epochs",
    "validation_predictions",
    "figures",
    "tensorboard",
    "wandb/{trial}",
)
FILES = (
    "run.json",
    ".run.json.copy",
    ".owner.json",
    ".lock",
    "warm_start.json",
    "trials/{part}.parquet",
    "checkpoints/{trial}/best.safetensors",
    "mlflow/mlflow.db",
    "figures/figure4.png",
)


def link(run: Path, place: str, target: Path) -> Path:
    """Put a link in a place of a run; what was there goes to the target where that is a folder's."""
    run_of = read_run(run, only=("trials",))
    part = RunPaths(run).parts("trials")[0].stem
    path = run / place.format(trial=run_of.trials["trial_id"][0], part=part)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(path.with_name(f".{path.name}.aside"))
    path.symlink_to(target)
    return path.relative_to(run)


@pytest.mark.parametrize("place", [*FOLDERS, *FILES])
def test_a_run_with_a_link_has_no_owner(place: str, run: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = link(run, place, elsewhere / "file" if place in FILES else elsewhere)
    if place == "run.json":  # read from its copy
        assert (run / ".run.json.copy").is_file()
    before = sorted(run.rglob("*"))
    assert main(["search", "--resume", str(run)]) == 2
    assert capsys.readouterr().err == (
        f"error: '{named}' in the run 'run' is a link, and nothing is written through links."
        " Put what it leads to in its place, or remove it.\n"
    )
    assert sorted(run.rglob("*")) == before
    assert content_of(elsewhere) == {"file": CONTENT}


@pytest.mark.parametrize("place", ["checkpoints", ".lock", ".owner.json"])
@pytest.mark.parametrize("target", ["nowhere", "../elsewhere/new", "run.json", "."])
def test_where_a_link_leads_plays_no_part(place: str, target: str, run: Path, elsewhere: Path) -> None:
    link(run, place, Path(target))
    with pytest.raises(InputError, match=f"'{place}' in the run 'run' is a link"):
        Ownership.claim(run)
    assert content_of(elsewhere) == {"file": CONTENT}


@pytest.mark.parametrize("place", ["figures", "figures/figure4.png"])
def test_no_figure_is_drawn_through_a_link(place: str, run: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link(run, place, elsewhere / "file" if place.endswith("png") else elsewhere)
    assert main(["report", str(run)]) == 2
    assert f"error: '{place}' in the run 'run' is a link" in capsys.readouterr().err
    assert main(["report", str(run), "--out", str(elsewhere / "figures")]) == 0  # the user's own word
    (elsewhere / "figures" / "figure4.png").unlink()
    (elsewhere / "figures").rmdir()
    assert content_of(elsewhere) == {"file": CONTENT}


def test_the_run_itself_may_be_reached_by_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("run")
    assert main(["report", str(tmp_path / "link")]) == 0
    assert (run / "figures" / "figure4.png").is_file()
    with Ownership.claim(tmp_path / "link"):
        assert (run / ".owner-1.json").is_file()


def test_a_trackers_links_within_its_own_folder_are_no_harm(run: Path) -> None:
    own = run / "wandb" / "3f2a" / "wandb"
    (own / "offline-run-1").mkdir(parents=True)
    (own / "latest-run").symlink_to("offline-run-1")
    with Ownership.claim(run):
        pass
    (own / "debug.log").symlink_to("../../../../elsewhere")
    with pytest.raises(InputError, match=r"wandb/3f2a/wandb/debug\.log"):
        Ownership.claim(run)


def test_no_run_is_made_where_a_link_stands(tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(elsewhere / "new")  # there is nothing there yet
    assert main(["search", "--out", str(tmp_path / "runs"), "--name", "mine"]) == 2
    assert "The run folder 'mine' exists already" in capsys.readouterr().err
    with pytest.raises(InputError, match="exists already"):
        write_run(None, tmp_path / "runs" / "mine")  # type: ignore[arg-type] # it is not looked at
    assert content_of(elsewhere) == {"file": CONTENT}
