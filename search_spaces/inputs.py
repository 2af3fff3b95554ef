"""Does a network look at the lungs, and does augmentation help it?

Trials: 18 cells (cnn, resnet18 x full, lungs, background x none, light, strong). The paper found no gain in masks or in
augmentation; a network that does well on the background alone has found a shortcut. Every image needs a lung mask.
Cost: 9 times the cnn and resnet18 k=0 of freeze_grid.
Run: python -m tune_lung.search --space inputs --data DIR
"""

from tune_lung.space import Arm, Grid, SearchSpace

INPUTS = Grid("full", "lungs", "background")
AUGMENTATIONS = Grid("none", "light", "strong")

SPACE = SearchSpace(
    arms=(  # an arm each: a run fixes where a ResNet's weights come from, which the CNN has no field for
        Arm(model="cnn", input=INPUTS, augmentation=AUGMENTATIONS),
        Arm(model="resnet18", input=INPUTS, augmentation=AUGMENTATIONS),
    ),
)
