"""Faults at a chosen file: imported by every Python of a search that a test starts, its driver and its workers.

`TUNE_LUNG_FAULT` holds JSON: `do` it at the `at`-th time that a file whose name matches `file` is brought to the disk, between
its writing and its renaming. `kill driver` and `kill self` are SIGKILL; `stop driver` is SIGSTOP; `freeze` hangs.
"""

import fnmatch
import json
import os
import signal
import time

_fault = json.loads(os.environ.get("TUNE_LUNG_FAULT", "null"))
if _fault is not None:
    os.environ.setdefault("TUNE_LUNG_FAULT_DRIVER", str(os.getpid()))
    _driver = int(os.environ["TUNE_LUNG_FAULT_DRIVER"])
    _count = 0
    _fsync = os.fsync

    def _fsync_with_fault(file: int) -> None:
        global _count
        path = os.readlink(f"/proc/self/fd/{file}")  # noqa: PTH115 - as little as can be in every process
        if fnmatch.fnmatch(path, _fault["file"]):
            _count += 1
            if _count == _fault["at"]:
                if _fault["do"] == "kill driver":
                    os.kill(_driver, signal.SIGKILL)
                    time.sleep(60)  # a worker writes no more: Ray ends it
                elif _fault["do"] == "kill self":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif _fault["do"] == "freeze":
                    time.sleep(600)
        _fsync(file)

    os.fsync = _fsync_with_fault
