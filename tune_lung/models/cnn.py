"""Builds the handcrafted CNN of Lykos (2022), and the deeper, wider or narrower ones derived from it."""

from collections import OrderedDict

from torch import nn

from tune_lung.families.cnn import CNN, CnnConfig
from tune_lung.models.architecture import Architecture


class CnnArchitecture(Architecture[CnnConfig]):
    """Stages `stage1`, `stage2`, ..., each of which halves the map's side; none is ever frozen."""

    def stages(self, config: CnnConfig) -> OrderedDict[str, nn.Module]:
        """Build each stage as conv -> ReLU -> batch norm -> max pool -> ReLU."""
        inputs = (CNN.in_channels, *config.channels[:-1])
        layers = zip(inputs, config.channels, config.kernel_sizes, strict=True)
        return OrderedDict((f"stage{number}", _stage(*layer, config)) for number, layer in enumerate(layers, start=1))

    def head(self, config: CnnConfig, *, num_classes: int, image_size: int) -> OrderedDict[str, nn.Module]:
        """Build the flattening, or under `same` the averaging, of the last map, and `fc` with Xavier weights and a bias of 0.

        Under `valid` the width of `fc` hangs on the image's size.

        References:
            Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, eq. 16.
        """
        map_size = config.output_size(image_size)
        if map_size < 1:
            raise ValueError(f"image_size must be at least {config.smallest_image_size()} for this CNN, not {image_size}.")
        head: OrderedDict[str, nn.Module] = OrderedDict()
        if config.padding == "same":
            head["pool"] = nn.AdaptiveAvgPool2d(1)
            map_size = 1
        head["flatten"] = nn.Flatten()
        head["fc"] = _xavier_linear(config.channels[-1] * map_size**2, num_classes)
        return head


def _stage(in_channels: int, out_channels: int, kernel_size: int, config: CnnConfig) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(in_channels, out_channels, kernel_size, padding=config.padding),
        relu=nn.ReLU(inplace=True),
        norm=nn.BatchNorm2d(out_channels),
        pool=nn.MaxPool2d(2),
        relu_after_pool=nn.ReLU(inplace=True),
    )
    return nn.Sequential(layers)


def _xavier_linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
