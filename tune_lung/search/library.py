"""A search from Python: `tune_lung.run_search`, a guest in the process of a script, a notebook or a thread.

It leaves the process as it was: signals, environment, and a Ray that was initialised there are the program's own, and nothing
ends it. One thing it cannot prevent: where Ray's own processes die, Ray ends the process that uses them; the run's tables are
closed before.
"""

import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from tune_lung.errors import InputError, in_arguments, speaking_of_arguments
from tune_lung.interrupts import said_to_the_process
from tune_lung.results.reader import Run, read_run
from tune_lung.screen import Screen
from tune_lung.search.arguments import read_arguments
from tune_lung.search.interpretation import check_trackers
from tune_lung.search.options import GivenOptions, SearchKeywords
from tune_lung.search.request import requested
from tune_lung.space import SearchSpace

_ONE_AT_A_TIME = threading.Lock()
"""A process has one Ray."""


def run_search(
    space: SearchSpace | str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    **options: Unpack[SearchKeywords],
) -> Run:
    """Search a space for the best network, as `python -m tune_lung.search` does; progress is printed.

    It can be interrupted by Ctrl-C, or a notebook's stop, in the main thread: the run's tables are closed, and
    `run_search(resume=...)` goes on. Figures are drawn by `tune_lung.write_report`.

    Args:
        space: What is tried: a value, the name of a shipped space, or the path of a space file. None is `freeze_grid`, or what
            the run that goes on was begun with.
        data: The folder of the images, one folder per class; None draws synthetic X-rays.
        out: The folder that runs go to.
        name: The run's own folder in it; None makes a name of the space and the time.
        **options: The command's other options, with underscores: `max_epochs=4`, `time_budget="8h"`,
            `set={"padding": "same"}`, `resume=run`. `python -m tune_lung.search --help` says what each is.

    Returns:
        The run, read from its folder. Where every trial failed, its manifest's `status` is `failed`.

    Raises:
        InputError: Something that you can mend: an argument, the images, the weights, what the machine has.
        TypeError: There is no such argument.
        KeyboardInterrupt: It was interrupted.
        SupersededError: Another search has taken the run over.
        SearchHaltedError: The first trials have all failed with what the others would meet too.
    """
    with speaking_of_arguments():
        given = read_arguments({"space": space, "data": data, "out": out, "name": name, **options})
        if not _ONE_AT_A_TIME.acquire(blocking=False):
            raise InputError("A search runs in this process already. Wait for its end, or begin the other in another process.")
        try:
            with said_to_the_process():
                root = _searched(_where_ray_is(given))
        finally:
            _ONE_AT_A_TIME.release()
        return read_run(root)


def _searched(given: GivenOptions) -> Path:
    """Search; return the run's folder."""
    with requested(given, is_guest=True) as request:
        check_trackers(request.options)
        from tune_lung.search.steps import search  # loads torch and Ray
        from tune_lung.tuning.recorder import SearchHaltedError

        try:
            end = search(request, _screen(), report=lambda _: None)
        except SearchHaltedError as error:
            error.args = (in_arguments(str(error)),)
            raise
    return end.root or request.root


def _where_ray_is(given: GivenOptions) -> GivenOptions:
    """Let a search run on the cluster that the program has joined.

    Raises:
        InputError: Another one is asked for.
    """
    if "ray" not in sys.modules:
        return given
    from tune_lung.tuning.cluster import ray_here, require_fits

    here = ray_here()
    if here is None:
        return given
    require_fits(given.options.address, here)
    if not here.is_joined:
        return given
    return replace(given, options=replace(given.options, address=here.address), names=given.names | {"address"})


def _screen() -> Screen:
    """Make a console; a notebook, which says that it is a terminal and has no cursor to move, is shown lines, as a file is."""
    in_notebook = Screen().is_jupyter
    return _ScreenOfArguments(force_jupyter=False, force_terminal=False if in_notebook else None)


class _ScreenOfArguments(Screen):
    """A console that names options as arguments of Python."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Lay out what is printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(in_arguments(segment.text), segment.style)
