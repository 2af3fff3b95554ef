"""Random changes of training images."""

import torch

from tune_lung.training.augmentation import AUGMENTERS, Augmenter


def draws(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def test_nothing_changes_when_every_limit_is_zero() -> None:
    images_N1HW = torch.rand(3, 1, 16, 16, generator=draws())
    still = Augmenter(shift=0, flip_probability=0, turn_degrees=0, zoom=0, contrast=0)
    assert torch.allclose(still(images_N1HW, draws(1)), images_N1HW, atol=1e-5)


def test_a_sure_flip_mirrors_left_and_right() -> None:
    images_N1HW = torch.rand(3, 1, 16, 16, generator=draws())
    mirror = Augmenter(shift=0, flip_probability=1.1, turn_degrees=0, zoom=0, contrast=0)
    assert torch.allclose(mirror(images_N1HW, draws(1)), images_N1HW.flip(-1), atol=1e-5)


def test_the_same_draws_give_the_same_images_and_stay_in_range() -> None:
    images_N1HW = torch.rand(4, 1, 16, 16, generator=draws())
    first, second = (AUGMENTERS["strong"](images_N1HW, draws(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert 0 <= first.min() <= first.max() <= 1
    assert not torch.allclose(first, images_N1HW)
