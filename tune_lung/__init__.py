"""Ray Tune hyperparameter search for lung-disease classification from chest X-rays. Not for clinical use.

From Python:

    from tune_lung import load_network, run_search, write_report

    run = run_search("freeze_grid", max_epochs=4)
    print(write_report(run))
    print(load_network(run).predict(["film.png"]))

A name is loaded when it is first asked for: `import tune_lung` alone loads nothing else.
"""

from tune_lung.version import __version__

TYPE_CHECKING = False  # that of `typing` would be a stranger's, where a command is started in a folder with a file typing.py
if TYPE_CHECKING:
    from tune_lung.answers.loading import LoadedNetwork, load_network
    from tune_lung.errors import InputError
    from tune_lung.report import write_report
    from tune_lung.results.reader import Run, read_run
    from tune_lung.search.library import run_search
    from tune_lung.space import Arm, Choice, Grid, IntRange, LogUniform, SearchSpace, Uniform

__all__ = [
    "Arm",
    "Choice",
    "Grid",
    "InputError",
    "IntRange",
    "LoadedNetwork",
    "LogUniform",
    "Run",
    "SearchSpace",
    "Uniform",
    "__version__",
    "load_network",
    "read_run",
    "run_search",
    "write_report",
]

_NAMES_BY_MODULE = {
    "answers.loading": ("LoadedNetwork", "load_network"),
    "errors": ("InputError",),
    "report": ("write_report",),
    "results.reader": ("Run", "read_run"),
    "search.library": ("run_search",),
    "space": ("Arm", "Choice", "Grid", "IntRange", "LogUniform", "SearchSpace", "Uniform"),
}


def __getattr__(name: str) -> object:
    """Load a name of the library when it is first asked for."""
    for module, names in _NAMES_BY_MODULE.items():
        if name in names:
            from importlib import import_module

            value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the names of the library beside what is loaded."""
    return sorted({*globals(), *__all__})
