"""An analytic problem whose curves cross: what ends well learns slowly.

With u the learning rate's place on its axis (0 at 1e-5, 1 at 1e-2, in logarithms), v the weight decay's (0 at 1e-6, 1 at
1e-2), w the label smoothing's (0 at 0, 1 at 0.2) and b the batch size's (0, 1/3, 2/3, 1 for 16, 32, 64, 128), a trial heads for

    a = 0.95 - 1.2 (u - 0.35)^2 - 0.15 (v - 0.6)^2 - 0.1 (w - 0.3)^2 - 0.1 (b - 1/3)^2

with the time constant tau = 6 x 10^-u epochs, and after epoch t, from 1, has the score

    0.25 + (a - 0.25) (1 - exp(-t / tau)) + 0.01 z,

z standard normal, drawn anew for every configuration and epoch. The best rate lies at u = 0.35 after 20 epochs, but at 0.52 after
four and 0.69 after one: whoever judges by the first epoch keeps the wrong half. The table holds 1,024 configurations drawn
from the space, a pure function of one seed.
"""

import math

import numpy as np

from benchmarks.tabulated import Configuration, TabulatedProblem
from tune_lung.randomness import derive_seed
from tune_lung.space import Arm, Choice, LogUniform, SearchSpace, Uniform

_NUM_CONFIGURATIONS = 1024
_NUM_EPOCHS = 20
_NOISE = 0.01

SPACE = SearchSpace(
    arms=(
        Arm(
            model="resnet18",
            learning_rate=LogUniform(1e-5, 1e-2),
            weight_decay=LogUniform(1e-6, 1e-2),
            label_smoothing=Uniform(0.0, 0.2),
            batch_size=Choice(16, 32, 64, 128),
        ),
    ),
    name="crossing",
)


def crossing_problem(*, num_configurations: int = _NUM_CONFIGURATIONS, seed: int = 0) -> TabulatedProblem:
    """Tabulate the problem.

    Args:
        num_configurations: How many are drawn.
        seed: Root of the draw and of the noise.
    """
    generator = np.random.default_rng(derive_seed(seed, "crossing"))
    configurations = tuple(_drawn(generator) for _ in range(num_configurations))
    return TabulatedProblem(space=SPACE, configurations=configurations)


def expected_score(epoch: int, *, u: float, v: float, w: float, b: float) -> float:
    """Compute the score after an epoch, from 1, without the noise."""
    end = 0.95 - 1.2 * (u - 0.35) ** 2 - 0.15 * (v - 0.6) ** 2 - 0.1 * (w - 0.3) ** 2 - 0.1 * (b - 1 / 3) ** 2
    return 0.25 + (end - 0.25) * (1 - math.exp(-epoch / (6 * 10**-u)))


def _drawn(generator: np.random.Generator) -> Configuration:
    u, v, w = (float(number) for number in generator.random(3))
    size = int(generator.integers(4))
    noise = _NOISE * generator.standard_normal(_NUM_EPOCHS)
    scores = [expected_score(epoch, u=u, v=v, w=w, b=size / 3) for epoch in range(1, _NUM_EPOCHS + 1)]
    values = {
        "learning_rate": 10 ** (3 * u - 5),
        "weight_decay": 10 ** (4 * v - 6),
        "label_smoothing": 0.2 * w,
        "batch_size": 16 * 2**size,
    }
    return Configuration(cell="resnet18", values=values, curve=tuple(float(number) for number in scores + noise))
