"""The chest of a phantom: geometry and density maps of one synthetic frontal radiograph without any finding.

Maps are arrays (H, W) of 112 x 112 samples. `across` runs from -1 at the image's left edge to 1 at its right, `down` from -1 at
the top to 1 at the bottom; the patient faces the reader, so the heart lies towards positive `across`. Densities are what
the X-rays lose: more is whiter.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

MAP_SIZE = 112
"""Samples of a map's side; the finished image has more pixels, and finer grain."""

Map: TypeAlias = npt.NDArray[np.floating[Any]]

_AXIS = np.linspace(-1, 1, MAP_SIZE, dtype=np.float32)
_ACROSS, _DOWN = np.meshgrid(_AXIS, _AXIS)


@dataclass(frozen=True, kw_only=True)
class Chest:
    """One person's chest, as it stands before the detector."""

    across: Map
    """Position in the body's own frame, turned, shifted and scaled by the pose."""
    down: Map
    """The same, downwards."""
    lungs: Map
    """Share of lung, 0 to 1."""
    depth: Map
    """Depth into the lung field: 0 at the hilum, 1 at the chest wall."""
    density: Map
    """Density of everything healthy."""


def smooth_step(distance: Map, softness: float) -> Map:
    """Turn a signed distance into a share: 0 far below zero, 1 far above, over about `softness`."""
    share: Map = 1 / (1 + np.exp(np.clip(-distance / softness, -30, 30)))
    return share


def smooth_noise(rng: np.random.Generator, cells: int) -> Map:
    """Draw a smooth random map of mean 0 and deviation about 1, with `cells` bumps a side."""
    coarse = Image.fromarray(rng.standard_normal((cells + 3, cells + 3), dtype=np.float32))
    fine = np.asarray(coarse.resize((MAP_SIZE, MAP_SIZE), Image.Resampling.BICUBIC))
    return fine / np.float32(fine.std() + 1e-6)


def draw_chest(rng: np.random.Generator) -> Chest:
    """Draw one healthy chest.

    Args:
        rng: Source of everything that differs from person to person: build, pose, breath, age.

    Returns:
        Its geometry and densities.
    """
    across, down = _posed(rng)
    beside = np.abs(across)
    heart = _heart(rng, across, down)
    below = _diaphragm(rng, across, down)
    lungs = _lung_fields(rng, beside, down) * smooth_step(-below, 0.014) * (1 - heart)
    hilum_distance = np.sqrt(((beside - 0.14) / 0.60) ** 2 + ((down - 0.02) / 0.75) ** 2)
    organs = np.maximum(rng.uniform(0.11, 0.17) * heart, rng.uniform(0.06, 0.14) * smooth_step(below, 0.02))
    bones = _ribs(rng, beside, down) + _collarbones(rng, beside, down) + _spine(rng, across, down) * (1 - 0.5 * heart)
    density = (
        0.60
        - rng.uniform(0.38, 0.44) * lungs
        + organs
        + bones * (0.45 + 0.55 * lungs)
        + _vessels(rng, across, down, hilum_distance) * lungs
        + _soft_tissue(rng, across, down)
    )
    return Chest(across=across, down=down, lungs=lungs, depth=np.clip(hilum_distance, 0, 1.2), density=density)


def _lung_fields(rng: np.random.Generator, beside: Map, down: Map) -> Map:
    """Draw both lungs without base and heart: domes at the top, widest under the armpits."""
    width, centre, height = rng.uniform(0.36, 0.43), rng.uniform(0.39, 0.44), rng.uniform(0.74, 0.92)
    taper = 0.70 + 0.30 * np.clip((down + 0.85) / 1.15, 0, 1) ** 0.8
    reach = ((beside - centre * taper) / (width * taper)) ** 2 + np.abs((down - 0.14) / height) ** 3.5
    return smooth_step(1 - np.sqrt(reach), 0.03)


def _diaphragm(rng: np.random.Generator, across: Map, down: Map) -> Map:
    """Measure how far each sample lies under the diaphragm, whose left dome is the lower one."""
    level = rng.uniform(0.42, 0.66) + rng.uniform(0.0, 0.07) * smooth_step(across, 0.05)
    dome: Map = down - level - rng.uniform(0.6, 1.2) * (np.abs(across) - rng.uniform(0.32, 0.40)) ** 2
    return dome


def _posed(rng: np.random.Generator) -> tuple[Map, Map]:
    """Turn, shift, scale and shear the body's frame."""
    angle = np.float32(np.deg2rad(rng.normal(0, 2)))
    across = (_ACROSS - rng.normal(0, 0.03)) * rng.uniform(0.92, 1.06)
    down = (_DOWN - rng.normal(0, 0.035)) * rng.uniform(0.92, 1.06)
    turned = across * np.cos(angle) - down * np.sin(angle)
    bent = 0.03 * rng.normal() * np.sin(2.2 * down + rng.uniform(0, 3))
    return (turned + bent).astype(np.float32), (across * np.sin(angle) + down * np.cos(angle)).astype(np.float32)


def _heart(rng: np.random.Generator, across: Map, down: Map) -> Map:
    """Draw heart and great vessels: one soft shadow that sinks into the diaphragm."""
    size = rng.uniform(0.82, 1.18)
    tilt = rng.uniform(0.3, 0.7)
    over = down - 0.28 - tilt * (across - 0.12)
    over = np.where(over > 0, 0.5 * over, over)
    left = 1 - np.sqrt(((across - 0.10 + 0.2 * (down - 0.28)) / (0.30 * size)) ** 2 + (over / (0.27 * size)) ** 2)
    right = 1 - np.sqrt(((across + 0.05) / (0.15 * size)) ** 2 + ((down - 0.30) / 0.34) ** 2)
    reach = 0.10 + rng.uniform(0.03, 0.06) * np.exp(-(((down + 0.24) / 0.09) ** 2)) + 0.05 * smooth_step(down - 0.05, 0.08)
    vessels = smooth_step((reach - np.abs(across - 0.02)) * 4, 0.07) * smooth_step(down + 0.9, 0.15)
    heart: Map = np.maximum(smooth_step(np.maximum(left, right), 0.045), vessels)
    return heart


def _ribs(rng: np.random.Generator, beside: Map, down: Map) -> Map:
    """Draw the rear ribs, which fall outwards, and fainter front ribs, which fall inwards."""
    spacing = rng.uniform(0.150, 0.185)
    rear = down - rng.uniform(0.10, 0.40) * beside + rng.uniform(0.5, 1.0) * (beside - 0.30) ** 2
    front = down + rng.uniform(0.35, 0.7) * beside - 0.3 * beside**2
    cage = smooth_step(0.86 - beside, 0.03) * smooth_step(beside - 0.08, 0.02)
    strength = rng.uniform(0.02, 0.045)
    rear_bands = _bands(rear / spacing + rng.uniform())
    front_bands = _bands(front / (spacing * 1.15) + rng.uniform()) * smooth_step(beside - 0.22, 0.05)
    ribs: Map = strength * cage * smooth_step(0.75 - down, 0.1) * (rear_bands + rng.uniform(0.25, 0.55) * front_bands)
    return ribs


def _bands(phase: Map) -> Map:
    """Profile of one rib a unit of phase: a plateau with denser edges."""
    offset = np.abs(phase - np.floor(phase) - 0.5)
    bands: Map = smooth_step(0.24 - offset, 0.035) * (0.7 + 1.6 * offset)
    return bands


def _collarbones(rng: np.random.Generator, beside: Map, down: Map) -> Map:
    height = rng.uniform(-0.78, -0.62)
    line = down - height + rng.uniform(0.08, 0.30) * (beside - 0.1) - 0.10 * np.sin(4.5 * beside)
    bone: Map = 0.10 * np.exp(-((line / 0.035) ** 4)) * smooth_step(beside - 0.09, 0.02)
    return bone


def _spine(rng: np.random.Generator, across: Map, down: Map) -> Map:
    vertebrae = 0.8 + 0.2 * np.cos(2 * np.pi * down / rng.uniform(0.13, 0.16) + rng.uniform(0, 6))
    column = smooth_step(0.085 - np.abs(across), 0.02) * vertebrae
    windpipe = smooth_step(0.035 - np.abs(across + 0.01), 0.012) * smooth_step(-0.18 - down, 0.03)
    spine: Map = rng.uniform(0.07, 0.13) * column - 0.11 * windpipe
    return spine


def _vessels(rng: np.random.Generator, across: Map, down: Map, hilum_distance: Map) -> Map:
    """Draw vessels that leave the hilum like rays, branch and fade: noise in polar coordinates around it."""
    columns, rings = 76, 7
    rays = rng.standard_normal(rings * columns, dtype=np.float32)
    angle = np.arctan2(down - 0.02, np.abs(across) - 0.12) * np.float32(0.5 / np.pi) + np.float32(0.5)
    column = (angle * 0.5 + np.float32(0.5) * (across > 0)) * (columns - 2)
    ring = np.minimum(hilum_distance * 5, 5.99)
    near = ring.astype(np.int32) * columns + column.astype(np.int32)
    share, ring_share = column % 1, ring % 1
    inner = rays[near] * (1 - share) + rays[near + 1] * share
    outer = rays[near + columns] * (1 - share) + rays[near + columns + 1] * share
    streaks = np.clip(inner * (1 - ring_share) + outer * ring_share, -0.4, 2.2)
    hilum = np.exp(-((hilum_distance / 0.22) ** 2))
    vessels: Map = rng.uniform(0.015, 0.035) * streaks * np.exp(-1.3 * hilum_distance) + rng.uniform(0.06, 0.13) * hilum
    return vessels


def _soft_tissue(rng: np.random.Generator, across: Map, down: Map) -> Map:
    """Draw chest wall, shoulders, breasts and the uneven rest."""
    beside = np.abs(across)
    outline = rng.uniform(0.93, 1.15) + 0.25 * smooth_step(-0.45 - down, 0.05)
    wall = 0.06 * smooth_step(beside - 0.84, 0.03) - 0.55 * smooth_step(beside - outline, 0.015)
    shoulders = 0.12 * smooth_step(beside - 0.62 - 0.35 * (down + 0.75), 0.08)
    reach = ((beside - 0.45) / 0.34) ** 2 + ((down - rng.uniform(0.25, 0.45)) / 0.36) ** 2
    breasts = rng.uniform(0, 0.05) * smooth_step(1 - reach, 0.12)
    uneven = 0.015 * smooth_noise(rng, 3) + 0.008 * smooth_noise(rng, 9) + 0.008 * smooth_noise(rng, 30)
    tissue: Map = wall + shoulders + breasts + uneven + rng.normal(0, 0.03) * across + rng.normal(0, 0.03) * down
    return tissue
