import os

import openpyxl
import pytest
from PIL import Image

from tune_lung.confined import Confined
from tune_lung.data.exclusion import NotReadError
from tune_lung.data.metadata import metadata_mismatches, read_metadata, sources_by_path, tables_of
from tune_lung.data.scan import scan
from tune_lung.files import sha256_of_file


@pytest.fixture
def folder(tmp_path):
    for name in ("Normal", "COVID"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / f"{name}-1.png")
    return tmp_path


def write_table(path, rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


@pytest.mark.parametrize("header", ["URL", "SOURCE", "source "])
def test_sources_are_found_under_either_header_and_other_capitals(folder, header):
    table = [("FILE NAME", "FORMAT", header), ("NORMAL-1", "PNG", "https://a.example"), ("NORMAL-2", "PNG", "absent")]
    write_table(folder / "Normal.metadata.xlsx", table)
    assert sources_by_path(scan(folder), tables_of(scan(folder))) == {
        "Normal/Normal-1.png": "https://a.example",
        "COVID/COVID-1.png": None,
    }


def test_sources_are_found_for_names_with_an_ending(folder):
    write_table(folder / "COVID.metadata.xlsx", [("FILE NAME", "URL"), ("COVID-1.png", " there "), (None, None)])
    assert sources_by_path(scan(folder), tables_of(scan(folder)))["COVID/COVID-1.png"] == "there"


def test_a_table_without_sources_gives_none(folder):
    write_table(folder / "COVID.metadata.xlsx", [("FILE NAME",), ("COVID-1",)])
    assert sources_by_path(scan(folder), tables_of(scan(folder)))["COVID/COVID-1.png"] is None


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04half a zip file"])
def test_a_damaged_table_gives_none_and_stops_nothing(folder, content):
    path = folder / "COVID.metadata.xlsx"
    path.write_bytes(content)
    assert not read_metadata(path).readable
    assert sources_by_path(scan(folder), tables_of(scan(folder)))["COVID/COVID-1.png"] is None


@pytest.mark.parametrize("rows", [[], [("NAME OF THE PICTURE",), ("COVID-1",)]])
def test_a_table_without_names_gives_none(folder, rows):
    write_table(folder / "COVID.metadata.xlsx", rows)
    assert not read_metadata(folder / "COVID.metadata.xlsx").readable


def test_mismatches_count_absent_images_and_images_without_row(folder):
    Image.new("L", (4, 4)).save(folder / "COVID/COVID-7.png")
    write_table(folder / "COVID.metadata.xlsx", [("FILE NAME", "URL"), ("COVID-1", "a"), ("COVID-2", "b"), ("COVID-3", "c")])
    (mismatch,) = metadata_mismatches(scan(folder))
    assert (mismatch.rows_without_image, mismatch.images_without_row) == (2, 1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("cell", ["XFD1048576", "XFD100000"])
def test_a_table_that_claims_more_cells_than_memory_holds_ends_no_process(folder, cell):
    # 5 KB; its reader takes memory for all cells up to the last one, and aborts where there is none.
    book = openpyxl.Workbook()
    book.active["A1"], book.active[cell] = "FILE NAME", "x"
    path = folder / "COVID.metadata.xlsx"
    book.save(path)
    write_table(folder / "Normal.metadata.xlsx", [("FILE NAME", "URL"), ("NORMAL-1", "a")])
    assert not read_metadata(path).readable
    assert sources_by_path(scan(folder), tables_of(scan(folder))) == {"Normal/Normal-1.png": "a", "COVID/COVID-1.png": None}


@pytest.mark.timeout(60)
def test_a_table_that_is_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "COVID.metadata.xlsx")
    assert not read_metadata(folder / "COVID.metadata.xlsx").readable


def test_a_table_is_told_by_the_digest_of_the_bytes_that_were_read(folder):
    path = folder / "COVID.metadata.xlsx"
    write_table(path, [("FILE NAME",), ("COVID-1",)])
    assert read_metadata(path).sha256 == sha256_of_file(path)
    path.write_bytes(b"no table")
    assert (read_metadata(path).readable, read_metadata(path).sha256) == (False, sha256_of_file(path))


def test_a_table_that_is_gone_and_a_reader_that_is_killed_say_nothing_of_it(folder, monkeypatch):
    path = folder / "COVID.metadata.xlsx"
    with pytest.raises(NotReadError, match="No such file or directory"):
        read_metadata(path)
    write_table(path, [("FILE NAME",), ("COVID-1",)])
    running = Confined._running

    def killed(child):
        process = running(child)
        process.kill()
        process.wait()
        return process

    monkeypatch.setattr(Confined, "_running", killed)
    with pytest.raises(NotReadError, match="ended with status -9"):
        read_metadata(path)
