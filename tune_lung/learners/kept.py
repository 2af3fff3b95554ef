"""What a run keeps of a trial's best model, digests verified: all that it takes to answer, but for how images become pixels.

Nothing is drawn for it, and no weights file is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tune_lung.config import TrialConfig
from tune_lung.training.checkpoints import FROZEN, Checkpoint, Checkpoints, load
from tune_lung.training.tensor_files import DamagedCheckpointError


@dataclass(frozen=True, kw_only=True)
class KeptModel:
    """A trial's best model as it lies in its run."""

    best: Checkpoint
    """What training changed of it, by its best epoch."""
    frozen: Mapping[str, Tensor]
    """What it did not; empty where nothing is frozen."""

    @classmethod
    def load(cls, checkpoints: Checkpoints, trial: TrialConfig, *, epoch: int | None = None) -> Self:
        """Read it.

        Args:
            checkpoints: The trial's.
            trial: The trial.
            epoch: Epoch that it must be of; None takes any.

        Raises:
            DamagedCheckpointError: It was not kept, or a file of it is not what was written.
        """
        try:
            best = load(checkpoints.best)
        except FileNotFoundError as error:
            raise DamagedCheckpointError("Its network was not kept.") from error
        if epoch is not None and best.state["epoch"] != epoch:
            raise DamagedCheckpointError(f"The checkpoint 'best' is of epoch {best.state['epoch']} instead of {epoch}.")
        digest = best.state.get(FROZEN)
        if digest is None and trial.network.frozen_blocks:
            raise DamagedCheckpointError("An earlier version of tune_lung kept its network without the frozen part.")
        return cls(best=best, frozen={} if digest is None else checkpoints.frozen_parts.load(digest))


def require_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit the places of others.

    Raises:
        DamagedCheckpointError: They have other names, shapes or number formats.
    """
    if _shapes_of(expected) != _shapes_of(found):
        raise DamagedCheckpointError("The checkpoint 'best' is another network's.")


def _shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
