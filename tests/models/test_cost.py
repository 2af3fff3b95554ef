import pytest
import torch

from tune_lung.families.cnn import CnnConfig
from tune_lung.families.resnet import ResNetConfig
from tune_lung.models.cost import mult_adds
from tune_lung.models.network import build_network
from tune_lung.models.weights import RANDOM_WEIGHTS


def built(config, image_size=128):
    return build_network(config, protocol="strict", num_classes=4, image_size=image_size, weights=RANDOM_WEIGHTS, seed=0)


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (CnnConfig(), 36.53e9),
        (ResNetConfig(model="resnet18", weights="random", frozen_blocks=2), 75.80e9),
        (ResNetConfig(model="resnet34", weights="random"), 153.11e9),
    ],
)
def test_mult_adds_agree_with_the_papers_batch_of_128(config, published):
    # The paper's figures also count the additions of biases and batch norm: 0.3% of the CNN's.
    assert 128 * mult_adds(built(config), 128) == pytest.approx(published, rel=0.01)


def test_mult_adds_of_one_stage_are_counted_by_hand():
    config = CnnConfig(channels=(4,), kernel_sizes=(3,))
    # 6 x 6 positions of a 3 x 3 kernel from 1 to 4 channels; then 3 x 3 x 4 features to 4 classes.
    assert mult_adds(built(config, image_size=8), 8) == 6 * 6 * 9 * 4 + 36 * 4


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_network_as_it_was(training):
    network = built(ResNetConfig(weights="random", frozen_blocks=1), 32).train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    mult_adds(network, 32)
    assert network.training is training
    assert not network.prefix.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
