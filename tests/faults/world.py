"""A user's machine with a stranger's things on it, and what must hold of it whatever command is given those."""

import hashlib
import os
import pickle
import socket
import stat
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
from PIL import Image

import tune_lung.data.__main__ as data_command
import tune_lung.search.__main__ as search_command
from tune_lung import report as report_command
from tune_lung import runs as runs_command
from tune_lung.errors import InputError
from tune_lung.files import write_json_with_digest
from tune_lung.results.layout import RunPaths
from tune_lung.search import steps as search_steps

COMMANDS = {
    "search": search_command.main,
    "data": data_command.main,
    "report": report_command.main,
    "runs": runs_command.main,
}
KEY = "0123456789abcdef0123456789abcdef"
"""What an entry of the cache is called."""


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.command = f"touch '{file}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@dataclass
class World:
    """Folders of the user, of the stranger and of ours, and a port that nobody may call."""

    root: Path
    listener: socket.socket
    capture: pytest.CaptureFixture[str]
    addresses: list[str | None] = field(default_factory=list)
    """Where searches would have joined Ray."""

    def __post_init__(self) -> None:
        for folder in (self.precious, self.theirs, self.own, self.home, self.working, self.proof):
            folder.mkdir(parents=True)
        (self.precious / "notes.txt").write_text("mine\n" * 100)
        (self.precious / "link").symlink_to("notes.txt")
        for name in ("data/COVID", "data/Normal", f"stores/{KEY}", "figures", "locks", "trials", "checkpoints/3f2a"):
            (self.precious / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (40, 40), number).save(self.precious / "data" / "COVID" / f"{number}.png")
        for name in (
            f"stores/{KEY}/store.json",
            f"locks/stores-{KEY}.build",
            "figures/figure4.png",
            "trials/schema.parquet",
            "checkpoints/3f2a/last.safetensors",
            "run.json",
            ".owner.json",
        ):
            (self.precious / name).write_text(f"mine: {name}")
        (self.precious / "program.py").write_text(self.code)
        self._before = self._snapshot()

    precious = property(lambda self: self.root / "precious")
    theirs = property(lambda self: self.root / "theirs")
    own = property(lambda self: self.root / "own")
    home = property(lambda self: self.root / "home")
    working = property(lambda self: self.root / "working")
    proof = property(lambda self: self.root / "proof")

    @property
    def code(self) -> str:
        """Python that leaves a proof that it ran."""
        return f"import pathlib\npathlib.Path({str(self.proof / 'ran')!r}).touch()\n"

    @property
    def payload(self) -> bytes:
        """A pickle that leaves a proof that it was loaded."""
        return pickle.dumps(Payload(self.proof / "unpickled"))

    @property
    def address(self) -> str:
        """Where a Ray cluster seems to be."""
        return "{}:{}".format(*self.listener.getsockname())

    def run(self, *arguments: str | Path) -> str:
        """Give a command; return what it printed. It ends with 0 or with one line that says what is wrong."""
        name, *given = map(str, arguments)
        status = COMMANDS[name](given)
        printed, errors = self.capture.readouterr()
        assert status in (0, 2), (arguments, status, errors)
        assert "Traceback" not in errors, errors
        if status == 2:
            assert [line.startswith("error: ") for line in errors.splitlines()].count(True) == 1, errors
        both = printed + errors
        strange = {letter for letter in both if not (letter.isprintable() or letter in "\n")}
        assert not strange, (arguments, strange)
        return both

    def assert_unharmed(self) -> None:
        """Nothing of the user's has changed, nothing of the stranger's was executed, nothing was joined."""
        now = self._snapshot()
        changed = sorted(path for path in now.keys() | self._before.keys() if now.get(path) != self._before.get(path))
        assert not changed, changed
        assert list(self.proof.iterdir()) == []
        assert set(self.addresses) <= {None}
        self.listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            self.listener.accept()

    def _snapshot(self) -> dict[str, tuple[object, ...]]:
        found = {}
        for folder in (self.precious, self.home, self.working):
            for path in (folder, *sorted(folder.rglob("*"))):
                status = path.lstat()
                content = str(path.readlink()) if path.is_symlink() else _digest(path)
                found[str(path)] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_mtime_ns, content)
        return found


def _digest(path: Path) -> str:
    return (
        hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ",".join(sorted(entry.name for entry in path.iterdir()))
    )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A machine whose searches end where they would start or join Ray."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = World(tmp_path / "world", listener, capsys)

        @contextmanager
        def no_ray(address: str | None, **_: object) -> NoReturn:
            made.addresses.append(address)
            raise InputError("Here Ray would start.")
            yield

        monkeypatch.setattr(search_steps, "ray_session", no_ray)
        monkeypatch.setenv("HOME", str(made.home))
        for kind in ("cache", "config", "state"):  # matplotlib keeps its settings in the second
            monkeypatch.setenv(f"XDG_{kind.upper()}_HOME", str(made.own / kind))
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.chdir(made.working)
        modules = set(sys.modules)
        yield made
        made.assert_unharmed()
        assert not [name for name in set(sys.modules) - modules if "program" in name]


def forge_manifest(root: Path, **changes: Any) -> None:
    """Change what a run says of itself; its digest and its copy are right again afterwards."""
    import json

    manifest = {name: value for name, value in json.loads((root / "run.json").read_text()).items() if name != "sha256"}
    paths = RunPaths(root)
    for path in (paths.manifest, paths.manifest_copy):
        write_json_with_digest(path, manifest | changes)


def commands_for_a_run(run: Path, world: World) -> Sequence[Sequence[str | Path]]:
    """Every command that takes a run."""
    return (
        ("report", run),
        ("report", run, run, "--out", world.own / "compared"),
        ("runs", "list", run.parent),
        ("runs", "export-optuna", run, world.own / "study.db"),
        ("runs", "import", run, "--out", world.own / "imported"),
        ("search", "--resume", run),
        ("search", "--resume", run, "--max-epochs", "9"),
        ("search", "--space", world.own / "sampled.py", "--warm-start", run, "--out", world.own / "runs", "--name", "warm"),
    )
