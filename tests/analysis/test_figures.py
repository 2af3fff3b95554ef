"""Figure 4 draws what the tables hold and hides nothing."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from tune_lung.analysis.figures import figure4, save_figure
from tune_lung.analysis.style import MODEL_COLOURS
from tune_lung.analysis.tables import comparison_table
from tune_lung.errors import InputError
from tune_lung.results.reader import read_run
from tune_lung.space_files import load_space

from tests.fabricated_run import CNN_ONLY, RESNETS_ONLY, write_fabricated_run, write_sampled_run

PANELS = ("Micro recall on test", "Epochs run", "Seconds per epoch", "Trainable parameters")


@pytest.fixture(scope="module")
def random_figure(random_run):
    return figure4(random_run)


@pytest.fixture(scope="module")
def figure_with_holes(run_with_holes):
    return figure4(run_with_holes)


@pytest.fixture(scope="module")
def real_figure(real_run):
    return figure4(real_run)


@pytest.fixture(scope="module")
def compared_figure(random_run, pretrained_run):
    return figure4(random_run, pretrained_run)


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def points(axes, marker):
    return [line for line in axes.lines if line.get_marker() == marker and len(line.get_xdata()) == 1]


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def text_of(figure):
    return " ".join((figure.get_suptitle() + " " + figure.get_supxlabel()).split())


def test_the_four_panels_have_titles_axes_and_units(random_figure):
    by_title = panels(random_figure)
    assert tuple(by_title) == PANELS
    assert {axes.get_xlabel() for axes in by_title.values()} == {"frozen blocks"}
    assert [axes.get_ylabel() for axes in by_title.values()] == [
        "micro recall (%), 95% Wilson interval",
        "epochs",
        "seconds of the training pass (log scale)",
        "parameters (log scale)",
    ]


def test_every_cell_is_a_point_at_its_value(random_run, random_figure):
    axes = panels(random_figure)["Micro recall on test"]
    drawn = sorted(line.get_ydata()[0] for line in points(axes, "o"))
    np.testing.assert_allclose(drawn, sorted(100 * comparison_table(random_run)["test_micro_recall"]))


def test_the_cnn_is_a_level_line_in_every_panel(random_figure):
    for axes in panels(random_figure).values():
        levels = [line for line in axes.lines if len(line.get_xdata()) == 2 and len(set(line.get_ydata())) == 1]
        assert MODEL_COLOURS["cnn"] in {to_hex(line.get_color()) for line in levels}


def test_no_two_points_of_a_panel_lie_on_each_other(compared_figure):
    for axes in panels(compared_figure).values():
        places = [
            (round(line.get_xdata()[0], 6), round(line.get_ydata()[0], 6)) for line in axes.lines if len(line.get_xdata()) == 1
        ]
        assert len(places) == len(set(places))


def test_trials_not_ended_by_patience_are_hollow(figure_with_holes, random_figure):
    for figure, face in ((figure_with_holes, "white"), (random_figure, None)):
        own = points(panels(figure)["Epochs run"], "o")
        assert all((line.get_markerfacecolor() == "white") == (face == "white") for line in own)
    assert "not ended by patience" in legend(figure_with_holes)
    assert "not ended by patience" not in legend(random_figure)


def test_cached_epochs_are_stars_in_the_panel_of_seconds_alone(figure_with_holes):
    stars = {title: len(points(axes, "*")) for title, axes in panels(figure_with_holes).items()}
    assert stars == dict.fromkeys(PANELS, 0) | {"Seconds per epoch": 2}
    assert "epochs on the stored frozen prefix" in legend(figure_with_holes)


def test_published_runs_stand_behind_on_real_images_and_on_phantoms_only_among_the_parameters(real_figure, random_figure):
    on_real, on_phantoms = (
        {title: len(points(axes, "x")) for title, axes in panels(figure).items()} for figure in (real_figure, random_figure)
    )
    assert on_real == dict.fromkeys(PANELS, 11)
    assert on_phantoms == dict.fromkeys(PANELS, 0) | {"Trainable parameters": 11}


def test_published_points_are_fainter_and_their_machine_is_disclaimed(real_figure):
    axes = panels(real_figure)["Seconds per epoch"]
    assert all(line.get_alpha() < 0.5 for line in points(axes, "x"))
    assert "another machine" in axes.get_title(loc="right")


def test_a_line_breaks_where_a_depth_is_missing(figure_with_holes):
    axes = panels(figure_with_holes)["Epochs run"]
    lines = [
        line for line in axes.lines if to_hex(line.get_color()) == MODEL_COLOURS["resnet18"].lower() and len(line.get_xdata()) > 1
    ]
    assert [int(np.isnan(line.get_ydata()).sum()) for line in lines] == [1]


def test_the_title_states_data_protocol_weights_and_test_images(pretrained_run, real_figure):
    on_phantoms = text_of(figure4(pretrained_run))
    assert "SYNTHETIC X-rays (phantoms)" in on_phantoms
    assert "134 test images, 4 classes, 128 px, protocol strict, weights: resnet18-cifar10-64px.pth" in on_phantoms
    assert "fingerprint c0ffeec0ffee" in text_of(real_figure)


def test_what_is_not_drawn_is_named(figure_with_holes):
    absent = "resnet18 frozen_blocks=1 (not started), resnet34 frozen_blocks=3 (failed), resnet34 frozen_blocks=4 (not started)"
    assert f"Not drawn: {absent}." in text_of(figure_with_holes)


def test_several_runs_are_told_apart_by_marker_and_named(compared_figure):
    axes = panels(compared_figure)["Epochs run"]
    assert (len(points(axes, "o")), len(points(axes, "D"))) == (11, 11)
    assert "pretrained (weights: resnet18-cifar10-64px.pth)" in legend(compared_figure)


def test_a_grid_of_depths_says_nothing_of_a_choice(random_figure):
    assert "Each mark is the best" not in text_of(random_figure)
    assert "repeats" not in text_of(random_figure)


def test_cells_of_one_network_and_depth_are_drawn_by_the_best_on_validation_and_counted(tmp_path):
    run = read_run(write_sampled_run(tmp_path / "run", space=load_space("training"), num_failed=0, num_test=20))
    figure = figure4(run)
    (point,) = points(panels(figure)["Epochs run"], "o")
    assert point.get_ydata()[0] == run.trials.loc[run.trials["selection_score"].idxmax(), "epochs_run"]
    assert "Each mark is the best on validation of the 24 points tried with its network and depth." in text_of(figure)


def test_points_of_tuned_cells_are_counted_for_each_depth(tmp_path):
    space = load_space("freeze_tuned")
    run = read_run(write_sampled_run(tmp_path / "run", space=space, samples=3, num_failed=0, num_test=20))
    expected = "Each mark is the best on validation of the 3 points tried with its network and depth (33 in all)."
    assert expected in text_of(figure4(run))


def test_every_depth_that_was_sampled_is_drawn_by_its_best_point(sampled_run):
    trained = sampled_run.trials[sampled_run.trials["status"] != "failed"]
    best = trained.loc[trained.groupby(["model", "frozen_blocks"], dropna=False)["selection_score"].idxmax()]
    figure = figure4(sampled_run)
    drawn = [line.get_ydata()[0] for line in points(panels(figure)["Epochs run"], "o")]
    assert sorted(drawn) == sorted(best["epochs_run"])
    assert len(drawn) > len(comparison_table(sampled_run))
    tried = sampled_run.trials.groupby(["model", "frozen_blocks"], dropna=False).size()
    assert f"of the {tried.min()} to {tried.max()} points tried with its network and depth (42 in all)" in text_of(figure)
    assert "Not every mark was tested: the test images are opened for each cell's best point." in text_of(figure)


def test_of_repeats_the_first_is_drawn_and_not_the_luckiest(repeated_run):
    figure = figure4(repeated_run)
    completed = repeated_run.trials[repeated_run.trials["status"] == "completed"]
    cnn = completed[completed["model"] == "cnn"].groupby("point_id")
    first = cnn.get_group(cnn["selection_score"].mean().idxmax()).sort_values("repeat").iloc[0]
    colours = {line.get_markeredgecolor(): line.get_ydata()[0] for line in points(panels(figure)["Epochs run"], "o")}
    assert colours[MODEL_COLOURS["cnn"]] == first["epochs_run"]
    assert "Of a point's repeats the first is drawn." in text_of(figure)


def test_a_run_of_another_tool_draws_what_it_knows_and_names_the_rest(imported_run, random_run):
    figure = figure4(imported_run)
    assert [line.get_ydata()[0] for line in points(panels(figure)["Epochs run"], "o")] == [4]
    assert "Not drawn: resnet18 (its depth is not known), cnn (its epochs are not known)." in text_of(figure)
    assert "imported: imported, protocol and weights not known" in text_of(figure)
    assert "None" not in text_of(figure)
    assert "134 test images, 4 classes" in text_of(figure4(random_run, imported_run))


@pytest.mark.parametrize("space", [CNN_ONLY, RESNETS_ONLY], ids=lambda space: space.name)
def test_one_arm_alone_is_drawn(space, tmp_path):
    figure = figure4(read_run(write_fabricated_run(tmp_path / "run", space=space)))
    assert len(points(panels(figure)["Epochs run"], "o")) == len(space.cells())
    save_figure(figure, tmp_path / "figure.png")


def test_a_run_without_a_trained_trial_gives_an_empty_figure(random_run, tmp_path):
    empty = replace(random_run, trials=random_run.trials.iloc[:0], predictions=random_run.predictions.iloc[:0])
    save_figure(figure4(empty), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_an_untested_run_is_drawn_without_recalls(random_run, tmp_path):
    nothing = np.full(len(random_run.trials), np.nan)
    trials = random_run.trials.assign(test_micro_recall=nothing, test_macro_recall=nothing)
    untested = replace(random_run, trials=trials, predictions=random_run.predictions.iloc[:0])
    figure = figure4(untested)
    assert not np.isfinite([line.get_ydata()[0] for line in points(panels(figure)["Micro recall on test"], "o")]).any()
    assert len(points(panels(figure)["Trainable parameters"], "o")) == len(trials)
    save_figure(figure, tmp_path / "figure.png")


def test_the_same_run_gives_the_same_bytes_at_200_dots_per_inch(random_run, tmp_path):
    paths = [tmp_path / name for name in ("first.png", "second.png")]
    for path in paths:
        save_figure(figure4(random_run), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert b"tEXtSoftware\0tune_lung" in first  # by which report knows it; of Matplotlib's version nothing
    assert b"Matplotlib" not in first
    assert int.from_bytes(first[16:20], "big") == 11 * 200


def test_more_runs_than_can_be_told_apart_are_refused(random_run):
    with pytest.raises(ValueError, match="compares 1 to 3 runs, not 4"):
        figure4(*[random_run] * 4)


def test_a_network_that_no_figure_knows_is_named_instead_of_left_out(random_run):
    trials = random_run.trials.assign(model=random_run.trials["model"].replace("resnet18", "vit_b_16"))
    with pytest.raises(InputError, match=r"^No figure knows the network 'vit_b_16'"):
        figure4(replace(random_run, trials=trials))
