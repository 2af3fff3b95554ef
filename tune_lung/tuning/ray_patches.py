"""Every place where Ray is made to behave otherwise than it does, by names that Ray does not promise to keep.

Where one of them is no longer there, a search is refused before anything is trained, with the versions that are known to have it:
a patch that does nothing would show days later, by a search that ends with its first killed worker.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import ray
from ray.air._internal import usage
from ray.air.execution import _internal
from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)
from ray.tune.execution import tune_controller

from tune_lung.errors import InputError

TESTED_RAY = "2.56 to 2.60"
"""Versions that the patches were tried with."""
_NAMES = (
    ("ray._private.worker", "print_to_stdstream"),
    ("ray._private.ray_constants", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"),
    ("ray.air._internal.usage", "tag_callbacks"),
    ("ray.tune.execution.tune_controller", "RayActorManager"),
    ("ray.air.execution._internal", "RayActorManager._actor_task_failed"),
    ("ray.air.execution._internal", "RayActorManager._actor_start_failed"),
)
"""Module and name of all that is replaced or overridden."""
_KILLED_TEXT = "Ray killed its worker, for the node was running low on memory"
_OF_ONE_WORKER = (
    *(ActorPlacementGroupRemoved, ActorUnschedulableError, NodeDiedError, ObjectLostError),
    *(RuntimeEnvSetupError, WorkerCrashedError),
)


def require_known_names() -> None:
    """See that all that is patched is there.

    Raises:
        InputError: Ray has renamed something.
    """
    missing = [f"{module}.{name}" for module, name in _NAMES if not _is_there(module, name)]
    if missing:
        raise InputError(
            f"Ray {ray.__version__} has no {', '.join(missing)}, which tune_lung builds on. Install a version that has:"
            f" {TESTED_RAY} were tested."
        )


def _is_there(module: str, name: str) -> bool:
    try:
        value: Any = import_module(module)
    except ImportError:
        return False
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


class _ActorManager(_internal.RayActorManager):
    """Takes a worker that Ray killed as one that died.

    Ray tells of it by `OutOfMemoryError`, which Tune, up to 2.60 at least, takes for a mistake of its own and ends with; so it
    does with what Ray says of a worker or a node that went away while a report was on its way. To Tune each is told as what it
    is, an actor that died. Of memory it is told in one line: Ray's own text lists the node's address and processes.
    """

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task, _as_actor_error(exception))

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor, _as_actor_error(exception))


def _as_actor_error(exception: Exception) -> Exception:
    if isinstance(exception, OutOfMemoryError):
        return RayActorError(error_msg=_KILLED_TEXT)
    if isinstance(exception, _OF_ONE_WORKER):
        return RayActorError(error_msg=f"{type(exception).__module__}.{type(exception).__name__}: {exception}")
    return exception


def survive_killed_workers() -> None:
    """Let a worker that Ray kills cost its own trial, not the whole search."""
    tune_controller.RayActorManager = _ActorManager  # type: ignore[attr-defined]


def leave_callbacks_uncounted() -> None:
    """Let this process's searches import only the trackers that they are asked for.

    Tune sorts the callbacks of a search into its own and others, for the usage statistics that are switched off here, and to do
    so imports every tracker that is installed: with MLflow and W&B two seconds at each start (measured, Ray 2.60), and folders of
    W&B's in the temporary one, which a killed search leaves there.
    """
    usage.tag_callbacks = _count_none


def _count_none(callbacks: Any) -> bool:  # noqa: ARG001 - Ray gives them
    """Say that nothing was recorded."""
    return False


@contextmanager
def told_by_us(tell_nothing: Callable[..., None], *, packs_for_uv: bool) -> Iterator[None]:
    """Let Ray's processes tell the user nothing, for as long as the block lasts: what they would is told by us.

    Args:
        tell_nothing: Stands in for what prints it.
        packs_for_uv: Whether Ray may pack the working folder, runs included, where the program runs under `uv run`.
    """
    from ray._private import ray_constants, worker

    constants: Any = ray_constants
    told, packed = worker.print_to_stdstream, constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    worker.print_to_stdstream = tell_nothing
    if not packs_for_uv:
        constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    try:
        yield
    finally:
        worker.print_to_stdstream, constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = told, packed
