"""A worker that Ray kills because its node runs out of memory costs its own trial, not the whole search.

Ray tells of it by `OutOfMemoryError`, which Tune, up to 2.60 at least, takes for a mistake of its own and ends with; so it does
with what Ray says of a worker or a node that went away while a report was on its way. To Tune each is told as what it is, an
actor that died. Of memory it is told in one line: Ray's own text lists the node's address and processes.
"""

from typing import Any

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

_TEXT = "Ray killed its worker, for the node was running low on memory"
_OF_ONE_WORKER = (
    *(ActorPlacementGroupRemoved, ActorUnschedulableError, NodeDiedError, ObjectLostError),
    *(RuntimeEnvSetupError, WorkerCrashedError),
)


class _ActorManager(_internal.RayActorManager):
    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task, _as_actor_error(exception))

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor, _as_actor_error(exception))


def _as_actor_error(exception: Exception) -> Exception:
    if isinstance(exception, OutOfMemoryError):
        return RayActorError(error_msg=_TEXT)
    if isinstance(exception, _OF_ONE_WORKER):
        return RayActorError(error_msg=f"{type(exception).__module__}.{type(exception).__name__}: {exception}")
    return exception


def survive_killed_workers() -> None:
    """Let this process's searches take such a worker as one that died."""
    tune_controller.RayActorManager = _ActorManager  # type: ignore[attr-defined]
