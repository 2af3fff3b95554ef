"""Faults at a chosen file: imported by every Python of a search that a test starts, its driver and its workers.

Trackers that no fault test uses are hidden: Ray imports every one that it finds, for more than a second.

`TUNE_LUNG_FAULT` holds JSON: `do` it at the `at`-th time, or each time where that is 0, that a process brings a file whose name
matches `file` to the disk, between its writing and its renaming, or where `when` is `before deletion` or `after deletion`, that
it deletes such a file; with `once`, a path, at most once in all processes. `kill
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
    _fsync, _unlink = os.fsync, os.unlink
    _when = _fault.get("when", "before renaming")

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

    def _path_of(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - as little as can be in every process

    def _act_if_it_is_time(path: str) -> None:
        global _count
        if fnmatch.fnmatch(path, _fault["file"]):
            _count += 1
            if _fault["at"] in (0, _count) and _is_first():
                _act()

    def _fsync_with_fault(file: int) -> None:
        _act_if_it_is_time(_path_of(file))
        _fsync(file)

    def _unlink_with_fault(path: str, *, dir_fd: int | None = None) -> None:
        full = os.fspath(path) if dir_fd is None else f"{_path_of(dir_fd)}/{path}"
        if _when == "before deletion":
            _act_if_it_is_time(full)
        _unlink(path, dir_fd=dir_fd)
        if _when == "after deletion":
            _act_if_it_is_time(full)

    def _refuse(event: str, given: tuple[object, ...]) -> None:
        if event == "open" and fnmatch.fnmatch(str(given[0]), _fault["file"]):
            os.close(os.open(_fault["note"], os.O_CREAT))
            raise OSError(_fault["errno"], os.strerror(_fault["errno"]), given[0])

    if _fault["do"] == "refuse":
        sys.addaudithook(_refuse)
    elif _when == "before renaming":
        os.fsync = _fsync_with_fault
    else:
        os.unlink = _unlink_with_fault
