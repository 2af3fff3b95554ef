"""A search as a value: what is tried and how, over which images and with what; and one attempt at it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tune_lung.results.layout import DEFAULT_KEEP, KeepName
from tune_lung.results.ledger import Ledger
from tune_lung.results.ownership import Ownership
from tune_lung.results.schema import TimePart
from tune_lung.space import SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.proposals.studies import KnownTrial
from tune_lung.tuning.trial_record import EarlierAttempts


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A search before anything of it is trained."""

    space: SearchSpace
    """What is tried."""
    strategy: Strategy
    """Who proposes, who is stopped, how much is spent."""
    setup: SearchSetup
    """What all trials share."""
    resources: Resources
    """What each trial gets."""
    keep: KeepName = DEFAULT_KEEP
    """Which checkpoints stay."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a search: where it writes, and what it begins with."""

    ledger: Ledger
    """Where everything is written as it happens."""
    ownership: Ownership
    """Counts the time spent, and tells workers when it is over."""
    known: Sequence[KnownTrial] = ()
    """Finished trials of earlier searches, to learn from."""
    earlier: EarlierAttempts = field(default_factory=EarlierAttempts)
    """What earlier attempts at this search left."""
    trackers: Sequence[str] = ()
    """Names of other tools that are told of the trials, from `make_trackers`."""
    seconds_before: Mapping[TimePart, float] = field(default_factory=dict)
    """What the run took before the search, for its profile."""
