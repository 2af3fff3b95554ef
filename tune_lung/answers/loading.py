"""Take a trained network out of its run, to answer for any image: `load_network`.

The run's folder is enough; its images, its cache and the weights that its networks began with may be gone. A run may be a
stranger's: what is read of it are numbers and names, digests and shapes verified, from its own folder alone.

Shapes: N images, K classes.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from tune_lung.config import FIELD_TYPES, DeviceKind, InputPart, Precision, RunConfig, TrialConfig
from tune_lung.data.new_images import ImageWithMask, StoredForm
from tune_lung.data.store import Pixels
from tune_lung.errors import InputError, did_you_mean, shortened
from tune_lung.evaluation.predictions import probability_columns
from tune_lung.files import shown_path
from tune_lung.learners.answering import BATCH_SIZE, Answering
from tune_lung.learners.kept import KeptModel
from tune_lung.learners.registry import learner_of
from tune_lung.models.precision import supports_bf16
from tune_lung.results.pixel_facts import PixelFacts
from tune_lung.results.ranking import best_points, leading_cell
from tune_lung.results.reader import Run, plain_rows, read_run
from tune_lung.results.schema import TrialStatus
from tune_lung.training.checkpoints import Checkpoints
from tune_lung.training.tensor_files import DamagedCheckpointError

ImagePath: TypeAlias = str | Path


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """A network of a run, or several whose answers are averaged, that answers for image files."""

    classes: tuple[str, ...]
    """Class names, in the order of the answers."""
    cell: str
    """The cell that it was trained in."""
    trial_ids: tuple[str, ...]
    """Its trial; of an ensemble every one."""
    input: InputPart
    """Which pixels it sees; all but `full` need masks."""
    precision: Precision
    """Number format that it computes in."""
    run_precision: Precision
    """Number format that it was trained in."""
    form: StoredForm
    """What an image is brought to."""
    answering: tuple[Answering, ...]
    """What answers."""

    @property
    def trial_id(self) -> str:
        """Its trial; of an ensemble the first one."""
        return self.trial_ids[0]

    def predict(self, paths: Sequence[ImagePath], masks: Sequence[ImagePath] | None = None) -> pd.DataFrame:
        """Answer for image files.

        Args:
            paths: The images, of any size and form that a data folder may hold.
            masks: A lung mask for each, in the same order, white inside the lungs; for a network that sees the whole image they
                are not looked at.

        Returns:
            One row per image, in their order: `path` as given, and one `p_<class>` per class, summing to 1.

        Raises:
            InputError: Masks are needed and missing, or a file cannot be used; the text names it.
        """
        files = self._files(paths, masks)
        answers = [self._answer(images) for images in self.form.read(files, at_once=BATCH_SIZE)]
        probabilities_NK = np.concatenate([np.empty((0, len(self.classes))), *answers])
        names = pd.Series([str(image) for image, _ in files], dtype="str")
        return pd.DataFrame({"path": names, **probability_columns(probabilities_NK, self.classes)})

    def _answer(self, images: Pixels) -> npt.NDArray[np.float64]:
        probabilities_NK: npt.NDArray[np.float64] = np.mean([each.answer(images) for each in self.answering], axis=0)
        return probabilities_NK

    def _files(self, paths: Sequence[ImagePath], masks: Sequence[ImagePath] | None) -> list[ImageWithMask]:
        if isinstance(paths, str | Path) or isinstance(masks, str | Path):
            raise InputError("predict takes lists: [path] for one image, and masks=[mask] for its mask.")
        images = [Path(path) for path in paths]
        if self.input == "full":
            return [ImageWithMask(image, None) for image in images]
        num_masks = 0 if masks is None else len(masks)
        if masks is None or num_masks != len(images):
            raise InputError(
                f"This network sees a part of each image alone (input {self.input}): {len(images)} images need {len(images)} lung"
                f" masks, and there are {num_masks}. Give them in the same order: predict(paths, masks=[...])."
            )
        return [ImageWithMask(image, Path(mask)) for image, mask in zip(images, masks, strict=True)]


def load_network(
    run: ImagePath | Run,
    cell: str | None = None,
    trial: str | None = None,
    repeat: int | None = None,
    *,
    ensemble: bool = False,
    device: DeviceKind | None = None,
) -> LoadedNetwork:
    """Take a network out of a run.

    It computes in the run's precision where the device does so natively, else in fp32, with a warning.

    Args:
        run: The run's folder, or a run that was read.
        cell: The cell whose best point answers; None for the one with the highest mean selection score on validation.
        trial: The id of one trial instead, as in the table `trials`.
        repeat: Which repeat of the point; None for its first.
        ensemble: Whether all repeats of the point answer, and their probabilities are averaged.
        device: `cpu`, or `cuda` for a GPU; None for a GPU where there is one.

    Returns:
        The network; its `predict` answers for image files.

    Raises:
        InputError: There is no such trial, its network was not kept or is damaged, or an earlier version wrote the run without
            what answering takes.
    """
    run = run if isinstance(run, Run) else read_run(Path(run), only=("trials",))
    rules, pixels = _rules_of(run)
    rows = _chosen(run, cell=cell, trial=trial, repeat=repeat, ensemble=ensemble)
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise InputError("device cannot be 'cuda': torch sees no GPU here. Leave it out, or give 'cpu'.")
    place = torch.device(device or ("cuda" if has_gpu else "cpu"))
    trials = [_trial_of(row) for row in plain_rows(rows)]
    run_precision = trials[0].precision
    precision: Precision = run_precision if run_precision == "fp32" or supports_bf16(place) else "fp32"
    if precision != run_precision:
        kind = "GPU" if place.type == "cuda" else "CPU"
        text = f"This {kind} does not multiply {run_precision} natively: the network answers in {precision}."
        warnings.warn(text, stacklevel=2)
    answering = []
    for row, own in zip(plain_rows(rows), trials, strict=True):
        rules.check_fits(own)
        own = own.with_fields(precision=precision)
        kept = _kept(run, row["trial_id"], own, epoch=None if row["status"] == TrialStatus.RUNNING else row["best_epoch"])
        try:
            learner = learner_of(own.network.model)
            answering.append(learner.answering(kept, own, rules, pixels=pixels, classes=run.classes, device=place))
        except DamagedCheckpointError as error:
            _refuse(run, row["trial_id"], str(error))
    return LoadedNetwork(
        classes=run.classes,
        cell=str(rows["cell"].iloc[0]),
        trial_ids=tuple(rows["trial_id"]),
        input=trials[0].input,
        precision=precision,
        run_precision=run_precision,
        form=StoredForm.from_facts(pixels, image_size=rules.image_size, protocol=rules.protocol),
        answering=tuple(answering),
    )


def _rules_of(run: Run) -> tuple[RunConfig, PixelFacts]:
    """Read from a run's manifest what is done to every image.

    Raises:
        InputError: It does not say so.
    """
    manifest = run.manifest
    if "imported_from" in manifest:
        raise InputError(f"'{run.name}' was imported: it has no networks that could answer.")
    pixels = manifest["data"].get("pixels")
    if pixels is None:
        raise InputError(
            f"'{run.name}' cannot answer for other images: an earlier version of tune_lung wrote it, and did not keep how its"
            f" images became pixels. Go on with it where they are: --resume {shown_path(run.paths.root)} --keep best."
        )
    return RunConfig.from_json({name: manifest[name] for name in ("protocol", "image_size")}), pixels


def _chosen(run: Run, *, cell: str | None, trial: str | None, repeat: int | None, ensemble: bool) -> pd.DataFrame:
    """Choose the rows of the table `trials` whose networks answer: one, or those of an ensemble."""
    if ensemble and repeat is not None:
        raise InputError("ensemble averages all repeats: leave out repeat.")
    trials = run.trials
    trained = trials[(trials["status"] != TrialStatus.FAILED) & trials[["selection_score", "best_epoch"]].notna().all(axis=1)]
    if trained.empty:
        raise InputError(f"No trial of '{run.name}' has a network yet.")
    if trial is not None:
        own = trained[trained["trial_id"] == trial]
        if cell is not None:
            own = own[own["cell"] == cell]
        if own.empty:
            where = "" if cell is None else f" in the cell '{shortened(cell)}'"
            raise InputError(f"'{run.name}' has no trained trial '{shortened(trial)}'{where}. Its table trials names them.")
        is_of_point = (trained[["cell", "point_id"]] == own[["cell", "point_id"]].iloc[0]).all(axis=1)
        point, first = trained[is_of_point].sort_values("repeat"), own
    else:
        cells = set(trained["cell"])
        name = leading_cell(trained) if cell is None else cell
        if name not in cells:
            raise InputError(f"'{run.name}' has no cell '{shortened(str(name))}'. {did_you_mean(str(name), cells)}")
        point = best_points(trained[trained["cell"] == name]).sort_values("repeat")
        first = point.iloc[:1]
    if ensemble:
        return point
    if repeat is None:
        return first
    own = (first if trial is not None else point).loc[lambda rows: rows["repeat"] == repeat]
    if own.empty:
        there = ", ".join(str(number) for number in (first if trial is not None else point)["repeat"])
        raise InputError(f"There is no repeat {repeat} of it. There are: {there}.")
    return own


def _trial_of(row: dict[str, object]) -> TrialConfig:
    return TrialConfig.from_point({name: row[name] for name in FIELD_TYPES if name in row})  # type: ignore[misc]


def _kept(run: Run, trial_id: str, trial: TrialConfig, *, epoch: int | None) -> KeptModel:
    paths = run.paths
    checkpoints = Checkpoints(paths.checkpoints(trial_id), shared=paths.frozen_parts)
    paths.refuse_links_to(checkpoints.best, paths.frozen_parts)
    try:
        return KeptModel.load(checkpoints, trial, epoch=epoch)
    except DamagedCheckpointError as error:
        _refuse(run, trial_id, str(error))


def _refuse(run: Run, trial_id: str, problem: str) -> NoReturn:
    """Say that a network cannot answer, and how it is trained again: where its file is not there, a resume may do so."""
    file = run.paths.checkpoints(trial_id) / "best.safetensors"
    first = f"remove {file.relative_to(run.paths.root)}, and go on with" if file.exists() else "go on with"
    raise InputError(
        f"The network of trial {trial_id} of '{run.name}' cannot answer. {problem} To train it again, {first}"
        f" --resume {shown_path(run.paths.root)} --keep best."
    )
