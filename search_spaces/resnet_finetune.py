"""How is a pretrained ResNet best fine-tuned?

Trials: 2 cells (resnet18, resnet34), --samples points in each over frozen depth, rate, batch size, decay, smoothing,
schedule and augmentation; one sampler learns from both.
Cost: as --samples cells of freeze_grid at most; ASHA stops what falls behind.
Run: python -m tune_lung.search --space resnet_finetune --data DIR --samples 64
"""

from tune_lung.space import Arm, Choice, Grid, IntRange, LogUniform, SearchSpace, Uniform

SPACE = SearchSpace(
    study="arm",
    arms=(
        Arm(
            model=Grid("resnet18", "resnet34"),
            frozen_blocks=IntRange(0, 4),
            learning_rate=LogUniform(1e-5, 1e-2),
            batch_size=Choice(16, 32, 64, 128),
            weight_decay=LogUniform(1e-6, 1e-2),
            label_smoothing=Uniform(0.0, 0.2),
            learning_rate_schedule=Choice("constant", "cosine"),
            augmentation=Choice("none", "light"),
        ),
    ),
    first_points=({"frozen_blocks": 0, "learning_rate": 5e-4, "batch_size": 128},),
)
