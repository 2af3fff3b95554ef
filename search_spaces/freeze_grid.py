"""How deep should a pretrained network stay frozen?

Trials: 11 cells (cnn; resnet18 and resnet34 x 5 depths), every cell run to its early stop.
Cost: see the table of ratios in docs/searching.md; a strict epoch of resnet34 k=0 costs twice one of resnet18 k=0.
Run: python -m tune_lung.search --space freeze_grid --data DIR
"""

from tune_lung.space import Arm, Grid, SearchSpace

SPACE = SearchSpace(
    arms=(
        Arm(model="cnn"),
        Arm(model=Grid("resnet18", "resnet34"), frozen_blocks=Grid(0, 1, 2, 3, 4)),
    ),
)
