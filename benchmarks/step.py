"""How fast is a training step: bf16 against fp32, and against what this machine can multiply?

    python -m benchmarks.step --data DIR

The paper's CNN and ResNet18 with nothing frozen are trained on one core by `--precision bf16` and `--precision fp32`, turn
by turn; the ratio is that of the median images a second. ResNet18's work, three times its multiply-adds forward for a step
forward and back, is set against the rate of one large bf16 matrix product on the same core, measured before each turn.
Only where the processor multiplies bf16 natively.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence

import torch
from rich.console import Console

from benchmarks.bars import Bar, exit_status
from benchmarks.trials import data_parser, prepared_setup, train
from tune_lung.config import PointValue, TrialConfig
from tune_lung.data.store import PixelStore
from tune_lung.models.precision import supports_bf16
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.trainable import network_facts

POINTS: Mapping[str, dict[str, PointValue]] = {
    "cnn": {"model": "cnn"},
    "resnet18": {"model": "resnet18", "frozen_blocks": 0, "weights": "random"},
}
LEAST_RATIOS = {"cnn": 2.3, "resnet18": 1.9}
"""Images a second by bf16 over those by fp32."""
LEAST_SHARE = 0.75
"""Of the measured bf16 matrix rate, that ResNet18's steps reach."""
NUM_TURNS = 2
NUM_EPOCHS = 2
_MATRIX_SIDE = 2048
_PASSES_A_STEP = 3
_OPERATIONS_A_MULTIPLY_ADD = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: The command line without the program; None for the process's own.

    Returns:
        The exit status: 0 when its bars hold, else 1.
    """
    options = data_parser("step", __doc__).parse_args(arguments)
    console = Console(highlight=False)
    if not supports_bf16(torch.device("cpu")):
        return exit_status([Bar("this processor does not multiply bf16 natively", holds=False)], console)
    with prepared_setup(options) as setup:
        return exit_status((bar for model in POINTS for bar in _bars(setup, model)), console)


def _bars(setup: SearchSetup, model: str) -> list[Bar]:
    rates: dict[str, list[float]] = {"fp32": [], "bf16": []}
    matrix_rates = []
    for turn in range(NUM_TURNS):
        for precision, images_per_second in rates.items():
            if precision == "bf16":
                matrix_rates.append(matrix_rate())
            point = {**POINTS[model], "precision": precision, "max_epochs": NUM_EPOCHS}
            results = train(setup, point, name=f"{model}-{precision}-{turn}", cache_bytes=0)
            images_per_second += [result.images_per_second for result in results]
    fp32, bf16 = (statistics.median(rate) for rate in rates.values())
    ratio = bf16 / fp32
    bars = [Bar(f"{model}: bf16 {ratio:.2f} times fp32, at least {LEAST_RATIOS[model]}", ratio >= LEAST_RATIOS[model])]
    if model == "resnet18":
        share = bf16 * operations_of_step(setup, model) / statistics.median(matrix_rates)
        bars.append(Bar(f"{model}: {share:.0%} of the bf16 matrix rate, at least {LEAST_SHARE:.0%}", share >= LEAST_SHARE))
    return bars


def operations_of_step(setup: SearchSetup, model: str) -> float:
    """Count the operations of one image's step forward and back."""
    facts = network_facts(
        TrialConfig.from_point(POINTS[model]).network,
        protocol=setup.run.protocol,
        num_classes=len(PixelStore.open(setup.store).classes),
        image_size=setup.run.image_size,
    )
    return float(_OPERATIONS_A_MULTIPLY_ADD * _PASSES_A_STEP * facts["mult_adds"])


def matrix_rate() -> float:
    """Measure one core's rate of bf16 matrix products, in operations a second: the best of several."""
    torch.set_num_threads(1)
    left, right = (torch.randn(_MATRIX_SIDE, _MATRIX_SIDE, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return _OPERATIONS_A_MULTIPLY_ADD * _MATRIX_SIDE**3 / min(seconds)


if __name__ == "__main__":
    sys.exit(main())
