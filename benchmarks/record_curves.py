"""Make a table of learning curves from a finished run, for `benchmarks.search_quality`.

    python -m benchmarks.record_curves RUN FILE

RUN is the folder of a search that drew its points at random and stopped none: --sampler random --scheduler none. FILE
becomes a Parquet table with a row for each configuration and epoch: `configuration` (a number), `cell`, the sampled
axes, `epoch`, `selection_score` and `val_macro_recall`, both null in the epoch in which training failed. Its metadata hold,
as JSON under `tune_lung_benchmark`, the space, the data's fingerprint and counts, the protocol and the search's command.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.tabulated import METADATA_KEY
from tune_lung.errors import InputError, exit_status
from tune_lung.files import shown_path, whole_file
from tune_lung.results.reader import Run, read_run
from tune_lung.results.schema import TrialStatus
from tune_lung.space import SearchSpace

_SCORES = ["selection_score", "val_macro_recall"]


def curves_of(run: Run) -> pd.DataFrame:
    """Lay a run's learning curves out, a row for each configuration and epoch.

    Raises:
        InputError: Some curve is not whole.
    """
    space = SearchSpace.from_json(run.manifest["space"])
    _require_whole_curves(run, space)
    axes = list(space.arms[0].sampled_axes())
    trials = run.trials.sort_values("trial_id").assign(configuration=range(len(run.trials)))
    failed = trials[trials["status"] == TrialStatus.FAILED]
    ends = pd.DataFrame({"trial_id": failed["trial_id"], "epoch": failed["epochs_run"] + 1})
    epochs = pd.concat([run.epochs[["trial_id", "epoch", *_SCORES]], ends])
    curves = trials[["trial_id", "configuration", "cell", *axes]].merge(epochs, on="trial_id")
    return curves.drop(columns="trial_id").sort_values(["configuration", "epoch"], ignore_index=True)


def _require_whole_curves(run: Run, space: SearchSpace) -> None:
    if run.damaged:
        raise InputError(f"{run.name}: {len(run.damaged)} parts of its tables cannot be read, among them {run.damaged[0]}.")
    if len(space.arms) != 1 or space.is_grid:
        raise InputError(f"{run.name}: its space needs one arm with sampled axes.")
    for status in (TrialStatus.RUNNING, TrialStatus.STOPPED):
        count = int((run.trials["status"] == status).sum())
        if count:
            raise InputError(f"{run.name}: {count} trials are {status}; every curve must be whole. Search with --scheduler none.")


def write_table(run: Run, path: Path) -> int:
    """Write a run's curves as a table.

    Args:
        run: The run.
        path: The file; it appears whole or not at all.

    Returns:
        How many configurations it holds.
    """
    curves = curves_of(run)
    table = pa.Table.from_pandas(curves, preserve_index=False).replace_schema_metadata({METADATA_KEY: json.dumps(_origin(run))})
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return int(curves["configuration"].nunique())


def _origin(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    return {
        "space": manifest["space"],
        "command": manifest["command"],
        "protocol": manifest["protocol"],
        "data_fingerprint": manifest["data"]["fingerprint"],
        "data_counts": manifest["data"]["counts"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line without the program; None for the process's own.

    Returns:
        The exit status: 0, or 2 for what the user can mend.
    """
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _record(options.run, options.file))


def _record(root: Path, path: Path) -> int:
    count = write_table(read_run(root), path)
    sys.stdout.write(f"{count} configurations in {shown_path(path)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.record_curves", description="Make a table of learning curves from a finished run."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a search with --sampler random --scheduler none")
    parser.add_argument("file", type=Path, metavar="FILE", help="Parquet file to write, such as benchmarks/tables/NAME.parquet")
    return parser


if __name__ == "__main__":
    sys.exit(main())
