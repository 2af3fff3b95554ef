"""What a network answers for the images of one part of the data.

Shapes: N images, K classes, C channels, H rows, W columns.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from tune_lung.config import Precision
from tune_lung.data.store import Part, Pixels
from tune_lung.models.input_transform import InputTransform
from tune_lung.models.precision import autocast
from tune_lung.models.transfer import to_device
from tune_lung.results.schema import probability_column


def input_batches(images: Pixels, transform: InputTransform, *, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield images in their order as the network takes them in, images_NCHW."""
    pixels_NHW, masks_NHW = stored_tensors(images, transform)
    for start in range(0, len(pixels_NHW), batch_size):
        chosen = slice(start, start + batch_size)
        masks = None if masks_NHW is None else to_device(masks_NHW[chosen], device)
        yield transform.normalise(transform.brightness(to_device(pixels_NHW[chosen], device), masks))


def stored_tensors(images: Pixels, transform: InputTransform) -> tuple[Tensor, Tensor | None]:
    """Give images' pixels_NHW and, where the transform needs them, their masks_NHW: uint8, as they lie in the store."""
    needs_masks = transform.part != "full" and images.masks_NHW is not None
    return torch.from_numpy(images.pixels_NHW), torch.from_numpy(images.masks_NHW) if needs_masks else None


@torch.inference_mode()
def predict_logits(module: nn.Module, batches: Iterable[Tensor], *, device: torch.device, precision: Precision) -> Tensor:
    """Compute the logits of batches, batch norm in eval.

    Args:
        module: A network, or the rest of one; on `device`; left in eval mode.
        batches: What it reads, on `device`.
        device: Where to compute.
        precision: Number format of the pass.

    Returns:
        logits_NK, float32 on the CPU, in the order of the batches.
    """
    module.eval()
    logits = []
    for batch in batches:
        with autocast(device, precision):
            logits.append(module(batch).float())
    return torch.cat(logits).cpu()


def predictions_frame(logits_NK: Tensor, part: Part, classes: Sequence[str]) -> pd.DataFrame:
    """Lay out a part's predicted probabilities as the ledger's tables hold them.

    Args:
        logits_NK: The network's answers, in the part's order.
        part: The images.
        classes: Class names in the order of the network's outputs.

    Returns:
        One row per image: `image_id`, `label` (the class's name) and one `p_<class>` per class, summing to 1 in double
        precision.
    """
    return answers_frame(probabilities_of(logits_NK), part, classes)


def answers_frame(probabilities_NK: npt.NDArray[np.float64], part: Part, classes: Sequence[str]) -> pd.DataFrame:
    """Lay out a part's probabilities as `predictions_frame` does, whatever gave them."""
    columns = probability_columns(probabilities_NK, classes)
    return pd.DataFrame({"image_id": part.image_ids, "label": [classes[label] for label in part.labels_N], **columns})


def probabilities_of(logits_NK: Tensor) -> npt.NDArray[np.float64]:
    """Turn logits into probabilities_NK, in double precision."""
    probabilities_NK: npt.NDArray[np.float64] = torch.softmax(logits_NK.double(), dim=1).numpy()
    return probabilities_NK


def probability_columns(probabilities_NK: npt.NDArray[np.float64], classes: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
    """Name each class's probabilities as its column."""
    return {probability_column(name): probabilities_NK[:, index] for index, name in enumerate(classes)}
