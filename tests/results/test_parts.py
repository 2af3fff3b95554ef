"""Trials share parts so that every reader finds each row once, at any moment, whatever is killed or damaged."""

import errno
import os
import signal
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_lung.errors import InputError
from tune_lung.results import parts
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.results.parts import DamagedPartError, SharedParts, read_part, read_parts, write_part
from tune_lung.results.reader import read_run
from tune_lung.results.schema import table_schema

from tests.whole_manifest import whole_manifest

CLASSES = ("COVID", "Viral Pneumonia")


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def root(tmp_path) -> Path:
    return new_run(tmp_path / "run")


@pytest.fixture
def roomy(monkeypatch):
    """Parts of three trials from the third on: a few trials make full parts."""
    monkeypatch.setattr(parts, "MOST_TRIALS", 3)


def new_run(root: Path) -> Path:
    return Ledger.create(root, whole_manifest(CLASSES)).paths.root


def epochs(number: int) -> list[dict]:
    return [{"epoch": epoch, "train_loss": 1 / epoch} for epoch in range(1, number + 1)]


def seen_by_pandas(root: Path) -> dict[str, int]:
    """Epochs by trial, as pandas alone reads them."""
    return counted(pd.read_parquet(root / "epochs"))


def seen_by_reader(root: Path) -> dict[str, int]:
    """Epochs by trial, as our own reader has them."""
    return counted(read_run(root).epochs)


def counted(frame: pd.DataFrame) -> dict[str, int]:
    assert not frame.duplicated(["trial_id", "epoch"]).any()
    return dict(Counter(frame["trial_id"]))


def trials_by_part(root: Path) -> dict[str, list[str]]:
    found = {path.stem: pd.read_parquet(path)["trial_id"].unique().tolist() for path in RunPaths(root).parts("epochs")}
    return {part: trials for part, trials in found.items() if trials}


@contextmanager
def killed_when(step: str) -> Iterator[None]:
    """Die at a step of the next writing of a part; like SIGKILL, leave what lies there."""
    write_table, replace = pq.write_table, Path.replace

    def write_half(table: pa.Table, path: Path, **options: object) -> None:
        write_table(table, path, **options)
        os.truncate(path, path.stat().st_size // 2)
        raise Killed

    def die_after_replacing(path: Path, target: Path) -> None:
        replace(path, target)
        raise Killed

    def die(*_: object, **__: object) -> None:
        raise Killed

    places = {
        "before writing": (pq, "write_table", die),
        "half written": (pq, "write_table", write_half),
        "written": (os, "fsync", die),
        "before the rename": (Path, "replace", die),
        "after the rename": (Path, "replace", die_after_replacing),
    }
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(*places[step])
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        yield
        pytest.fail(f"nothing died {step}")


STEPS = ("before writing", "half written", "written", "before the rename", "after the rename")


def test_a_small_runs_trials_have_a_part_each_and_no_part_of_a_large_one_has_more_than_16(root):
    ledger = Ledger(root)
    for number in range(300):
        ledger.write_epochs(f"{number:04}", epochs(1))
    sizes = [len(trials) for trials in trials_by_part(root).values()]  # in the order of their begin
    # 16 trials alone, then 8 parts of 2, 6 of 3, ...: one trial in 16 at most, until parts of 16 begin at trial 240
    assert sizes[:16] == [1] * 16
    assert sizes[16:30] == [2] * 8 + [3] * 6
    assert max(sizes) == 16
    assert sum(sizes) == 300


def test_a_trial_costs_one_part_read_and_one_written_however_many_there_are(root, monkeypatch):
    ledger, written, read = Ledger(root), [], []
    ledger.write_epochs("first", epochs(1))
    monkeypatch.setattr(
        parts, "write_part", lambda path, table, **how: (written.append(len(table)), write_part(path, table, **how))
    )
    monkeypatch.setattr(parts, "read_part", lambda path, schema: (read.append(path), read_part(path, schema))[1])
    monkeypatch.setattr(RunPaths, "parts", lambda *_: pytest.fail("the folder was listed"))
    for number in range(300):
        ledger.write_epochs(f"{number:04}", epochs(2))
    ledger.write_epochs("0007", epochs(2))
    assert len(read) == len(written) == 301
    assert max(written) == 16 * 2  # the trials of a full part, two epochs each


@pytest.mark.usefixtures("roomy")
def test_the_row_of_a_trial_that_ended_long_ago_is_replaced_in_its_part(root):
    ledger = Ledger(root)
    for number in range(20):
        ledger.write_trial({"trial_id": f"{number:02}", "cell": "cnn"})
    before = sorted(path.name for path in (root / "trials").iterdir())
    ledger.write_trial({"trial_id": "10", "cell": "cnn", "test_macro_recall": 0.9})
    trials = pd.read_parquet(root / "trials").set_index("trial_id")
    assert (len(trials), trials.loc["10", "test_macro_recall"]) == (20, 0.9)
    assert trials["test_macro_recall"].count() == 1
    assert sorted(path.name for path in (root / "trials").iterdir()) == before


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("trial", ["new in a part with room", "known", "new in a part of its own"])
def test_a_kill_at_any_step_leaves_each_row_once(root, step, trial):
    ledger = Ledger(root)
    num_before = {"new in a part with room": 11, "known": 11, "new in a part of its own": 12}[trial]
    model = {f"{number:02}": 1 for number in range(num_before)}
    for trial_id in model:
        ledger.write_epochs(trial_id, epochs(1))
    trial_id = "10" if trial == "known" else "new"
    with killed_when(step):
        ledger.write_epochs(trial_id, epochs(3))
    after = model | ({trial_id: 3} if step == "after the rename" else {})
    assert seen_by_pandas(root) == seen_by_reader(root) == after
    Ledger(root).write_epochs(trial_id, epochs(3))
    assert seen_by_pandas(root) == seen_by_reader(root) == model | {trial_id: 3}
    assert read_run(root).damaged == ()


@pytest.mark.usefixtures("roomy")
def test_a_reader_beside_the_writer_sees_every_row_once(root):
    ledger = Ledger(root)
    for number in range(12):
        ledger.write_epochs(f"{number:02}", epochs(1))

    def write() -> None:
        for number in range(120):
            ledger.write_epochs(f"{number % 12:02}", epochs(2 + number % 2))

    writer = Thread(target=write)
    writer.start()
    num_reads = 0
    while writer.is_alive() or not num_reads:
        seen = seen_by_pandas(root)
        assert len(seen) == 12
        assert set(seen.values()) <= {1, 2, 3}
        num_reads += 1
    writer.join()


TRIALS = st.sampled_from("abcdef")
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), TRIALS, st.integers(0, 3)),
        st.tuples(st.sampled_from(STEPS), TRIALS, st.integers(0, 3)),
        st.tuples(st.just("reopen"), TRIALS, st.just(0)),
    ),
    max_size=12,
)
SHARING = [("write", trial_id, 1) for trial_id in "abcd"]
"""With parts of two trials at most, c and d lie in one."""


@settings(max_examples=25)
@given(operations=OPERATIONS)
def test_the_table_is_what_was_written_through_any_writes_kills_and_openings(tmp_path_factory, operations):
    root = new_run(tmp_path_factory.mktemp("model") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MOST_TRIALS", 2)
        model = after(root, SHARING + operations)
    written = {trial_id: number for trial_id, number in model.items() if number}
    assert seen_by_pandas(root) == seen_by_reader(root) == written


def after(root: Path, operations: Sequence[tuple[str, str, int]]) -> dict[str, int]:
    """Do the operations and tell the epochs by trial that must be there."""
    ledger, model = Ledger(root), {}
    for operation, trial_id, number in operations:
        if operation in STEPS:
            with killed_when(operation):
                ledger.write_epochs(trial_id, epochs(number))
        elif operation == "write":
            ledger.write_epochs(trial_id, epochs(number))
        if operation in ("write", "after the rename"):
            model[trial_id] = number
        if operation != "write":
            ledger = Ledger(root)
    return model


def test_a_run_with_a_part_for_each_trial_goes_on(root):
    schema = table_schema("epochs", CLASSES)
    for trial_id in ("a", "b"):
        pq.write_table(
            pa.Table.from_pylist([{"trial_id": trial_id, "epoch": 1}], schema=schema), root / "epochs" / f"{trial_id}.parquet"
        )
    ledger = Ledger(root)
    ledger.write_epochs("a", epochs(4))
    ledger.write_epochs("c", epochs(2))
    assert seen_by_pandas(root) == {"a": 4, "b": 1, "c": 2}
    assert trials_by_part(root) == {"a": ["a"], "b": ["b"], "c": ["c"]}


def damage(path: Path) -> None:
    content, epochs_of_it = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(0).column(1)
    content[epochs_of_it.data_page_offset + epochs_of_it.total_compressed_size - 1] ^= 1
    path.write_bytes(content)


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("prepare", [lambda ledger: ledger, lambda ledger: Ledger(ledger.paths.root)], ids=["same", "reopened"])
def test_a_damaged_part_is_named_then_begun_anew_when_its_first_trial_is_written(
    root, caplog, prepare: Callable[[Ledger], Ledger]
):
    ledger = Ledger(root)
    for number in range(9):
        ledger.write_epochs(f"{number:02}", epochs(1))
    first, *others = trials_by_part(root)["07"]
    damage(root / "epochs" / "07.parquet")
    assert read_run(root).damaged == ("epochs/07.parquet",)
    prepare(ledger).write_epochs(first, epochs(2))
    assert "epochs/07.parquet was damaged" in caplog.text
    assert (root / "epochs" / ".07.damaged").is_file()
    left = {f"{number:02}": 1 for number in range(9) if f"{number:02}" not in others} | {first: 2}
    assert seen_by_pandas(root) == seen_by_reader(root) == left
    assert read_run(root).damaged == ()


def test_what_was_set_aside_before_stays(root):
    part = root / "epochs" / "07.parquet"
    Ledger(root).write_epochs("07", epochs(1))
    for text in ("first", "second"):
        part.write_text(text)
        Ledger(root).write_epochs("07", epochs(2))
    part.write_text("third")
    Ledger.open(root, damaged=["epochs/07.parquet"])
    aside = {path.name: path.read_text() for path in part.parent.glob(".*")}
    assert aside == {".07.damaged": "first", ".07-2.damaged": "second", ".07-3.damaged": "third"}


@pytest.mark.usefixtures("roomy")
def test_a_trial_of_a_damaged_part_finds_another_after_the_ledger_was_opened_anew(root):
    ledger = Ledger(root)
    for number in range(9):
        ledger.write_epochs(f"{number:02}", epochs(1))
    assert trials_by_part(root)["07"] == ["07", "08"]
    damage(root / "epochs" / "07.parquet")
    Ledger(root).write_epochs("08", epochs(2))
    run = read_run(root)
    assert counted(run.epochs) == {f"{number:02}": 1 for number in range(7)} | {"08": 2}
    assert run.damaged == ("epochs/07.parquet",)


def test_a_disk_that_cannot_read_is_no_damage(root, monkeypatch):
    ledger = Ledger(root)
    ledger.write_epochs("a", epochs(1))

    def fail(_: Path, **__: int) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "read_regular_file", fail)
        with pytest.raises(OSError, match="Input/output"):
            ledger.write_epochs("a", epochs(2))
    assert seen_by_pandas(root) == {"a": 1}


def test_a_trial_that_cannot_name_a_part_is_refused_and_stands_in_nobodys_way(root):
    ledger = Ledger(root)
    with pytest.raises(ValueError, match="cannot name a part"):
        ledger.write_epochs("../a", epochs(1))
    ledger.write_epochs("b", epochs(1))
    assert seen_by_pandas(root) == {"b": 1}


@pytest.mark.parametrize(
    ("table", "bit"),
    [
        ("decisions", 1),  # among them: the number of values, taken for two less
        ("epochs", 3),  # among them: val_micro_recall becomes a second val_macro_recall
    ],
)
def test_no_flipped_bit_changes_a_value_unnoticed(tmp_path, table, bit):
    path, schema = tmp_path / "part.parquet", table_schema(table, CLASSES)
    rows = [{field.name: number if pa.types.is_integer(field.type) else None for field in schema} for number in range(3)]
    write_part(path, pa.Table.from_pylist([row | {"trial_id": "3f2a"} for row in rows], schema=schema))
    written, whole, num_named = path.read_bytes(), read_part(path, schema), 0
    for place in range(len(written)):
        flipped = bytearray(written)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            assert read_part(path, schema).equals(whole), place
        except DamagedPartError:
            num_named += 1
    assert num_named > len(written) / 3  # the rest holds statistics and sizes that no value depends on


def test_a_shared_part_of_an_older_version_gets_todays_columns_when_it_is_written(root):
    pq.write_table(pa.table({"trial_id": ["a", "b"], "epoch": [1, 1]}), root / "epochs" / "a.parquet")
    SharedParts(RunPaths(root), "epochs", table_schema("epochs", CLASSES)).replace(
        "b", pa.Table.from_pylist([{"trial_id": "b", "epoch": 2}], schema=table_schema("epochs", CLASSES))
    )
    assert pd.read_parquet(root / "epochs" / "a.parquet")["epoch"].to_dict() == {0: 1, 1: 2}


LONG = 1_000_000
BOMBS = {
    "one long text in every row": (pa.table({"trial_id": pa.array(["x" * LONG] * 3000)}), {"data_page_size": 2**30}),
    "a billion bytes in a page": (pa.table({"trial_id": ["x" * 10**8] * 3}), {"compression": "zstd", "use_dictionary": False}),
    "texts that grow": (
        pa.table({"trial_id": ["x" * LONG] * 300}),
        {"use_dictionary": False, "column_encoding": {"trial_id": "DELTA_BYTE_ARRAY"}},
    ),
    "millions of nulls": (pa.table({"trial_id": pa.nulls(20_000_000, pa.string())}), {}),
    "a long list": (
        pa.table({"channels": pa.ListArray.from_arrays(pa.array([0, 10**7], pa.int32()), pa.nulls(10**7, pa.int32()))}),
        {},
    ),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_part_that_unpacks_to_gigabytes_is_damaged(root, name):
    Ledger(root).write_trial({"trial_id": "good", "cell": "cnn", "model": "cnn", "status": "running"})
    table, options = BOMBS[name]
    path = root / "trials" / "bomb.parquet"
    pq.write_table(table, path, **options)
    assert path.stat().st_size < 400_000
    rows, damaged = read_parts([path, root / "trials" / "good.parquet"], table_schema("trials", CLASSES))
    assert damaged == [path]
    assert rows["trial_id"].to_pylist() == ["good"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "device", "terabytes", "nothing"])
def test_a_part_that_is_no_file_of_ours_is_damaged(root, kind):
    path = root / "epochs" / "a.parquet"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "terabytes":
        with path.open("wb") as file:
            file.truncate(2**42)
    schema = table_schema("epochs", CLASSES)
    assert read_parts([path], schema) == (schema.empty_table(), [path])
    with pytest.raises((DamagedPartError, FileNotFoundError)):
        read_part(path, schema)


def test_of_many_parts_the_one_that_ends_the_child_is_found(root, monkeypatch):
    ledger = Ledger(root)
    for number in range(5):
        ledger.write_epochs(str(number), epochs(1))
    found = RunPaths(root).parts("epochs")
    read = parts._read_in_child

    def ends_at(paths: Sequence[Path], schema: pa.Schema) -> tuple:
        if found[2] in paths:
            raise parts.ConfinedError("ended", is_over_bounds=False)
        return read(paths, schema)

    monkeypatch.setattr(parts, "_read_in_child", ends_at)
    rows, damaged = read_parts(found, table_schema("epochs", CLASSES))
    assert damaged == [found[2]]
    assert rows["trial_id"].to_pylist() == [path.stem for path in found if path not in damaged and path.stem != "schema"]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_somebody_ends_makes_no_part_damaged(root, monkeypatch, sent):
    Ledger(root).write_epochs("a", epochs(1))
    running = parts.Confined._running

    def ended(child):
        process = running(child)
        process.send_signal(sent)
        process.wait()
        return process

    with monkeypatch.context() as patch:
        patch.setattr(parts.Confined, "_running", ended)
        with pytest.raises(InputError, match=rf"^The tables could not be read: The child ended with status -{sent.value}\."):
            read_run(root)
    assert read_run(root).epochs["trial_id"].to_list() == ["a"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE], ids=errno.errorcode.get)
def test_what_the_system_does_not_give_is_no_damage(root, monkeypatch, number):
    Ledger(root).write_epochs("a", epochs(1))
    paths, schema = RunPaths(root).parts("epochs"), table_schema("epochs", CLASSES)
    question = {"paths": [str(path) for path in paths], "schema": b64encode(schema.serialize()).decode()}

    def refused(path: Path, *, most_bytes: int) -> bytes:  # noqa: ARG001 - as it is called
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(parts, "bound_memory", lambda _: True)
    monkeypatch.setattr(parts, "read_regular_file", refused)
    answered, _ = parts.answer(question)  # as the child would
    assert answered == {"damaged": [], "trouble": os.strerror(number)}
    monkeypatch.setattr(parts._child, "ask", lambda *_, **__: (answered, b""))
    with pytest.raises(InputError, match=rf"^The tables could not be read: {os.strerror(number)}\. Nothing of them was changed"):
        read_parts(paths, schema)
