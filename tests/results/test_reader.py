"""A run is read whole, or as far as it can be, with what could not be read named."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tune_lung.errors import InputError
from tune_lung.results import parts
from tune_lung.results.layout import TABLES, RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.results.reader import plain_rows, read_run
from tune_lung.results.schema import table_schema

from tests.fabricated_run import CLASSES, write_fabricated_run
from tests.tuned_run import as_version_2, write_tuned_run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_fabricated_run(tmp_path_factory.mktemp("written") / "run", failed=["cnn"])


@pytest.fixture
def root(written, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "run"))


def test_every_table_has_its_columns_and_no_row_is_lost(root):
    run = read_run(root)
    for table in TABLES:
        assert list(getattr(run, table).columns) == table_schema(table, CLASSES).names
        assert len(getattr(run, table)) == len(pd.read_parquet(root / table))
    assert (run.name, run.classes, run.synthetic, run.damaged) == ("run", CLASSES, True, ())


def test_rows_come_trial_by_trial_whichever_part_they_lie_in(root, monkeypatch):
    monkeypatch.setattr(parts, "MOST_TRIALS", 2)  # so that the three trials go to one part or two
    ledger = Ledger(root)
    for last in (1, 2):
        for trial_id in ("zc", "za", "zb"):
            ledger.write_epochs(trial_id, [{"epoch": epoch} for epoch in range(1, last + 1)])
    assert len({path for path in (root / "epochs").glob("z*")}) == 2
    epochs = read_run(root).epochs
    assert epochs["trial_id"].is_monotonic_increasing
    own = epochs[epochs["trial_id"].str.startswith("z")]
    assert list(zip(own["trial_id"], own["epoch"], strict=True)) == [
        ("za", 1),
        ("za", 2),
        ("zb", 1),
        ("zb", 2),
        ("zc", 1),
        ("zc", 2),
    ]


def test_whole_numbers_stay_whole_beside_nulls(root):
    trials = read_run(root).trials.set_index("cell")
    assert trials["epochs_run"].dtype == pd.Int32Dtype()
    assert trials["epochs_run"].isna()["cnn"]
    assert trials.loc["resnet18 frozen_blocks=2", "frozen_blocks"] == 2
    assert trials["trial_seed"].dtype == pd.Int64Dtype()


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not a table at all"])
def test_a_damaged_part_is_passed_over_and_named(root, damage):
    whole = read_run(root)
    trial_id = whole.epochs["trial_id"].iloc[0]
    (root / "epochs" / f"{trial_id}.parquet").write_bytes(damage)
    run = read_run(root)
    assert run.damaged == (f"epochs/{trial_id}.parquet",)
    assert set(whole.epochs["trial_id"]) - set(run.epochs["trial_id"]) == {trial_id}


def test_a_part_cut_in_half_or_with_a_flipped_byte_is_passed_over(root):
    cut, changed = sorted((root / "epochs").glob("[!s]*.parquet"))[:2]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    flipped = bytearray(changed.read_bytes())
    losses = pq.read_metadata(changed).row_group(0).column(2)
    start = losses.dictionary_page_offset or losses.data_page_offset
    flipped[start + losses.total_compressed_size - 1] ^= 1  # a value: what pages say of themselves may be lost without harm
    changed.write_bytes(flipped)
    assert read_run(root).damaged == (f"epochs/{cut.name}", f"epochs/{changed.name}")


def test_a_part_of_an_older_version_reads_with_nulls(root):
    pq.write_table(pa.table({"trial_id": ["old"], "epoch": [1], "forgotten": [2.0]}), root / "epochs" / "old.parquet")
    row = read_run(root).epochs.set_index("trial_id").loc["old"]
    assert row["epoch"] == 1
    assert pd.isna(row["train_loss"])


def test_decisions_come_in_the_order_in_which_they_were_taken(root):
    ledger = Ledger(root)
    numbers = {"za": (4, 1), "zb": (3,), "zc": (2, 5)}
    for trial_id, own in numbers.items():
        row = {"trial_id": trial_id, "cell": "cnn", "rung_epoch": 1, "value": 0.5, "verdict": "continue"}
        ledger.write_decisions([row | {"decision": number} for number in own])
    decisions = read_run(root).decisions
    assert decisions["decision"].to_list() == [1, 2, 3, 4, 5]
    assert decisions["trial_id"].to_list() == ["za", "zc", "zb", "za", "zc"]


def test_a_run_of_version_2_has_null_for_what_it_did_not_measure(tmp_path):
    measured = read_run(write_tuned_run(tmp_path / "run"))
    run = read_run(as_version_2(tmp_path / "run"))
    assert run.damaged == ()
    assert run.manifest["schema_version"] == 2
    unknown = ["started", "ended", "slot", "concurrent_trials"]  # it held what was asked for
    assert run.trials[unknown].isna().all(axis=None)
    assert run.epochs["ended"].isna().all()
    pd.testing.assert_frame_equal(run.trials.drop(columns=unknown), measured.trials.drop(columns=unknown))
    assert measured.trials["started"].dtype == pd.DatetimeTZDtype("us", "UTC")


def test_a_run_of_version_2_that_goes_on_has_todays_columns_for_pandas_too(tmp_path):
    root = as_version_2(write_tuned_run(tmp_path / "run"))
    row = plain_rows(read_run(root).trials)[-1]
    Ledger.open(root).write_trial(row | {"concurrent_trials": 3, "started": datetime(2026, 1, 1, tzinfo=UTC)})
    trials = pd.read_parquet(root / "trials").set_index("trial_id")
    assert len(trials) == 24
    assert trials[["concurrent_trials", "started"]].dropna().index.to_list() == [row["trial_id"]]
    assert pd.read_parquet(root / "epochs")["ended"].isna().all()


def test_a_damaged_part_of_an_older_version_is_still_named(tmp_path):
    root = as_version_2(write_tuned_run(tmp_path / "run"))
    path = sorted((root / "trials").glob("[!s]*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:-9])
    Ledger.open(root)
    assert read_run(root).damaged == (f"trials/{path.name}",)


@pytest.mark.parametrize("byte", [b"!", b"\xff"], ids=["another letter", "no letter"])
def test_a_part_with_a_damaged_column_name_is_passed_over(root, byte):
    path = sorted((root / "epochs").glob("[!s]*.parquet"))[0]
    path.write_bytes(path.read_bytes().replace(b"train_loss", b"train" + byte + b"loss"))
    assert read_run(root).damaged == (f"epochs/{path.name}",)


def test_a_part_with_values_of_another_type_is_damaged(root):
    pq.write_table(pa.table({"trial_id": ["odd"], "epoch": ["first"]}), root / "epochs" / "odd.parquet")
    assert read_run(root).damaged == ("epochs/odd.parquet",)


def test_a_table_that_is_gone_reads_as_empty(root):
    for part in (root / "epochs").iterdir():
        part.unlink()
    (root / "epochs").rmdir()
    assert read_run(root).epochs.empty


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is no run: it holds no run\.json"):
        read_run(tmp_path)


def test_a_run_of_a_newer_version_is_refused(root):
    manifest = json.loads((root / "run.json").read_text())
    del manifest["sha256"]
    (root / "run.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(InputError, match="newer tune_lung"):
        read_run(root)


@pytest.mark.parametrize(
    "name", ["{} (conflicted copy 2026-11-27)", "{} 2", "{}-copy", "{}.sync-conflict-20261127-A1B2C3D", "Copy of {}", "{}~"]
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_synchronisers_copy_of_a_part_is_no_part_and_is_left_alone(tmp_path: Path, name: str, is_cut: bool) -> None:
    root = write_fabricated_run(tmp_path / "run")
    before = read_run(root)
    copies = {}
    for table in ("trials", "epochs", "predictions", "images"):
        part = next(path for path in RunPaths(root).parts(table) if path.stem != "schema")
        copy = part.with_stem(name.format(part.stem))
        copies[copy] = part.read_bytes()[: -40 if is_cut else None]
        copy.write_bytes(copies[copy])
    run = read_run(root)
    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(run, table), getattr(before, table))
    assert set(run.foreign) == {f"{copy.parent.name}/{copy.name}" for copy in copies}
    assert run.damaged == ()
    Ledger.open(root, damaged=run.damaged).write_trial({**run.trials.iloc[0][["trial_id", "point_id", "cell", "status"]]})
    assert {copy: copy.read_bytes() for copy in copies} == copies


@pytest.mark.parametrize("name", ["{}_1", "A{}", "conflict_{}"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_of_a_part_and_its_copies_under_parts_names_the_part_counts_and_each_row_once(
    tmp_path: Path, name: str, is_cut: bool
) -> None:
    root = write_fabricated_run(tmp_path / "run")
    before, copies = read_run(root), set()
    for table in ("trials", "epochs", "predictions", "images"):
        part = next(path for path in RunPaths(root).parts(table) if path.stem != "schema")
        copy = part.with_stem(name.format(part.stem))
        copy.write_bytes(part.read_bytes()[: -40 if is_cut else None])
        copies.add(f"{table}/{copy.name}")
    run = read_run(root)
    assert set(run.damaged) == copies
    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(run, table), getattr(before, table))
    Ledger.open(root, damaged=run.damaged)
    assert read_run(root).damaged == ()
