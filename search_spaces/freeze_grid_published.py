"""What does the paper's own program find, repeated rule by rule?

Trials: 11 cells (cnn; resnet18 and resnet34 x 5 depths) under the protocol `published`: softmax fed to cross-entropy,
conv1 and bn1 never frozen, grey pixels / 255, split by file number, lowest validation loss kept, fp32.
Cost: as freeze_grid without reduced precision.
Run: python -m tune_lung.search --space freeze_grid_published --data DIR
"""

from tune_lung.space import Arm, Grid, SearchSpace

SPACE = SearchSpace(
    protocol="published",
    arms=(
        Arm(model="cnn"),
        Arm(model=Grid("resnet18", "resnet34"), frozen_blocks=Grid(0, 1, 2, 3, 4)),
    ),
)
