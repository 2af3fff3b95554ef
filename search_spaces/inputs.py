"""Does a network look at the lungs, and does augmentation help it?

Trials: 18 cells (cnn, resnet18 x full, lungs, background x none, light, strong). The paper found no gain in masks or in
augmentation; a network that does well on the background alone has found a shortcut. Every image needs a lung mask.
Cost: 9 times the cnn and resnet18 k=0 of freeze_grid.
Run: python -m tune_lung.search --space inputs --data DIR
"""

from tune_lung.space import Arm, Grid, SearchSpace

SPACE = SearchSpace(
    arms=(
        Arm(
            model=Grid("cnn", "resnet18"),
            input=Grid("full", "lungs", "background"),
            augmentation=Grid("none", "light", "strong"),
        ),
    ),
)
