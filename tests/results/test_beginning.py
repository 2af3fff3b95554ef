"""A run appears whole, with one owner, under a name that nothing had; what a killed builder left goes, and nothing else does."""

import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tune_lung.errors import InputError, SupersededError
from tune_lung.files import write_json_with_digest
from tune_lung.results import beginning, ownership
from tune_lung.results.beginning import begin_run, checked_name, remove_unfinished
from tune_lung.results.layout import TABLES, RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.results.ownership import Ownership, read_owner
from tune_lung.results.reader import read_run

from tests.whole_manifest import whole_manifest

MANIFEST = whole_manifest(("a", "b"), name="?")


def fill(ledger: Ledger) -> None:
    write_json_with_digest(ledger.paths.lessons, {"trials": []}, check_writer=ledger.check_writer)
    ledger.write_trial({"trial_id": "a"})


def begun(root: Path, *, is_named: bool = True, **facts: object) -> Ledger:
    """Begin a run and let it go."""
    ledger, own = begin_run(root, MANIFEST | facts, fill, is_named=is_named)
    own.release()
    return ledger


def outcome_of(root: Path, number: int, *, is_named: bool) -> str:
    """Begin a run whose seed is `number`; return its name, or what kept it from that."""
    try:
        ledger, own = begin_run(root, MANIFEST | {"seed": number}, fill, is_named=is_named)
    except InputError as error:
        return str(error)
    own.check()
    name = ledger.paths.root.name
    own.release()
    return name


def hidden_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture
def no_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that does not go on at once is a dead builder's."""
    monkeypatch.setattr(ownership, "_SECONDS_TO_WATCH", 0.0)


def test_a_run_has_all_that_it_needs_and_an_owner_when_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, seen = ownership.rename_to_new, []

    def look_and_rename(folder: Path, place: Path) -> None:
        assert not place.exists()
        seen.append({path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()})
        rename(folder, place)

    monkeypatch.setattr(ownership, "rename_to_new", look_and_rename)
    ledger, own = begin_run(tmp_path / "runs" / "mine", MANIFEST, fill, is_named=True)
    with own:
        tables = {f"{table}/schema.parquet" for table in TABLES} | {"trials/a.parquet"}
        assert seen == [tables | {"run.json", ".run.json.copy", "warm_start.json", ".owner-1.json", ".lock"}]
        assert ledger.paths.root == tmp_path / "runs" / "mine"
        assert ledger.read_manifest()["name"] == "mine"
        with pytest.raises(InputError, match=r"Another search is at work in 'mine' \(process \d+\)"):
            Ownership.claim(ledger.paths.root)
        ledger.write_trial({"trial_id": "b"})
    assert read_owner(ledger.paths).unfinished_folder == ""
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


def test_a_beat_goes_on_in_the_runs_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_SECONDS_BETWEEN_BEATS", 0.001)
    for number in range(20):
        ledger, own = begin_run(tmp_path / str(number), MANIFEST, lambda _: None, is_named=True)
        before, until = read_owner(ledger.paths).beat, time.monotonic() + 5
        while read_owner(ledger.paths).beat == before and time.monotonic() < until:
            time.sleep(0.001)
        assert read_owner(ledger.paths).beat > before
        own.release()
    assert hidden_in(tmp_path) == []


@pytest.mark.parametrize("what", ["folder", "run", "file", "link"])
def test_what_is_there_is_left_as_it_is(tmp_path: Path, what: str) -> None:
    root = tmp_path / "mine"
    {
        "folder": root.mkdir,
        "run": lambda: begun(root),
        "file": root.touch,
        "link": lambda: root.symlink_to("nowhere"),
    }[what]()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="The run folder 'mine' exists already"):
        begun(root)
    assert sorted(tmp_path.rglob("*")) == before
    assert begun(root, is_named=False).paths.root.name == "mine-2"
    assert begun(root, is_named=False).read_manifest()["name"] == "mine-3"


def test_an_empty_folder_made_meanwhile_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        begin_run(tmp_path / "mine", MANIFEST, lambda _: (tmp_path / "mine").mkdir(), is_named=True)
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_of_many_who_begin_one_run_at_once_one_does_and_it_is_its_own(tmp_path: Path) -> None:
    for number in range(10):
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(partial(outcome_of, tmp_path / f"run{number}", is_named=True), range(8)))
        (winner,) = [seed for seed, outcome in enumerate(outcomes) if outcome == f"run{number}"]
        assert read_run(tmp_path / f"run{number}").manifest["seed"] == winner
        assert sum("exists already" in outcome for outcome in outcomes) == 7
    assert hidden_in(tmp_path) == []


def test_of_many_without_a_name_of_their_own_each_gets_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(partial(outcome_of, tmp_path / "run", is_named=False), range(8)))
    assert set(names) == {"run", *(f"run-{number}" for number in range(2, 9))}
    for seed, name in enumerate(names):
        manifest = read_run(tmp_path / name).manifest
        assert (manifest["name"], manifest["seed"]) == (name, seed)
    assert hidden_in(tmp_path) == []


def race(folder: Path, number: int, rounds: int, together: Callable[[], object], outcomes: "multiprocessing.Queue") -> None:
    """Begin the same runs as other processes do, at the same moments."""
    for turn in range(rounds):
        together()
        outcomes.put((turn, number, outcome_of(folder / f"run{turn}", number, is_named=True)))


def test_of_processes_that_begin_one_run_at_once_one_does(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    outcomes, together = context.Queue(), context.Barrier(3)
    processes = [
        context.Process(target=race, args=(tmp_path, number, 12, partial(together.wait, 60), outcomes)) for number in range(3)
    ]
    for process in processes:
        process.start()
    found = [outcomes.get(timeout=60) for _ in range(3 * 12)]
    for process in processes:
        process.join(60)
    for turn in range(12):
        (winner,) = [number for own, number, outcome in found if own == turn and outcome == f"run{turn}"]
        assert read_run(tmp_path / f"run{turn}").manifest["seed"] == winner
    assert sum("exists already" in outcome for *_, outcome in found) == 24
    assert hidden_in(tmp_path) == []


def test_a_builder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(ledger: Ledger) -> None:
        fill(ledger)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        begin_run(tmp_path / "mine", MANIFEST, fail, is_named=True)
    assert list(tmp_path.iterdir()) == []


def test_a_paused_builder_that_was_taken_for_dead_makes_nothing_anew(tmp_path: Path) -> None:
    def lose(ledger: Ledger) -> None:
        shutil.rmtree(ledger.paths.root)  # as another machine's search does, which saw its heart stand still
        fill(ledger)

    with pytest.raises(SupersededError, match="was moved, removed"):
        begin_run(tmp_path / "mine", MANIFEST, lose, is_named=True)
    assert list(tmp_path.iterdir()) == []


def test_where_no_run_can_be_begun_it_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"No run can be begun in '.*file': .*\. Give another folder with --out\."):
        begun(tmp_path / "file" / "mine")


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_watching: None) -> Path:  # noqa: ARG001
    """The hidden folder of a builder that was killed right before the renaming."""
    folder = tmp_path / "runs"

    def copy(unfinished: Path, place: Path) -> None:  # noqa: ARG001
        shutil.copytree(unfinished, folder / "copy")
        raise FileExistsError

    with monkeypatch.context() as patch:
        patch.setattr(ownership, "rename_to_new", copy)
        with pytest.raises(InputError, match="exists already"):
            begun(folder / "mine")
    owner = read_owner(RunPaths(folder / "copy"))
    return (folder / "copy").rename(folder / owner.unfinished_folder)


def test_what_a_killed_builder_left_goes_when_the_next_run_is_begun(left: Path) -> None:
    begun(left.parent / "other")
    assert [path.name for path in left.parent.iterdir()] == ["other"]


def test_half_written_files_and_empty_folders_go_too(left: Path) -> None:
    for path in (
        left / ".run.json.01234567",
        left / "..run.json.copy.0123456789abcdef",
        left / "images" / ".images.parquet.01234567",
    ):
        path.write_bytes(b"half")
    for path in (left / "epochs").iterdir():
        path.unlink()
    remove_unfinished(left.parent)
    assert list(left.parent.iterdir()) == []


PLANTED: dict[str, Callable[[Path], object]] = {
    "a file": lambda left: (left / "notes.txt").write_text("mine"),
    "a file in a table": lambda left: (left / "epochs" / "notes.txt").write_text("mine"),
    "a folder": lambda left: (left / "data").mkdir(),
    "a folder in a table": lambda left: (left / "epochs" / "data.parquet").mkdir(),
    "a link": lambda left: (left / "warm_start.json.parquet").symlink_to("/etc/passwd"),
    "a link for a manifest": lambda left: ((left / "run.json").unlink(), (left / "run.json").symlink_to("/etc/passwd")),
    "a link for a table": lambda left: (shutil.rmtree(left / "epochs"), (left / "epochs").symlink_to(left / "trials")),
    "another attempt": lambda left: (left / ".owner-2.json").write_text("{}"),
    "a damaged owner": lambda left: (left / ".owner-1.json").write_text("{}"),
    "no owner": lambda left: (left / ".owner-1.json").unlink(),
    "no lock": lambda left: (left / ".lock").unlink(),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_folder_with_anything_that_was_not_written_here_is_left_alone(left: Path, what: str) -> None:
    PLANTED[what](left)
    before = sorted(left.rglob("*"))
    remove_unfinished(left.parent)
    assert sorted(left.rglob("*")) == before


def test_hidden_folders_of_others_and_runs_are_left_alone(left: Path, tmp_path: Path) -> None:
    parent = left.parent
    (parent / ".cache.01234567").mkdir()
    (parent / ".theirs.01234567" / "epochs").mkdir(parents=True)
    (parent / ".theirs.01234567" / ".lock").touch()
    shutil.copytree(left, parent / ".renamed.01234567")
    shutil.copytree(left, tmp_path / "elsewhere")
    (parent / ".linked.01234567").symlink_to(tmp_path / "elsewhere")
    begun(parent / "other")
    (parent / "other").rename(parent / ".other.01234567")
    before = sorted(path for path in tmp_path.rglob("*") if left not in (path, *path.parents))
    remove_unfinished(parent)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def building(tmp_path: Path) -> Iterator[Path]:
    """The hidden folder of a builder that is at work."""
    goes_on, folders = threading.Event(), []

    def wait(ledger: Ledger) -> None:
        folders.append(ledger.paths.root)
        assert goes_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(begin_run, tmp_path / "mine", MANIFEST, wait, is_named=True)
        while not folders:
            time.sleep(0.001)
        yield folders[0]
        goes_on.set()
        _, own = run.result(60)
        own.release()
    assert read_run(tmp_path / "mine").damaged == ()


def test_a_builder_at_work_is_left_alone(building: Path, no_watching: None) -> None:  # noqa: ARG001
    remove_unfinished(building.parent)
    assert building.is_dir()


def test_a_builder_at_work_on_another_machine_is_known_by_its_heartbeat(building: Path) -> None:
    (building / ".lock").unlink()
    (building / ".lock").touch()
    remove_unfinished(building.parent)
    assert building.is_dir()


@pytest.mark.parametrize("name", ["a", "my run", "cell=k, ä", "a.b-c_d", "n" * 200])
def test_a_name_that_a_folder_can_have_is_taken(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", ".hidden", "a/b", "../a", "/a", "a/", "a\nb", "a\x1b[31m", "\u202ea", "\udcff", "n" * 201, "a\0"]
)
def test_a_name_that_no_run_can_have_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match=r"^--name .* cannot be a run's folder: write one name ") as refused:
        checked_name(name)
    assert str(refused.value).isprintable()


def test_unfinished_names_are_those_that_are_given() -> None:
    assert beginning._UNFINISHED_NAME.fullmatch(".my run.0123abcd")
    assert not beginning._UNFINISHED_NAME.fullmatch(".run.json.copy")
