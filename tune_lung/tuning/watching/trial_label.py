"""What a trial is called on one line: its cell and what was sampled in it, as much of it as there is room for."""

import re
from collections.abc import Mapping

from tune_lung.families.family import PointValue

_SHORT_NAMES = {
    "augmentation": "augment",
    "base_channels": "base",
    "batch_sampling": "sampling",
    "batch_size": "batch",
    "channel_growth": "growth",
    "first_kernel_size": "kernel",
    "frozen_blocks": "frozen",
    "kernel_sizes": "kernels",
    "label_smoothing": "smoothing",
    "learning_rate": "lr",
    "learning_rate_schedule": "schedule",
    "weight_decay": "wd",
}


def trial_label(cell: str, sampled: Mapping[str, PointValue | None], *, width: int | None = None) -> str:
    """Name a trial, such as `resnet18 frozen_blocks=2 lr 1.2e-3 batch 32`.

    Args:
        cell: Its cell's name. Where room is short, the names of its fields become short ones.
        sampled: The sampled values by field, in the order they are shown.
        width: Room in characters, at least 1; None for as much as it takes.

    Returns:
        The label. What does not fit is left out value by value from the end, never within a number, and `…` stands for it.
    """
    pairs = [f"{_SHORT_NAMES.get(name, name)} {short_value(value)}" for name, value in sampled.items()]
    label = " ".join([cell, *pairs])
    if width is None or len(label) <= width:
        return label
    label = " ".join([*_shortened(cell), *pairs])
    return label if len(label) <= width else _cropped([*_shortened(cell), *pairs], width)


def short_value(value: PointValue | None) -> str:
    """Write a value in few characters: real numbers with at most three digits."""
    if isinstance(value, float):
        return _short_number(value)
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _short_number(number: float) -> str:
    if number == 0 or 0.1 <= abs(number) < 1000:
        return f"{number:.3g}"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _shortened(cell: str) -> list[str]:
    """Split a cell's name into its network and its `field=value` parts, their fields in short."""
    return [re.sub(r"^\w+(?==)", lambda found: _SHORT_NAMES.get(found[0], found[0]), part) for part in cell.split(" ")]


def _cropped(parts: list[str], width: int) -> str:
    kept = parts[0]
    for part in parts[1:]:
        if len(kept) + len(part) + 2 > width:  # a space before it, and room for the sign that something is missing
            break
        kept += f" {part}"
    return f"{kept[: width - 1]}…"
