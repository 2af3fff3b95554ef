"""The front is what the ledger says, nothing less and nothing more, in the table, the text and the figure."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import STEP_LOOKUP_MAP
from matplotlib.colors import to_hex
from matplotlib.text import Text

from tune_lung.analysis.figures import save_figure
from tune_lung.analysis.pareto import front_table, front_text, objectives_of, pareto_figure, point_table
from tune_lung.analysis.style import MODEL_COLOURS
from tune_lung.analysis.terminal import magnitude, percent
from tune_lung.results.reader import read_run
from tune_lung.space_files import load_space
from tune_lung.strategy import parse_objectives

from tests.fabricated_run import FREEZE_GRID, write_sampled_run

TRADES = (
    "val_macro_recall:max,trainable_params:min",
    "epoch_seconds_mean:min,val_micro_recall:max",
    "val_loss:min,total_params:min",
    "val_macro_recall:min,mult_adds:max",
    "val_macro_recall:max,epoch_seconds_mean:max",
    "val_macro_recall:max,mult_adds:min,epoch_seconds_mean:min",
)


@pytest.fixture(scope="module", params=TRADES)
def any_run(request, tmp_path_factory):
    """A run for two or three objectives, minimised and maximised, with failed and running trials."""
    root = tmp_path_factory.mktemp("runs") / "run"
    choices = {"objectives": parse_objectives(request.param), "samples": 10, "num_running": 2, "num_test": 20}
    return read_run(write_sampled_run(root, seed=len(request.param), **choices))


@pytest.fixture(scope="module")
def figure(traded_run):
    return pareto_figure(traded_run)


def with_objectives(run, text, **columns):
    """The same run as if searched for others, with some columns of its trials replaced."""
    strategy = run.manifest["strategy"] | {
        "objectives": [{"column": one.column, "direction": one.direction} for one in parse_objectives(text)]
    }
    return replace(run, manifest=run.manifest | {"strategy": strategy}, trials=run.trials.assign(**columns))


def means_of(run):
    """Each completed point's objectives, by cell and point, added up by hand."""
    sums = {}
    for row in run.trials.to_dict("records"):
        if row["status"] == "completed":
            sums.setdefault((row["cell"], row["point_id"]), []).append([row[one.column] for one in objectives_of(run)])
    return {point: [sum(column) / len(rows) for column in zip(*rows, strict=True)] for point, rows in sums.items()}


def unbeaten(run):
    """The points of the front by brute force over the ledger's trials."""
    signs = [1 if one.direction == "max" else -1 for one in objectives_of(run)]
    points = {point: [sign * value for sign, value in zip(signs, values, strict=True)] for point, values in means_of(run).items()}
    return {
        point
        for point, own in points.items()
        if not any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in points.values())
    }


def panels(drawn):
    return [axes for axes in drawn.axes if axes.get_xlabel()]


def text_of(drawn):
    return " ".join((drawn.get_suptitle() + " " + drawn.get_supxlabel()).split())


def marks(axes, *, on_front):
    """Places of the marks on the front, which have an edge, or of the others."""
    lines = [
        line for line in axes.lines if line.get_marker() == "o" and (to_hex(line.get_markeredgecolor()) == "#111111") == on_front
    ]
    return sorted(place for line in lines for place in zip(line.get_xdata(), line.get_ydata(), strict=True))


def boxes(drawn, texts):
    """Where texts stand, in pixels, without the lines that lead to them."""
    renderer = FigureCanvasAgg(drawn).get_renderer()
    for text in texts:
        text.get_window_extent(renderer)  # an annotation finds its place only when it is asked for it
    return [Text.get_window_extent(text, renderer) for text in texts]


def assert_key_is_readable(drawn):
    """No text of the key lies on another one, or reaches out of the figure."""
    key = boxes(drawn, [text for text in drawn.axes[-1].texts if text.get_text()])
    assert not any(one.overlaps(other) for index, one in enumerate(key) for other in key[:index])
    assert all(box.x0 >= 0 and box.x1 <= drawn.bbox.x1 for box in key)


def test_the_front_is_every_completed_point_that_brute_force_leaves_unbeaten(any_run):
    front = front_table(any_run)
    assert set(zip(front["cell"], front["point_id"], strict=True)) == unbeaten(any_run)
    assert list(front["front"]) == list(range(1, len(front) + 1))
    first = objectives_of(any_run)[0]
    assert front[first.column].is_monotonic_increasing == (first.direction == "min") or len(front) == 1


def test_every_printed_point_is_unbeaten_in_the_ledger_and_none_is_missing(traded_run):
    trials = pd.read_parquet(traded_run.paths.table("trials")).query("status == 'completed'")
    rows = trials[["cell", "val_macro_recall", "trainable_params"]].to_dict("records")
    expected = [
        (row["cell"], percent(row["val_macro_recall"]), magnitude(row["trainable_params"]))
        for row in sorted(rows, key=lambda row: -row["val_macro_recall"])
        if not any(
            other["val_macro_recall"] >= row["val_macro_recall"]
            and other["trainable_params"] <= row["trainable_params"]
            and other is not row
            for other in rows
        )
    ]
    printed = re.findall(r"^ *\d+ (\S+) +([\d.]+) +([\d.,]+(?: [MG])?) ", front_text(traded_run), re.MULTILINE)
    assert printed == expected
    assert len(printed) >= 4
    assert f"{len(printed)} of 39 completed points" in " ".join(front_text(traded_run).split())


def test_equal_points_share_the_front(traded_run):
    recalls = traded_run.trials["val_macro_recall"].round(1)
    params = traded_run.trials["trainable_params"] // 10**7
    run = with_objectives(
        traded_run, "val_macro_recall:max,trainable_params:min", val_macro_recall=recalls, trainable_params=params
    )
    front = front_table(run)
    assert front.duplicated(["val_macro_recall", "trainable_params"]).any()
    assert set(zip(front["cell"], front["point_id"], strict=True)) == unbeaten(run)


def test_a_point_with_repeats_counts_by_its_mean(repeated_run):
    table = point_table(repeated_run)
    means = means_of(repeated_run)
    assert len(table) == len(means) == 15
    for row in table.to_dict("records"):
        assert [row["val_macro_recall"], row["trainable_params"]] == pytest.approx(means[row["cell"], row["point_id"]])
    assert set(table["repeats"]) == {2, 3}
    assert "A point is the mean of its 2 to 3 completed repeats." in front_text(repeated_run)
    tested = repeated_run.trials.groupby("point_id")["test_macro_recall"].mean()
    front = front_table(repeated_run)
    np.testing.assert_allclose(front["test_macro_recall"], tested[front["point_id"]])
    assert front["test_macro_recall_low"].isna().all()


def test_the_test_images_describe_the_front_and_do_not_choose_it(traded_run):
    front = front_table(traded_run)
    assert (front["test_macro_recall_low"] < front["test_macro_recall"]).all()
    turned = traded_run.trials["test_macro_recall"].rsub(1)
    other = front_table(replace(traded_run, trials=traded_run.trials.assign(test_macro_recall=turned)))
    assert list(other["point_id"]) == list(front["point_id"])
    untested = replace(
        traded_run, trials=traded_run.trials.assign(test_macro_recall=np.nan), predictions=traded_run.predictions.iloc[:0]
    )
    assert re.search(r"^ 1 resnet34 .* -$", front_text(untested), re.MULTILINE)


def test_the_text_names_what_was_sampled_for_each_point(traded_run):
    text = front_text(traded_run)
    values = dict(re.findall(r"^ *(\d+) (\w+=.*)$", text, re.MULTILINE))
    for row in front_table(traded_run).to_dict("records"):
        names = re.findall(r"(\w+)=", values[str(row["front"])])
        expected = ["depth", "base_channels", "learning_rate"]
        if row["cell"] != "cnn":
            expected = ["frozen_blocks", "learning_rate", "batch_size", "weight_decay"]
        assert names == expected
        assert f"learning_rate={row['learning_rate']:.3g}" in values[str(row["front"])]


def test_the_text_says_whose_images_and_who_chose_and_fits_100_columns(any_run):
    assert max(map(len, front_text(any_run).splitlines())) <= 100
    text = " ".join(front_text(any_run).split())
    assert "SYNTHETIC X-rays (phantoms)" in text
    assert "Validation alone decides who is on the front" in text
    assert "Points left out, as none of their trials completed with every objective measured: 4." in text


def test_a_grid_has_a_front_without_sampled_values(tmp_path):
    objectives = parse_objectives("val_macro_recall:max,trainable_params:min")
    run = read_run(write_sampled_run(tmp_path / "run", space=FREEZE_GRID, objectives=objectives, num_failed=0, num_test=20))
    text = front_text(run)
    assert "What was sampled" not in text
    assert re.search(r"^ *\d+ resnet18 frozen_blocks=4 ", text, re.MULTILINE)
    assert set(front_table(run)["point_id"]) == {point for _, point in unbeaten(run)}


def test_before_any_point_has_completed_there_is_nothing_to_show(traded_run, tmp_path):
    running = replace(traded_run, trials=traded_run.trials.assign(status="running"))
    assert front_table(running).empty
    assert front_text(running) == "Front of traded: no point has completed with every objective measured."
    save_figure(pareto_figure(running), tmp_path / "figure.png")


def test_a_run_with_one_objective_has_no_front(random_run):
    for function in (point_table, front_table, front_text, pareto_figure):
        with pytest.raises(ValueError, match="has the objective selection_score alone"):
            function(random_run)


def test_the_figure_has_every_completed_point_and_marks_the_front(any_run):
    drawn = pareto_figure(any_run)
    table = point_table(any_run)
    units = {"val_macro_recall": 100, "val_micro_recall": 100}
    columns = {"macro": "val_macro_recall", "micro": "val_micro_recall", "loss": "val_loss", "time": "epoch_seconds_mean"}
    columns |= {"multiply-adds": "mult_adds", "trainable": "trainable_params", "parameters": "total_params"}
    assert len(panels(drawn)) == len(objectives_of(any_run)) - 1
    for axes in panels(drawn):
        x, y = (columns[label.split()[0]] for label in (axes.get_xlabel(), axes.get_ylabel()))
        for on_front in (True, False):
            own = table[table["front"].notna() == on_front]
            places = sorted(zip(own[x] * units.get(x, 1), own[y] * units.get(y, 1), strict=True))
            np.testing.assert_allclose(marks(axes, on_front=on_front), places)
    assert len(table) == 26


def test_axes_say_quantity_unit_and_which_way_is_better(figure):
    (axes,) = panels(figure)
    assert axes.get_xlabel() == "trainable parameters (log scale): less is better"
    assert axes.get_ylabel() == "macro recall on validation (%): more is better"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")


def test_costs_lie_along_x_and_are_logarithmic_only_where_they_differ_much(traded_run):
    trials = traded_run.trials
    run = with_objectives(traded_run, "mult_adds:min,val_loss:min", mult_adds=1000 + trials["trainable_params"] % 1000)
    (axes,) = panels(pareto_figure(run))
    assert axes.get_xlabel() == "multiply-adds of one image: less is better"
    assert axes.get_ylabel() == "loss on validation (nats): less is better"
    assert axes.get_xscale() == "linear"


def test_points_have_their_networks_colours_and_the_legend_names_them(figure, traded_run):
    (axes,) = panels(figure)
    colours = {to_hex(line.get_color()) for line in axes.lines if line.get_marker() == "o"}
    assert colours == {MODEL_COLOURS[model].lower() for model in set(traded_run.trials["model"])}
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["CNN", "ResNet18", "ResNet34", "the front"]


@pytest.mark.parametrize("x", ["max", "min"])
@pytest.mark.parametrize("y", ["max", "min"])
def test_the_line_runs_through_the_front_and_over_nothing_that_was_not_reached(traded_run, x, y):
    run = with_objectives(traded_run, f"val_macro_recall:{y},epoch_seconds_mean:{x}")
    (axes,) = panels(pareto_figure(run))
    (line,) = [line for line in axes.lines if line.get_drawstyle().startswith("steps")]
    front = np.array(marks(axes, on_front=True))
    np.testing.assert_allclose(sorted(zip(*line.get_data(), strict=True)), front)
    signs = np.array([1 if direction == "max" else -1 for direction in (x, y)])
    corners = np.column_stack(STEP_LOOKUP_MAP[line.get_drawstyle()](*line.get_data()))
    reached = ((signs * front)[None] >= (signs * corners)[:, None]).all(axis=2).any(axis=1)
    assert len(corners) > len(front) or len(front) == 1
    assert reached.all()


def test_with_three_objectives_the_first_stands_over_each_of_the_others_and_no_line_is_drawn(traded_run):
    run = with_objectives(traded_run, "val_macro_recall:max,mult_adds:min,epoch_seconds_mean:min")
    drawn = pareto_figure(run)
    assert [axes.get_xlabel().split(" (")[0] for axes in panels(drawn)] == ["multiply-adds of one image", "time per epoch"]
    assert {axes.get_ylabel() for axes in panels(drawn)} == {"macro recall on validation (%): more is better"}
    assert not [line for axes in panels(drawn) for line in axes.lines if line.get_drawstyle().startswith("steps")]
    assert "With 3 objectives such a point need not stand out in any one panel." in text_of(drawn)


@pytest.mark.parametrize("objectives", TRADES)
def test_numbers_and_key_lie_on_nothing_and_stay_inside_the_figure(traded_run, objectives):
    run = with_objectives(traded_run, objectives)
    drawn = pareto_figure(run)
    front = front_table(run)
    for axes in panels(drawn):
        numbers = [text for text in axes.texts if text.get_text().isdigit()]
        assert sorted(int(text.get_text()) for text in numbers) == list(front["front"])
        own = boxes(drawn, numbers)
        assert not any(one.overlaps(other) for index, one in enumerate(own) for other in own[:index])
        places = axes.transData.transform(marks(axes, on_front=True))
        assert not any(box.contains(*place) for box in own for place in places)
    assert_key_is_readable(drawn)


def test_a_long_front_with_many_values_is_named_as_far_as_there_is_room(tmp_path):
    objectives = parse_objectives("val_macro_recall:max,epoch_seconds_mean:min,val_micro_recall:min")
    choices = {"space": load_space("resnet_finetune"), "objectives": objectives, "num_test": 20}
    run = read_run(write_sampled_run(tmp_path / "run", samples=20, **choices))
    num_front = len(front_table(run))
    drawn = pareto_figure(run)
    assert_key_is_readable(drawn)
    assert num_front > 24
    assert drawn.axes[-1].texts[-1].get_text() == f"and {num_front - 24} more, named in the report's table"
    num_numbers = sum(text.get_text().isdigit() for axes in panels(drawn) for text in axes.texts)
    without = re.findall(r"(\d+) numbers found no room", text_of(drawn))
    assert num_numbers + sum(map(int, without)) == 2 * num_front


def test_the_key_names_each_numbers_cell_and_values(figure, traded_run):
    key = " ".join(text.get_text() for text in figure.axes[-1].texts)
    for row in front_table(traded_run).to_dict("records"):
        assert f"{row['front']} {row['cell']} " in key
        assert f"learning_rate={row['learning_rate']:.3g}" in key


def test_title_and_caption_say_what_is_drawn_and_of_what(figure, real_run):
    text = text_of(figure)
    assert "The front of macro recall on validation and trainable parameters on SYNTHETIC X-rays (phantoms)" in text
    assert "134 validation images, 4 classes, 128 px, protocol strict, weights: random" in text
    assert "Validation alone decides who is on the front; the test images only describe it." in text
    assert "Points left out, as none of their trials completed with every objective measured: 3." in text
    assert text.endswith("Synthetic images: these numbers say nothing of medicine. Not for clinical use.")
    on_real = pareto_figure(with_objectives(real_run, "val_macro_recall:max,trainable_params:min"))
    assert "synthetic" not in text_of(on_real).lower()


def test_the_same_run_gives_the_same_bytes(traded_run, tmp_path):
    paths = [tmp_path / name for name in ("first.png", "second.png")]
    for path in paths:
        save_figure(pareto_figure(traded_run), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
