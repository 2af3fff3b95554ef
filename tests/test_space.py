import json
import re
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tune_lung.config import TrialConfig
from tune_lung.errors import InputError
from tune_lung.space import Arm, Choice, Grid, IntRange, LogUniform, SearchSpace
from tune_lung.space_files import load_space, shipped_space_files, space_question

SHIPPED = shipped_space_files()
each_shipped_space = pytest.mark.parametrize("name", sorted(SHIPPED))

HEADER = """from tune_lung.space import Arm, Choice, Grid, IntRange, LogUniform, SearchSpace, Uniform
"""


@pytest.fixture
def space_file(tmp_path):
    """Write a user's space file and return its path as text."""

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(HEADER + text, encoding="utf-8")
        return str(path)

    return write


# Every shipped space


@each_shipped_space
def test_a_shipped_space_loads_by_name_and_by_path_alike(name):
    assert load_space(name) == load_space(str(SHIPPED[name]))
    assert load_space(name).name == name


@each_shipped_space
def test_every_cell_of_a_shipped_space_builds_a_trial_of_its_own(name):
    cells = load_space(name).cells()
    assert len({TrialConfig.from_point(cell.point) for cell in cells}) == len(cells)
    assert len({cell.name for cell in cells}) == len(cells)


@each_shipped_space
def test_a_shipped_spaces_header_asks_a_question_and_says_trials_cost_and_command(name):
    question, _, rest = SHIPPED[name].read_text(encoding="utf-8").removeprefix('"""').partition("\n\n")
    header = rest.partition('"""')[0]
    assert question.endswith("?")
    assert question == space_question(SHIPPED[name])
    assert [line.partition(":")[0] for line in header.splitlines() if re.match(r"[A-Z]\w+:", line)] == ["Trials", "Cost", "Run"]


@each_shipped_space
def test_a_shipped_spaces_header_counts_its_cells_truly(name):
    counted = re.search(r"^Trials: ([\d,]+) cells?\b", SHIPPED[name].read_text(encoding="utf-8"), re.MULTILINE)
    assert counted is not None, "no line `Trials: N cells ...`"
    assert int(counted[1].replace(",", "")) == len(load_space(name).cells())


@each_shipped_space
def test_a_shipped_spaces_header_gives_its_own_command(name):
    text = SHIPPED[name].read_text(encoding="utf-8")
    assert re.search(rf"^Run: python -m tune_lung\.search --space {name}\b", text, re.MULTILINE)


def test_the_freeze_grid_is_the_papers_eleven_networks():
    cells = [cell.name for cell in load_space("freeze_grid").cells()]
    resnets = [f"{model} frozen_blocks={blocks}" for model in ("resnet18", "resnet34") for blocks in range(5)]
    assert cells == ["cnn", *resnets]


def test_the_published_freeze_grid_differs_in_protocol_alone():
    ours, published = load_space("freeze_grid"), load_space("freeze_grid_published")
    assert published.cells() == ours.cells()
    assert (ours.protocol, published.protocol) == ("strict", "published")


# Cells


def test_the_last_axis_of_an_arm_changes_fastest():
    arm = Arm(model="resnet18", frozen_blocks=Grid(0, 1), batch_size=Grid(32, 64))
    assert [cell.name for cell in arm.cells()] == [
        "resnet18 frozen_blocks=0 batch_size=32",
        "resnet18 frozen_blocks=0 batch_size=64",
        "resnet18 frozen_blocks=1 batch_size=32",
        "resnet18 frozen_blocks=1 batch_size=64",
    ]


def test_an_arm_without_grid_axes_is_one_cell():
    (cell,) = Arm(model="cnn", learning_rate=1e-3).cells()
    assert cell.name == "cnn"
    assert cell.point == {"model": "cnn", "learning_rate": 1e-3}


def test_a_list_of_channels_reads_as_such_in_a_cells_name():
    (cell, _) = Arm(channels=Grid([8, 16], [16, 32]), kernel_sizes=(3, 3)).cells()
    assert cell.name == "cnn channels=8,16"
    assert cell.point["channels"] == (8, 16)


@given(st.lists(st.lists(st.integers(2, 512), min_size=1, max_size=4, unique=True), min_size=1, max_size=3))
def test_an_arm_has_as_many_cells_as_its_axes_have_combinations(values):
    fields = dict(zip(("batch_size", "max_epochs", "patience"), values, strict=False))
    cells = list(Arm(**{name: Grid(*choices) for name, choices in fields.items()}).cells())
    expected = 1
    for choices in fields.values():
        expected *= len(choices)
    assert len(cells) == len({cell.name for cell in cells}) == expected


def test_an_empty_grid_is_refused():
    with pytest.raises(InputError, match=r"Grid\(\) is empty"):
        Grid()


def test_a_grid_that_names_a_value_twice_is_refused():
    with pytest.raises(InputError, match=r"Grid\(0, 1, 0\) names a value twice"):
        Grid(0, 1, 0)


# Fixing fields from the command line


def test_a_fixed_model_drops_the_arms_that_do_not_offer_it():
    space = load_space("freeze_grid").with_fixed({"model": "resnet34"})
    assert space.models() == ("resnet34",)
    assert len(space.cells()) == 5


def test_a_fixed_field_is_set_where_it_applies_and_left_out_elsewhere():
    space = load_space("freeze_grid").with_fixed({"frozen_blocks": 2})
    assert [cell.name for cell in space.cells()] == ["cnn", "resnet18", "resnet34"]
    assert [cell.point.get("frozen_blocks") for cell in space.cells()] == [None, 2, 2]


def test_a_field_for_every_model_is_set_in_every_cell():
    space = load_space("freeze_grid").with_fixed({"batch_size": 16})
    assert {cell.point["batch_size"] for cell in space.cells()} == {16}


def test_a_model_fixed_in_a_mixed_arm_brings_its_own_fields():
    space = SearchSpace(arms=(Arm(model=Grid("cnn", "resnet18")),)).with_fixed({"model": "resnet18", "frozen_blocks": 1})
    assert [dict(cell.point) for cell in space.cells()] == [{"model": "resnet18", "frozen_blocks": 1}]


def test_a_model_that_no_arm_offers_is_refused_with_those_on_offer():
    with pytest.raises(InputError, match=r"no arm of 'freeze_grid' offers it\. Offered: cnn, resnet18, resnet34\."):
        load_space("freeze_grid").with_fixed({"model": "resnet50"})


def test_a_field_that_applies_to_no_arm_is_refused():
    with pytest.raises(InputError, match="--set frozen_blocks: it applies to no arm of 'freeze_grid'"):
        load_space("freeze_grid").with_fixed({"model": "cnn", "frozen_blocks": 1})


# Identity and JSON


@each_shipped_space
def test_a_space_is_plain_json(name):
    described = load_space(name).as_json()
    assert json.loads(json.dumps(described)) == described


def test_lists_of_channels_are_plain_json_too():
    arm = Arm(channels=Grid((8, 16), (16, 32)), kernel_sizes=(3, 3))
    assert SearchSpace(arms=(arm,)).as_json()["arms"] == [{"channels": {"grid": [[8, 16], [16, 32]]}, "kernel_sizes": [3, 3]}]


def test_a_copied_space_file_has_the_same_hash_under_another_name(space_file):
    text = "SPACE = SearchSpace(arms=(Arm(model='cnn', batch_size=Grid(16, 32)),))"
    assert load_space(space_file(text)).sha256() == load_space(space_file(text, "copy.py")).sha256()


@pytest.mark.parametrize(
    "other",
    [
        SearchSpace(arms=(Arm(model="cnn", batch_size=Grid(16, 64)),)),
        SearchSpace(arms=(Arm(model="cnn", batch_size=16),)),
        SearchSpace(arms=(Arm(model="cnn", batch_size=Grid(16, 32)),), protocol="published"),
        SearchSpace(arms=(Arm(model="cnn", batch_size=Grid(16, 32)), Arm(model="resnet18"))),
    ],
    ids=["other_value", "fixed", "protocol", "more_arms"],
)
def test_what_may_be_tried_is_in_the_hash(other):
    assert other.sha256() != SearchSpace(arms=(Arm(model="cnn", batch_size=Grid(16, 32)),)).sha256()


# A user's own file


def test_a_users_space_is_named_after_its_file(space_file):
    space = load_space(space_file("SPACE = SearchSpace(arms=(Arm(model='cnn', depth=Grid(2, 3)),))", "depths.py"))
    assert space.name == "depths"
    assert [cell.name for cell in space.cells()] == ["cnn depth=2", "cnn depth=3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPACES = ()", r"^mine\.py has no constant SPACE = SearchSpace"),
        ("SPACE = SearchSpace(arms=())", r"^mine\.py, line 2 .*: the space has no arm"),
        ("SPACE = SearchSpace(arms=(Arm(model='cnn')))", r"^mine\.py, line 2 .*: arms must be a tuple.*needs a comma"),
        ("SPACE = SearchSpace(arms=(Arm(model='cnn'),), protocol='published ')", "Did you mean 'published'"),
        ("SPACE = SearchSpace(arms=(Arm(model='cnn'", r"^mine\.py, line 2: .*never closed"),
        (
            "import absent_module",
            r"^mine\.py, line 2 \(import absent_module\) raised ModuleNotFoundError when loaded: No module named 'absent_module'",
        ),
        ("SPACE = SearchSpace(arms=(Arm(depht=3),))", r"^mine\.py, arm 1: There is no field 'depht'. Did you mean 'depth'"),
        ("SPACE = SearchSpace(arms=(Arm(), Arm(model='resnet18', depth=3)))", r"^mine\.py, arm 2: depth does not apply"),
        ("SPACE = SearchSpace(arms=(Arm(batch_size=Grid(0, 8)),))", r"^mine\.py, arm 1: batch_size must be at least 2"),
        (
            "SPACE = SearchSpace(arms=(Arm(), Arm(model='cnn', batch_size=8)))",
            r"^mine\.py, arm 2: cell 'cnn' stands in arm 1 too",
        ),
        (
            "SPACE = SearchSpace(arms=(Arm(), Arm(batch_size=Grid(64, 128))))",
            r"^mine\.py, arm 2: cell 'cnn batch_size=128' trains the same as 'cnn'",
        ),
        ("SPACE = SearchSpace(arms=(Arm(learning_rate=Grid(1, 1.0)),))", "'cnn learning_rate=1.0' trains the same"),
        ("SPACE = SearchSpace(arms=(Arm(depth=Grid(2, 2)),))", r"^mine\.py, .*depth=2' trains the same|names a value twice"),
        ("SPACE = SearchSpace(arms=(Arm(depth=Grid()),))", r"^mine\.py, line 2 \(.*depth=Grid\(\).*\): "),
        ("SPACE = SearchSpace(arms=(Arm(depth=Choice(3)),))", r"^mine\.py, line 2 \(.*depth=Choice.*leaves nothing to choose"),
        (
            "SPACE = SearchSpace(arms=(Arm(\n    learning_rate=LogUniform(1e-2, 1e-4),\n),))",
            r"^mine\.py, line 3 \(learning_rate=LogUniform\(1e-2, 1e-4\),\): .* must rise from low to high",
        ),
        ("SPACE = SearchSpace(arms=(Arm(depth=IntRange(5, 2)),))", r"line 2 \(.*depth=IntRange.* must rise from low to high"),
        ("SPACE = SearchSpace(arms=(Arm(depth=IntRange(2.0, 5)),))", r"line 2 \(.*depth=IntRange.* must have whole numbers"),
        ("SPACE = SearchSpace(arms=(Arm(weight_decay=LogUniform(0, 1)),))", r"line 2 \(.*weight_decay.* must lie above 0"),
        (
            "SPACE = SearchSpace(arms=(Arm(weight_decay=Uniform(0, '1')),))",
            r"^mine\.py, line 2 \(.*weight_decay=Uniform.* must have finite numbers",
        ),
        ("SPACE = SearchSpace(arms=(Arm(learning_rate='fast'),))", r"arm 1: learning_rate must be a number, not 'fast'"),
        ("SPACE = SearchSpace(arms=(Arm(batch_size=lambda: 3),))", r"arm 1: batch_size must be a whole number, not <function"),
        ("SPACE = SearchSpace(arms=(Arm(learning_rate=LogUniform(1e-3, 20)),))", "arm 1: learning_rate must be .* not 20"),
        ("SPACE = SearchSpace(arms=(Arm(depth=IntRange(2, 9)),))", "arm 1: depth must be 2 to 7, not 9"),
        ("SPACE = SearchSpace(arms=(Arm(model='cnn', frozen_blocks=IntRange(0, 4)),))", "arm 1: frozen_blocks does not apply"),
        ("SPACE = SearchSpace(arms=(Arm(model=Choice('cnn', 'resnet18')),))", "arm 1: model cannot be sampled"),
        ("SPACE = SearchSpace(arms=(Arm(max_epochs=IntRange(5, 9)),))", "arm 1: max_epochs cannot be sampled"),
        (
            "SPACE = SearchSpace(arms=(Arm(depth=IntRange(2, 4)),), first_points=({'depth': 9},))",
            r"^mine\.py, the first point \{'depth': 9\} lies in no cell",
        ),
        ("SPACE = SearchSpace(arms=(Arm(),), study='run')", r"study cannot be 'run'.*Allowed: arm, cell"),
        ("1 / 0", r"^mine\.py, line 2 \(1 / 0\) raised ZeroDivisionError when loaded: division by zero"),
    ],
)
def test_a_wrong_space_file_is_one_line_that_says_where(space_file, text, message):
    with pytest.raises(InputError, match=message) as refused:
        load_space(space_file(text))
    assert "\n" not in str(refused.value)


def test_an_unknown_space_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"No search space 'freez_grid'\. Did you mean 'freeze_grid'\? Allowed: .*freeze_grid"):
        load_space("freez_grid")


def test_a_missing_space_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no space file .*absent\.py"):
        load_space(str(tmp_path / "absent.py"))


def test_loading_a_space_leaves_nothing_behind_in_the_interpreter(space_file):
    before = set(sys.modules), list(sys.path)
    load_space(space_file("SPACE = SearchSpace(arms=(Arm(model='cnn'),))"))
    assert (set(sys.modules), list(sys.path)) == before


# Sampled axes


def test_sampled_axes_are_no_part_of_a_cells_name_or_point():
    space = SearchSpace(arms=(Arm(model="cnn", depth=Grid(2, 3), learning_rate=LogUniform(1e-4, 1e-2)),))
    assert [(cell.name, dict(cell.point)) for cell in space.cells()] == [
        ("cnn depth=2", {"model": "cnn", "depth": 2}),
        ("cnn depth=3", {"model": "cnn", "depth": 3}),
    ]
    assert all(set(cell.axes) == {"learning_rate"} for cell in space.cells())


def test_a_cell_is_checked_at_both_ends_of_every_axis():
    (cell,) = SearchSpace(
        arms=(Arm(depth=IntRange(2, 4), learning_rate=LogUniform(1e-4, 1e-2), batch_size=Choice(8, 16)),)
    ).cells()
    points = [(point["depth"], point["learning_rate"], point["batch_size"]) for point in cell.probes()]
    assert points == [(2, 1e-4, 8), (4, 1e-4, 8), (2, 1e-2, 8), (2, 1e-4, 16), (4, 1e-2, 16)]


def test_every_point_of_finite_axes_can_be_listed():
    (cell,) = SearchSpace(arms=(Arm(depth=IntRange(2, 4), batch_size=Choice(8, 16)),)).cells()
    listed = [(point["depth"], point["batch_size"]) for point in cell.all_values()]
    assert listed == [(2, 8), (2, 16), (3, 8), (3, 16), (4, 8), (4, 16)]


def test_the_points_of_a_continuous_axis_cannot_be_listed():
    (cell,) = SearchSpace(arms=(Arm(learning_rate=LogUniform(1e-4, 1e-2)),)).cells()
    assert cell.all_values() is None


@each_shipped_space
def test_a_space_survives_its_json(name):
    space = load_space(name)
    read = SearchSpace.from_json(json.loads(json.dumps(space.as_json())))
    assert read == space
    assert read.sha256() == space.sha256()


def test_json_that_is_no_space_is_refused():
    with pytest.raises(InputError, match="no search space of this version"):
        SearchSpace.from_json({"name": "old", "arms": []})
    content = load_space("freeze_grid").as_json() | {"arms": [{"depth": {"normal": [1, 2]}}]}
    with pytest.raises(InputError, match=r"no axis of the kind 'normal'"):
        SearchSpace.from_json(content)


@given(low=st.integers(0, 50), span=st.integers(1, 50), step=st.integers(1, 7), value=st.integers(-5, 120))
def test_a_range_holds_exactly_its_values(low, span, step, value):
    axis = IntRange(low, low + step * span, step=step)
    assert axis.contains(value) == (value in axis.all_values())
    assert axis.all_values()[0] == low
    assert axis.all_values()[-1] == low + step * span


def test_setting_a_sampled_field_leaves_no_axis_and_no_first_value():
    space = load_space("freeze_tuned").with_fixed({"batch_size": 32})
    assert all("batch_size" not in cell.axes for cell in space.cells())
    assert all("batch_size" not in point for point in space.first_points)


@pytest.mark.parametrize("name", sorted(shipped_space_files()))
def test_a_shipped_space_takes_what_a_run_fixes_for_all_its_backbones(name: str) -> None:
    space = load_space(name)
    if space.backbones():
        fixed = space.with_fixed({"precision": "fp32", "weights": "random"})
        assert {TrialConfig.from_point(cell.point).columns()["weights"] for cell in fixed.cells()} <= {"random", None}
