"""The published runs of Lykos (2022), as facts to compare with."""

from pathlib import Path

import pandas as pd

SOURCE = "Lykos (2022)"
"""How figures and tables name them."""

_FILE = Path(__file__).with_name("lykos2022_runs.csv")


def published_runs() -> pd.DataFrame:
    """Read the 11 published runs on whole images.

    They were read off the training logs that the author published with the program: one seed each, one unnamed GPU,
    128 px, batch 128, Adam at 5e-4, patience 20, at most 100 epochs, 2,119 test images; every run ended by patience.

    Returns:
        One row per run: `model`, `frozen_blocks` (null for the CNN), `test_micro_recall`, `epochs_run`, `best_epoch`,
        `min_val_loss`, `train_loss_at_best`, `mean_epoch_seconds` and `median_epoch_seconds` (training pass alone),
        `total_params`, `trainable_params`, `mult_adds_per_batch_of_128_g` (1e9).

    References:
        Lykos, "Lung Diseases Detection from X-Rays using Neural Networks" (2022).
    """
    runs = pd.read_csv(_FILE, dtype={"frozen_blocks": "Int32"})
    return runs[~runs["masked"]].drop(columns="masked").reset_index(drop=True)
