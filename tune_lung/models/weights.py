"""Where a backbone starts: torchvision's ImageNet weights, a random start, or the user's own files.

What is read is checked before anything is trained: a file that does not fit is one line of text. No code in a file is
ever run.
"""

import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import WeightsEnum, get_model, get_model_weights

from tune_lung.errors import InputError, did_you_mean
from tune_lung.families.backbone import WeightsKind
from tune_lung.files import DamagedFileError, check_safetensors_file, open_regular_file, sha256_of_file
from tune_lung.models.architectures import backbone_of

IMAGENET_VERSION = "IMAGENET1K_V1"
"""The weights of torchvision's first recipe, for every depth. They are what `pretrained=True` gave the paper, and
ResNet18 and 34 have no others: with the second recipe for 50 and up, depth and recipe could not be told apart."""

SUFFIXES = (".pth", ".pt", ".safetensors")
"""Kinds of weights files that can be read."""

_MOST_BYTES = 2**30
"""Size of the largest weights file that is read: those of ResNet152 take 242 MB."""
_MOST_PICKLE_BYTES = 4 * 2**20
_ZIP_START = b"PK\x03\x04"
_PICKLES_BEFORE_OLD_STORAGES = 5
"""Before torch 1.6: a number, a version, facts about the machine, the tensors, the names of their storages."""
_PLAIN_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v2)?|parameter)|torch(\.storage)? \w+Storage"
)
_T = TypeVar("_T")
_BATCH_COUNTER = "num_batches_tracked"  # absent from torchvision's own files, and never read with a fixed momentum


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Where one model's backbone starts."""

    kind: WeightsKind
    """torchvision's ImageNet weights, a random start, or a file."""
    name: str
    """What the ledger calls it: torchvision's name, the file's name without its folder, or `random`."""
    sha256: str | None = None
    """Digest of the file; None for a random start."""
    path: Path | None = None
    """The file on the machine that resolved it; None for a random start. Never written to the ledger."""


RANDOM_WEIGHTS = WeightsSource(kind="random", name="random")
"""A random start."""


def resolve_weights(argument: str, backbones: Sequence[str]) -> dict[str, WeightsSource]:
    """Find and check the weights of every backbone of a space.

    Args:
        argument: `imagenet`, `random`, a file, or a folder with one file per model, named `resnet18*.pth` (or `.pt`,
            `.safetensors`). Files are state dicts in torchvision's format, fp32 or fp16, with any head.
        backbones: Networks whose weights are wanted, each once.

    Returns:
        A source for each backbone, by model name.

    Raises:
        InputError: There is no such file, weights for some models are missing, a file does not fit its network or
            cannot be read, or a download failed; the text says what to do.
    """
    if argument == "random":
        return dict.fromkeys(backbones, RANDOM_WEIGHTS)
    if argument == "imagenet":
        return {model: _imagenet_source(model) for model in backbones}
    path = Path(argument).expanduser().resolve()  # workers stand in another folder
    if path.is_dir():
        return {model: _file_source(file, model) for model, file in _files_of_folder(path, backbones).items()}
    if not path.is_file():
        hint = did_you_mean(argument, ("imagenet", "random"))
        raise InputError(f"--weights {argument}: there is no such file or folder. {hint} Or give a path that exists.")
    return _single_file_sources(path, backbones)


def load_backbone(source: WeightsSource, model: str) -> dict[str, Tensor]:
    """Read a backbone's weights.

    ImageNet weights are looked up on the machine that asks, and downloaded there when missing: a cluster's nodes have
    their own caches.

    Args:
        source: What `resolve_weights` gave; not a random start.
        model: The backbone.

    Returns:
        Tensors by torchvision's names, fp32, on the CPU, without head and batch counters.

    Raises:
        InputError: The file is gone, does not fit, or is no longer the one that was resolved.
        ValueError: The source is a random start.
    """
    path = _imagenet_file(_imagenet_weights(model)) if source.kind == "imagenet" else source.path
    if path is None:
        raise ValueError("A random start has no weights to load.")
    if not path.is_file():
        raise InputError(
            f"{path.name}: the weights file is no longer there on this machine. Put it on a path that every node sees."
        )
    try:
        digest = sha256_of_file(path, most_bytes=_MOST_BYTES)
    except DamagedFileError:
        digest = None
    if digest != source.sha256:
        raise InputError(f"{path.name}: the weights file has changed since the search began. Put the first one back.")
    return _checked_backbone(path, model)


def _imagenet_weights(model: str) -> WeightsEnum:
    return get_model_weights(model)[IMAGENET_VERSION]


def _imagenet_source(model: str) -> WeightsSource:
    weights = _imagenet_weights(model)
    path = _imagenet_file(weights)
    digest = sha256_of_file(path)
    if not digest.startswith(_promised_digest(weights)):
        raise InputError(
            f"{path} is damaged: its SHA-256 does not begin with {_promised_digest(weights)}. Delete it and try again."
        )
    _checked_backbone(path, model)
    return WeightsSource(kind="imagenet", name=str(weights), sha256=digest, path=path)


def _imagenet_file(weights: WeightsEnum) -> Path:
    """Return the file in torch.hub's cache, downloaded when it is not there."""
    path = Path(torch.hub.get_dir()).resolve() / "checkpoints" / _file_name(weights)
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(path), hash_prefix=_promised_digest(weights), progress=False)
    except (OSError, RuntimeError) as error:  # no network, a full or read-only disk; a digest that does not match
        raise InputError(
            f"--weights imagenet: {path.name} could not be downloaded ({_reason(error)}). Get {weights.url} and put it at {path},"
            " or use --weights random or --weights FOLDER."
        ) from error
    return path


def _file_name(weights: WeightsEnum) -> str:
    return Path(urlsplit(weights.url).path).name


def _promised_digest(weights: WeightsEnum) -> str:
    """Read the first digits of the SHA-256 from the file's name, as in resnet18-f37072fd.pth."""
    return Path(_file_name(weights)).stem.rpartition("-")[2]


def _files_of_folder(folder: Path, backbones: Sequence[str]) -> dict[str, Path]:
    found = {model: _files_of_model(folder, model) for model in backbones}
    missing = [model for model, files in found.items() if not files]
    if missing:
        wanted = ", ".join(f"{model}*.pth" for model in missing)
        raise InputError(
            f"--weights: the folder {folder.name} has no weights for {', '.join(missing)}. Add {wanted} (or .pt, .safetensors)"
            f"{_only_model_hint([model for model in backbones if model not in missing])}."
        )
    for model, files in found.items():
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise InputError(
                f"--weights: the folder {folder.name} has {len(files)} files for {model}: {names}. Leave one of them."
            )
    return {model: files[0] for model, files in found.items()}


def _files_of_model(folder: Path, model: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"{model}*") if file.suffix in SUFFIXES and file.is_file())


def _file_source(path: Path, model: str) -> WeightsSource:
    _checked_backbone(path, model)
    return WeightsSource(kind="file", name=path.name, sha256=sha256_of_file(path), path=path)


def _single_file_sources(path: Path, backbones: Sequence[str]) -> dict[str, WeightsSource]:
    content = _read_state_dict(path)
    misfits = {model: misfit for model in backbones if (misfit := _misfit(_backbone_part(content, model), model))}
    fitting = [model for model in backbones if model not in misfits]
    if misfits:
        first, misfit = next(iter(misfits.items()))
        raise InputError(
            f"{path.name} does not fit {', '.join(misfits)}: {misfit} (checked against {first}). Give a folder with one file per"
            f" model{_only_model_hint(fitting)}."
        )
    digest = sha256_of_file(path)
    for model in backbones:
        _require_sound(path, content, model)
    return {model: WeightsSource(kind="file", name=path.name, sha256=digest, path=path) for model in backbones}


def _only_model_hint(fitting: Sequence[str]) -> str:
    return f", or search one network only: --set model={fitting[0]}" if fitting else ""


def _checked_backbone(path: Path, model: str) -> dict[str, Tensor]:
    tensors = _backbone_part(_read_state_dict(path), model)
    if misfit := _misfit(tensors, model):
        raise InputError(f"{path.name} does not fit {model}: {misfit}. Give a state dict of torchvision's {model}.")
    _require_sound(path, tensors, model)
    return {name: tensor.detach().float() for name, tensor in tensors.items()}


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors, on the CPU."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path.name} is no weights file by its name. Allowed: {', '.join(SUFFIXES)}.")
    try:
        content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle_free(path)
    except Exception as error:  # damage of a stranger's file raises a dozen types: zip, pickle, storage, unicode, ...
        raise InputError(
            f"{path.name} cannot be read as weights ({_reason(error)}): it is damaged, or holds more than plain"
            " tensors, and code in a file is never run. Save it with torch.save(model.state_dict(), ...) or safetensors."
        ) from error
    if not _is_state_dict(content):
        raise InputError(f"{path.name} is not a state dict (tensors by name). Save it with torch.save(model.state_dict(), ...).")
    return dict(content)


def _backbone_part(named: Mapping[str, _T], model: str) -> dict[str, _T]:
    """Leave out what belongs to torchvision's own head, and batch counters."""
    own_head = backbone_of(model).own_head
    return {name: value for name, value in named.items() if not name.startswith(own_head) and not name.endswith(_BATCH_COUNTER)}


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    check_safetensors_file(path, most_bytes=_MOST_BYTES)
    return load_file(path)


def _load_pickle_free(path: Path) -> Any:
    with open_regular_file(path, most_bytes=_MOST_BYTES) as file:
        if file.read(4) == _ZIP_START:
            _require_plain_archive(file, path.stat().st_size)
        else:
            file.seek(0)
            for _ in range(_PICKLES_BEFORE_OLD_STORAGES):
                _require_plain_pickle(file)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _require_plain_archive(file: BinaryIO, size: int) -> None:
    """Refuse an archive that unpacks to more than its size, as torch's own never do, or whose pickle is not plain."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        is_packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        begins_late = min((member.header_offset for member in members), default=0) > 0  # two archives in one
        if is_packed or begins_late or sum(member.file_size for member in members) > size:
            raise DamagedFileError("it is packed")
        for member in members:
            if member.filename.lower().endswith("data.pkl"):
                with archive.open(member) as pickled:
                    _require_plain_pickle(pickled)


def _require_plain_pickle(file: IO[bytes]) -> None:
    """Refuse a pickle that does more than lay tensors out: a few bytes of one can ask for gigabytes. Nothing is executed."""
    for operation, argument, position in pickletools.genops(file):
        if operation.name == "GLOBAL" and not _PLAIN_GLOBALS.fullmatch(str(argument)):
            raise DamagedFileError(f"it calls {argument}")
        if (position or 0) > _MOST_PICKLE_BYTES:
            raise DamagedFileError("its pickle is too long")


def _is_state_dict(content: object) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )


def _misfit(tensors: Mapping[str, Tensor], model: str) -> str | None:
    """Say how names and shapes first differ from a network's backbone; None where they fit."""
    expected = _backbone_shapes(model)
    if missing := [name for name in expected if name not in tensors]:
        return f"{len(missing)} of {len(expected)} tensors are missing, such as {missing[0]}"
    if surplus := [name for name in tensors if name not in expected]:
        return f"it has {len(surplus)} tensors too many, such as {surplus[0]}"
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            return f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(shape)}"
    return None


def _backbone_shapes(model: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = get_model(model, weights=None)
    return _backbone_part({name: tensor.shape for name, tensor in network.state_dict().items()}, model)


def _require_sound(path: Path, tensors: Mapping[str, Tensor], model: str) -> None:
    """Refuse other number formats, and numbers that are infinite or none."""
    for name in _backbone_shapes(model):
        tensor = tensors[name]
        if tensor.dtype not in (torch.float16, torch.float32) or tensor.layout != torch.strided:
            raise InputError(f"{path.name}: {name} is {tensor.dtype}. Allowed: float16, float32, dense.")
        if not tensor.isfinite().all():
            raise InputError(f"{path.name}: {name} holds numbers that are not finite. Train or export it again.")


def _reason(error: BaseException) -> str:
    """Put an error's type and first line in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the path
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:100]}" if text else type(error).__name__
