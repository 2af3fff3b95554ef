"""The tables' columns are a promise to whoever reads them."""

import pyarrow as pa
import pytest

from tune_lung.results.layout import TABLES
from tune_lung.results.schema import column_meanings, predictions_schema, table_schema

CLASSES = ("COVID", "Viral Pneumonia")

EXPECTED = {
    "trials": """
        trial_id point_id cell repeat model channels kernel_sizes padding depth base_channels channel_growth first_kernel_size
        frozen_blocks weights features hog_cell hog_orientations pixel_side backbone components class_weight c kernel gamma_factor
        num_trees min_leaf_images batch_size learning_rate optimizer weight_decay learning_rate_schedule label_smoothing
        batch_sampling input augmentation max_epochs patience precision weights_name weights_sha256 trial_seed status stop_reason
        failure failure_kind attempts proposed_order ended_order started ended epochs_run best_epoch selection_score val_loss
        val_macro_recall val_micro_recall val_cohen_kappa val_recall:COVID val_recall:Lung
        test_macro_recall test_micro_recall test_cohen_kappa
        total_params trainable_params mult_adds epoch_seconds_mean prefix_seconds prefix_cached cpus gpus concurrent_trials
        slot device
    """,
    "epochs": """
        trial_id epoch train_loss val_loss val_macro_recall val_micro_recall val_cohen_kappa val_recall:COVID
        val_recall:Lung selection_score epoch_seconds validation_seconds images_per_second learning_rate ended
    """,
    "decisions": "decision trial_id cell rung_epoch value cutoff verdict",
    "images": "image_id path class split group source sha256 excluded_reason",
    "explanations": "trial_id image_id label method lung_share lung_area_share",
}


@pytest.mark.parametrize("table", EXPECTED)
def test_a_table_has_its_columns_in_order(table):
    assert table_schema(table, ("COVID", "Lung")).names == EXPECTED[table].split()


@pytest.mark.parametrize("table", ["predictions", "validation_predictions"])
def test_predictions_have_one_probability_per_class_and_no_other_float(table):
    schema = table_schema(table, CLASSES)
    assert schema.names == ["trial_id", "image_id", "label", "p_COVID", "p_Viral Pneumonia"]
    assert [field.name for field in schema if pa.types.is_floating(field.type)] == ["p_COVID", "p_Viral Pneumonia"]


def test_lists_and_seeds_have_their_types():
    schema = table_schema("trials", CLASSES)
    assert schema.field("channels").type == schema.field("kernel_sizes").type == pa.list_(pa.int32())
    assert schema.field("trial_seed").type == pa.int64()


@pytest.mark.parametrize(("table", "columns"), [("trials", ["started", "ended"]), ("epochs", ["ended"])])
def test_moments_are_in_utc(table, columns):
    schema = table_schema(table, CLASSES)
    assert {schema.field(name).type for name in columns} == {pa.timestamp("us", tz="UTC")}


@pytest.mark.parametrize("table", TABLES)
def test_every_column_says_what_it_means_and_every_table_its_version(table):
    schema = table_schema(table, CLASSES)
    assert schema.metadata == {b"tune_lung_schema_version": b"3"}
    assert all(meaning.endswith(".") for meaning in column_meanings(schema).values())


def test_an_unknown_table_has_no_schema():
    with pytest.raises(ValueError, match="no table 'trial'"):
        table_schema("trial", CLASSES)


def test_class_names_stay_as_they_are():
    assert predictions_schema(["ü p_x"]).names[-1] == "p_ü p_x"
    meanings = column_meanings(table_schema("epochs", ["{part} ü"]))
    assert meanings["val_recall:{part} ü"] == "Share of the validation images of {part} ü told right, 0 to 1."
