"""Which pretrained backbone finds most for its cost, from nothing frozen to all of it, when each has a tuned training?

Trials: 13 cells (cnn; resnet18, resnet50, convnext_tiny and efficientnet_b0 x 3 depths), --samples points in each; a sampler
and rungs of its own per cell. Newer backbones want lower rates than ResNets: the range begins lower than freeze_tuned's.
Cost: --samples times about 3 freeze_grids at most; ASHA stops what falls behind in its cell.
Run: python -m tune_lung.search --space backbones --data DIR --samples 16
"""

from tune_lung.space import Arm, Choice, Grid, LogUniform, SearchSpace

RATES = LogUniform(1e-5, 1e-2)
BATCH_SIZES = Choice(16, 32, 64, 128)
DECAYS = LogUniform(1e-6, 1e-1)

SPACE = SearchSpace(
    study="cell",
    arms=(
        Arm(model="cnn", learning_rate=RATES, batch_size=BATCH_SIZES, weight_decay=DECAYS),
        Arm(
            model=Grid("resnet18", "resnet50", "convnext_tiny", "efficientnet_b0"),
            frozen_blocks=Grid(0, 2, 4),
            learning_rate=RATES,
            batch_size=BATCH_SIZES,
            weight_decay=DECAYS,
        ),
    ),
    first_points=({"learning_rate": 5e-4, "batch_size": 128},),
)
