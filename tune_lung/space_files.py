"""Search spaces as files: one a question, each ending in one constant `SPACE`. They are loaded by path."""

import ast
import runpy
import traceback
from dataclasses import replace
from pathlib import Path

from tune_lung.errors import InputError, did_you_mean
from tune_lung.space import SearchSpace

_SHIPPED_SPACES = Path(__file__).resolve().parent / "search_spaces"


def shipped_space_files() -> dict[str, Path]:
    """List the space files that come with the package, by name."""
    return {path.stem: path for path in sorted(_SHIPPED_SPACES.glob("*.py")) if not path.stem.startswith("_")}


def load_space(name_or_path: str) -> SearchSpace:
    """Load a shipped space by name, or a user's by path.

    Args:
        name_or_path: `freeze_grid`, or a path that ends in `.py`. A space file is code: load only your own.

    Returns:
        The checked space.

    Raises:
        InputError: There is no such space, or its file is wrong; the text names file and arm or line.
    """
    path = _space_path(name_or_path)
    try:
        namespace = runpy.run_path(str(path))
    except SyntaxError as error:
        raise InputError(f"{path.name}, line {error.lineno}: {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is no text in UTF-8.") from error
    except InputError as error:
        raise InputError(f"{_place(error, path)}: {error}") from error
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(f"{_place(error, path)} raised {type(error).__name__} when loaded: {text}") from error
    space = namespace.get("SPACE")
    if not isinstance(space, SearchSpace):
        raise InputError(f"{path.name} has no constant SPACE = SearchSpace(...).")
    space = replace(space, name=path.stem)
    try:
        space.check()
    except InputError as error:
        raise InputError(f"{path.name}, {error}") from error
    return space


def space_question(path: Path) -> str:
    """Read the first line of a space file's docstring: the question it answers."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _place(error: BaseException, path: Path) -> str:
    """Name the file's line that raised, with its text: it shows which axis is meant."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path.name}, line {lines[-1].lineno} ({lines[-1].line})" if lines else path.name


def _space_path(name_or_path: str) -> Path:
    shipped = shipped_space_files()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.suffix == ".py":
        if not path.is_file():
            raise InputError(f"There is no space file {name_or_path}.")
        return path
    raise InputError(f"No search space '{name_or_path}'. {did_you_mean(name_or_path, shipped)} Or give the path of a .py file.")
