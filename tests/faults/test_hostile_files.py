"""Hostile files cost bounded memory, and whoever waits for them can leave: Ctrl-C ends every command within 2 seconds."""

import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.fabricated_run import write_fabricated_run
from tests.faults.search_process import SearchProcess, begin, num_epochs, wait_until

pytestmark = pytest.mark.faults

SIXTEEN_AT_ONCE = """
import sys
from tune_lung.data import __main__ as command
command.num_workers = lambda: 16
sys.exit(command.main(["scan", sys.argv[1]]))
"""


def peak_of_tree(command: Sequence[str]) -> tuple[int, str]:
    """Run a command; return the most memory that it and its children had together, shared pages counted once, and its output."""
    process = psutil.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = 0
    while process.poll() is None:
        total = 0
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_full_info().pss
            except psutil.Error:  # it has ended
                continue
        peak = max(peak, total)
        time.sleep(0.05)
    return peak, process.communicate()[0]


def png_of_zeros(side: int) -> bytes:
    """A square with four channels of 8 bits, all zero."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj()
    rows = b"".join(packer.compress(bytes(side * 4 + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_many_large_images_at_once_share_a_bounded_memory(tmp_path: Path) -> None:
    content = png_of_zeros(8000)  # 330 MB each on the way to grey: 5 GB for 16 at once
    for name in "AB":
        (tmp_path / name).mkdir()
        for number in range(8):
            (tmp_path / name / f"{number}.png").write_bytes(content)
    peak, printed = peak_of_tree(["-c", SIXTEEN_AT_ONCE, str(tmp_path)])
    assert "8 images, 0 masks (8 RGBA 8000x8000)" in printed
    assert peak < 1.7 * 10**9  # of which imports take 0.2 GB and 16 children 0.3 GB


def test_parts_that_unpack_to_gigabytes_cost_a_list_of_runs_no_memory(tmp_path: Path) -> None:
    root = write_fabricated_run(tmp_path / "run", max_epochs=3)
    pq.write_table(pa.table({"trial_id": ["x" * 10**6] * 3000}), root / "trials" / "0bomb.parquet", data_page_size=2**30)
    os.mkfifo(root / "trials" / "0pipe.parquet")
    peak, printed = peak_of_tree(["-m", "tune_lung.runs", "list", str(tmp_path)])
    assert "trials/0bomb.parquet" in printed
    assert peak < 1.2 * 10**9


@pytest.fixture(scope="module")
def slow_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that takes half a minute to decode, some images of it ten seconds each."""
    root = tmp_path_factory.mktemp("slow")
    draws = np.random.default_rng(0)
    for name in "AB":
        (root / name).mkdir()
        for number in range(60):
            pixels = np.kron(draws.integers(0, 256, (30, 30), np.uint8), np.ones((20, 20), np.uint8))
            Image.fromarray(pixels).save(root / name / f"{number}.png")
        path = root / name / "0-scans.jpg"
        Image.new("L", (3000, 3000)).save(path, progressive=True)
        content = path.read_bytes()
        scan = content[content.rfind(b"\xff\xda") : -2]
        for copy in range(4):
            (root / name / f"{copy}-scans.jpg").write_bytes(content[:-2] + scan * 20_000 + content[-2:])
    return root


def left_after(command: Sequence[str], seconds: float, number: int) -> tuple[float, int | None, str]:
    """Send a signal so long after a command began; return how long it took to end, its status and what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(seconds)
    assert process.poll() is None, process.communicate()[0]
    sent = time.monotonic()
    process.send_signal(number)
    try:
        printed, _ = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
    return time.monotonic() - sent, process.returncode, printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.2, 4.0])
@pytest.mark.parametrize("command", ["scan", "audit", "prepare"])
def test_ctrl_c_leaves_images_that_decode_for_long(
    slow_images: Path, tmp_path: Path, command: str, seconds: float, number: int
) -> None:
    options = () if command == "scan" else ("--cache", str(tmp_path / "cache"))
    took, status, printed = left_after(["tune_lung.data", command, str(slow_images), *options], seconds, number)
    assert took < 2, printed
    assert status in (128 + number, -number)  # a shell says 128 + number of both
    assert "Traceback" not in printed
    if seconds > 1:
        assert status == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_search_that_builds_its_store(slow_images: Path, tmp_path: Path, number: int) -> None:
    options = begin(tmp_path / "new", "--cache", str(tmp_path / "cache"), "--data", str(slow_images), "--weights", "random")
    search = SearchProcess.start(*options)
    wait_until(lambda: any((tmp_path / "cache").rglob("pixels")))
    sent = time.monotonic()
    search.kill(number)
    status, printed = search.end()
    assert time.monotonic() - sent < 2, printed
    assert status == 128 + number
    assert "Traceback" not in printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_at_once_that_a_search_is_stopping(tmp_path: Path, number: int) -> None:
    search = SearchProcess.start(*begin(tmp_path / "new"), "--max-epochs", "500")
    wait_until(lambda: num_epochs(tmp_path / "new" / "run") > 0)
    sent = time.monotonic()
    search.kill(number)
    status, printed = search.end()
    assert time.monotonic() - sent < 8, printed  # Ray's own processes take it a second or two to end
    assert "Stopping: closing the run's tables." in printed
    assert "To go on: --resume" in printed
    assert status == 128 + number
