"""The order in which a search takes up its cells."""

import pytest

from tune_lung.config import RunConfig, TrialConfig
from tune_lung.learners.learner import Setting
from tune_lung.learners.registry import learner_of
from tune_lung.models.cost import mult_adds
from tune_lung.models.network import network_outline
from tune_lung.space import Arm, Choice, Grid, SearchSpace
from tune_lung.space_files import load_space
from tune_lung.strategy import Strategy
from tune_lung.tuning.cell_order import longest_first, search_order
from tune_lung.tuning.proposals.studies import Studies

RUN = RunConfig()


def order_of(space: SearchSpace, run: RunConfig = RUN) -> list[str]:
    return [cell.name for cell in longest_first(space, run, num_classes=4)]


def test_the_longest_cells_of_the_freeze_grid_come_first_and_the_frozen_ones_last():
    order = order_of(load_space("freeze_grid"))
    assert sorted(order) == sorted(cell.name for cell in load_space("freeze_grid").cells())
    assert order[:2] == ["resnet34 frozen_blocks=0", "resnet34 frozen_blocks=1"]
    assert order[-2:] == ["resnet34 frozen_blocks=4", "resnet18 frozen_blocks=4"]


def test_more_epochs_are_more_work():
    assert order_of(SearchSpace(arms=(Arm(model="cnn", max_epochs=Grid(2, 9, 5)),))) == [
        "cnn max_epochs=9",
        "cnn max_epochs=5",
        "cnn max_epochs=2",
    ]


def test_cells_that_share_a_frozen_prefix_stay_together():
    arm = Arm(model="resnet18", frozen_blocks=2, batch_size=Grid(16, 32), input=Grid("full", "lungs"))
    assert order_of(SearchSpace(arms=(arm,))) == [
        "resnet18 batch_size=16 input=full",
        "resnet18 batch_size=32 input=full",
        "resnet18 batch_size=16 input=lungs",
        "resnet18 batch_size=32 input=lungs",
    ]


@pytest.mark.parametrize("run", [RUN, RunConfig(protocol="published", select_by="val_micro_recall")])
def test_cells_that_share_nothing_keep_the_spaces_order_where_their_work_is_equal(run: RunConfig):
    frozen_blocks = 0 if run.protocol == "strict" else 2
    arm = Arm(model="resnet18", frozen_blocks=frozen_blocks, batch_size=Grid(16, 32), input=Grid("full", "lungs"))
    space = SearchSpace(arms=(arm,))
    assert order_of(space, run) == [cell.name for cell in space.cells()]


def test_a_prefix_is_computed_once_or_before_augmented_images_in_every_epoch():
    plain, augmented = (
        TrialConfig.from_point({"model": "resnet18", "frozen_blocks": 2, "max_epochs": 10, "augmentation": augmentation})
        for augmentation in ("none", "light")
    )
    outline = network_outline(plain.network, protocol="strict", num_classes=4, image_size=RUN.image_size)
    works = [learner_of("resnet18").work(trial, Setting.of(RUN, num_classes=4)) for trial in (plain, augmented)]
    prefix = (works[1] - works[0]) / 9
    assert works[0] == 10 * 3 * (mult_adds(outline, RUN.image_size) - prefix) + prefix
    # blocks 1 and 2 and the stem hold more than half of ResNet18's multiply-adds
    assert 0.5 < prefix / mult_adds(outline, RUN.image_size) < 0.6


def test_where_trials_are_stopped_the_spaces_order_is_kept():
    space = load_space("freeze_grid")
    stopped, whole = (
        search_order(space, Strategy.for_space(space, scheduler=scheduler), RUN, num_classes=4) for scheduler in ("asha", "none")
    )
    assert stopped == space.cells()
    assert whole == longest_first(space, RUN, num_classes=4)


def test_the_studies_take_the_cells_up_in_that_order_sample_by_sample():
    space = SearchSpace(arms=(Arm(model="cnn", depth=Grid(2, 4), batch_size=Choice(8, 16)),))
    cells = longest_first(space, RUN, num_classes=4)
    studies = Studies(space, Strategy.for_space(space, samples=2), seed=0, cells=cells)
    proposed = [proposal.cell.name for proposal in iter(studies.propose, None)]
    assert proposed == [cell.name for cell in cells] * 2
    assert proposed != [cell.name for cell in space.cells()] * 2
