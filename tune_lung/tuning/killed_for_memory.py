"""A worker that Ray kills because its node runs out of memory costs its own trial, not the whole search.

Ray tells of it by `OutOfMemoryError`, which Tune, up to 2.60 at least, takes for a mistake of its own and ends with. To Tune it
is told as what it is, an actor that died, and in one line: Ray's own text lists the node's address and processes.
"""

from typing import Any

from ray.air.execution import _internal
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller

_TEXT = "Ray killed its worker, for the node was running low on memory"


class _ActorManager(_internal.RayActorManager):
    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=_TEXT)
        super()._actor_task_failed(tracked_actor_task, exception)


def survive_killed_workers() -> None:
    """Let this process's searches take such a worker as one that died."""
    tune_controller.RayActorManager = _ActorManager  # type: ignore[attr-defined]
