"""How deep should a pretrained network stay frozen, when every depth has its own tuned training?

Trials: 11 cells (cnn; resnet18 and resnet34 x 5 depths), --samples points in each, so that no cell had more tries than
another; a sampler and rungs of its own per cell.
Cost: --samples times freeze_grid at most; ASHA stops what falls behind in its cell.
Run: python -m tune_lung.search --space freeze_tuned --data DIR --samples 16
"""

from tune_lung.space import Arm, Choice, Grid, LogUniform, SearchSpace

RATES = LogUniform(1e-4, 1e-2)
BATCH_SIZES = Choice(16, 32, 64, 128)
DECAYS = LogUniform(1e-6, 1e-2)

SPACE = SearchSpace(
    study="cell",
    arms=(
        Arm(model="cnn", learning_rate=RATES, batch_size=BATCH_SIZES, weight_decay=DECAYS),
        Arm(
            model=Grid("resnet18", "resnet34"),
            frozen_blocks=Grid(0, 1, 2, 3, 4),
            learning_rate=RATES,
            batch_size=BATCH_SIZES,
            weight_decay=DECAYS,
        ),
    ),
    first_points=({"learning_rate": 5e-4, "batch_size": 128},),
)
