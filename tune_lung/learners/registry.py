"""Which learner trains which family. Another way of learning is a file beside this one, and a line in `_LEARNERS`."""

from collections.abc import Mapping

from tune_lung.families.family import LearnerName
from tune_lung.families.registry import family_of
from tune_lung.learners.classical.learner import ClassicalLearner
from tune_lung.learners.learner import Learner
from tune_lung.learners.network import NetworkLearner

_LEARNERS: Mapping[LearnerName, Learner] = {"network": NetworkLearner(), "classical": ClassicalLearner()}


def learner_of(model: str) -> Learner:
    """Name what trains a model.

    Raises:
        ValueError: There is no such model.
    """
    return _LEARNERS[family_of(model).learner]
