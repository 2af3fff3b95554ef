"""Which network, how deep frozen and how trained, finds disease best?

Trials: 3 cells (cnn; resnet18, resnet34), --samples points in each: the handcrafted CNN with its architecture, the
ResNets with their frozen depth, all with their training; a sampler per arm.
Cost: as --samples cells of freeze_grid at most; ASHA stops what falls behind.
Run: python -m tune_lung.search --space everything --data DIR --samples 64
"""

from tune_lung.space import Arm, Choice, Grid, IntRange, LogUniform, SearchSpace, Uniform

RATES = LogUniform(1e-4, 1e-2)
BATCH_SIZES = Choice(16, 32, 64, 128)
DECAYS = LogUniform(1e-6, 1e-2)

SPACE = SearchSpace(
    study="arm",
    arms=(
        Arm(
            model="cnn",
            depth=IntRange(2, 6),
            base_channels=IntRange(8, 48, step=8),
            channel_growth=Uniform(1.0, 2.0),
            first_kernel_size=Choice(3, 5, 7, 9),
            learning_rate=RATES,
            batch_size=BATCH_SIZES,
            weight_decay=DECAYS,
        ),
        Arm(
            model=Grid("resnet18", "resnet34"),
            frozen_blocks=IntRange(0, 4),
            learning_rate=RATES,
            batch_size=BATCH_SIZES,
            weight_decay=DECAYS,
        ),
    ),
    first_points=({"learning_rate": 5e-4, "batch_size": 128},),
)
