"""Notices that Ray's own processes have died, while something can still be written down.

Ray ends a driver whose node or head has died from within its C++ part, some seconds later: no handler of Python's runs then.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from tune_lung.printable import complain

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_CONNECT = 5.0
_LOOKS_UNTIL_LOST = 5
"""Looks in a row at which something of a cluster's does not answer."""
_SECONDS_TO_TELL = 15.0
"""For the last words: something of this process may be stuck for good."""
_EXIT_STATUS = 1
_OWN = {"raylet": "Ray's node process (raylet)", "gcs_server": "Ray's head process (gcs_server)"}


class ClusterWatch:
    """Looks after Ray's node and head from threads of its own; when one has died, it says so and ends the process.

    What waits for Ray cannot be woken otherwise: it may wait in Ray's C++ part.
    """

    def __init__(self, node: Any, *, is_guest: bool = False) -> None:
        """Take what is watched.

        Args:
            node: Ray's, as this process knows it.
            is_guest: Whether the process is another program's: then its end is left to Ray, which brings it about itself.
        """
        self._node, self._is_guest = node, is_guest
        self._closing, self._telling = threading.Event(), threading.Lock()
        self.last_words: Callable[[], None] = lambda: complain(f"error: {self.sentence()}")
        """Tells of the loss, at once and from another thread: Ray may end this process in the next moment."""
        self.lost: str | None = None
        """What has died; None for nothing."""

    def sentence(self) -> str:
        """Say what has died."""
        return f"{self.lost} has died: somebody ended it, or the system did for want of memory."

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for as long as the block lasts."""
        own = [(kind, info.process) for kind in _OWN for info in self._node.all_processes.get(kind, ())]
        watches = [partial(self._wait_for, kind, process) for kind, process in own] or [partial(self._look_at_cluster)]
        try:
            for watch in watches:
                threading.Thread(target=watch, name="cluster-watch", daemon=True).start()
            yield
        finally:
            self.closes()

    def closes(self) -> None:
        """Take down that Ray is being closed: its processes end now, and are not lost."""
        with self._telling:  # a loss that is being told goes before: the process ends with it
            self._closing.set()

    def gives_way(self) -> None:
        """Wait for the process's end where a loss is being told, so that nothing else is told of it."""
        with self._telling:
            pass

    def _wait_for(self, kind: str, process: "subprocess.Popen[bytes]") -> None:
        """Wait for the end of a process of our own; who started it learns of it by the same object."""
        process.wait()
        self._lose(_OWN[kind])

    def _look_at_cluster(self) -> None:
        """Look again and again whether a cluster's processes answer."""
        looks = 0
        while looks < _LOOKS_UNTIL_LOST:
            if self._closing.wait(_SECONDS_BETWEEN_LOOKS):
                return
            missing = self._missing()
            looks = looks + 1 if missing else 0
        self._lose(str(missing))

    def _missing(self) -> str | None:
        """Name what of a cluster does not answer."""
        host, _, port = str(self._node.gcs_address).rpartition(":")
        if not _is_open(socket.AF_INET6 if ":" in host else socket.AF_INET, (host.strip("[]"), int(port))):
            return f"The cluster's head at {self._node.gcs_address}"
        if not _is_open(socket.AF_UNIX, self._node.raylet_socket_name):
            return "The cluster's node process (raylet) on this machine"
        return None

    def _lose(self, what: str) -> None:
        with self._telling:
            if self._closing.is_set() or self.lost is not None:
                return
            self.lost = what
            if self._is_guest:
                with suppress(Exception):
                    self.last_words()
                return
            late = threading.Timer(_SECONDS_TO_TELL, self._end_process)
            late.daemon = True
            late.start()
            with suppress(Exception):  # whatever cannot be told any more, the process ends
                self.last_words()
            late.cancel()
            self._end_process()

    def _end_process(self) -> None:
        for processes in list(self._node.all_processes.values()):
            for info in processes:
                with suppress(OSError):
                    info.process.kill()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(_EXIT_STATUS)


def _is_open(family: int, address: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as asking:
        asking.settimeout(_SECONDS_TO_CONNECT)
        try:
            asking.connect(address)
        except OSError:
            return False
        return True
