"""A stranger's data and a stranger's run: nothing of theirs is executed, and no name of an image leaves the run's tables."""

import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tune_lung.config import RunConfig
from tune_lung.data.cache import Cache
from tune_lung.data.decode import BadImageError
from tune_lung.data.metadata import read_metadata
from tune_lung.data.phantoms import write_phantoms
from tune_lung.data.prepare import prepare
from tune_lung.data.reading import GreyReader, read_grey
from tune_lung.data.scan import scan
from tune_lung.errors import InputError
from tune_lung.results.layout import TABLES
from tune_lung.results.reader import read_run

from tests.faults.search_process import begin, searched

pytestmark = pytest.mark.faults

MARKER = "SECRET_PATIENT"


RUN_NOTEBOOKS = """
import pathlib, sys
import nbformat
from nbclient import NotebookClient
for path in pathlib.Path("analysis/notebooks").glob("*.ipynb"):
    NotebookClient(nbformat.read(path, as_version=4), timeout=120, allow_errors=True).execute()
    pathlib.Path(sys.argv[1], path.stem + ".read").touch()
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder; pytest's own has too long a path for Ray's sockets."""
    with TemporaryDirectory(prefix="t") as name:
        yield Path(name)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.file}'",)


def plant(folder: Path, file: Path) -> None:
    """Put pickles that would create a file wherever something might be read back."""
    payload = pickle.dumps(Payload(file))
    array = BytesIO()
    np.save(array, np.array([Payload(file)], dtype=object), allow_pickle=True)
    for name in (
        "tuner.pkl",
        "error.pkl",
        "params.pkl",
        "experiment_state-2026.json",
        "searcher-state.pkl",
        "best.pt",
        "last.pt",
    ):
        (folder / name).write_bytes(payload)
    for name in ("values.npy", "train.npy"):
        (folder / name).write_bytes(array.getvalue())


def test_planted_pickles_create_nothing(undisturbed: Path, tmp_path: Path) -> None:
    proof, run = tmp_path / "proof", tmp_path / "runs" / "run"
    shutil.copytree(undisturbed, run)
    folders = [path for path in (run, *run.rglob("*")) if path.is_dir()]
    for folder in folders:
        plant(folder, proof)
    for path in run.glob("checkpoints/*/last.safetensors"):
        path.write_bytes(pickle.dumps(Payload(proof)))
    # the payload works: it is the readers that do not let it
    pickle.loads((run / "tuner.pkl").read_bytes())  # noqa: S301 - our own
    assert proof.exists()
    proof.unlink()

    searched("--resume", str(run), "--max-epochs", "5")
    assert not proof.exists()
    commands = [
        ["-m", "tune_lung.report", str(run)],
        ["-m", "tune_lung.runs", "list", str(tmp_path / "runs")],
        ["-m", "tune_lung.runs", "export-optuna", str(run), str(tmp_path / "study.db")],
        ["-m", "tune_lung.runs", "import", str(run), "--out", str(tmp_path / "imported")],
        ["-m", "tune_lung.search", *begin(tmp_path / "new", "--warm-start", str(run)), "--max-epochs", "1"],
        ["-c", RUN_NOTEBOOKS, str(tmp_path)],
    ]
    environment = os.environ | {"TUNE_LUNG_RUN": str(run), "PYTHONPATH": str(Path.cwd())}
    for command in commands:
        subprocess.run([sys.executable, *command], capture_output=True, check=False, timeout=150, env=environment)
        assert not proof.exists(), command
    assert list(tmp_path.glob("*.read")), "no notebook ran"


@pytest.mark.parametrize("name", ["weights.pt", "resnet18-evil.pth"])
def test_weights_that_are_a_pickle_with_code_create_nothing(tmp_path: Path, name: str) -> None:
    proof = tmp_path / "proof"
    (tmp_path / name).write_bytes(pickle.dumps(Payload(proof)))
    with zipfile.ZipFile(tmp_path / f"zip-{name}", "w") as archive:  # torch's own format
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(proof)))
        archive.writestr("archive/version", "3")
    for path in (tmp_path / name, tmp_path / f"zip-{name}"):
        printed = searched(*begin(tmp_path / "new"), "--max-epochs", "1", "--weights", str(path), status=2)
        assert printed.count("error: ") == 1
        assert not proof.exists()
        assert not (tmp_path / "new" / "run").exists()


def test_planted_arrays_in_the_cache_create_nothing(tmp_path: Path) -> None:
    proof, cache = tmp_path / "proof", tmp_path / "cache"
    options = [*begin(tmp_path / "first"), "--max-epochs", "1", "--cache", str(cache), "--set", "model=cnn"]
    searched(*options)
    array = BytesIO()
    np.save(array, np.array([Payload(proof)], dtype=object), allow_pickle=True)
    for path in cache.glob("stores/*/*.npy"):
        path.write_bytes(array.getvalue())
    again = [*begin(tmp_path / "second"), "--max-epochs", "1", "--cache", str(cache), "--set", "model=cnn"]
    assert "An entry of the cache (stores) is damaged" in searched(*again)
    assert not proof.exists()


def png_of(width: int, height: int, *, rows: int = 1) -> bytes:
    """A PNG that says it is so large, with the data of a few rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    data = zlib.compress(bytes((width + 1) * rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1), (64_001, 1000)])
def test_an_image_bomb_is_left_out_before_it_unpacks(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(width, height, rows=0))
    with pytest.raises(BadImageError, match=r"too_large|damaged|truncated|not_an_image"):
        read_grey(tmp_path / "bomb.png")


def test_a_table_that_unpacks_to_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "A.metadata.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("xl/worksheets/sheet1.xml", "w") as member:
        for _ in range(300):
            member.write(bytes(10**6))
    assert path.stat().st_size < 10**6
    assert not read_metadata(path).readable


def test_a_table_with_names_that_climb_out_of_the_folder_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "in" / "A.metadata.xlsx"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../out.txt", str(tmp_path / "absolute.txt"), "xl/worksheets/sheet1.xml"):
            archive.writestr(name, "<x/>")
    assert not read_metadata(path).readable
    assert [found.name for found in tmp_path.iterdir()] == ["in"]


IMAGES = [b"", b"no image", png_of(8, 8, rows=8), png_of(8, 8, rows=3), png_of(8, 8, rows=8)[:30], png_of(100_000, 100_000)]
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
ENDINGS = st.sampled_from([".png", ".PNG", ".jpg", ".txt", "", ".png.exe", ".xlsx", "\n.png", "\x1b[31m.png"])
FILES = st.dictionaries(st.tuples(NAMES, ENDINGS), st.sampled_from(range(len(IMAGES))), max_size=6)
TREES = st.dictionaries(
    NAMES, st.tuples(FILES, st.sampled_from(["", "images", "masks", "deep/er", "loop", "out", "self"])), max_size=4
)


def grow(root: Path, tree: dict) -> int:
    """Make a folder of a generated tree; return how many files should be used or counted."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    count = 0
    for folder, (files, where) in tree.items():
        inside = root / folder / (where if where not in ("loop", "out", "self") else "")
        inside.mkdir(parents=True, exist_ok=True)
        for (name, ending), content in files.items():
            path = inside / f"{name}{ending}"
            if not path.exists():
                path.write_bytes(IMAGES[content])
                shown = not path.name.startswith(".") and not folder.startswith(".") and where != "masks"
                count += shown and folder.casefold() != "masks"
        link = root / folder / "link"
        if where in ("loop", "out", "self") and not link.exists() and not folder.startswith(".") and folder.casefold() != "masks":
            link.symlink_to({"loop": root, "out": root.parent, "self": link}[where])
            count += 1
    return count


@settings(max_examples=4000, suppress_health_check=list(HealthCheck))
@given(tree=TREES)
def test_every_file_of_any_folder_is_used_or_counted_out(tmp_path_factory: pytest.TempPathFactory, tree: dict) -> None:
    root = tmp_path_factory.getbasetemp() / "grown"
    count = grow(root, tree)
    try:
        found = scan(root)
    except InputError:
        return
    assert len(found.images) + len(found.excluded) == count
    assert all(not image.relative.startswith("/") and ".." not in Path(image.relative).parts for image in found.images)


@pytest.fixture(scope="module")
def reader() -> Iterator[GreyReader]:
    """A child for all images, as where a store is built."""
    with GreyReader() as reader:
        yield reader


@settings(max_examples=1000, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"]))
def test_a_damaged_image_is_decoded_or_refused_with_a_reason(
    tmp_path_factory: pytest.TempPathFactory, reader: GreyReader, seed: int, kind: str
) -> None:
    draws = np.random.default_rng(seed)
    buffer = BytesIO()
    Image.fromarray(draws.integers(0, 255, (24, 24), np.uint8)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(draws.integers(1, 9)):
        content[draws.integers(len(content))] = draws.integers(256)
    path = tmp_path_factory.getbasetemp() / "damaged.img"
    path.write_bytes(content[: draws.integers(1, len(content) + 1)])
    with suppress(BadImageError), reader.read(path) as grey:
        assert grey.image.mode == ("L" if grey.depth is None else "F")


def test_the_name_of_an_image_is_found_in_the_table_of_images_alone(tmp_path: Path, short_folder: Path) -> None:
    data = tmp_path / "data"
    write_phantoms(data, seed=0, num_images=80)
    (class_folder,) = [folder for folder in data.iterdir() if folder.name == "COVID"]
    victim = sorted((class_folder / "images").iterdir())[0]
    (class_folder / "images" / f"{MARKER}.png").write_bytes(victim.read_bytes()[:300])
    temporary = short_folder
    environment = {"RAY_TMPDIR": str(temporary), "TMPDIR": str(temporary), "XDG_STATE_HOME": str(tmp_path / "state")}
    options = [option for option in begin(tmp_path) if option != "--no-report"]
    cache = ("--cache", str(tmp_path / "cache"))
    printed = searched(
        *options,
        *cache,
        "--max-epochs",
        "1",
        "--data",
        str(data),
        "--weights",
        "random",
        "--tracker",
        "tensorboard",
        status=-9,
        fault={
            "do": "kill driver",
            "file": "*/predictions/.[0-9a-f]*.parquet.*",
            "at": 1,
        },  # or its working folders would be gone
        **environment,
    )
    assert any(temporary.rglob("*.log"))
    assert MARKER not in printed
    assert "1 files left out (1 " in printed
    run = tmp_path / "run"
    images = [path for path in (run / "images").glob("*.parquet") if MARKER.encode() in path.read_bytes()]
    holders = [
        path for path in (*run.rglob("*"), *temporary.rglob("*")) if path.is_file() and MARKER.encode() in path.read_bytes()
    ]
    assert holders == images
    assert len(images) == 1


def test_no_host_name_and_no_absolute_path_is_in_a_run(undisturbed: Path) -> None:
    host = re.compile(rf"\b{re.escape(os.uname().nodename)}\b")
    run = read_run(undisturbed)
    texts = [path.read_text() for path in undisturbed.rglob("*.json")]
    texts += [str(value) for name in TABLES for column in getattr(run, name) for value in getattr(run, name)[column]]
    assert len(texts) > 100
    assert not [text for text in texts if host.search(text)]
    assert not [
        path for path in undisturbed.rglob("*") if path.is_file() and str(undisturbed.parent).encode() in path.read_bytes()
    ]


def test_control_characters_in_names_reach_no_terminal(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_phantoms(data, seed=0, num_images=80)
    (data / "COVID" / "images" / "\x1b[31mred\n.png").write_bytes(b"no image")
    with Cache.open(tmp_path / "cache") as cache:
        images = prepare(data, run=RunConfig(image_size=32), cache=cache).images
    assert images.loc[images["excluded_reason"] == "bad_name", "path"].tolist() == ["COVID/images/\ufffd[31mred\ufffd.png"]
    done = subprocess.run(
        [sys.executable, "-m", "tune_lung.data", "scan", str(data)], capture_output=True, text=True, check=True, timeout=120
    )
    assert "\x1b" not in done.stdout
