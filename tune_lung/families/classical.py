"""Classical learners: one fit on a table of features, a row for each image, no epochs.

What a row holds is said by `features`: grey values, histograms of oriented gradients, or what a frozen backbone gives. The
backbone's answer to an image is the same that a network of the same depth trains on, so the two can be compared.

References:
    Dalal and Triggs, "Histograms of oriented gradients for human detection", CVPR 2005.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, Self, TypeAlias

from tune_lung.errors import InputError, require, require_choice
from tune_lung.families.backbone import NUM_BLOCKS, WeightsKind
from tune_lung.families.family import Family, Look, ModelConfig, PointValue, plain_types
from tune_lung.families.networks import NETWORKS

Features: TypeAlias = Literal["hog", "pixels", "pooled"]
ClassWeight: TypeAlias = Literal["balanced", "none"]
Kernel: TypeAlias = Literal["linear", "rbf"]

CELLS_PER_BLOCK = 3
"""Side, in cells, of the blocks in which HOG normalises its histograms."""
_OWN_FIELDS: Mapping[str, tuple[str, ...]] = {
    "hog": ("hog_cell", "hog_orientations"),
    "pixels": ("pixel_side",),
    "pooled": ("backbone", "frozen_blocks", "weights"),
}
"""Fields that say more about a kind of features, and mean nothing for the others."""
_BACKBONES: Mapping[str, Family] = {model: family for family in NETWORKS if family.takes_weights for model in family.models}


@dataclass(frozen=True, kw_only=True)
class ClassicalConfig:
    """What every classical learner has: its features, and how much each class counts."""

    model: str
    """Which learner."""
    features: Features = "hog"
    """What it sees of an image: gradients' histograms, grey values, or a frozen backbone's output, averaged over the map."""
    hog_cell: int = 16
    """HOG: side of a cell in pixels, 4 to 128."""
    hog_orientations: int = 9
    """HOG: bins of the gradients' directions, 2 to 36."""
    pixel_side: int = 32
    """Pixels: side in pixels to which an image is averaged, 4 to 128."""
    backbone: str = "resnet18"
    """Pooled: which network."""
    frozen_blocks: int = 4
    """Pooled: after which of the backbone's blocks, 1 to 4; 0 for other features."""
    weights: WeightsKind = "imagenet"
    """Pooled: where the backbone comes from, as for networks."""
    components: int = 0
    """Principal components that the features are projected on, fitted on the training images; 0 keeps the features."""
    class_weight: ClassWeight = "balanced"
    """Whether every class counts as much as another, however many images it has."""

    _models: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.model in self._models, f"model must be {' or '.join(self._models)}, not {self.model!r}.")
        require_choice("features", self.features, Features)
        require_choice("class_weight", self.class_weight, ClassWeight)
        require_choice("weights", self.weights, WeightsKind)
        require(4 <= self.hog_cell <= 128, f"hog_cell must be 4 to 128 pixels, not {self.hog_cell}.")
        require(2 <= self.hog_orientations <= 36, f"hog_orientations must be 2 to 36, not {self.hog_orientations}.")
        require(4 <= self.pixel_side <= 128, f"pixel_side must be 4 to 128 pixels, not {self.pixel_side}.")
        require(self.backbone in _BACKBONES, f"backbone must be one of {', '.join(_BACKBONES)}, not {self.backbone!r}.")
        least = 1 if self.features == "pooled" else 0
        require(
            least <= self.frozen_blocks <= NUM_BLOCKS,
            f"frozen_blocks must be {least} to {NUM_BLOCKS} with features={self.features}, not {self.frozen_blocks}.",
        )
        require(0 <= self.components <= 4096, f"components must be 0 to 4096, not {self.components}.")

    @property
    def starts_from(self) -> str | None:
        """The backbone, where one gives the features."""
        return self.backbone if self.features == "pooled" else None

    @classmethod
    def from_fields(cls, model: str, own: Mapping[str, PointValue]) -> Self:
        """Build it; what says more about other features than its own is refused, but for `weights`, which a run sets for all."""
        features = own.get("features", cls.features)
        foreign = [name for kind, names in _OWN_FIELDS.items() if kind != features for name in names]
        for name in foreign:
            require(name not in own or name == "weights", f"{name} does not apply to {model} with features={features}.")
        values = {name: value for name, value in own.items() if name not in foreign}
        if "frozen_blocks" in foreign:
            values["frozen_blocks"] = 0
        return cls(model=model, **values)  # type: ignore[arg-type]

    def own_fields(self) -> dict[str, PointValue]:
        """Name what says how it learns, and from what."""
        foreign = [name for kind, names in _OWN_FIELDS.items() if kind != self.features for name in names]
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("model", *foreign)}

    def with_nothing_frozen(self) -> Self:
        """Give itself: it trains no layer."""
        return self

    def check_image_size(self, image_size: int) -> None:
        """Refuse images that leave its features nothing to see; see `ModelConfig`."""
        if self.features == "pooled":
            self.network().check_image_size(image_size)
        elif self.features == "hog" and image_size < CELLS_PER_BLOCK * self.hog_cell:
            raise InputError(
                f"--image-size {image_size} is too small for hog_cell {self.hog_cell}: it needs at least"
                f" {CELLS_PER_BLOCK * self.hog_cell} pixels. Raise --image-size, or lower hog_cell."
            )
        elif self.features == "pixels":
            require(
                self.pixel_side <= image_size,
                f"pixel_side {self.pixel_side} is more than --image-size {image_size}. Lower it, or raise --image-size.",
            )

    def network(self) -> ModelConfig:
        """Name the network whose frozen prefix gives pooled features."""
        own: dict[str, PointValue] = {"frozen_blocks": self.frozen_blocks, "weights": self.weights}
        return _BACKBONES[self.backbone].config.from_fields(self.backbone, own)


@dataclass(frozen=True, kw_only=True)
class LogisticConfig(ClassicalConfig):
    """Multinomial logistic regression with an L2 penalty."""

    c: float = 1.0
    """Inverse strength of the penalty (C in scikit-learn), above 0."""

    _models: ClassVar[tuple[str, ...]] = ("logistic",)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        _require_c(self.c)


@dataclass(frozen=True, kw_only=True)
class SvmConfig(ClassicalConfig):
    """A support vector machine, one classifier for each pair of classes."""

    c: float = 1.0
    """Inverse strength of the penalty (C in scikit-learn), above 0."""
    kernel: Kernel = "rbf"
    """Likeness of two images: a product of their features, or a bell around their distance."""
    gamma_factor: float = 1.0
    """Narrowness of the bell, as a multiple of scikit-learn's `scale`: 1 / (number of features x their variance)."""

    _models: ClassVar[tuple[str, ...]] = ("svm",)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        _require_c(self.c)
        require_choice("kernel", self.kernel, Kernel)
        require(0 < self.gamma_factor <= 1e6, f"gamma_factor must be above 0 and at most 1e6, not {self.gamma_factor}.")


@dataclass(frozen=True, kw_only=True)
class ForestConfig(ClassicalConfig):
    """A random forest.

    References:
        Breiman, "Random forests", Machine Learning 45, 2001.
    """

    num_trees: int = 300
    """Trees, 1 to 10,000."""
    min_leaf_images: int = 1
    """Training images that each leaf holds at least, 1 to 10,000."""

    _models: ClassVar[tuple[str, ...]] = ("random_forest",)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        require(1 <= self.num_trees <= 10_000, f"num_trees must be 1 to 10000, not {self.num_trees}.")
        require(1 <= self.min_leaf_images <= 10_000, f"min_leaf_images must be 1 to 10000, not {self.min_leaf_images}.")


def _require_c(c: float) -> None:
    require(0 < c <= 1e9, f"c must be above 0 and at most 1e9, not {c}.")


def _family(name: str, look: Look, config: type[ClassicalConfig], *, is_counted: bool = False) -> Family:
    return Family(
        name=name,
        models={name: look},
        config=config,
        field_types=plain_types(config, without=("model", "_models")),
        in_channels=1,
        num_blocks=0,
        learner="classical",
        takes_weights=False,
        is_counted=is_counted,
    )


CLASSICAL: tuple[Family, ...] = (
    _family("logistic", Look(label="Logistic regression", colour="#117733"), LogisticConfig, is_counted=True),
    _family("svm", Look(label="SVM", colour="#AA4499"), SvmConfig),
    _family("random_forest", Look(label="Random forest", colour="#999933"), ForestConfig),
)
"""In the order in which figures draw them."""
