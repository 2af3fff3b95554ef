"""Ray's start and end, and what its nodes offer."""

import logging
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tune_lung.config import DEFAULT_CPUS_PER_TRIAL
from tune_lung.errors import InputError
from tune_lung.printable import complain
from tune_lung.scratch import RAY_PREFIX, ScratchFolder, remove_leftovers
from tune_lung.tuning.cluster_watch import ClusterWatch
from tune_lung.working_folder import neutral_folder

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

_UNITS = 10_000
"""Ray counts resources in whole parts of so many a CPU or GPU."""

_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing about a run leaves the machine
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger is ours; Ray's loggers leak 300 KB of memory a trial
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # a run goes on from its ledger: Ray need not write down the state of every trial
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial reports no numbers
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: the ledger is closed first
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the recorder logs them
    "RAY_AIR_NEW_OUTPUT": "0",  # Ray's newer reporter prints tables even when told to be silent
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a CPU trial leaves the visible GPUs as they are
}


_MOST_SOCKET_BYTES = {"darwin": 103}.get(sys.platform, 107)
_DEEPEST_SOCKET = f"/{RAY_PREFIX}12345678/w/session_2026-01-01_00-00-00_000000_/sockets/plasma_store"
"""In the temporary folder, but for the number of this process."""
_TOO_LONG = "The temporary folder's path is too long for Ray's sockets. Set RAY_TMPDIR to a short one."
_SECONDS_TO_ANSWER = 30.0
_ASK_CLUSTER = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_exists(b"session_name", b"session", timeout=30)
"""
"""Asks a cluster's head for something that every one has, or raises."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a trial gets, and how many trials may run at once."""

    cpus_per_trial: float
    """CPUs of one trial, above 0."""
    gpus_per_trial: float
    """GPUs of one trial; a share such as 0.5 lets trials share one."""
    max_concurrent: int
    """Trials at once at most, at least 1."""
    may_grow: bool = False
    """Whether nodes may come and go, so that fewer may have room for a trial."""


class RayHere(NamedTuple):
    """The Ray that the program has initialised in this process."""

    address: str
    """Of its head."""
    is_joined: bool
    """Whether it is a cluster that runs without this process."""


def ray_here() -> RayHere | None:
    """Find the Ray that is initialised in this process already.

    Raises:
        InputError: It is a client of a Ray elsewhere, which searches cannot use.
    """
    import ray
    from ray._private import worker

    if not ray.is_initialized():
        return None
    node: Any = worker._global_node
    if node is None:
        raise InputError("Ray is initialised here as a client (ray://...), which a search cannot use. Call ray.shutdown() first.")
    return RayHere(address=str(node.gcs_address), is_joined=not node.all_processes.get("raylet"))


def require_fits(address: str | None, here: RayHere) -> None:
    """Refuse another cluster than that of the Ray that is initialised in this process.

    Args:
        address: Where the search is to run; None and `auto` fit any.
        here: That Ray.

    Raises:
        InputError: It is another.
    """
    if address not in (None, "auto", here.address):
        raise InputError(
            f"--address {address}: Ray is initialised in this process already, at {here.address}. Leave the address out, or"
            " call ray.shutdown() first."
        )


@contextmanager
def ray_session(address: str | None, *, is_guest: bool = False) -> Iterator[ClusterWatch]:
    """Start a local Ray, or join a running cluster, and leave it when the block ends.

    What a local Ray writes lies in a private folder that goes with it; of a cluster's nothing is ours. A guest uses the Ray that
    its program has initialised, and leaves it as it is.

    Args:
        address: `auto` or a cluster's address; None starts Ray on this machine, whatever else runs there.
        is_guest: Whether the process is another program's.

    Yields:
        What looks after Ray's own processes, and ends this one when they die, unless it is a guest.

    Raises:
        InputError: There is no cluster at the address, the temporary folder is none for Ray, or a guest's program has initialised
            another Ray; or Ray lacks what tune_lung builds on.
    """
    from tune_lung.tuning.ray_patches import require_known_names

    require_known_names()
    here = ray_here() if is_guest else None
    if here is not None:
        require_fits(address, here)
        with _settled_ray(), _used_ray() as watch:
            yield watch
        return
    if address is not None:
        require_cluster(address)
        with _ray_session(address, folder=None, is_guest=is_guest) as watch:
            yield watch
        return
    parent = temporary_folder()
    with (
        ScratchFolder(RAY_PREFIX, parent) as folder,
        _ray_session("local", folder=folder.path, is_guest=is_guest) as watch,
    ):
        yield watch
    remove_leftovers(parent)  # of a search that was killed a moment before this one began, its workers are gone by now


def require_cluster(address: str) -> None:
    """See that a cluster answers.

    A process of its own asks: Ray's client waits for minutes where nobody answers, and cannot be interrupted meanwhile.

    Args:
        address: `auto`, or the head's `HOST:PORT`.

    Raises:
        InputError: None does, or the address is none.
    """
    from ray._private.services import canonicalize_bootstrap_address

    if address == "local" or "://" in address:
        raise InputError(f"--address {address}: write the HOST:PORT of a cluster's head, or auto; without it Ray starts here.")
    try:
        place = canonicalize_bootstrap_address(address)
    except (ConnectionError, OSError, ValueError) as error:
        raise InputError(f"No Ray cluster answers at --address {address}: {_first_line(error)}") from error
    with neutral_folder() as working:
        command = [sys.executable, "-c", _ASK_CLUSTER, str(place)]
        quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        try:
            subprocess.run(command, cwd=working, timeout=_SECONDS_TO_ANSWER, check=True, **quiet)  # noqa: S603 - our own words
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            raise InputError(
                f"No Ray cluster answers at --address {address} within {_SECONDS_TO_ANSWER:g} s. Start its head, or give the"
                " HOST:PORT of one that runs."
            ) from error


def require_on_this_machine(*, cpus_per_trial: float | None, gpus_per_trial: float | None) -> None:
    """Refuse a trial that this machine cannot hold, without Ray; the arguments are those of `plan_resources`.

    Raises:
        InputError: It has fewer CPUs or GPUs, as Ray would count them.
    """
    from ray._private.accelerators import get_accelerator_manager_for_resource
    from ray._private.utils import get_num_cpus

    gpus = get_accelerator_manager_for_resource("GPU")
    offered = {"CPU": float(get_num_cpus()), "GPU": float(0 if gpus is None else gpus.get_current_node_num_accelerators())}
    _require_at_most(offered, cpus=cpus_per_trial or 0.0, gpus=gpus_per_trial or 0.0)


def _require_at_most(offered: Mapping[str, float], *, cpus: float, gpus: float) -> None:
    for option, wanted, kind in (("--cpus-per-trial", cpus, "CPU"), ("--gpus-per-trial", gpus, "GPU")):
        if wanted > offered[kind]:
            raise InputError(f"{option} {wanted:g} is more than this machine has ({offered[kind]:g}). Lower it.")


def temporary_folder() -> Path:
    """Name the folder in which Ray makes its own; it is made where `RAY_TMPDIR` names one that is not there.

    Raises:
        InputError: It is none for Ray.
    """
    named = os.environ.get("RAY_TMPDIR")
    parent = Path(named or tempfile.gettempdir()).expanduser().absolute()
    if sys.platform == "darwin" and not named and not _holds_sockets(parent):
        parent = Path("/tmp")  # noqa: S108 - as Ray does: each user's temporary folder has a path of 50 letters there
    if not str(parent).isascii():
        raise InputError(f"Ray's paths have ASCII letters alone, and {parent} has others. Set RAY_TMPDIR to another folder.")
    if not _holds_sockets(parent):
        raise InputError(_TOO_LONG)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Ray's files cannot lie in {parent}: {error.strerror}. Set RAY_TMPDIR to another folder.") from error
    return parent


def _holds_sockets(parent: Path) -> bool:
    return len(str(parent) + _DEEPEST_SOCKET + str(os.getpid())) <= _MOST_SOCKET_BYTES


@contextmanager
def _settled_ray() -> Iterator[None]:
    """Let Ray and Tune be silent and leave to us what is ours, for as long as the block lasts."""
    from tune_lung.tuning.ray_patches import told_by_us

    tune_log = logging.getLogger("ray.tune.tune")
    level = tune_log.level
    with _environment_kept(*_RAY_SETTINGS):
        for name, value in _RAY_SETTINGS.items():
            os.environ.setdefault(name, value)
        with told_by_us(_tell_nothing, packs_for_uv="RAY_ENABLE_UV_RUN_RUNTIME_ENV" in os.environ):
            tune_log.setLevel(logging.CRITICAL)  # Tune names failed trials at the end: the recorder does, at once
            try:
                yield
            finally:
                tune_log.setLevel(level)


@contextmanager
def _closed_by_token(*, is_local: bool) -> Iterator[None]:
    """Close a local Ray by a token in the environment, which spares it a file under HOME.

    Ray remembers a process's token and whether it needs one, and would take them for the next Ray that is begun there.
    """
    from ray import _raylet

    raylet: Any = _raylet
    try:
        with _environment_kept("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "PYTHONBREAKPOINT"):
            if is_local and "RAY_AUTH_TOKEN_PATH" not in os.environ:
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
                raylet.AuthenticationTokenLoader.instance().reset_cache()
            yield
    finally:
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        raylet.Config.initialize("")


@contextmanager
def _environment_kept(*names: str) -> Iterator[None]:
    """Let variables of the environment be after the block what they were before it."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _ray_session(address: str, *, folder: Path | None, is_guest: bool) -> Iterator[ClusterWatch]:
    import ray
    from ray._private import worker

    parent = None if folder is None else str(folder)
    with (
        _closed_by_token(is_local=folder is not None),
        _settled_ray(),
        neutral_folder(parent) as working,
        _told_when_interrupted(),
    ):
        with _own_sigterm():
            _begin(address, working=working, folder=folder)
        watch = ClusterWatch(worker._global_node, is_guest=is_guest)
        with watch.watching():
            try:
                yield watch
            finally:
                watch.closes()
                ray.shutdown()


@contextmanager
def _used_ray() -> Iterator[ClusterWatch]:
    """Watch over the Ray that the program has initialised."""
    from ray._private import worker

    watch = ClusterWatch(worker._global_node, is_guest=True)
    with watch.watching():
        yield watch


def _tell_nothing(*_: Any, **__: Any) -> None:
    """Stand for what of Ray's is left out: its messages, such as the state of a raylet that died, and its handler of SIGTERM."""


@contextmanager
def _told_when_interrupted() -> Iterator[None]:
    """Say that Ray is being stopped: it takes its processes a second or two to end."""
    try:
        yield
    except KeyboardInterrupt:
        complain("\nStopping Ray.")
        raise


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what SIGTERM does: Ray would have it end the process with a status of its own."""
    from ray._private import utils

    before, rays = signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler
    utils.set_sigterm_handler = _tell_nothing
    try:
        yield
    finally:
        utils.set_sigterm_handler = rays
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray's C++ part may have taken it too


def _begin(address: str, *, working: str, folder: Path | None) -> None:
    """Start or join Ray.

    Args:
        address: `local`, or where a cluster is.
        working: What Ray takes for the working folder: it starts its workers there, and puts it on their path of imports. The
            process has one for all its threads, and so a thread that is not the main one leaves it as it is.
        folder: Where a Ray of our own keeps what it writes; None for a cluster.
    """
    import ray

    try:
        with chdir(working if threading.current_thread() is threading.main_thread() else os.curdir):
            ray.init(
                address=address,
                include_dashboard=None if folder is None else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=None if folder is None else str(folder),
            )
    except ConnectionError as error:
        raise InputError(f"No Ray cluster answers at --address {address}: {_first_line(error)}") from error
    except OSError as error:
        if "AF_UNIX path length" not in str(error):
            raise
        raise InputError(_TOO_LONG) from error
    except ValueError as error:
        if "virtualenv" not in str(error):
            raise
        raise InputError("Ray keeps nothing in a virtual environment. Set RAY_TMPDIR to a folder outside of it.") from error


@dataclass(frozen=True, kw_only=True)
class NodeOffer:
    """What one node has for a search."""

    slots: int
    """Trials that its CPUs and GPUs hold at once."""
    memory_bytes: float
    """Memory that was free when Ray started there."""


def node_offers(*, cpus_per_trial: float, gpus_per_trial: float) -> list[NodeOffer]:
    """List what the nodes that are there now offer; those without room for a trial are left out."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    offers = [
        NodeOffer(
            slots=_slots(node, cpus=cpus_per_trial, gpus=gpus_per_trial),
            memory_bytes=node["memory"] + node["object_store_memory"],  # Ray divides what is free; its store stays empty here
        )
        for node in nodes
    ]
    return [offer for offer in offers if offer.slots > 0]


def plan_resources(
    *,
    num_trials: int,
    cpus_per_trial: float | None,
    gpus_per_trial: float | None,
    max_concurrent: int | None,
    is_local: bool,
) -> Resources:
    """Divide what the nodes offer among trials: one GPU each where there are GPUs, else one CPU each.

    Args:
        num_trials: Trials of the search, at least 1.
        cpus_per_trial: The user's wish; None for the default.
        gpus_per_trial: The user's wish; None for the default.
        max_concurrent: The user's wish; None for as many as fit. Never more than this machine has room for; on a cluster,
            which may grow, that is not known.
        is_local: Whether the nodes seen are all there will ever be.

    Raises:
        InputError: No node can hold a trial.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = gpus_per_trial if gpus_per_trial is not None else min(1.0, max(node.get("GPU", 0.0) for node in nodes))
    cpus = cpus_per_trial if cpus_per_trial is not None else DEFAULT_CPUS_PER_TRIAL
    if is_local:
        most = {kind: max(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
        _require_at_most(most, cpus=cpus, gpus=gpus)
    slots = sum(_slots(node, cpus=cpus, gpus=gpus) for node in nodes) if is_local else num_trials
    return Resources(
        cpus_per_trial=cpus,
        gpus_per_trial=gpus,
        max_concurrent=min(num_trials, slots, max_concurrent or slots),
        may_grow=not is_local,
    )


class Room(NamedTuple):
    """For how many trials the nodes that are there now have room."""

    free: int
    """Trials that would fit beside all that runs there."""
    total: int
    """Trials that would fit if nothing ran there."""


def room_on_nodes(*, cpus_per_trial: float, gpus_per_trial: float) -> Room:
    """Count the room on Ray's nodes, node by node, for a trial never spans two."""
    import ray
    from ray._private.state import available_resources_per_node

    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    available = available_resources_per_node()
    free, total = (
        sum(_slots(resources, cpus=cpus_per_trial, gpus=gpus_per_trial) for resources in each)
        for each in ([available.get(node, {}) for node in alive], alive.values())
    )
    return Room(free=free, total=total)


def has_room(node: Mapping[str, float], *, cpus: float, gpus: float) -> bool:
    """Whether a node with these resources holds a trial."""
    return _slots(node, cpus=cpus, gpus=gpus) > 0


def trials_a_gpu(gpus_per_trial: float) -> int:
    """Count the trials that share one GPU, as Ray divides it; 1 where a trial takes whole ones."""
    return max(1, _UNITS // _in_units(gpus_per_trial))


def _slots(node: Mapping[str, float], *, cpus: float, gpus: float) -> int:
    """Count the trials that a node has room for, as Ray counts: in whole units, and no share of a trial spans two GPUs."""
    by_cpu = _in_units(node.get("CPU", 0.0)) // _in_units(cpus)
    if not gpus:
        return by_cpu
    offered, wanted = _in_units(node.get("GPU", 0.0)), _in_units(gpus)
    if wanted >= _UNITS:
        return min(by_cpu, offered // wanted)
    whole, rest = divmod(offered, _UNITS)
    return min(by_cpu, whole * (_UNITS // wanted) + rest // wanted)


def _in_units(quantity: float) -> int:
    """Round as Ray does; quotients of floating-point numbers are off by one where it matters: 1 // 0.2 is 4."""
    return math.floor(quantity * _UNITS + 0.5)


def nodes_at(address: str | None) -> set[str]:
    """Name the node that lives at an address, as Ray does; none where no node, or more than one, does."""
    if address is None:
        return set()
    import ray

    found = {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == address}
    return found if len(found) == 1 else set()


def placement_elsewhere(placement: "PlacementGroupFactory", unfit: Collection[str]) -> "PlacementGroupFactory | None":
    """Ask for the same resources on other nodes.

    Args:
        placement: What a trial asks for.
        unfit: Names of the nodes that it is to avoid.

    Returns:
        The same on any node but those; None where no other node that is there has room for it.
    """
    from ray.tune import PlacementGroupFactory

    needs = placement.required_resources
    selector = _label_selector(unfit, cpus=needs["CPU"], gpus=needs.get("GPU", 0.0))
    return PlacementGroupFactory(placement.bundles, bundle_label_selector=[selector]) if selector else None


def task_options(*, cpus: float, gpus: float, unfit: Collection[str] = ()) -> dict[str, Any]:
    """Lay out what `ray.remote` makes a task of with a trial's resources.

    A task with a GPU has a process of its own: one that served another task before would keep the CUDA context, and the
    memory, of the GPU that it saw first. Ray knows that by itself only where it is told of the GPU by `ray.remote`, and
    forgets it in `options`.

    Args:
        cpus: Of the task.
        gpus: Of the task.
        unfit: Names of nodes to avoid, as long as another one that is there has room.
    """
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0}
    if gpus:
        options["max_calls"] = 1
    selector = _label_selector(unfit, cpus=cpus, gpus=gpus)
    return options | ({"label_selector": selector} if selector else {})


def _label_selector(unfit: Collection[str], *, cpus: float, gpus: float) -> dict[str, str]:
    """Select all nodes but some; none are left out where no other one that is there has room."""
    import ray

    others = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in unfit] if unfit else []
    if not any(has_room(node, cpus=cpus, gpus=gpus) for node in others):
        return {}
    return {"ray.io/node-id": f"!in({','.join(sorted(unfit))})"}


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
