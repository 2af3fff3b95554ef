"""What a phantom's disease adds to its lungs: one density map for each class."""

from collections.abc import Callable, Mapping

import numpy as np

from tune_lung.data.phantom_anatomy import Chest, Map, smooth_noise, smooth_step

_UNSEEN_SHARE = 0.10
"""Share of the diseased whose finding is too slight to be seen: no reader, and no network, can be right on all."""


def draw_severity(rng: np.random.Generator) -> float:
    """Draw how dense a finding is next to a plain one, 0 (nothing to see) to 1.25."""
    if rng.uniform() < _UNSEEN_SHARE:
        return float(rng.uniform(0, 0.08))
    return float(0.80 + 0.45 * rng.beta(1.3, 1.3))


def ground_glass(rng: np.random.Generator, chest: Chest) -> Map:
    """Draw COVID's finding: haze in both lungs, patchy, along the chest wall and towards the base."""
    outer = smooth_step(chest.depth - rng.uniform(0.42, 0.55), 0.08)
    lower = smooth_step(chest.down - rng.uniform(-0.35, 0.0), 0.2)
    patches = 0.4 + 0.6 * smooth_step(smooth_noise(rng, 7) + 0.4, 0.4)
    haze: Map = 0.36 * outer * (0.5 + 0.5 * lower) * patches
    return haze


def focal_opacity(rng: np.random.Generator, chest: Chest) -> Map:
    """Draw Lung_Opacity's finding: one or two dense patches with uneven borders, anywhere in one lung."""
    opacity = np.zeros_like(chest.lungs)
    side = 1 if rng.uniform() < 0.5 else -1
    inside = np.flatnonzero((chest.lungs > 0.7) & (side * chest.across > 0.2))
    uneven = 0.22 * smooth_noise(rng, 14)
    for _ in range(rng.integers(1, 3)):
        place = rng.choice(inside)
        wide, tall = rng.uniform(0.18, 0.32), rng.uniform(0.18, 0.32)
        reach = ((chest.across - chest.across.flat[place]) / wide) ** 2 + ((chest.down - chest.down.flat[place]) / tall) ** 2
        opacity = np.maximum(opacity, smooth_step(1 - np.sqrt(reach) + uneven, 0.16))
    dense: Map = 0.54 * opacity
    return dense


def interstitial_pattern(rng: np.random.Generator, chest: Chest) -> Map:
    """Draw Viral Pneumonia's finding: a net of fine lines, densest around the hila, with air between them."""
    lines = [1 - np.minimum(np.abs(smooth_noise(rng, cells)) / 0.55, 1) for cells in (11, 16)]
    net = lines[0] + 0.7 * lines[1] - 0.22
    around = 0.35 + 0.65 * smooth_step(rng.uniform(0.6, 0.8) - chest.depth, 0.12)
    pattern: Map = 0.36 * net * around * smooth_step(smooth_noise(rng, 5) + 1.6, 0.4)
    return pattern


def no_finding(rng: np.random.Generator, chest: Chest) -> Map:  # noqa: ARG001 - the form of all findings
    """Draw Normal's finding: none."""
    return np.zeros_like(chest.lungs)


FINDINGS: Mapping[str, Callable[[np.random.Generator, Chest], Map]] = {
    "COVID": ground_glass,
    "Lung_Opacity": focal_opacity,
    "Normal": no_finding,
    "Viral Pneumonia": interstitial_pattern,
}
"""The finding of each class, under the class names of the COVID-19 Radiography Database."""
