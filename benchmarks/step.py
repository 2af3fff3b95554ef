"""How fast is a training step against a plain one, against what this machine can multiply, and against the paper's program?

    python -m benchmarks.step --data DIR

The paper's CNN and ResNet18 with nothing frozen are trained on one core, turn by turn, each time in a fresh process: as a
search trains them, and plainly, by `--precision fp32` and with memory as glibc keeps it (`MALLOC_MMAP_MAX_=65536`). The
ratio is that of the median images a second. ResNet18's work, three times its multiply-adds forward for a step forward and
back, is set against the rate of one large bf16 matrix product on the same core, measured before each turn. The paper's
program took 13.1 s (CNN) and 14.1 s (ResNet18) for an epoch of 1,093 images, on two cores that multiplied bf16 matrices at
790 GFLOP/s together; ours is scaled to that rate. Only where the processor multiplies bf16 natively.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence

import torch
from rich.console import Console

from benchmarks.bars import Bar, exit_status
from benchmarks.trials import PLAIN_MEMORY, data_parser, images_per_second_apart, prepared_setup
from tune_lung.config import Precision, TrialConfig
from tune_lung.data.store import PixelStore
from tune_lung.families.family import PointValue
from tune_lung.learners.learner import Setting
from tune_lung.learners.registry import learner_of
from tune_lung.models.precision import supports_bf16
from tune_lung.tuning.plan import SearchSetup

POINTS: Mapping[str, dict[str, PointValue]] = {
    "cnn": {"model": "cnn"},
    "resnet18": {"model": "resnet18", "frozen_blocks": 0, "weights": "random"},
}
LEAST_RATIOS = {"cnn": 2.3, "resnet18": 1.9}
"""Images a second over those of plain steps."""
LEAST_SHARE = 0.75
"""Of the measured bf16 matrix rate, that ResNet18's steps reach."""
PAPERS_SECONDS = {"cnn": 13.1, "resnet18": 14.1}
"""What the paper's program took for an epoch of `PAPERS_IMAGES` images, fp32 on two cores."""
LEAST_SPEEDUPS = {"cnn": 2.1, "resnet18": 1.9}
"""The paper's seconds over ours, scaled to its machine."""
PAPERS_IMAGES = 1093
PAPERS_MATRIX_RATE = 790e9
"""Operations a second of bf16 matrix products on those two cores together."""
NUM_TURNS = 3
NUM_EPOCHS = 1
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
    rates: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    matrix_rates = []
    for turn in range(NUM_TURNS):
        matrix_rates.append(matrix_rate())
        for precision, images_per_second in rates.items():
            images_per_second += images_per_second_apart(
                setup,
                {**POINTS[model], "precision": precision, "max_epochs": NUM_EPOCHS},
                name=f"{model}-{precision}-{turn}",
                cache_bytes=0,
                environment=PLAIN_MEMORY if precision == "fp32" else {},
            )
    plain, fast = (statistics.median(rate) for rate in rates.values())
    return bars_of(
        model,
        plain=plain,
        fast=fast,
        matrix_rate=statistics.median(matrix_rates),
        operations=operations_of_step(setup, model),
    )


def bars_of(model: str, *, plain: float, fast: float, matrix_rate: float, operations: float) -> list[Bar]:
    """Hold what was measured against what is asked.

    Args:
        model: The network.
        plain: Images a second of plain steps.
        fast: Images a second as a search trains.
        matrix_rate: Operations a second of bf16 matrix products on the same core.
        operations: Of one image's step.

    Returns:
        Each bar, and whether it holds.
    """
    ratio, share = fast / plain, fast * operations / matrix_rate
    scaled_seconds = PAPERS_IMAGES / fast * matrix_rate / PAPERS_MATRIX_RATE
    speedup = PAPERS_SECONDS[model] / scaled_seconds
    least_ratio, least_speedup = LEAST_RATIOS[model], LEAST_SPEEDUPS[model]
    bars = [
        Bar(f"{model}: {ratio:.2f} times as fast as plain fp32, at least {least_ratio}", ratio >= least_ratio),
        Bar(f"{model}: {speedup:.2f} times as fast as the paper's program, at least {least_speedup}", speedup >= least_speedup),
    ]
    if model == "resnet18":
        bars.append(Bar(f"{model}: {share:.0%} of the bf16 matrix rate, at least {LEAST_SHARE:.0%}", share >= LEAST_SHARE))
    return bars


def operations_of_step(setup: SearchSetup, model: str) -> float:
    """Count the operations of one image's step forward and back."""
    trial = TrialConfig.from_point(POINTS[model])
    setting = Setting.of(setup.run, num_classes=len(PixelStore.open(setup.store).classes))
    return float(_OPERATIONS_A_MULTIPLY_ADD * _PASSES_A_STEP * learner_of(model).epoch_work(trial, setting))


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
