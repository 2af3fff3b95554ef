"""What every family owes to those who ask it: one contract, for each of its models."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from tune_lung.config import FIELD_TYPES, RunConfig, TrialConfig
from tune_lung.errors import InputError
from tune_lung.families.networks import NETWORKS
from tune_lung.families.registry import FAMILIES, LOOKS, MODELS, family_of
from tune_lung.models.architectures import architecture_of, backbone_of
from tune_lung.models.network import Network, build_network, changing_state, network_outline, stages_after_blocks
from tune_lung.models.precision import autocast
from tune_lung.models.weights import RANDOM_WEIGHTS, resolve_weights

SIZE = 32
NETWORK_MODELS = [model for family in NETWORKS for model in family.models]
BACKBONES = [model for model in MODELS if family_of(model).takes_weights]
SMALL_ONE_OF_EACH = [next(iter(family.models)) for family in FAMILIES if family.takes_weights]
CPU = torch.device("cpu")


def trial_of(model: str, **fields) -> TrialConfig:
    padded = {"padding": "same"} if "padding" in family_of(model).field_types else {}
    return TrialConfig.from_point({"model": model, **padded, **fields})


def built(model: str, *, seed: int = 3, protocol: str = "strict", weights=RANDOM_WEIGHTS, **fields) -> Network:
    network = trial_of(model, **fields).network
    return build_network(network, protocol=protocol, num_classes=4, image_size=SIZE, weights=weights, seed=seed)


def images_of(model: str, number: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.rand(number, family_of(model).in_channels, SIZE, SIZE, generator=generator)


def test_every_model_has_a_look_of_its_own():
    assert len({look.colour.lower() for look in LOOKS.values()}) == len({look.label for look in LOOKS.values()}) == len(MODELS)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("model", MODELS)
def test_a_trial_comes_back_from_its_columns(model):
    trial = trial_of(model, **({"frozen_blocks": 2} if family_of(model).num_blocks else {}))
    columns = trial.columns()
    assert list(columns) == list(FIELD_TYPES)
    assert {name for name in columns if columns[name] is None} >= FIELD_TYPES.keys() - family_of(model).field_types - {
        "model",
        *TrialConfig.__dataclass_fields__,
    }
    assert TrialConfig.from_point({name: value for name, value in columns.items() if value is not None}) == trial
    assert trial.network.with_nothing_frozen().frozen_blocks == 0
    assert len({trial.network, trial.network}) == 1


@pytest.mark.parametrize("model", MODELS)
def test_a_field_of_other_families_is_refused(model):
    foreign = next(name for family in FAMILIES for name in family.field_types if name not in family_of(model).field_types)
    value = {str: "same", int: 3, float: 2.0, tuple: [3]}[FIELD_TYPES[foreign]]
    with pytest.raises(InputError, match=f"{foreign} does not apply to {model}"):
        TrialConfig.from_point({"model": model, foreign: value})


@pytest.mark.parametrize("model", NETWORK_MODELS)
def test_its_networks_answer_and_know_no_number_of_the_global_generator(model):
    state = torch.get_rng_state()
    network = network_outline(trial_of(model).network, protocol="strict", num_classes=4, image_size=SIZE)
    assert network(torch.empty(2, family_of(model).in_channels, SIZE, SIZE, device="meta")).shape == (2, 4)
    if model in (*SMALL_ONE_OF_EACH, "cnn"):
        one, same, other = built(model), built(model), built(model, seed=4)
        pairs = zip(one.parameters(), same.parameters(), other.parameters(), strict=True)
        drawn = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in pairs if a.min() < a.max()]
        assert all(is_same for is_same, _ in drawn)
        assert not any(is_other for _, is_other in drawn)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("model", NETWORK_MODELS)
def test_the_smallest_image_that_it_takes_gives_an_answer(model):
    network, sizes = trial_of(model).network, range(16, 257, 16)

    def is_refused(size: int) -> bool:
        try:
            RunConfig(image_size=size).check_fits(trial_of(model))
        except InputError:
            return True
        return False

    size = next(size for size in sizes if not is_refused(size))
    assert size <= SIZE
    outline = network_outline(network, protocol="strict", num_classes=4, image_size=size)
    assert outline(torch.empty(2, outline.in_channels, size, size, device="meta")).shape == (2, 4)


@pytest.mark.parametrize("model", BACKBONES)
def test_blocks_are_frozen_one_after_the_other_from_the_stem_on(model):
    architecture, num_blocks = architecture_of(model), family_of(model).num_blocks
    assert len(architecture.blocks) == num_blocks
    prefixes = [architecture.prefix_stages(number) for number in range(num_blocks + 1)]
    assert prefixes[0] == ()
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(prefixes))
    with torch.device("meta"):
        assert tuple(architecture.stages(trial_of(model).network))[: len(prefixes[-1])] == prefixes[-1]
    trainable = []
    for number in range(num_blocks + 1):
        outline = network_outline(
            trial_of(model, frozen_blocks=number).network, protocol="strict", num_classes=4, image_size=SIZE
        )
        assert outline.has_frozen_prefix == (number > 0)
        trainable.append(sum(parameter.numel() for parameter in outline.parameters() if parameter.requires_grad))
    assert all(fewer < more for more, fewer in itertools.pairwise(trainable))
    with pytest.raises(InputError, match="frozen_blocks must be 0 to"):
        trial_of(model, frozen_blocks=num_blocks + 1)


@pytest.mark.parametrize("model", SMALL_ONE_OF_EACH)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_prefix_is_a_pure_function_whose_stored_output_changes_nothing(model, precision):
    images = images_of(model, 3)
    whole = built(model, frozen_blocks=2).train()
    stored_as = torch.bfloat16 if precision == "bf16" else torch.float32
    before = {name: tensor.clone() for name, tensor in whole.prefix.state_dict().items()}
    with autocast(CPU, precision):
        features, again = whole.prefix(images), whole.prefix(images)
    assert features.dtype == stored_as
    assert torch.equal(features, again)
    assert not features.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.prefix.state_dict().items())
    shallower = built(model, frozen_blocks=1).eval()
    with autocast(CPU, precision):
        rest = stages_after_blocks(trial_of(model, frozen_blocks=2).network, whole.prefix, 1)
        with torch.no_grad():
            assert torch.equal(rest(shallower.prefix(images)).to(stored_as), features)


@pytest.mark.parametrize("model", SMALL_ONE_OF_EACH)
def test_published_freezes_weights_alone(model):
    network = built(model, frozen_blocks=1, protocol="published")
    assert not network.has_frozen_prefix
    stem = architecture_of(model).stem
    names = architecture_of(model).prefix_stages(1)
    frozen = {name.split(".")[1] for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == set(names) - set(stem)


@pytest.mark.parametrize("model", SMALL_ONE_OF_EACH)
def test_torchvisions_weights_give_torchvisions_features(model, tmp_path: Path):
    with torch.random.fork_rng():
        own = get_model(model, weights=None).eval()
    torch.save(own.state_dict(), tmp_path / f"{model}.pth")
    source = resolve_weights(str(tmp_path / f"{model}.pth"), [model])[model]
    network = built(model, weights=source).eval()
    images = images_of(model)
    stages = nn.Sequential(*list(network.rest.children())[: len(architecture_of(model).prefix_stages(4))])
    with torch.no_grad():
        row = own.features if hasattr(own, "features") else nn.Sequential(*list(own.children())[:-2])
        assert torch.equal(stages(images), row(images))
    assert not any(name.startswith(backbone_of(model).own_head) for name in changing_state(network))


@pytest.mark.parametrize("model", SMALL_ONE_OF_EACH)
def test_weights_of_another_network_are_refused_in_one_line(model, tmp_path: Path):
    other = "resnet34" if model == "resnet18" else "resnet18"
    with torch.random.fork_rng():
        torch.save(get_model(other, weights=None).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=rf"^weights\.pth does not fit {model}: "):
        resolve_weights(str(tmp_path / "weights.pth"), [model])
