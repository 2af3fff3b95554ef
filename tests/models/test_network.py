import pytest
import torch

from tune_lung.families.cnn import CnnConfig, CnnShape
from tune_lung.families.resnet import ResNetConfig
from tune_lung.models.network import (
    build_network,
    changing_state,
    count_parameters,
    load_changing_state,
    trainable_parameters,
)
from tune_lung.models.weights import RANDOM_WEIGHTS

# Of the paper's logs (total and trainable parameters, 4 classes), k = 0..4 frozen blocks.
PUBLISHED_CNN = 1_605_316
PUBLISHED = {
    "resnet18": (11_178_564, 11_030_596, 10_505_028, 8_405_316, 11_588),
    "resnet34": (21_286_724, 21_064_772, 19_948_356, 13_125_956, 11_588),
}
# Under strict the stem (conv1 9,408 and bn1 128) is frozen with the first block; at k = 4 only 512 x 4 + 4 are left.
STRICT = {
    "resnet18": (11_178_564, 11_021_060, 10_495_492, 8_395_780, 2_052),
    "resnet34": (21_286_724, 21_055_236, 19_938_820, 13_116_420, 2_052),
}


def built(config, *, protocol="strict", num_classes=4, image_size=32, seed=0):
    return build_network(
        config, protocol=protocol, num_classes=num_classes, image_size=image_size, weights=RANDOM_WEIGHTS, seed=seed
    )


def random_resnet(frozen_blocks=0, model="resnet18"):
    return ResNetConfig(model=model, frozen_blocks=frozen_blocks, weights="random")


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_cnn_has_the_parameters_of_the_paper(protocol):
    assert count_parameters(built(CnnConfig(), protocol=protocol, image_size=128)) == (PUBLISHED_CNN, PUBLISHED_CNN)


@pytest.mark.parametrize(("protocol", "expected"), [("published", PUBLISHED), ("strict", STRICT)])
@pytest.mark.parametrize("model", ["resnet18", "resnet34"])
@pytest.mark.parametrize("frozen_blocks", range(5))
def test_resnets_train_as_many_parameters_as_the_protocol_says(model, frozen_blocks, protocol, expected):
    with torch.device("meta"):  # shapes are enough to count
        network = built(random_resnet(frozen_blocks, model), protocol=protocol)
    assert count_parameters(network) == (expected[model][0], expected[model][frozen_blocks])


@pytest.mark.parametrize(("model", "backbone"), [("resnet50", 23_508_032), ("resnet101", 42_500_160), ("resnet152", 58_143_808)])
def test_deep_resnets_have_a_head_of_two_layers(model, backbone):
    with torch.device("meta"):
        network = built(random_resnet(model=model))
    # torchvision's documented totals less its own head of 2,049,000; ours is 2048 -> 1024 -> 4 with biases.
    assert count_parameters(network).total == backbone + (2048 * 1024 + 1024) + (1024 * 4 + 4)


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        (CnnConfig(channels=(4, 8), kernel_sizes=(5, 3)), 1),
        (CnnConfig(channels=(4, 8), kernel_sizes=(5, 3), padding="same"), 1),
        (random_resnet(), 3),
        (random_resnet(model="resnet50", frozen_blocks=4), 3),
    ],
)
def test_network_gives_one_row_of_logits_an_image(config, channels):
    network = built(config, num_classes=3)
    assert network.in_channels == channels
    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 3)


def test_derived_cnn_has_the_head_of_its_last_stage_alone_at_every_image_size():
    shape = CnnShape(depth=3, base_channels=4, channel_growth=1.5)
    config = CnnConfig(channels=shape.channels, kernel_sizes=shape.kernel_sizes, padding="same", shape=shape)
    assert config.channels == (4, 6, 9)
    for image_size in (16, 64):
        network = built(config, image_size=image_size)
        assert network.rest.fc.in_features == 9
        assert network(torch.zeros(2, 1, image_size, image_size)).shape == (2, 4)


def test_cnn_stage_is_conv_relu_norm_pool_relu():
    stage = built(CnnConfig(channels=(4,), kernel_sizes=(5,))).rest.stage1
    assert [type(layer).__name__ for layer in stage] == ["Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d", "ReLU"]


def test_cnn_head_starts_within_the_bounds_of_xavier():
    weight = built(CnnConfig(), image_size=128).rest.fc.weight
    bound = (6 / (512 + 4)) ** 0.5  # Glorot and Bengio's eq. 16; torch's own start would stay within 1 / sqrt(512)
    assert 0.95 * bound < weight.abs().max() <= bound


def test_too_small_image_for_the_cnn_is_refused():
    # Backwards from a map of 1 pixel: 1, 4, 10, 22, 48, 100.
    with pytest.raises(ValueError, match="image_size must be at least 100 for this CNN, not 99"):
        built(CnnConfig(), image_size=99)


def test_resnet_without_weights_is_refused():
    with pytest.raises(ValueError, match="resnet18 needs weights"):
        build_network(random_resnet(), protocol="strict", num_classes=4, image_size=32, weights=None, seed=0)


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_random_backbone_and_head_do_not_depend_on_what_is_frozen(protocol):
    def plain_names(network):
        return {name.partition(".")[2]: tensor for name, tensor in network.state_dict().items()}

    free, frozen = (plain_names(built(random_resnet(blocks), protocol=protocol)) for blocks in (0, 3))
    assert free.keys() == frozen.keys()
    assert all(torch.equal(free[name], frozen[name]) for name in free)


def test_backbone_does_not_depend_on_the_number_of_classes():
    few, many = (built(random_resnet(), num_classes=classes) for classes in (2, 15))
    assert torch.equal(few.rest.layer4[1].conv2.weight, many.rest.layer4[1].conv2.weight)


@pytest.mark.parametrize("config", [CnnConfig(channels=(4,), kernel_sizes=(3,)), random_resnet()])
def test_seed_decides_the_start(config):
    first, again, other = (built(config, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    for name in ("fc.weight", next(name for name, _ in first.rest.named_parameters())):
        assert not torch.equal(first.rest.get_parameter(name), other.rest.get_parameter(name))


def test_building_leaves_the_global_generator_where_it_was():
    before = torch.get_rng_state()
    built(random_resnet())
    built(CnnConfig(channels=(4,), kernel_sizes=(3,)))
    assert torch.equal(torch.get_rng_state(), before)


def test_trainable_parameters_are_those_outside_the_prefix():
    network = built(random_resnet(frozen_blocks=2))
    trained = {id(parameter) for parameter in trainable_parameters(network)}
    assert trained == {id(parameter) for parameter in network.rest.parameters()}


@pytest.mark.parametrize("protocol", ["strict", "published"])
@pytest.mark.parametrize("frozen_blocks", [0, 2])
def test_a_network_comes_back_from_its_start_and_what_training_may_change(protocol, frozen_blocks):
    trained, again = (built(random_resnet(frozen_blocks), protocol=protocol) for _ in range(2))
    with torch.no_grad():
        for parameter in trainable_parameters(trained):
            parameter += 1
        for name, buffer in trained.named_buffers():
            if not name.endswith("num_batches_tracked"):
                buffer += 0.5
    load_changing_state(again, changing_state(trained))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in trained.state_dict().items())


def test_what_training_may_change_leaves_out_frozen_parameters_and_nothing_else():
    network = built(random_resnet(3), protocol="published")
    left_out = network.state_dict().keys() - changing_state(network).keys()
    assert left_out == {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert any(name.startswith("rest.layer1") for name in left_out)


def test_another_networks_state_is_refused():
    with pytest.raises(ValueError, match="belong to another network"):
        load_changing_state(built(random_resnet(2)), changing_state(built(random_resnet(3))))
