"""Named random seeds: every random choice has a name, and depends on nothing else.

A seed is derived from the root seed and the names of what it is for, so that the order of trials, the worker that
runs them and a resume change nothing, and no random state needs to be stored.
"""

import hashlib
import json


def derive_seed(root_seed: int, *names: str | int) -> int:
    """Derive the seed of one random choice.

    Args:
        root_seed: The run's seed (`--seed`).
        *names: What the choice is for, from general to particular, such as `"batches", trial_seed, epoch`.

    Returns:
        A seed from 0 to 2**63 - 1, independent for different names as far as SHA-256 is.
    """
    path = json.dumps([root_seed, *names])  # unambiguous: 1 is not "1", and no name can hold another's separator
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1
