import pytest
import torch
from torch import nn

from tune_lung.families.cnn import CnnConfig
from tune_lung.families.resnet import ResNetConfig
from tune_lung.models.architectures import architecture_of
from tune_lung.models.freezing import FrozenPrefix, freeze_stages, set_prefix_statistics
from tune_lung.models.network import build_network, trainable_parameters
from tune_lung.models.weights import RANDOM_WEIGHTS


def built(frozen_blocks, protocol="strict", model="resnet18"):
    config = ResNetConfig(model=model, frozen_blocks=frozen_blocks, weights="random")
    return build_network(config, protocol=protocol, num_classes=4, image_size=32, weights=RANDOM_WEIGHTS, seed=0)


def noise(num_images=4, size=32, seed=0):
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(seed))


def copied_state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def train_one_step(network):
    network.train()
    optimizer = torch.optim.SGD(trainable_parameters(network), lr=0.1)
    nn.functional.cross_entropy(network(noise()), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()


def changed_stages(network):
    """Name the stages of which a weight, and those of which a batch-norm statistic, changes in a training step."""
    before = copied_state(network)
    train_one_step(network)
    changed = [name.split(".") for name, tensor in network.state_dict().items() if not torch.equal(before[name], tensor)]
    weights = {parts[1] for parts in changed if parts[-1] in ("weight", "bias")}
    return weights, {parts[1] for parts in changed if parts[-1] in ("running_mean", "running_var")}


def test_strict_step_changes_nothing_in_the_prefix():
    weights, statistics = changed_stages(built(2))
    assert weights == {"layer3", "layer4", "fc"}
    assert statistics == {"layer3", "layer4"}


def test_published_step_trains_the_stem_and_goes_on_counting_statistics_in_frozen_blocks():
    weights, statistics = changed_stages(built(2, "published"))
    assert weights == {"conv1", "bn1", "layer3", "layer4", "fc"}
    assert statistics == {"bn1", "layer1", "layer2", "layer3", "layer4"}


@pytest.mark.parametrize(("protocol", "frozen_blocks"), [("strict", 0), ("published", 0), ("published", 4)])
def test_network_without_a_frozen_prefix_has_an_empty_one(protocol, frozen_blocks):
    network = built(frozen_blocks, protocol)
    assert not network.has_frozen_prefix
    assert isinstance(network.prefix, nn.Identity)


def test_strict_zero_freezes_nothing():
    assert all(parameter.requires_grad for parameter in built(0).parameters())


def test_prefix_stays_in_eval_while_the_rest_trains():
    network = built(1)
    network.train()
    assert not any(module.training for module in network.prefix.modules())
    assert all(module.training for module in network.rest.modules())


def test_prefix_is_a_pure_function_of_each_image_alone():
    network = built(2)
    network.train()
    images = noise()
    first = network.prefix(images)
    network(noise(seed=1))
    assert not network.prefix(noise().requires_grad_()).requires_grad
    assert torch.equal(network.prefix(images), first)
    torch.testing.assert_close(network.prefix(images[:1]), first[:1])  # other images of the batch play no part


def test_rest_on_kept_features_equals_the_whole_network():
    network = built(3).eval()
    images = noise()
    assert torch.equal(network.rest(network.prefix(images)), network(images))


def test_frozen_random_prefix_explodes_until_its_statistics_are_set():
    network = built(4, model="resnet34")
    images = noise(16, size=64)
    assert network.prefix(images).std() > 10
    set_prefix_statistics(network.prefix, images.split(8))
    # The last ReLU adds a normalised branch to a shortcut that adds up over the block's units.
    assert 0.3 < network.prefix(noise(16, size=64, seed=1)).std() < 3


def test_prefix_statistics_of_the_first_layer_are_the_average_over_all_images_in_uneven_batches():
    network = built(1)
    images = noise(7)
    set_prefix_statistics(network.prefix, (images[:5], images[5:]))
    maps = network.prefix.conv1(images)
    torch.testing.assert_close(network.prefix.bn1.running_mean, maps.mean(dim=(0, 2, 3)))
    variances = [maps[part].var(dim=(0, 2, 3)) for part in (slice(0, 5), slice(5, 7))]
    torch.testing.assert_close(network.prefix.bn1.running_var, (5 * variances[0] + 2 * variances[1]) / 7)


def test_setting_statistics_twice_gives_the_same_and_leaves_weights_rest_and_modes_alone():
    network = built(2)
    before = copied_state(network)
    set_prefix_statistics(network.prefix, noise().split(2))
    once = copied_state(network)
    set_prefix_statistics(network.prefix, noise().split(2))
    twice = copied_state(network)
    counters = [name for name in once if name.endswith("num_batches_tracked")]
    assert all(torch.equal(once[name], twice[name]) for name in once if name not in counters)
    untouched = [name for name in before if "running" not in name and name not in counters] + ["rest.fc.weight"]
    assert all(torch.equal(before[name], once[name]) for name in untouched)
    assert not any(module.training for module in network.prefix.modules())
    assert network.prefix.bn1.momentum == 0.1


def test_setting_statistics_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no batch"):
        set_prefix_statistics(built(1).prefix, [])
    with pytest.raises(TypeError, match="has none"):
        set_prefix_statistics(built(0).prefix, [noise()])


def test_cnn_has_no_frozen_prefix():
    cnn = CnnConfig(channels=(4,), kernel_sizes=(3,))
    network = build_network(cnn, protocol="strict", num_classes=2, image_size=32, weights=None, seed=0)
    assert not network.has_frozen_prefix


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(ValueError, match="frozen_blocks must be 0 to 4, not 5"):
        architecture_of("resnet18").prefix_stages(5)


def test_frozen_prefix_takes_the_stem_and_the_blocks_in_order():
    resnet = architecture_of("resnet18")
    stages = resnet.stages(ResNetConfig())
    prefix = freeze_stages(stages, prefix=resnet.prefix_stages(2), stem=resnet.stem, protocol="strict")
    assert isinstance(prefix, FrozenPrefix)
    assert [name for name, _ in prefix.named_children()] == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]
    assert list(stages) == ["layer3", "layer4"]
