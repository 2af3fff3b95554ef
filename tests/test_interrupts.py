"""How a command's process ends."""

import subprocess
import sys

import pytest

LEFT_BEHIND = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from tune_lung.interrupts import end_process
pool = ThreadPoolExecutor()
pool.submit(print, "done by a pool that nobody has closed").result()
threading.Thread(target=lambda: (time.sleep(0.3), print("done by a thread"))).start()
atexit.register(print, "done at the end")
end_process(int(sys.argv[1]))
"""


@pytest.mark.parametrize(("status", "is_waited_for"), [(0, True), (2, True), (130, False), (143, False)])
def test_a_process_ends_with_its_status_and_waits_for_its_threads_unless_it_was_interrupted(
    status: int, is_waited_for: bool
) -> None:
    command = [sys.executable, "-c", LEFT_BEHIND, str(status)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    waited_for = ["done by a thread"] if is_waited_for else []
    assert done.stdout.splitlines() == ["done by a pool that nobody has closed", *waited_for, "done at the end"]
