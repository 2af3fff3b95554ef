"""What a user said of a run that the run itself cannot say: where images and weights lie, caches, addresses, trackers.

It lies outside the run, in the user's own state folder, for runs travel. A memory belongs to one run in one place: another
run that is put there, as a stranger's may be, has none.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from tune_lung.files import plain_json, read_regular_file, write_text_whole
from tune_lung.option_values import NameOrPlace
from tune_lung.search.options import Kept, Option, SearchOptions, options_kept
from tune_lung.shapes import require_shape

_MOST_BYTES = 10**6


class _Memory(TypedDict):
    """What a file of the memory holds."""

    run: str
    options: dict[str, Any]


_MEMORY = TypeAdapter(_Memory)


def remember(root: Path, manifest: Mapping[str, Any], options: SearchOptions) -> None:
    """Remember the options that only the user may say, paths in full; a place that cannot be written is no harm.

    Args:
        root: The run's folder.
        manifest: What it says; only that very run is told again.
        options: The search's.
    """
    said = {option.name: _as_json(option, getattr(options, option.name)) for option in options_kept(Kept.MEMORY)}
    memory = _Memory(run=_identity_of(manifest), options={name: value for name, value in said.items() if value is not None})
    try:
        path = _memory_of(root)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text_whole(path, json.dumps(memory))
    except (OSError, RuntimeError):
        return


def remembered(root: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Read what was remembered of a run.

    Args:
        root: The run's folder.
        manifest: What it says.

    Returns:
        Options by name, each of its own type; none where nothing is remembered of this run in this place.
    """
    try:
        path = _memory_of(root)
        memory = require_shape(_MEMORY, plain_json(read_regular_file(path, most_bytes=_MOST_BYTES), name=path.name))
        if memory["run"] != _identity_of(manifest):
            return {}
        said = memory["options"]
        return {option.name: _read_back(option, said[option.name]) for option in options_kept(Kept.MEMORY) if option.name in said}
    except (OSError, ValueError, RuntimeError):
        return {}


def _as_json(option: Option, value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    if option.kind is NameOrPlace and value is not None and Path(value).exists():
        return str(Path(value).resolve())
    return value


def _read_back(option: Option, value: Any) -> Any:
    kind = TypeAdapter(option.kind)
    if option.is_repeatable:
        return tuple(require_shape(kind, each) for each in require_shape(TypeAdapter(list[Any]), value))
    return require_shape(kind, value)


def _identity_of(manifest: Mapping[str, Any]) -> str:
    """Hash what no attempt changes of a run, and no two runs share."""
    first = (manifest.get("earlier_attempts") or [manifest])[0]
    names = ("run_id", "protocol", "image_size", "select_by", "seed", "data", "weights")
    content = [first["started_utc"], {name: manifest.get(name) for name in names}]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _memory_of(root: Path) -> Path:
    name = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    return platformdirs.user_state_path("tune_lung", appauthor=False) / "runs" / f"{name}.json"
