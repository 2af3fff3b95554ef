"""What a search was asked for, new or going on, refused before anything is decoded where it cannot be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tune_lung.config import RunConfig
from tune_lung.errors import InputError
from tune_lung.results.beginning import checked_name, require_free
from tune_lung.results.ownership import Ownership
from tune_lung.results.reader import Run, read_run
from tune_lung.search.interpretation import run_config_of, space_of, strategy_of
from tune_lung.search.options import GivenOptions, SearchOptions
from tune_lung.search.resume_options import ResumedSearch, resumed_search
from tune_lung.space import SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.working_folder import away_from_it


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """One search, as it is asked for."""

    options: SearchOptions
    """Every option."""
    arguments: list[str]
    """The command line, for the run's manifest."""
    root: Path
    """The run's folder; of a new one without a name of the user's choice, the one that it has unless that is taken."""
    space: SearchSpace
    """What is tried."""
    run: RunConfig
    """What all trials share."""
    strategy: Strategy
    """How it is searched."""
    teacher: Run | None = None
    """The run to learn from."""
    resumed: ResumedSearch | None = None
    """What goes on; None for a new run."""
    ownership: Ownership | None = None
    """Of the run that goes on."""
    is_guest: bool = False
    """Whether the process is another program's, as of one that calls `run_search`: the search does not end it, and leaves its
    signals, its environment and its Ray as they were."""

    @classmethod
    def new(cls, given: GivenOptions, *, is_guest: bool = False) -> "SearchRequest":
        """Read what a new run is asked for.

        Args:
            given: What is said.
            is_guest: Whether the process is another program's.

        Raises:
            InputError: Options contradict each other or the space, the run exists, or it cannot learn from the run named.
        """
        options = given.options
        if options.allow_other_numbers:
            raise InputError("--allow-other-numbers goes with --resume alone: a new run has no other numbers.")
        space = space_of(given)
        run = run_config_of(options, space)
        space.check(run)
        strategy = strategy_of(options, space)
        return cls(
            teacher=_teacher(options, space, strategy, run, is_guest=is_guest),
            root=_new_root(options, space),
            options=options,
            arguments=list(given.words),
            space=space,
            run=run,
            strategy=strategy,
            is_guest=is_guest,
        )

    @classmethod
    def to_go_on(cls, resumed: ResumedSearch, ownership: Ownership, *, is_guest: bool = False) -> "SearchRequest":
        """Ask for what an owned run goes on with."""
        return cls(
            options=resumed.options,
            arguments=resumed.arguments,
            root=resumed.root,
            space=resumed.space,
            run=resumed.run,
            strategy=resumed.strategy,
            resumed=resumed,
            ownership=ownership,
            is_guest=is_guest,
        )


@contextmanager
def requested(given: GivenOptions, *, is_guest: bool = False) -> Iterator[SearchRequest]:
    """Read what is asked for, and own a run that goes on for as long as the block lasts.

    Args:
        given: What is said.
        is_guest: Whether the process is another program's.

    Yields:
        The request.

    Raises:
        InputError: It cannot be searched, or the run cannot go on.
    """
    root = given.options.resume
    if root is None:
        yield SearchRequest.new(given, is_guest=is_guest)
        return
    resumed = resumed_search(root, given)
    with Ownership.claim(resumed.root, at_least=resumed.manifest["attempt"] + 1) as ownership:
        resumed = resumed_search(root, given)  # as it is now that nobody else writes it
        yield SearchRequest.to_go_on(resumed, ownership, is_guest=is_guest)


def _new_root(options: SearchOptions, space: SearchSpace) -> Path:
    name = checked_name(f"{space.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}" if options.name is None else options.name)
    parent = Path(options.out).resolve()
    nearest = next(folder for folder in (parent, *parent.parents) if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"--out {options.out}: '{nearest.name}' is no folder. Give the folder that runs go to.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--out {options.out}: '{nearest.name}' cannot be written. Give another folder for runs.")
    if options.name is not None:
        require_free(parent / name)
    return parent / name


def _teacher(options: SearchOptions, space: SearchSpace, strategy: Strategy, run: RunConfig, *, is_guest: bool) -> Run | None:
    """Read the run to learn from, and refuse one that cannot be learnt from."""
    if options.warm_start is None:
        return None
    with nullcontext() if is_guest else away_from_it():
        from tune_lung.tuning.proposals.warm_start import require_compatible  # loads Optuna and torch

    teacher = read_run(options.warm_start, only=("trials", "epochs"))
    require_compatible(teacher, space, strategy, run)
    return teacher
