"""Every family. What builds and trains models asks here, and so do spaces, options, weights, figures and forecasts.

Another network is a file beside this one, a line in `tune_lung.families.networks`, and what builds it in `tune_lung.models`.
"""

from tune_lung.errors import did_you_mean, require
from tune_lung.families.classical import CLASSICAL
from tune_lung.families.family import Family, Look
from tune_lung.families.networks import NETWORKS

FAMILIES: tuple[Family, ...] = (*NETWORKS, *CLASSICAL)
"""Every family, in the order in which figures draw them."""

DEFAULT_MODEL = "cnn"
"""What is trained where no model is named: the paper's own network."""

LOOKS: dict[str, Look] = {model: look for family in FAMILIES for model, look in family.models.items()}
"""How figures show each model."""

MODELS: tuple[str, ...] = tuple(LOOKS)

FAMILY_FIELDS: dict[str, type] = {name: kind for family in FAMILIES for name, kind in family.field_types.items()}
"""Plain type of every field that only some families have."""

_FAMILY_OF = {model: family for family in FAMILIES for model in family.models}


def family_of(model: str) -> Family:
    """Find a model's family.

    Raises:
        InputError: There is no such model.
    """
    require(model in _FAMILY_OF, f"model cannot be {model!r}. {did_you_mean(model, MODELS)}")
    return _FAMILY_OF[model]
