"""What do stored features of a frozen prefix save, and do they change anything?

    python -m benchmarks.prefix --data DIR

ResNet18 with its first 2, 3 and 4 blocks frozen is trained on one core with features and, by a cache of size 0, without,
turn by turn. The ratio is that of the median seconds of the training pass; computing the features, once for all trials
that share them, is not in it. Every number of every epoch and every test prediction must be equal bit for bit.
"""

import statistics
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.bars import Bar, exit_status
from benchmarks.trials import CACHE_BYTES, data_parser, prepared_setup, test_predictions, train
from tune_lung.training.fit import EpochResult
from tune_lung.tuning.plan import SearchSetup

LEAST_RATIOS = {2: 1.3, 3: 1.6, 4: 100.0}
"""By frozen blocks."""
NUM_EPOCHS = 3
NUMBERS = ("train_loss", "val_loss", "val_macro_recall", "val_micro_recall", "selection_score", "best_epoch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: The command line without the program; None for the process's own.

    Returns:
        The exit status: 0 when its bars hold, else 1.
    """
    options = data_parser("prefix", __doc__).parse_args(arguments)
    with prepared_setup(options) as setup:
        return exit_status((_bar(setup, *least) for least in LEAST_RATIOS.items()), Console(highlight=False))


def _bar(setup: SearchSetup, frozen_blocks: int, least: float) -> Bar:
    ratio, are_equal = compare(setup, frozen_blocks)
    sameness = "the same numbers" if are_equal else "OTHER NUMBERS"
    text = f"{frozen_blocks} frozen blocks, {ratio:.2f} times as fast, at least {least:g}; {sameness}"
    return Bar(text, are_equal and ratio >= least)


def compare(setup: SearchSetup, frozen_blocks: int) -> tuple[float, bool]:
    """Train one depth with and without features.

    Returns:
        How many times faster a training pass is with them, and whether all numbers are equal.
    """
    point = {"model": "resnet18", "frozen_blocks": frozen_blocks, "weights": "random", "max_epochs": NUM_EPOCHS}
    names = (f"k{frozen_blocks}-without", f"k{frozen_blocks}-with")
    without, having = (
        train(setup, point, name=name, cache_bytes=size) for name, size in zip(names, (0, CACHE_BYTES), strict=True)
    )
    if any(result.prefix_seconds is None for result in having) or any(result.prefix_seconds is not None for result in without):
        return 0.0, False
    answers = [test_predictions(setup, point, name=name) for name in names]
    are_equal = _numbers(without) == _numbers(having) and answers[0].equals(answers[1])
    return _median_seconds(without) / _median_seconds(having), are_equal


def _numbers(results: Sequence[EpochResult]) -> list[tuple[float, ...]]:
    return [tuple(result.columns()[name] for name in NUMBERS) for result in results]


def _median_seconds(results: Sequence[EpochResult]) -> float:
    return statistics.median(result.epoch_seconds for result in results)


if __name__ == "__main__":
    sys.exit(main())
