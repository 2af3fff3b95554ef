"""How fast are images decoded into the pixel store, and how soon is it there again?

    python -m benchmarks.store --data DIR

The images are decoded into an empty cache, by as many threads as there are cores, and everything is counted: finding and
hashing the files, decoding, near-duplicates, the split, the files written. Beside it stands what Pillow alone needs to decode
and resize a few hundred of the same files on one core: no store can be built faster. Then a fresh process makes the same
request again, and must have the store open in less than a second, its imports not counted.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console

from benchmarks.bars import Bar, exit_status
from benchmarks.trials import CACHE_BYTES, data_parser
from tune_lung.config import RunConfig
from tune_lung.data.cache import Cache, num_workers
from tune_lung.data.phantoms import ensure_phantoms
from tune_lung.data.scan import ImageChoice, scan
from tune_lung.tuning.plan import DataRequest

LEAST_RATE = 800.0
"""Images a second and core."""
MOST_SECONDS = 1.0
NUM_DECODED = 300
"""Images that Pillow decodes alone, about."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: The command line without the program; None for the process's own.

    Returns:
        The exit status: 0 when its bars hold, else 1.
    """
    options = data_parser("store", __doc__).parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tune_lung-store-") as folder, Cache.open(Path(folder, "phantoms")) as phantoms:
        root = (options.data or ensure_phantoms(phantoms, seed=0)).expanduser().resolve()
        cache_root = Path(folder, "cache")
        seconds, num_images = open_store(root, cache_root, options.image_size, options.limit)
        pillow_rate = decoding_rate(root, options.image_size)
        again = _seconds_in_fresh_process(root, cache_root, options.image_size, options.limit)
    rate = num_images / seconds / num_workers()
    bars = [
        Bar(
            f"{rate:,.0f} images a second and core, at least {LEAST_RATE:g} (Pillow decodes and resizes {pillow_rate:,.0f})",
            rate >= LEAST_RATE,
        ),
        Bar(f"opened again in {again:.2f} s, at most {MOST_SECONDS:g} s", again <= MOST_SECONDS),
    ]
    return exit_status(bars, Console(highlight=False))


def open_store(root: Path, cache_root: Path, image_size: int, limit: int | None) -> tuple[float, int]:
    """Prepare images as a search does at its start.

    Returns:
        The seconds that it took, and how many files were read.
    """
    run = RunConfig(image_size=image_size)
    request = DataRequest(
        choice=ImageChoice(limit=limit), root=root, run=run, cache_root=cache_root, cache_size_bytes=CACHE_BYTES
    )
    started = time.perf_counter()
    with request.open_cache() as cache:
        prepared = request.prepare(cache)
    return time.perf_counter() - started, len(prepared.images)


def decoding_rate(root: Path, image_size: int) -> float:
    """Measure how many images a second one core decodes and resizes, and does nothing else."""
    images = scan(root).images
    some = images[:: max(1, len(images) // NUM_DECODED)]
    started = time.perf_counter()
    for image in some:
        with Image.open(image.path) as opened:
            opened.convert("L").resize((image_size, image_size), Image.Resampling.BILINEAR)
    return len(some) / (time.perf_counter() - started)


def _seconds_in_fresh_process(root: Path, cache_root: Path, image_size: int, limit: int | None) -> float:
    program = (
        "import sys, pathlib; from benchmarks.store import open_store;"
        "print(open_store(*map(pathlib.Path, sys.argv[1:3]), *(int(text) or None for text in sys.argv[3:]))[0])"
    )
    command = [sys.executable, "-c", program, str(root), str(cache_root), str(image_size), str(limit or 0)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603 - this interpreter


if __name__ == "__main__":
    sys.exit(main())
