"""Ray's count of callbacks, left out.

Tune sorts the callbacks of a search into its own and others, for the usage statistics that are switched off here, and to do so
imports every tracker that is installed: with MLflow and W&B two seconds at each start (measured, Ray 2.60), and folders of W&B's
in the temporary one, which a killed search leaves there.
"""

from typing import Any

from ray.air._internal import usage


def leave_callbacks_uncounted() -> None:
    """Let this process's searches import only the trackers that they are asked for."""
    usage.tag_callbacks = _count_none


def _count_none(callbacks: Any) -> bool:  # noqa: ARG001 - Ray gives them
    """Say that nothing was recorded."""
    return False
