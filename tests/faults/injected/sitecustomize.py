"""Faults at a chosen file: imported by every Python of a search that a test starts, its driver and its workers.

Trackers that no fault test uses are hidden: Ray imports every one that it finds, for more than a second.

`TUNE_LUNG_FAULT` holds JSON: `do` it at the `at`-th time, or each time where that is 0, that a process brings a file whose name
matches `file` to the disk, between its writing and its renaming; with `once`, a path, at most once in all processes. `kill
driver` and `kill self` are SIGKILL; `freeze` hangs; `fill memory` takes 8 GiB and waits to be ended; `spoil the loss`
makes it `value` in every trial that the process begins afterwards; `wait` waits for the file `note`; the others raise.
`refuse` is another sort: no file whose name matches can be opened, for the reason `errno`, and `note` is made when it is tried.
"""

import fnmatch
import json
import os
import signal
import sys
import time

sys.modules |= dict.fromkeys(("mlflow", "wandb"))  # to import them now fails, as if they were not installed

_fault = json.loads(os.environ.get("TUNE_LUNG_FAULT", "null"))
if _fault is not None:
    os.environ.setdefault("TUNE_LUNG_FAULT_DRIVER", str(os.getpid()))
    _driver = int(os.environ["TUNE_LUNG_FAULT_DRIVER"])
    _count = 0
    _fsync = os.fsync

    def _is_first() -> bool:
        try:
            os.close(os.open(_fault["once"], os.O_CREAT | os.O_EXCL))
        except KeyError:
            return True
        except FileExistsError:
            return False
        return True

    def _act() -> None:
        if _fault["do"] == "kill driver":
            os.kill(_driver, signal.SIGKILL)
            time.sleep(60)  # a worker writes no more: Ray ends it
        elif _fault["do"] == "kill self":
            os.kill(os.getpid(), signal.SIGKILL)
        elif _fault["do"] == "freeze":
            time.sleep(600)
        elif _fault["do"] == "wait":
            until = time.monotonic() + 120
            while not os.path.exists(_fault["note"]) and time.monotonic() < until:  # noqa: PTH110 - as little as can be
                time.sleep(0.1)
        elif _fault["do"] == "run out of memory":
            bytearray(1 << 60)
        elif _fault["do"] == "fill memory":
            _filled = [os.urandom(1 << 20) * 64 for _ in range(128)]
            time.sleep(60)
        elif _fault["do"] == "spoil the loss":
            from torch.nn import functional

            _cross_entropy = functional.cross_entropy
            functional.cross_entropy = lambda *given, **named: 0 * _cross_entropy(*given, **named) + float(_fault["value"])
        else:
            raise RuntimeError("injected")

    def _fsync_with_fault(file: int) -> None:
        global _count
        path = os.readlink(f"/proc/self/fd/{file}")  # noqa: PTH115 - as little as can be in every process
        if fnmatch.fnmatch(path, _fault["file"]):
            _count += 1
            if _fault["at"] in (0, _count) and _is_first():
                _act()
        _fsync(file)

    def _refuse(event: str, given: tuple[object, ...]) -> None:
        if event == "open" and fnmatch.fnmatch(str(given[0]), _fault["file"]):
            os.close(os.open(_fault["note"], os.O_CREAT))
            raise OSError(_fault["errno"], os.strerror(_fault["errno"]), given[0])

    if _fault["do"] == "refuse":
        sys.addaudithook(_refuse)
    else:
        os.fsync = _fsync_with_fault
