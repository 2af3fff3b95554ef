"""Notices that Ray's own processes have died, while something can still be written down.

Ray ends a driver whose node or head has died from within its C++ part, some seconds later: no handler of Python's runs then.
"""

import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tune_lung.printable import complain

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_CONNECT = 5.0
_LOOKS_UNTIL_LOST = {True: 2, False: 5}
"""Looks in a row at which something is missing: of processes of our own, and of a cluster's."""
_SECONDS_TO_TELL = 6.0
"""For the search to end by itself: Ray ends the driver 10 seconds after it has missed the node."""
_SECONDS_TO_CLOSE = 10.0


class ClusterLostError(KeyboardInterrupt):
    """Ray's own processes have died: it goes where an interruption goes, through all that would try again."""


class ClusterWatch:
    """Looks after Ray's node and head from a thread, and ends what waits for them."""

    def __init__(self, node: Any) -> None:
        """Take Ray's node, as this process knows it."""
        self._node = node
        self._waiting = threading.get_ident()
        self._told, self._closed = threading.Event(), threading.Event()
        self.last_words: Callable[[], None] = lambda: complain(f"error: {self.sentence()}")
        """Tells of the loss where what waits for Ray cannot any more."""
        self.lost: str | None = None
        """What has died; None for nothing."""

    def sentence(self) -> str:
        """Say what has died."""
        return f"{self.lost} has died: somebody ended it, or the system did for want of memory."

    def has_told(self) -> None:
        """Take down that the search has written its end and said so."""
        self._told.set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for as long as the block lasts."""
        threading.Thread(target=self._watch, name="cluster-watch", daemon=True).start()
        try:
            yield
        finally:
            self._closed.set()

    def _watch(self) -> None:
        looks = 0
        while self.lost is None:
            if self._closed.wait(_SECONDS_BETWEEN_LOOKS):
                return
            missing, is_ours = self._missing()
            looks = looks + 1 if missing else 0
            if looks >= _LOOKS_UNTIL_LOST[is_ours]:
                self.lost = missing
        _raise_in(self._waiting, ClusterLostError)
        if not self._told.wait(_SECONDS_TO_TELL):
            self.last_words()
            self._end_process()
        if not self._closed.wait(_SECONDS_TO_CLOSE):
            self._end_process()

    def _missing(self) -> tuple[str | None, bool]:
        """Name what is not there, and say whether it is a process of our own."""
        names = {"raylet": "Ray's node process (raylet)", "gcs_server": "Ray's head process (gcs_server)"}
        own = {kind: self._node.all_processes[kind] for kind in names if kind in self._node.all_processes}
        for kind, processes in own.items():
            if any(info.process.poll() is not None for info in processes):
                return names[kind], True
        if not own:
            host, _, port = str(self._node.gcs_address).rpartition(":")
            if not _is_open(socket.AF_INET6 if ":" in host else socket.AF_INET, (host.strip("[]"), int(port))):
                return f"The cluster's head at {self._node.gcs_address}", False
            if not _is_open(socket.AF_UNIX, self._node.raylet_socket_name):
                return "The cluster's node process (raylet) on this machine", False
        return None, bool(own)

    def _end_process(self) -> None:
        for processes in list(self._node.all_processes.values()):
            for info in processes:
                with suppress(OSError):
                    info.process.kill()
        os._exit(1)


def _is_open(family: int, address: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as asking:
        asking.settimeout(_SECONDS_TO_CONNECT)
        try:
            asking.connect(address)
        except OSError:
            return False
        return True


def _raise_in(thread: int, kind: type[BaseException]) -> None:
    """Raise in a thread, main or not, at its next step in Python."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))
