"""A run's files have their names in one place."""

from pathlib import Path

import pytest

from tune_lung.results.layout import TABLES, RunPaths

PATHS = RunPaths(Path("runs/mine"))


def test_every_table_is_a_folder_of_the_run():
    assert [PATHS.table(name) for name in TABLES] == [Path("runs/mine") / name for name in TABLES]


def test_a_trial_has_its_part_and_its_checkpoints_under_its_id():
    assert PATHS.part("epochs", "3f2a") == Path("runs/mine/epochs/3f2a.parquet")
    assert PATHS.checkpoints("3f2a") == Path("runs/mine/checkpoints/3f2a")


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="no table 'trial'"):
        PATHS.table("trial")


@pytest.mark.parametrize("part", ["../trial", "", ".hidden", "-x", "a/b", "a b", "a-copy", "a.1"])
def test_a_part_that_is_no_safe_file_name_is_refused(part):
    with pytest.raises(ValueError, match="cannot name a part"):
        PATHS.part("trials", part)


def test_parts_unfinished_or_set_aside_are_not_listed(tmp_path):
    paths = RunPaths(tmp_path)
    paths.table("trials").mkdir()
    for name in ("b.parquet", "a.parquet", ".c.parquet.1f2e", ".d.parquet", paths.damaged_part("trials", "e").name):
        (paths.table("trials") / name).touch()
    assert [path.name for path in paths.parts("trials")] == ["a.parquet", "b.parquet"]
