"""The Ray trainable: a thin shell around a learner's `fit`.

It is a class, not a function: one call per report needs no thread, so a reused actor never waits for an old one's end.
"""

import time
from collections.abc import Iterator
from typing import Any

from ray import tune
from torch import Tensor

from tune_lung.data.cache import Cache
from tune_lung.evaluation.predictions import predictions_frame
from tune_lung.learners.learner import Setting, Watch
from tune_lung.learners.registry import learner_of
from tune_lung.results.ledger import Ledger
from tune_lung.results.schema import TimePart
from tune_lung.training.fit import DivergedError, EpochResult
from tune_lung.training.stopwatch import StoppedStopwatch, Stopwatch
from tune_lung.tuning.device import claim_device, device_name
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.reports import EPOCHS, FAILURE
from tune_lung.tuning.watchdog import Watchdog

_NOT_REPORTED = ("kept_logits_NK",)
_SECONDS_BETWEEN_REPORTS = 0.5
"""Least time from report to report, but for an epoch that is judged: a report costs the driver some milliseconds."""


class LungTrial(tune.Trainable):
    """One trial: each step trains an epoch, or as many short ones as fill half a second, and reports their plain numbers."""

    def setup(self, config: dict[str, Any], setup: SearchSetup | None = None) -> None:
        """Get ready for a trial.

        Args:
            config: `cell`, `point`, `repeat` and `known_epochs`, as the sampler bridge proposes them.
            setup: What all trials share; given once by `tune.with_parameters`.
        """
        if setup is None:
            raise ValueError("LungTrial needs its setup: bind it with tune.with_parameters.")
        self._setup = setup
        self._device = claim_device(cpus=setup.cpus_per_trial, gpus=setup.gpus_per_trial)
        self._cache: Cache | None = None
        self._stopwatch = Stopwatch(self._device) if setup.profile else StoppedStopwatch()
        self._watchdog = Watchdog(setup.hang_seconds)
        self._waiting_since = time.monotonic()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in the same process, imports kept."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train up to the next report: for half a second at least, or to an epoch that is judged.

        Returns:
            Every epoch's numbers and the trial's fixed facts in `epochs`; `done` with the last. A diverged trial's last
            report has no numbers, only `failure`, so that nothing downstream meets a value that is not finite.
        """
        self._end_waiting()
        with self._watchdog:
            report = self._report(self._train_to_report())
        self._waiting_since = time.monotonic()
        return report

    def _report(self, results: list[EpochResult]) -> dict[str, Any]:
        if not results:
            return {FAILURE: self._failure, "done": True}
        kept = [result.kept_logits_NK for result in results if result.kept_logits_NK is not None]
        with self._stopwatch.measure(TimePart.CHECKPOINT):
            if kept:
                self._write_validation_predictions(kept[-1])
        for part, seconds in self._stopwatch.take().items():
            results[-1].seconds_by_part[part] = results[-1].seconds_by_part.get(part, 0.0) + seconds
        numbers = [{name: value for name, value in result.columns().items() if name not in _NOT_REPORTED} for result in results]
        rows = [row | self._facts for row in numbers]
        return {EPOCHS: rows, "done": results[-1].stop_reason is not None}

    def _train_to_report(self) -> list[EpochResult]:
        """Train; no epoch at all where the trial has diverged."""
        results: list[EpochResult] = []
        started = time.monotonic()
        try:
            for result in self._epochs:
                results.append(result)
                if result.epoch in self._setup.judged_epochs or time.monotonic() - started >= _SECONDS_BETWEEN_REPORTS:
                    break
        except DivergedError as error:
            self._failure = f"diverged: {error}"  # told by the next step: the epochs before it count
        return results

    def get_auto_filled_metrics(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Add nothing of Ray's own to a report: host, address and process stay where they are, and the driver small."""
        return {}

    def cleanup(self) -> None:
        """Let go of the prefix features."""
        if self._cache is not None:
            self._cache.close()

    def _end_waiting(self) -> None:
        self._stopwatch.add(TimePart.IDLE, time.monotonic() - self._waiting_since)

    def _begin(self, config: dict[str, Any]) -> None:
        self._end_waiting()
        with self._stopwatch.measure(TimePart.START):
            self._set_up(config)
        self._waiting_since = time.monotonic()

    def _set_up(self, config: dict[str, Any]) -> None:
        self._plan = self._setup.plan_trial(config["cell"], config["point"], config["repeat"])
        run, store = self._setup.run, self._setup.open_store()  # anew for each trial: it may be damaged since
        trial = self._plan.trial
        learner = learner_of(trial.network.model)
        facts = learner.facts(trial, Setting.of(run, num_classes=len(store.classes)))
        self._facts = {"device": device_name(self._device), **facts}
        self.cleanup()  # of the trial before
        self._cache = self._setup.data.open_cache()
        self._job = self._setup.training_job(self._plan, store=store, device=self._device, cache=self._cache)
        watch = Watch(
            rungs=self._setup.judged_epochs,
            known_epochs=config["known_epochs"],
            is_out_of_time=self._setup.is_out_of_time,
            note_progress=self._watchdog.feed,
            stopwatch=self._stopwatch,
        )
        self._epochs: Iterator[EpochResult] = learner.fit(self._job, self._setup.checkpoints(self._plan), watch)
        self._failure = ""

    def _write_validation_predictions(self, logits_NK: Tensor) -> None:
        frame = predictions_frame(logits_NK, self._job.validation, self._job.store.classes)
        ledger = Ledger(self._setup.run_root, check_writer=self._setup.check_attempt)
        ledger.write_validation_predictions(self._plan.trial_id, frame)
