"""How deep and how wide should a handcrafted CNN be?

Trials: 1 cell, --samples points over depth, width, growth, kernel and rates; the paper's depth and width are tried first.
Cost: the largest network has 8 times the multiply-adds of the paper's; ASHA stops what falls behind.
Run: python -m tune_lung.search --space cnn_architecture --data DIR --samples 64
"""

from tune_lung.space import Arm, Choice, IntRange, LogUniform, SearchSpace, Uniform

SPACE = SearchSpace(
    arms=(
        Arm(
            model="cnn",
            depth=IntRange(2, 6),
            base_channels=IntRange(8, 48, step=8),
            channel_growth=Uniform(1.0, 2.0),
            first_kernel_size=Choice(3, 5, 7, 9),
            learning_rate=LogUniform(1e-4, 1e-2),
            batch_size=Choice(16, 32, 64, 128),
        ),
    ),
    first_points=(
        {
            "depth": 5,
            "base_channels": 32,
            "channel_growth": 2.0,
            "first_kernel_size": 5,
            "learning_rate": 5e-4,
            "batch_size": 128,
        },
    ),
)
