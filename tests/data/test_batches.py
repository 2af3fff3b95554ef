import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_lung.data.batches import epoch_batches

RADIOGRAPHY_COUNTS = (640, 380, 230, 98)
LABELS = np.repeat(np.arange(4), RADIOGRAPHY_COUNTS)


def test_balanced_epochs_draw_every_class_a_quarter_of_the_time():
    # Draws of a class are binomial: N draws an epoch with probability 1/4 each. 4 sigmas fail once in 16,000 classes.
    num_epochs = 20
    drawn = torch.cat(
        [batch for seed in range(num_epochs) for batch in epoch_batches(LABELS, batch_size=128, sampling="balanced", seed=seed)]
    )
    total = num_epochs * len(LABELS)
    assert len(drawn) == total
    shares = np.bincount(LABELS[drawn.numpy()], minlength=4) / total
    assert np.abs(shares - 0.25).max() < 4 * math.sqrt(0.25 * 0.75 / total)


def test_balanced_epochs_draw_the_images_of_a_class_equally_often():
    drawn = torch.cat(
        [batch for seed in range(200) for batch in epoch_batches(LABELS, batch_size=128, sampling="balanced", seed=seed)]
    )
    times = np.bincount(drawn.numpy(), minlength=len(LABELS))[LABELS == 3]
    # Chi-squared over 98 images has mean 97 and deviation sqrt(2 * 97) = 13.9; 5 of them.
    assert ((times - times.mean()) ** 2 / times.mean()).sum() < 97 + 5 * 13.9


def test_shuffled_epochs_take_every_image_once():
    batches = epoch_batches(LABELS, batch_size=100, sampling="shuffled", seed=0)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(LABELS)))


@given(st.integers(2, 500), st.integers(2, 200), st.sampled_from(["balanced", "shuffled"]))
def test_batches_are_nearly_equal_and_never_of_one_image(num_images, batch_size, sampling):
    batches = epoch_batches(np.arange(num_images) % 2, batch_size=batch_size, sampling=sampling, seed=1)
    sizes = [len(batch) for batch in batches]
    assert sum(sizes) == num_images
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2
    if num_images >= 2 * math.ceil(num_images / batch_size):
        assert len(sizes) == math.ceil(num_images / batch_size)


def test_the_seed_alone_decides_the_draw():
    state = torch.random.get_rng_state()
    first = torch.cat(epoch_batches(LABELS, batch_size=64, sampling="balanced", seed=7))
    assert torch.equal(first, torch.cat(epoch_batches(LABELS, batch_size=64, sampling="balanced", seed=7)))
    assert not torch.equal(first, torch.cat(epoch_batches(LABELS, batch_size=64, sampling="balanced", seed=8)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_one_image_or_batches_of_one_are_refused():
    with pytest.raises(ValueError, match="needs 2 images"):
        epoch_batches(np.zeros(1, np.int64), batch_size=4, sampling="shuffled", seed=0)
    with pytest.raises(ValueError, match="batch size of 2"):
        epoch_batches(LABELS, batch_size=1, sampling="shuffled", seed=0)
