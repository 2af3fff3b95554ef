"""Look into a data folder: `python -m tune_lung.data scan|audit|phantoms|prepare DIR`.

These commands name image files, for that is what they are asked for; no other command's output does.
"""

if __name__ == "__main__":  # before anything else is imported
    from tune_lung.process import begin_command

    begin_command()

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tune_lung.config import PROTOCOLS, RunConfig
from tune_lung.confined import ConfinedError
from tune_lung.data.cache import DEFAULT_SIZE_BYTES, Cache, num_workers
from tune_lung.data.decode import BadImageError, without_pillow_warnings
from tune_lung.data.depth import MIXED_DEPTHS, WHITE_OF_8_BITS, Depth, count_whites, whites_of
from tune_lung.data.exclusion import ExclusionReason, NotReadError
from tune_lung.data.metadata import metadata_mismatches
from tune_lung.data.phantoms import DEFAULT_NUM_IMAGES, write_phantoms
from tune_lung.data.prepare import PreparedData, Progress, prepare
from tune_lung.data.reading import GreyReader
from tune_lung.data.scan import ImageChoice, ImageFile, Scan, scan
from tune_lung.data.split import SPLITS
from tune_lung.data.store import PixelStore
from tune_lung.errors import exit_status
from tune_lung.interrupts import end_process
from tune_lung.option_values import AtLeast1, Place, ReadOption, Size, Whole
from tune_lung.printable import UnfailingStream, in_one_line
from tune_lung.threads import Threads

_MOST_LETTERS = 10**6
"""Of a line: it may name all files that are equal."""
_SYNTHETIC_LINE = "SYNTHETIC images (phantoms): they show no person and say nothing of medicine."


def main(arguments: Sequence[str] | None = None, *, program: str = "python -m tune_lung.data") -> int:
    """Run one of the data commands.

    Args:
        arguments: The command line without the program's name; None for the process's own.
        program: What the user calls it.

    Returns:
        The exit status: 0; 2 for what the user can mend, after one line on stderr; 130 after Ctrl-C.
    """
    return exit_status(lambda: _run(_parser(program).parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    return _print_lines(options.command(options))


def _print_lines(lines: Iterable[str]) -> int:
    stream = UnfailingStream(sys.stdout)
    for line in lines:
        stream.write(f"{in_one_line(line, most=_MOST_LETTERS)}\n")
        stream.flush()
    return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Look into a folder of chest X-rays, one folder per class, and prepare it. Not for clinical use.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "scan", _scan_lines, "count classes, images and masks; name bad files and equal files")
    audit = _add(commands, "audit", _audit_lines, "scan, and near-duplicates, split sizes, differences to the metadata tables")
    drawn = _add(commands, "phantoms", _phantom_lines, "draw synthetic X-rays into a new folder DIR")
    prepared = _add(commands, "prepare", _prepare_lines, "build the pixel store that a search would build")
    for command in (audit, prepared):
        _add_run_options(command)
    drawn.add_argument(
        "--images",
        action=ReadOption,
        kind=AtLeast1,
        default=DEFAULT_NUM_IMAGES,
        metavar="N",
        help="pictures (default %(default)s)",
    )
    drawn.add_argument(
        "--seed", action=ReadOption, kind=Whole, default=0, metavar="N", help="decides every picture (default %(default)s)"
    )
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    lines: Callable[[argparse.Namespace], Iterable[str]],
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("directory", action=ReadOption, kind=Place, metavar="DIR", help="the data folder")
    command.add_argument("--follow-links", action="store_true", help="follow links that lead out of it")
    command.set_defaults(command=lines)
    return command


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--protocol", choices=PROTOCOLS, default="strict", help="whose split (default %(default)s)")
    command.add_argument(
        "--image-size",
        action=ReadOption,
        kind=Whole,
        default=128,
        metavar="PIXELS",
        help="side of the images (default %(default)s)",
    )
    command.add_argument(
        "--limit", action=ReadOption, kind=AtLeast1, metavar="N", help="images to use, chosen by class (default: all)"
    )
    command.add_argument(
        "--seed", action=ReadOption, kind=Whole, default=0, metavar="N", help="root seed of the split (default %(default)s)"
    )
    command.add_argument("--strict-data", action="store_true", help="stop at a bad file instead of leaving it out")
    command.add_argument("--cache", action=ReadOption, kind=Place, metavar="DIR", help="cache folder (default: the user's)")
    command.add_argument(
        "--cache-size",
        action=ReadOption,
        kind=Size,
        default=DEFAULT_SIZE_BYTES,
        metavar="SIZE",
        help="bound of the cache, such as 5GB (default 20GB)",
    )


@dataclass(frozen=True, kw_only=True)
class _FileReport:
    """One image file, fully read."""

    image: ImageFile
    sha256: str
    form: str
    """Mode as stored, and size; empty for a bad file."""
    reason: ExclusionReason | None
    depth: Depth | None
    """Of a good image of more than 8 bits."""
    mask_is_good: bool
    mask_is_unread: bool
    """Whether the system did not let the mask be read."""


def _report(image: ImageFile, reader: GreyReader) -> _FileReport:
    digest, form, reason, depth = "", "", None, None
    try:
        with reader.read(image.path) as grey:
            digest, form, depth = grey.sha256, f"{grey.stored_mode} {grey.image.width}x{grey.image.height}", grey.depth
    except BadImageError as error:
        reason = error.reason
    except NotReadError as error:
        reason = _unreadable(error)
    mask = ExclusionReason.OTHER_FILE if image.mask is None else _reason_of_mask(image.mask, reader)
    return _FileReport(
        image=image,
        sha256=digest,
        form=form,
        reason=reason,
        depth=depth,
        mask_is_good=mask is None,
        mask_is_unread=mask is ExclusionReason.UNREADABLE,
    )


def _reason_of_mask(mask: Path, reader: GreyReader) -> ExclusionReason | None:
    try:
        with reader.read(mask):
            return None
    except BadImageError as error:
        return error.reason
    except NotReadError as error:
        return _unreadable(error)


def _unreadable(error: NotReadError) -> ExclusionReason:
    """Take for the file's what the system says of it, and nothing else, such as a lack of memory."""
    if isinstance(error.__cause__, MemoryError | ConfinedError):
        raise error
    return ExclusionReason.UNREADABLE


def _scan_lines(options: argparse.Namespace) -> Iterator[str]:
    """Describe a folder: what a search would find in it."""
    found = scan(options.directory, follow_links=options.follow_links)
    if found.synthetic:
        yield _SYNTHETIC_LINE
    with _progress() as progress, without_pillow_warnings(), Threads(num_workers()) as threads, GreyReader() as reader:
        reports = []
        for report in threads.map(lambda image: _report(image, reader), found.images):
            reports.append(report)
            progress("Reading", len(reports), len(found.images))
    yield from _class_lines(found, reports)
    yield from _depth_lines(reports)
    yield from _exclusion_lines(found, reports)
    yield from _equal_lines(reports)


def _class_lines(found: Scan, reports: Sequence[_FileReport]) -> Iterator[str]:
    yield f"{len(found.classes)} classes, {len(reports)} images"
    reports_of: dict[str, list[_FileReport]] = {name: [] for name in found.classes}
    for report in reports:
        reports_of[report.image.class_name].append(report)
    for name, own in reports_of.items():
        forms = Counter(report.form for report in own if report.form)
        bad_masks = sum(report.image.mask is not None and not report.mask_is_good for report in own)
        yield (
            f"  {name}: {len(own)} images, {sum(report.mask_is_good for report in own)} masks"
            f"{f', {bad_masks} bad masks' if bad_masks else ''}"
            f" ({', '.join(f'{count} {form}' for form, count in forms.most_common())})"
        )


def _depth_lines(reports: Sequence[_FileReport]) -> Iterator[str]:
    """Say how films of more than 8 bits are scaled, and name those that the common scale leaves near one shade."""
    good = [report for report in reports if report.reason is None]
    whites = whites_of(report.depth for report in good)
    counts = count_whites(whites, [report.depth for report in good])
    if not counts.keys() - {WHITE_OF_8_BITS}:
        return
    yield "white, as stored: " + ", ".join(f"{white} in {count} images" for white, count in counts.items())
    if len(counts) > 1:
        yield "a mixture of depths, each with its own white"
    far = sorted(report.image.relative for report in good if whites.is_far_below(report.depth))
    if far:
        yield f"a mixture of depths under one white, or dark films: {len(far)} images reach a quarter of it at most"
        yield from (f"    {relative}" for relative in far)


def _exclusion_lines(found: Scan, reports: Sequence[_FileReport]) -> Iterator[str]:
    named: dict[ExclusionReason, list[str]] = defaultdict(list)
    for report in reports:
        if report.reason is not None:
            named[report.reason].append(report.image.relative)
        if report.mask_is_unread and report.image.mask is not None:
            named[ExclusionReason.UNREADABLE].append(f"{report.image.mask.relative_to(found.root)} (mask)")
    for item in found.excluded:
        named[item.reason].append(item.relative)
    yield f"{sum(map(len, named.values()))} files left out"
    for reason in ExclusionReason:
        if reason in named:
            yield f"  {reason.value}: {len(named[reason])}"
            yield from (f"    {relative}" for relative in sorted(named[reason]))


def _equal_lines(reports: Sequence[_FileReport]) -> Iterator[str]:
    by_digest: dict[str, list[str]] = defaultdict(list)
    for report in reports:
        if report.reason is None:
            by_digest[report.sha256].append(report.image.relative)
    equal = sorted(paths for paths in by_digest.values() if len(paths) > 1)
    yield f"{len(equal)} sets of byte-identical images"
    yield from (f"  {' = '.join(paths)}" for paths in equal)


def _audit_lines(options: argparse.Namespace) -> Iterator[str]:
    """Describe a folder as `scan` does, then what preparing it decides."""
    _run_config(options)  # what is refused is refused before the images are read
    yield from _scan_lines(options)
    with _prepared(options) as data:
        used = data.images[data.images["split"].notna()]
        groups = [paths for paths in used.groupby("group", sort=False)["path"].apply(list) if len(paths) > 1]
        yield f"{len(groups)} groups of near-duplicate images"
        yield from (f"  {' ~ '.join(paths)}" for paths in sorted(groups))
        yield f"{options.protocol} split, seed {options.seed}: {' / '.join(SPLITS)}"
        for name in data.classes:
            counts = Counter(used.loc[used["class"] == name, "split"])
            yield f"  {name}: {' / '.join(str(counts[split]) for split in SPLITS)}"
    for mismatch in metadata_mismatches(scan(options.directory, follow_links=options.follow_links)):
        if mismatch.readable:
            yield (
                f"metadata of {mismatch.class_name}: {mismatch.rows_without_image} rows name an absent image, "
                f"{mismatch.images_without_row} images have no row"
            )
        else:
            yield f"metadata of {mismatch.class_name}: cannot be read; its images have no source"


def _phantom_lines(options: argparse.Namespace) -> Iterator[str]:
    """Draw phantoms."""
    write_phantoms(options.directory, seed=options.seed, num_images=options.images)
    yield f"{options.images} SYNTHETIC X-rays (phantoms) with lung masks in {options.directory}"


def _prepare_lines(options: argparse.Namespace) -> Iterator[str]:
    """Build a pixel store."""
    with _prepared(options) as data:
        store = PixelStore.open(data.store)
        if data.synthetic:
            yield _SYNTHETIC_LINE
        reasons = Counter(data.images["excluded_reason"].dropna())
        yield ", ".join(f"{store.num_images[split]} {split}" for split in SPLITS) + f" images at {store.image_size} pixels"
        if store.num_far_below_white:
            yield f"{store.num_far_below_white} of them {MIXED_DEPTHS}"
        yield f"{sum(store.num_masks.values())} of them have a lung mask"
        yield f"{reasons.total()} files left out" + "".join(f", {count} {reason}" for reason, count in sorted(reasons.items()))
        yield f"Store: {data.store}" if options.cache_size else "Cache size 0: the store was built, checked and removed."


def _run_config(options: argparse.Namespace) -> RunConfig:
    return RunConfig(protocol=options.protocol, image_size=options.image_size, seed=options.seed)


@contextmanager
def _prepared(options: argparse.Namespace) -> Iterator[PreparedData]:
    run = _run_config(options)
    with Cache.open(options.cache, options.cache_size) as cache, _progress() as progress:
        data = prepare(
            options.directory,
            choice=ImageChoice(limit=options.limit, strict_data=options.strict_data, follow_links=options.follow_links),
            run=run,
            cache=cache,
            progress=progress,
        )
        yield data


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show a bar on a terminal's stderr while files are read, nothing elsewhere."""
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from tune_lung.screen import Screen

    console = Screen(stderr=True)
    with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield report


if __name__ == "__main__":
    end_process(main())
