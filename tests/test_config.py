import json
from dataclasses import FrozenInstanceError, replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tune_lung.config import BUDGET_FIELDS, FIELD_TYPES, RunConfig, TrialConfig, checked_value, point_id, value_from_text
from tune_lung.errors import InputError
from tune_lung.families.cnn import CnnConfig, CnnShape
from tune_lung.families.registry import FAMILIES
from tune_lung.families.resnet import RESNET

shapes = st.builds(
    CnnShape,
    depth=st.integers(2, 7),
    base_channels=st.integers(4, 256),
    channel_growth=st.floats(1, 3),
    first_kernel_size=st.sampled_from([3, 5, 7, 9, 11]),
)
cnns = st.builds(
    lambda layers, padding: CnnConfig(
        channels=tuple(channels for channels, _ in layers), kernel_sizes=tuple(size for _, size in layers), padding=padding
    ),
    st.lists(st.tuples(st.integers(1, 512), st.sampled_from([1, 3, 5, 7, 9, 11])), min_size=1, max_size=7),
    st.sampled_from(["valid", "same"]),
) | shapes.map(lambda shape: CnnConfig(channels=shape.channels, kernel_sizes=shape.kernel_sizes, padding="same", shape=shape))


def backbones_of(family):
    return st.builds(
        family.config,
        model=st.sampled_from(list(family.models)),
        frozen_blocks=st.integers(0, family.num_blocks),
        weights=st.sampled_from(["imagenet", "random", "file"]),
    )


resnets = backbones_of(RESNET)
backbones = st.one_of([backbones_of(family) for family in FAMILIES if family.takes_weights])
trials = st.builds(
    TrialConfig,
    network=cnns | backbones,
    batch_size=st.integers(2, 4096),
    learning_rate=st.floats(1e-8, 10),
    optimizer=st.sampled_from(["adam", "adamw", "sgd"]),
    weight_decay=st.floats(0, 10),
    learning_rate_schedule=st.sampled_from(["constant", "cosine"]),
    label_smoothing=st.floats(0, 1, exclude_max=True),
    batch_sampling=st.sampled_from(["balanced", "shuffled"]),
    input=st.sampled_from(["full", "lungs", "background"]),
    augmentation=st.sampled_from(["none", "light", "strong"]),
    max_epochs=st.integers(1, 1000),
    patience=st.integers(1, 1000),
    precision=st.sampled_from(["fp32", "bf16"]),
)


def point_of(trial):
    """Flatten a trial as the ledger does; derived layers stand beside what they follow from."""
    return {name: value for name, value in trial.columns().items() if value is not None}


# The paper's network


def test_the_defaults_are_the_papers_values():
    trial = TrialConfig()
    assert (trial.batch_size, trial.learning_rate, trial.optimizer) == (128, 5e-4, "adam")
    assert (trial.max_epochs, trial.patience, trial.batch_sampling) == (100, 20, "balanced")
    assert RunConfig().image_size == 128


def test_the_papers_cnn_leaves_one_pixel_of_a_128_pixel_image():
    # By hand: 128 -4 /2 = 62, 62 -4 /2 = 29, 29 -2 /2 = 13, 13 -2 /2 = 5, 5 -2 /2 = 1.
    assert CnnConfig().output_size(128) == 1


def test_the_papers_cnn_needs_100_pixels():
    # By hand, from 1 pixel backwards, doubled by the pool and widened by the kernel: 4, 10, 22, 48, 100.
    assert CnnConfig().smallest_image_size() == 100


@given(cnns, st.integers(1, 1024))
def test_a_cnn_has_a_map_left_exactly_from_its_smallest_image_size_on(cnn, image_size):
    assert (cnn.output_size(image_size) >= 1) == (image_size >= cnn.smallest_image_size())


@given(cnns, st.integers(1, 1023))
def test_a_larger_image_never_leaves_a_smaller_map(cnn, image_size):
    assert cnn.output_size(image_size) <= cnn.output_size(image_size + 1)


@given(shapes)
def test_derived_layers_have_one_value_per_stage(shape):
    assert len(shape.channels) == len(shape.kernel_sizes) == shape.depth
    assert shape.channels[0] == shape.base_channels


def test_derived_channels_grow_by_their_factor_and_kernels_shrink_after_two_stages():
    shape = CnnShape(depth=4, base_channels=10, channel_growth=1.5, first_kernel_size=7)
    assert shape.channels == (10, 15, 22, 34)  # 22.5 rounds to the even 22, 33.75 to 34
    assert shape.kernel_sizes == (7, 7, 3, 3)


def test_derived_layers_cannot_contradict_their_shape():
    with pytest.raises(InputError, match="must be those that follow from shape"):
        CnnConfig(channels=(8, 8), kernel_sizes=(3, 3), padding="same", shape=CnnShape(depth=3))


# Points


@given(trials)
def test_a_trial_comes_back_from_its_columns(trial):
    assert TrialConfig.from_point(point_of(trial)) == trial


@given(trials)
def test_a_trial_comes_back_from_its_columns_as_json(trial):
    assert TrialConfig.from_point(json.loads(json.dumps(point_of(trial)))) == trial


@given(trials)
def test_columns_are_every_field_in_one_order_with_null_where_a_field_does_not_apply(trial):
    columns = trial.columns()
    assert tuple(columns) == tuple(FIELD_TYPES)
    assert (columns["frozen_blocks"] is None) == (columns["model"] == "cnn")
    assert (columns["channels"] is None) == (columns["model"] != "cnn")


def test_an_empty_point_is_the_papers_cnn():
    assert TrialConfig.from_point({}) == TrialConfig()


@pytest.mark.parametrize(
    ("point", "text"),
    [
        ({"learning_rat": 0.1}, r"There is no field 'learning_rat'\. Did you mean 'learning_rate'\?"),
        ({"model": "resnet19"}, r"model cannot be 'resnet19'\. Did you mean 'resnet18'\? Allowed: cnn, convnext_tiny, "),
        ({"model": 18}, "model must be a text, not 18"),
        ({"model": "cnn", "frozen_blocks": 1}, "frozen_blocks does not apply to cnn"),
        ({"model": "resnet18", "depth": 3}, "depth does not apply to resnet18"),
        ({"model": "resnet18", "frozen_blocks": 5}, "frozen_blocks must be 0 to 4, not 5"),
        ({"model": "resnet18", "weights": "places"}, "weights cannot be 'places'"),
        ({"depth": 3, "channels": (8, 8, 8)}, "channels cannot stand beside depth: layers are given or derived"),
        ({"depth": 8}, "depth must be 2 to 7, not 8"),
        ({"base_channels": 3}, "base_channels must be 4 to 256, not 3"),
        ({"channel_growth": 0.5}, r"channel_growth must be 1 to 3, not 0\.5"),
        ({"first_kernel_size": 4}, "first_kernel_size must be 3, 5, 7, 9 or 11, not 4"),
        ({"channels": (8, 8)}, "channels and kernel_sizes must have one value per stage, not 2 and 5"),
        ({"channels": (), "kernel_sizes": ()}, "must have one value per stage, not 0 and 0"),
        ({"channels": (0,), "kernel_sizes": (3,)}, "channels must be at least 1"),
        ({"channels": (8,), "kernel_sizes": (4,)}, "kernel_sizes must be odd and positive"),
        ({"padding": "full"}, "padding cannot be 'full'"),
        ({"batch_size": 1}, "batch_size must be at least 2, not 1"),
        ({"batch_size": 16.0}, r"batch_size must be a whole number, not 16\.0"),
        ({"batch_size": True}, "batch_size must be a whole number, not True"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0 and at most 10, not nan"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, not 'fast'"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 to 10"),
        ({"label_smoothing": 1}, "label_smoothing must be 0 to under 1"),
        ({"max_epochs": 0}, "max_epochs must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"optimizer": "adan"}, r"optimizer cannot be 'adan'\. Did you mean 'adam'\?"),
        ({"input": "lung"}, r"input cannot be 'lung'\. Did you mean 'lungs'\?"),
        ({"channels": "16"}, "channels must be a list of whole numbers, not '16'"),
        ({"channels": (16, 1.5)}, "channels must be a list of whole numbers"),
        ({"learning_rate": None}, "learning_rate must be a number, not None"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_a_wrong_point_is_refused_with_what_is_allowed(point, text):
    with pytest.raises(InputError, match=text):
        TrialConfig.from_point(point)


def test_a_trial_cannot_be_changed_after_it_was_built():
    trial = TrialConfig()
    with pytest.raises(FrozenInstanceError, match="batch_size"):
        trial.batch_size = 1


def test_with_fields_checks_the_new_value():
    with pytest.raises(InputError, match="patience must be at least 1"):
        TrialConfig().with_fields(patience=0)


# Values from text and JSON


@given(st.sampled_from(sorted(FIELD_TYPES)).flatmap(lambda name: st.tuples(st.just(name), trials)))
def test_a_value_comes_back_from_its_text(named_trial):
    name, trial = named_trial
    value = trial.columns()[name]
    if value is not None:
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert value_from_text(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("batch_size", "many", "batch_size must be a whole number, not 'many'"),
        ("batch_size", "16.5", r"batch_size must be a whole number, not '16\.5'"),
        ("channels", "16,,32", "channels must be a list of whole numbers, not '16,,32'"),
        ("learning_rate", "", "learning_rate must be a number, not ''"),
        ("bach_size", "16", r"There is no field 'bach_size'\. Did you mean 'batch_size'\?"),
    ],
)
def test_text_that_does_not_read_as_its_field_is_refused(name, text, message):
    with pytest.raises(InputError, match=message):
        value_from_text(name, text)


def test_a_whole_number_stands_for_a_float_and_a_list_for_a_tuple():
    assert checked_value("learning_rate", 1) == 1.0
    assert type(checked_value("learning_rate", 1)) is float
    assert checked_value("channels", [16, 32]) == (16, 32)


# What the run owns


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"protocol": "lenient"}, "protocol cannot be 'lenient'.*Allowed: published, strict"),
        ({"image_size": 15}, "image_size must be 16 to 1024 pixels, not 15"),
        ({"image_size": 1025}, "image_size must be 16 to 1024 pixels, not 1025"),
        ({"seed": -1}, "seed must be 0 to"),
        ({"seed": 2**63}, "seed must be 0 to"),
        ({"select_by": "val_accuracy"}, "select_by cannot be 'val_accuracy'.*Allowed: .*val_macro_recall.*, val_recall:CLASS"),
        ({"select_by": "val_recal:COVID"}, "cannot be 'val_recal:COVID'. Did you mean 'val_recall:CLASS'"),
        ({"select_by": "val_recall:"}, "select_by cannot be 'val_recall:'. Did you mean 'val_recall:CLASS'"),
    ],
)
def test_a_wrong_run_is_refused_with_what_is_allowed(fields, text):
    with pytest.raises(InputError, match=text):
        RunConfig(**fields)


def test_selecting_by_a_test_column_is_refused_because_the_test_images_are_sealed():
    with pytest.raises(InputError, match="sealed until the search has ended"):
        RunConfig(select_by="test_macro_recall")


def test_a_run_may_select_by_the_recall_of_any_class():
    assert RunConfig(select_by="val_recall:Lung, left").select_by == "val_recall:Lung, left"


def test_an_image_too_small_for_the_cnn_is_refused_with_the_size_it_needs():
    with pytest.raises(InputError, match=f"--image-size 16 is too small.*at least {CnnConfig().smallest_image_size()} pixels"):
        RunConfig(image_size=16).check_fits(TrialConfig())


def test_the_hint_at_padding_stands_only_where_padding_would_help():
    padded = TrialConfig(network=CnnConfig(channels=(4,) * 7, kernel_sizes=(3,) * 7, padding="same"))
    with pytest.raises(InputError, match=r"at least 128 pixels\. Raise --image-size\.$"):
        RunConfig(image_size=64).check_fits(padded)


@given(st.integers(16, 1024), resnets)
def test_every_image_size_fits_a_resnet(image_size, resnet):
    RunConfig(image_size=image_size).check_fits(TrialConfig(network=resnet))


# Identity of a point


def identity(trial, run=None, *, weights_sha256=None, data_fingerprint="d"):
    return point_id(trial, run or RunConfig(), weights_sha256=weights_sha256, data_fingerprint=data_fingerprint)


@given(trials, st.integers(1, 1000), st.integers(1, 1000))
def test_a_points_identity_has_no_budget_in_it(trial, max_epochs, patience):
    constant = replace(trial, learning_rate_schedule="constant")
    assert identity(constant) == identity(constant.with_fields(max_epochs=max_epochs, patience=patience))


def test_the_length_of_a_falling_schedule_is_part_of_the_points_identity():
    cosine = TrialConfig(learning_rate_schedule="cosine", max_epochs=10)
    assert identity(cosine) != identity(cosine.with_fields(max_epochs=20))
    assert identity(cosine) == identity(cosine.with_fields(patience=3))


@given(trials, trials)
def test_trials_that_differ_in_more_than_budget_have_different_identities(one, other):
    def what_is_trained(trial):
        left_out = BUDGET_FIELDS if trial.learning_rate_schedule == "constant" else ("patience",)
        return {name: value for name, value in trial.columns().items() if name not in left_out}

    assert (identity(one) == identity(other)) == (what_is_trained(one) == what_is_trained(other))


@pytest.mark.parametrize(
    "changed",
    [
        {"run": RunConfig(protocol="published")},
        {"run": RunConfig(image_size=64)},
        {"weights_sha256": "a" * 64},
        {"data_fingerprint": "other"},
    ],
    ids=["protocol", "image_size", "weights", "data"],
)
def test_what_is_trained_on_and_how_is_part_of_the_points_identity(changed):
    assert identity(TrialConfig(), **changed) != identity(TrialConfig())


def test_the_root_seed_is_no_part_of_the_points_identity():
    assert identity(TrialConfig(), RunConfig(seed=1)) == identity(TrialConfig(), RunConfig(seed=2))
