"""Shows again what an issue promised of the whole tree, where no single test can: `make evidence ISSUE=16`."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tune_lung.errors import InputError, exit_status

from tests.evidence.same_tables import show_same_tables

EVIDENCE: Mapping[str, Callable[[str | None, Path], bool]] = {"16": show_same_tables}
"""What is run for each issue: with the commit to compare with, None for that before the issue, and a folder to work in."""
_FOLDER = Path(__file__).parents[2] / ".evidence_cache"


def main() -> int:
    """Run an issue's evidence, printing as it goes; the exit status is 0 when it held, 1 when not, 2 where there is none."""
    parser = argparse.ArgumentParser(prog="python -m tests.evidence", description=__doc__)
    parser.add_argument("issue", nargs="?", default="", metavar="N", help=f"one of {', '.join(EVIDENCE)}")
    parser.add_argument("--base", metavar="COMMIT", help="what to compare with (default: the commit before the issue)")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help=f"where finished parts stay (default: {_FOLDER.name})")
    options = parser.parse_args()
    if options.issue not in EVIDENCE:
        asked = f"No evidence for issue {options.issue!r}." if options.issue else "No issue is named."
        raise InputError(f"{asked} There is some for {', '.join(EVIDENCE)}: make evidence ISSUE={min(EVIDENCE)}")
    return 0 if EVIDENCE[options.issue](options.base, options.folder.absolute()) else 1


if __name__ == "__main__":
    sys.exit(exit_status(main))
