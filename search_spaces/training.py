"""Which rate, batch size and patience should the handcrafted CNN be trained with?

Trials: 24 cells (4 rates x 3 batch sizes x 2 patiences), every one run to its early stop: the tuning that the paper
did before its comparison.
Cost: 24 times the cnn of freeze_grid.
Run: python -m tune_lung.search --space training --data DIR
"""

from tune_lung.space import Arm, Grid, SearchSpace

SPACE = SearchSpace(
    arms=(
        Arm(
            model="cnn",
            learning_rate=Grid(1e-4, 5e-4, 1e-3, 5e-3),
            batch_size=Grid(32, 64, 128),
            patience=Grid(10, 20),
        ),
    ),
)
