"""Where a run's trials were not all computed alike, every table and every figure of it says so."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tune_lung.analysis.figures import figure4
from tune_lung.analysis.pareto import front_text, pareto_figure
from tune_lung.analysis.profile import profile_figure
from tune_lung.analysis.tables import comparison_text
from tune_lung.results.reader import Run

CPU = {"device": "cpu", "threads": 1, "precision": "fp32"}
SAID = "Not all trials were computed alike (--allow-other-numbers): on CPUs with 1 thread a trial in fp32 from attempt 1 on;"


def otherwise(run: Run) -> Run:
    """The run as if a second attempt had been allowed two threads."""
    first = {"numerics": CPU}
    second: dict[str, Any] = {"numerics": CPU | {"threads": 2}, "allow_other_numbers": True}
    return replace(run, manifest={**run.manifest, **second, "earlier_attempts": [first]})


def text_of(shown: str | Figure) -> str:
    """All that is said, without spaces: lines may be folded anywhere."""
    return "".join((shown if isinstance(shown, str) else shown.get_supxlabel()).split())


@pytest.mark.parametrize("show", [comparison_text, figure4, profile_figure])
def test_of_a_grid(random_run: Run, show: Any) -> None:
    profile = pd.DataFrame({"trial_id": [None], "epoch": [None], "part": ["start"], "seconds": [1.0]})
    own = {"trial_id": random_run.trials["trial_id"].iloc[0], "epoch": 1, "part": "step", "seconds": 1.0}
    run = replace(random_run, profile=pd.concat([profile, pd.DataFrame([own])], ignore_index=True))
    assert "computedalike" not in text_of(show(run))
    assert "".join(SAID.split()) in text_of(show(otherwise(run)))


@pytest.mark.parametrize("show", [front_text, pareto_figure])
def test_of_a_front(traded_run: Run, show: Any) -> None:
    assert "computedalike" not in text_of(show(traded_run))
    assert "".join(SAID.split()) in text_of(show(otherwise(traded_run)))


def test_of_two_runs_it_names_the_one(random_run: Run, pretrained_run: Run) -> None:
    assert "".join(f"{random_run.name}: {SAID}".split()) in text_of(figure4(otherwise(random_run), pretrained_run))
