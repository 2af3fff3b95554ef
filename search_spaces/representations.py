"""What must be learnt, and what is there already: which features, from which depth, does which learner tell the classes by?

Trials: 18 cells (logistic regression, SVM and random forest, each on grey values, on gradients' histograms and on what a
frozen ResNet18 gives after its block 1, 2, 3 or 4), --samples points in each; a sampler of its own per cell.
Cost: a trial is one fit, of seconds; the backbone's features are computed once for all, and shared with freeze_grid's.
Run: python -m tune_lung.search --space representations --data DIR --samples 16
"""

from tune_lung.space import Arm, Choice, Grid, IntRange, LogUniform, SearchSpace

STRENGTHS = LogUniform(1e-4, 1e2)
LEAVES = IntRange(1, 16)
FEATURES = (
    {"features": Grid("pixels"), "pixel_side": Choice(8, 16, 32)},
    {"features": Grid("hog"), "hog_cell": Choice(8, 16)},
    {"features": Grid("pooled"), "frozen_blocks": Grid(1, 2, 3, 4)},
)

SPACE = SearchSpace(
    study="cell",
    arms=(
        *(Arm(model="logistic", **features, c=STRENGTHS) for features in FEATURES),
        *(Arm(model="svm", **features, c=LogUniform(1e-2, 1e3), gamma_factor=LogUniform(0.1, 10)) for features in FEATURES),
        *(Arm(model="random_forest", **features, min_leaf_images=LEAVES) for features in FEATURES),
    ),
    first_points=({"c": 1.0, "gamma_factor": 1.0}, {"c": 1e-2}, {"min_leaf_images": 1}),
)
