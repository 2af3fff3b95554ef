"""The look that all figures share: colours, letters and axes."""

from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from tune_lung.families.registry import LOOKS

Floats: TypeAlias = NDArray[np.float64]
"""Plotted values."""

DOTS_PER_INCH = 200
"""Resolution of saved figures."""

STYLE: dict[Any, Any] = {
    "text.usetex": False,
    "text.parse_math": False,  # a name with a dollar sign is a name
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 6.5,
}
"""The look of every figure."""

MODEL_COLOURS = {model: look.colour for model, look in LOOKS.items()}
"""One colour per network, told apart by colour-blind readers (after Okabe and Ito); figures draw them in this order."""

MODEL_LABELS = {model: look.label for model, look in LOOKS.items()}
"""How figures write the networks' names."""

_LOG_FROM_RATIO = 6.0


def scale_log_where_wide(axes: Axes, which: Literal["x", "y"], values: Floats) -> bool:
    """Scale an axis logarithmically where a linear one would press the small values flat.

    Args:
        axes: The panel.
        which: Its axis.
        values: What is drawn along it; those that are not above 0 play no part.

    Returns:
        Whether it is logarithmic now.
    """
    measured = values[np.isfinite(values) & (values > 0)]
    if not len(measured) or measured.max() < _LOG_FROM_RATIO * measured.min():
        return False
    is_wide = measured.max() > 300 * measured.min()
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    axis.set_minor_formatter(NullFormatter())
    return True


def write_ticks_short(axes: Axes, which: Literal["x", "y"]) -> None:
    """Write an axis's ticks as `5 k` and `20 M`."""
    (axes.xaxis if which == "x" else axes.yaxis).set_major_formatter(FuncFormatter(_tick_label))


def _tick_label(value: float, _: int | None = None) -> str:
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
