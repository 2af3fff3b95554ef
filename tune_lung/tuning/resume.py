"""Going on from the ledger: earlier attempts' trials as records, and the studies brought to where those attempts had them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count
from typing import Any, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from tune_lung.config import checked_value
from tune_lung.errors import InputError
from tune_lung.metrics import columns_on_validation
from tune_lung.results.layout import DEFAULT_KEEP, KeepName
from tune_lung.results.reader import Run, plain_rows
from tune_lung.results.schema import StopReason, TimePart, TrialStatus, Verdict
from tune_lung.shapes import Amount, Count, ListOf, Number, WrongShapeError, require_shape
from tune_lung.space import Cell, SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.failures import CURABLE
from tune_lung.tuning.plan import SearchSetup, TrialPlan
from tune_lung.tuning.proposals.studies import (
    Outcome,
    Proposal,
    Studies,
    Values,
    objective_values,
    outcome_of,
    outcome_of_repeats,
)
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.scheduler import groups_of, rule_of
from tune_lung.tuning.trial_record import EarlierAttempts, TrialRecord


def earlier_attempts(
    run: Run,
    space: SearchSpace,
    strategy: Strategy,
    setup: SearchSetup,
    *,
    is_time_left: bool,
    keep: KeepName = DEFAULT_KEEP,
) -> EarlierAttempts:
    """Read what the attempts before left.

    A trial is finished when its row says so and its epochs are all there. Otherwise it goes on from its newest checkpoint,
    which knows its epochs too. One that ended for want of epochs or of time goes on where there are more now. Where no
    checkpoint was kept, it is trained again from its start. So is one whose network is to be kept and was not, where every
    trial's is.

    Args:
        run: The run as it lies there; parts of it may be damaged.
        space: What is tried, as it goes on.
        strategy: How it is searched, as it goes on.
        setup: Works out each trial's identity.
        is_time_left: Whether trials that the time budget ended go on.
        keep: Which checkpoints stay from now on.

    Raises:
        InputError: A trial of the run is none of this search.
    """
    cells = {cell.name: cell for cell in space.cells()}
    rows = _required(_TRIAL_ROWS, run, "trials")
    unmeasured = dict.fromkeys(columns_on_validation(run.classes))
    epochs = _rows_by_trial((unmeasured | row for row in _required(_EPOCH_ROWS, run, "epochs")), "epoch")
    decisions, profile = _rows_by_trial(plain_rows(run.decisions), "decision"), _rows_by_trial(plain_rows(run.profile), "epoch")
    predicted = set(run.validation_predictions["trial_id"])
    records, begun, num_anew = [], set(), 0
    for row in rows:
        trial_id = row["trial_id"]
        record = TrialRecord.from_row(row, _plan_of(row, cells, setup))
        record.epochs, record.decisions, record.profile = (own.pop(trial_id, []) for own in (epochs, decisions, profile))
        _require_sense(record, strategy)
        is_whole = len(record.epochs) >= row["epochs_run"] and (not record.epochs or trial_id in predicted)
        lacks_network = keep != "leaders" and bool(record.epochs) and not _has_network(record.plan, setup)
        _reopen(record, is_whole=is_whole and not lacks_network, is_time_left=is_time_left)
        records.append(record)
        if row["status"] == TrialStatus.RUNNING:
            begun |= {trial_id} if is_whole else set()
        elif record.status is TrialStatus.RUNNING:
            num_anew += not setup.checkpoints(record.plan).has_state
    records.sort(key=lambda record: (record.proposed_order, record.plan.trial_id))
    _restore_decisions(records, decisions, space, strategy)
    order = max((order for record in records for order in (record.proposed_order, record.ended_order or 0)), default=0)
    settled = [record for record in records if record.plan.trial_id in begun and record.has_all_epochs_to_its_stop]
    for record in settled:
        order += 1
        if strategy.scheduler == "none":
            raise InputError(f"Trial {record.plan.trial_id} of the run was stopped, and its search stops none.")
        moment = record.epochs[-1].get("ended")  # its last epoch was its end
        record.end(TrialStatus.STOPPED, StopReason(strategy.scheduler), order=order, moment=moment)
    numbers = [int(row["decision"]) for rows in decisions.values() for row in rows]
    numbers += [int(row["decision"]) for record in records for row in record.decisions]
    return EarlierAttempts(
        records=records,
        settled=settled,
        loose_decisions=decisions,
        num_decisions=max(numbers, default=0),
        order=order,
        num_anew=num_anew,
        own_seconds={TimePart(row["part"]): row["seconds"] for row in plain_rows(run.profile) if "trial_id" not in row},
    )


def _has_network(plan: TrialPlan, setup: SearchSetup) -> bool:
    return setup.checkpoints(plan).has_best(leaves_out=plan.trial.network.frozen_blocks > 0)


class _TrialRow(TypedDict):
    """What a row of the table `trials` must have for its trial to go on."""

    repeat: Count
    attempts: Count
    epochs_run: Count
    cpus: Amount
    gpus: Amount
    concurrent_trials: NotRequired[Count]


class _EpochRow(TypedDict):
    """What a row of the table `epochs` must have."""

    selection_score: Number
    epoch_seconds: Number


_TRIAL_ROWS, _EPOCH_ROWS = TypeAdapter(ListOf[_TrialRow]), TypeAdapter(ListOf[_EpochRow])


def _required(shape: TypeAdapter[Any], run: Run, table: str) -> list[dict[str, Any]]:
    rows = plain_rows(getattr(run, table))
    try:
        require_shape(shape, rows)
    except WrongShapeError as error:
        raise InputError(f"The table {table} of '{run.name}' is none that a search goes on with ({error}).") from error
    return rows


def _require_sense(record: TrialRecord, strategy: Strategy) -> None:
    """Refuse a trial that no search can have left so."""
    trial_id = record.plan.trial_id
    if record.plan.repeat >= strategy.repeats:
        raise InputError(f"Trial {trial_id} of the run is repeat {record.plan.repeat}, and its points have {strategy.repeats}.")
    if record.ended_order is not None and record.ended_order < record.proposed_order:
        raise InputError(f"Trial {trial_id} of the run ended before it was proposed.")
    if [row["epoch"] for row in record.epochs] != list(range(1, len(record.epochs) + 1)):
        raise InputError(f"Trial {trial_id} of the run has not every epoch from its first to its last.")


def _restore_decisions(
    records: Sequence[TrialRecord], loose: Mapping[str, Sequence[Mapping[str, Any]]], space: SearchSpace, strategy: Strategy
) -> None:
    """Take lost decisions of a rule again that can restore them, as the trials' epochs show that they were taken.

    What a trial was judged by, and whether it went on, is known of each. Whom it was compared with is known where trials ran
    one after another, in the order of their proposal; elsewhere the cutoff is that of this order.
    """
    rule = rule_of(strategy, max_epochs=space.max_epochs())
    if rule is None or not rule.restored_epochs:
        return
    group_of = groups_of(space)
    known = {int(row["decision"]) for rows in (*loose.values(), *(record.decisions for record in records)) for row in rows}
    free_numbers = (number for number in count(1) if number not in known)
    for record in records:
        trial_id, group = record.plan.trial_id, group_of(record.plan.cell)
        recorded = {row["rung_epoch"]: row for row in record.decisions}
        best_scores = list(accumulate((row["selection_score"] for row in record.epochs), max))
        # A trial that has not ended, or for want of time, may not have been judged yet at its last epoch.
        num_judged = len(best_scores) - (record.stop_reason in (None, StopReason.TIME))
        for rung in rule.restored_epochs:
            if rung in recorded:
                rule.remember(trial_id, group, {}, {rung: recorded[rung]["value"]})
            elif rung <= num_judged:
                was_stopped = record.stop_reason is rule.stop_reason and rung == len(best_scores)
                (decision,) = rule.judge(trial_id, group, rung, best_scores[rung - 1])
                decision = replace(decision, verdict=Verdict.STOP if was_stopped else Verdict.CONTINUE)
                record.add_decision(decision, number=next(free_numbers))
        if record.status is TrialStatus.COMPLETED and best_scores:
            for decision in rule.completed(trial_id, group, best_scores[-1]):
                record.add_decision(decision, number=next(free_numbers))
        record.decisions.sort(key=lambda row: int(row["decision"]))


def _rows_by_trial(rows: Iterable[dict[str, Any]], order: str) -> dict[str, list[dict[str, Any]]]:
    rows_by_trial: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if "trial_id" in row:
            rows_by_trial[row["trial_id"]].append(row)
    return {trial_id: sorted(own, key=lambda row: row[order]) for trial_id, own in rows_by_trial.items()}


def _plan_of(row: Mapping[str, Any], cells: Mapping[str, Cell], setup: SearchSetup) -> TrialPlan:
    cell = cells.get(row["cell"])
    plan = None
    if cell is not None and cell.axes.keys() <= row.keys():
        plan = setup.plan_trial(cell.name, cell.with_values(_values_of(cell, row)), row["repeat"])
    if plan is None or plan.trial_id != row["trial_id"]:
        raise InputError(
            f"Trial {row['trial_id']} of the run, of cell '{row['cell']}', is none of this search: another version of tune_lung"
            " trains it otherwise. Go on with the one that began the run; run.json names it."
        )
    return plan


def _values_of(cell: Cell, columns: Mapping[str, Any]) -> Values:
    return {name: checked_value(name, columns[name]) for name in cell.axes}


def _reopen(record: TrialRecord, *, is_whole: bool, is_time_left: bool) -> None:
    """Let a trial that has ended go on where there is reason to, if only to tell again what was lost of it."""
    has_losses = not is_whole and record.status is not TrialStatus.FAILED
    has_more_epochs = record.stop_reason is StopReason.MAX_EPOCHS and len(record.epochs) < record.plan.trial.max_epochs
    has_more_time = record.stop_reason is StopReason.TIME and is_time_left
    is_curable = record.failure_kind in CURABLE
    if has_losses or has_more_epochs or has_more_time or is_curable:
        record.status = TrialStatus.RUNNING
    if has_more_epochs or has_more_time:
        record.test_scores = {}


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Where a replay has brought a search."""

    unfinished: Sequence[tuple[Proposal, int]]
    """Trials that go on or never began, a proposal and the number of a repeat each, in the order of their proposal."""
    ended: dict[int, list[Outcome]]
    """How repeats ended of proposals of which others have not, by the proposal's number."""
    observed: Mapping[int, int]
    """The last epoch that the studies were told of, by the proposal's number."""


def replay(studies: Studies, strategy: Strategy, recorder: Recorder, earlier: Iterable[TrialRecord]) -> Replayed:
    """Ask and tell new studies as earlier attempts asked and told theirs, in the same order.

    Where the samplers draw as they drew then, every proposal is drawn again, and all that follows is as if nothing had
    happened. Where they draw otherwise, as those of another version, what was proposed then counts.

    Args:
        studies: As they were before the first proposal.
        strategy: Repeats and objectives.
        recorder: Works out each trial's identity.
        earlier: Every trial of earlier attempts.
    """
    records = {record.plan.trial_id: record for record in earlier}
    return _Replay(studies, strategy, recorder, records).run()


class _Replay:
    """One replay under way."""

    def __init__(self, studies: Studies, strategy: Strategy, recorder: Recorder, records: Mapping[str, TrialRecord]) -> None:
        self._studies, self._strategy, self._recorder, self._records = studies, strategy, recorder, records
        self._cells = {cell.name: cell for cell in studies.cells}
        self._by_point: dict[str, list[TrialRecord]] = defaultdict(list)
        for record in records.values():
            self._by_point[self._first_id(record.plan)].append(record)
        self._proposals: dict[str, Proposal] = {}
        """Every proposal drawn, by the id of its first repeat."""
        self._observed: dict[int, int] = {}
        self._ended: dict[int, list[Outcome]] = {}

    def run(self) -> Replayed:
        """Ask and tell in the recorded order."""
        events: list[tuple[int, str, str]] = []
        for first_id, repeats in self._by_point.items():
            events.append((min(record.proposed_order for record in repeats), "asked", first_id))
            events += [(record.ended_order or 0, "ended", record.plan.trial_id) for record in repeats if _has_ended(record)]
        for _, kind, trial_id in sorted(events):
            if kind == "asked":
                self._ask(trial_id)
            else:
                self._tell(self._records[trial_id])
        for record in self._records.values():
            if not _has_ended(record):
                self._observe(record)
        return Replayed(unfinished=self._unfinished(), ended=self._ended, observed=self._observed)

    def _first_id(self, plan: TrialPlan) -> str:
        return self._recorder.plan_of({"cell": plan.cell, "point": self._point_of(plan), "repeat": 0}).trial_id

    def _point_of(self, plan: TrialPlan) -> Mapping[str, Any]:
        cell = self._cells[plan.cell]
        return cell.with_values(_values_of(cell, plan.trial.columns()))

    def _ask(self, first_id: str) -> None:
        """Draw until the recorded proposal comes; what comes before it was recorded later, or its record is lost."""
        plan = self._by_point[first_id][0].plan
        cell = self._cells[plan.cell]
        while first_id not in self._proposals:
            proposal = self._studies.propose()
            if proposal is None:
                self._proposals[first_id] = self._studies.propose_again(cell, _values_of(cell, plan.trial.columns()))
                return
            drawn = self._recorder.plan_of({"cell": proposal.cell.name, "point": proposal.point, "repeat": 0}).trial_id
            if drawn == first_id or drawn in self._by_point or proposal.cell.name != cell.name:
                self._proposals[drawn] = proposal
            else:
                self._proposals[first_id] = self._studies.correct(proposal, _values_of(cell, plan.trial.columns()))

    def _tell(self, record: TrialRecord) -> None:
        number = self._proposals[self._first_id(record.plan)].number
        self._observe(record)
        values = objective_values(record.row(), self._strategy.objectives) if record.status is TrialStatus.COMPLETED else None
        ended = self._ended.setdefault(number, [])
        ended.append(outcome_of(record.status, values))
        if len(ended) == self._strategy.repeats:
            self._studies.tell(number, *outcome_of_repeats(self._ended.pop(number)))

    def _observe(self, record: TrialRecord) -> None:
        if self._strategy.repeats > 1:
            return
        number = self._proposals[self._first_id(record.plan)].number
        for row in record.epochs:
            self._studies.observe(number, row["epoch"], row["selection_score"])
            self._observed[number] = row["epoch"]

    def _unfinished(self) -> list[tuple[Proposal, int]]:
        unfinished = []
        for proposal in sorted(self._proposals.values(), key=lambda proposal: proposal.number):
            for repeat in range(self._strategy.repeats):
                plan = self._recorder.plan_of({"cell": proposal.cell.name, "point": proposal.point, "repeat": repeat})
                record = self._records.get(plan.trial_id)
                if record is None or record.status is TrialStatus.RUNNING:
                    unfinished.append((proposal, repeat))
        return unfinished


def _has_ended(record: TrialRecord) -> bool:
    """Whether a study hears of the trial's end; one that the time budget ended goes on when there is time."""
    return record.status is not TrialStatus.RUNNING and record.stop_reason is not StopReason.TIME
