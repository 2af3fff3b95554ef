"""The command that looks after runs: `python -m tune_lung.runs list|export-optuna|import`.

A run is a directory; what is listed, exported or imported are its tables. Listing needs no framework, exchanging studies
needs Optuna and no Ray.
"""

if __name__ == "__main__":  # before anything else is imported
    from tune_lung.process import begin_command

    begin_command()

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_lung.errors import InputError, exit_status
from tune_lung.files import shown_path
from tune_lung.interrupts import end_process
from tune_lung.option_values import Place, ReadOption, Words
from tune_lung.printable import in_one_line
from tune_lung.screen import Screen, say
from tune_lung.working_folder import away_from_it

if TYPE_CHECKING:
    from tune_lung.results.imported import RecordedRun
    from tune_lung.results.reader import Run


def main(arguments: Sequence[str] | None = None, *, program: str = "python -m tune_lung.runs") -> int:
    """Run the command.

    Args:
        arguments: The command line without the program; None for the process's own.
        program: What the user calls it.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 after Ctrl-C.
    """
    return exit_status(lambda: _run(_parser(program).parse_args(arguments), Screen()))


def _run(options: argparse.Namespace, console: Console) -> int:
    status: int = options.command(options, console)
    return status


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description="List runs, and exchange them with other tools.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="name the runs of a folder and the best cell of each")
    listing.add_argument(
        "folder", nargs="?", action=ReadOption, kind=Place, default=Path("runs"), metavar="DIR", help="default: %(default)s"
    )
    listing.set_defaults(command=_list)
    export = commands.add_parser("export-optuna", help="write a run as an Optuna study, which optuna-dashboard opens")
    export.add_argument("run", action=ReadOption, kind=Place, metavar="RUN", help="folder of a run")
    export.add_argument("file", action=ReadOption, kind=Place, metavar="FILE", help="sqlite file to write; it must not exist")
    export.set_defaults(command=_export)
    reading = commands.add_parser("import", help="make a run of an Optuna study or of an old Ray results folder")
    reading.add_argument(
        "source",
        action=ReadOption,
        kind=Place,
        metavar="SOURCE",
        help="an Optuna sqlite file, or a Ray Tune experiment's folder (its json alone)",
    )
    reading.add_argument(
        "--out", action=ReadOption, kind=Place, default=Path("runs"), metavar="DIR", help="parent of runs (default: %(default)s)"
    )
    reading.add_argument("--name", help="the run's folder (default: the source's own name, and a number where it is taken)")
    reading.add_argument(
        "--study", action=ReadOption, kind=Words, metavar="NAME", help="which study, where the file holds several"
    )
    reading.set_defaults(command=_import)
    return parser


def _list(options: argparse.Namespace, console: Console) -> int:
    runs, damaged = _runs_in(options.folder)
    if runs:
        console.print(_table_of(runs))
    else:
        say(console, f"There is no run in {shown_path(options.folder)}.")
    for text in damaged:
        say(console, f"damaged: {text}")
    return 0


def _export(options: argparse.Namespace, console: Console) -> int:
    from tune_lung.results.reader import read_run
    from tune_lung.results.schema import TrialStatus

    with away_from_it():
        from tune_lung.tuning.proposals.optuna_files import export_study

    run = read_run(options.run, only=("trials", "epochs"))
    counts = export_study(run, options.file)
    num_running = int((run.trials["status"] == TrialStatus.RUNNING).sum())
    told = ", ".join(f"{number} {state.name}" for state, number in sorted(counts.items())) or "none"
    left_out = f"; {num_running} still running left out" if num_running else ""
    say(console, f"Study '{run.name}' with {counts.total()} trials: {told}{left_out}")
    if run.damaged:
        say(console, f"Left out, since damaged: {', '.join(run.damaged)}")
    say(console, f"File: {shown_path(options.file)}")
    return 0


def _import(options: argparse.Namespace, console: Console) -> int:
    from tune_lung.results.beginning import checked_name
    from tune_lung.results.imported import folder_name, write_run

    is_named = options.name is not None
    if is_named:
        checked_name(options.name)
    recorded = _read_source(options)
    name = options.name if is_named else folder_name(recorded.manifest["name"])
    root = write_run(recorded, options.out / name, is_named=is_named)
    statuses = Counter(str(trial.row["status"]) for trial in recorded.trials)
    say(console, f"{len(recorded.trials)} trials: {', '.join(_counts(statuses))}")
    for note in recorded.notes:
        say(console, note)
    say(console, f"Run: {shown_path(root)}")
    return 0


def _read_source(options: argparse.Namespace) -> "RecordedRun":
    if options.source.is_dir():
        from tune_lung.results.imported import run_of
        from tune_lung.results.ray_results import read_ray_results

        if options.study is not None:
            raise InputError("--study chooses from an Optuna file; a Ray results folder is one experiment.")
        return run_of(read_ray_results(options.source))
    if not options.source.is_file():
        raise InputError(f"There is neither a file nor a folder '{options.source}'.")
    with away_from_it():
        from tune_lung.tuning.proposals.optuna_files import read_study

    return read_study(options.source, options.study)


def _runs_in(folder: Path) -> tuple[list["Run"], list[str]]:
    """Read the runs of a folder, the earliest first, and say in a line each what is damaged."""
    from tune_lung.results.layout import RunPaths
    from tune_lung.results.reader import read_run

    if not folder.is_dir():
        raise InputError(f"There is no folder '{folder}'. Give the one that holds the runs.")
    runs, damaged = [], []
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))  # a hidden one is not finished
    for root in sorted(path for path in visible if RunPaths(path).manifest.exists()):
        try:
            run = read_run(root, only=("trials",))
            runs.append(run)
            damaged += [f"{root.name}/{part}" for part in run.damaged]
        except InputError as error:
            damaged.append(str(error))
    return sorted(runs, key=lambda run: str(run.manifest["started_utc"])), damaged


_MOST_LETTERS = 200
"""Of a name in the table of runs."""


def _table_of(runs: Sequence["Run"]) -> Table:
    """Lay out the runs for a terminal of 80 columns: each takes three lines, or one more for every further status."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("run", "search", "trials", "best on validation"):
        table.add_column(heading, overflow="fold")
    for run in runs:
        manifest = run.manifest
        statuses = Counter(str(status) for status in run.trials["status"])
        started = str(manifest["started_utc"])[:16].replace("T", " ")
        about = (run.name, f"  {manifest['space']['name']}, {_data_label(run)}", f"  {started} UTC")
        state = (manifest["status"], *("other numbers" for _ in run.notes_of_numbers))
        columns = (about, state, _counts(statuses), _best_cell(run))
        table.add_row(*(Text("\n".join(in_one_line(line, most=_MOST_LETTERS) for line in lines)) for lines in columns))
    return table


def _best_cell(run: "Run") -> tuple[str, ...]:
    """Name the cell whose best point leads on validation, and say that point's mean recall there, where it is known."""
    from tune_lung.results.ranking import best_points
    from tune_lung.results.schema import TrialStatus

    best = best_points(run.trials[run.trials["status"] != TrialStatus.FAILED])
    means = best.groupby("cell")[["selection_score", "val_macro_recall"]].mean().dropna(subset="selection_score")
    if means.empty:
        return ("-",)
    leader = means.sort_values("selection_score", kind="stable").iloc[-1]
    recall = float(leader["val_macro_recall"])
    return (str(leader.name),) if math.isnan(recall) else (str(leader.name), f"{100 * recall:.1f}% macro recall")


def _data_label(run: "Run") -> str:
    if run.synthetic:
        return "synthetic"
    fingerprint = run.manifest["data"]["fingerprint"]
    return "data not known" if fingerprint is None else f"data {str(fingerprint)[:8]}"


def _counts(numbers: "Counter[str]") -> list[str]:
    return [f"{number} {name}" for name, number in sorted(numbers.items())] or ["none"]


if __name__ == "__main__":
    end_process(main())
