"""Ray's nodes: what a trial gets, and a search over two of them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
import ray
from ray.tune import PlacementGroupFactory

from tune_lung.errors import InputError
from tune_lung.tuning.cluster import (
    Room,
    node_offers,
    nodes_at,
    placement_elsewhere,
    plan_resources,
    room_on_nodes,
    task_options,
    temporary_folder,
    trials_a_gpu,
)

from tests.small_search import METRICS, search_command


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let Ray show nodes that have so much, named by letters."""

    def show(*resources: dict[str, float]) -> None:
        shown = [
            {
                "NodeID": name,
                "Alive": True,
                "NodeManagerAddress": f"10.0.0.{number}",
                "Resources": own | {"memory": 1.0, "object_store_memory": 1.0},
            }
            for number, (name, own) in enumerate(zip("abcdef", resources, strict=False))
        ]
        monkeypatch.setattr(ray, "nodes", lambda: shown)

    return show


@pytest.mark.parametrize(
    ("cpus", "gpus", "num_cpus", "num_gpus", "slots"),
    [
        # As many placement groups as Ray 2.60 made of such a node; 1 // 0.2 is 4 and 1 // 0.1 is 9.
        (0.1, 0.1, 32, 2, 20),
        (0.1, 0.2, 32, 1, 5),
        (0.1, 0.2, 32, 2, 10),
        (0.1, 0.3, 32, 2, 6),
        (0.1, 0.4, 32, 2, 4),  # no trial spans two GPUs
        (0.1, 0.15, 32, 2, 12),
        (0.1, 0.05, 32, 2, 40),
        (0.1, 0.7, 32, 2, 2),
        (1, 1, 32, 2, 2),
        (1, 2, 32, 2, 1),
        (0.1, 0, 2, 0, 20),
        (0.2, 0, 2, 0, 10),
        (0.3, 0, 2, 0, 6),
        (0.7, 0, 2, 0, 2),
        (1.5, 0, 2, 0, 1),
        (1, 0.25, 2, 1, 2),  # CPUs for two
    ],
)
def test_a_nodes_slots_are_counted_as_ray_counts_them(
    nodes: Callable[..., None], cpus: float, gpus: float, num_cpus: float, num_gpus: float, slots: int
) -> None:
    nodes({"CPU": num_cpus, "GPU": num_gpus})
    assert [offer.slots for offer in node_offers(cpus_per_trial=cpus, gpus_per_trial=gpus)] == [slots]
    planned = plan_resources(num_trials=99, cpus_per_trial=cpus, gpus_per_trial=gpus, max_concurrent=None, is_local=True)
    assert planned.max_concurrent == slots


def test_trials_that_share_a_gpu_are_counted_as_ray_counts_them() -> None:
    assert [trials_a_gpu(share) for share in (0.1, 0.2, 0.3, 0.7, 1, 2)] == [10, 5, 3, 1, 1, 1]


def test_a_trial_that_is_tried_again_avoids_unfit_nodes_as_long_as_another_has_room(nodes: Callable[..., None]) -> None:
    asked = PlacementGroupFactory([{"CPU": 1, "GPU": 0.5}])
    nodes({"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}, {"CPU": 4})
    elsewhere = placement_elsewhere(asked, {"a"})
    assert elsewhere == PlacementGroupFactory(asked.bundles, bundle_label_selector=[{"ray.io/node-id": "!in(a)"}])
    assert placement_elsewhere(asked, {"a", "b"}) is None  # c has no GPU
    assert task_options(cpus=1, gpus=0.5, unfit={"b"})["label_selector"] == {"ray.io/node-id": "!in(b)"}
    assert "label_selector" not in task_options(cpus=1, gpus=0.5, unfit={"a", "b"})


def test_a_node_is_known_by_its_address_where_it_alone_lives_there(nodes: Callable[..., None]) -> None:
    nodes({"CPU": 1}, {"CPU": 1})
    assert nodes_at("10.0.0.1") == {"b"}
    assert nodes_at("10.0.0.9") == nodes_at(None) == set()


def test_a_task_with_a_gpu_has_a_process_of_its_own_and_ray_tries_none_again() -> None:
    assert task_options(cpus=1, gpus=0.5) == {"num_cpus": 1, "num_gpus": 0.5, "max_calls": 1, "max_retries": 0}
    assert task_options(cpus=1, gpus=0) == {"num_cpus": 1, "num_gpus": 0, "max_retries": 0}


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_two_nodes_both_train_and_give_the_local_table(finished_search: tuple[Path, str], tmp_path: Path) -> None:
    local, _ = finished_search
    command = search_command(tmp_path / "cluster", "--no-report", "--name", "cluster")
    script = Path(__file__).with_name("two_nodes.py")
    with TemporaryDirectory(prefix="ray") as short_path:  # pytest's is too long for Ray's sockets
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": short_path}
        done = subprocess.run(
            [sys.executable, str(script), *command], capture_output=True, text=True, timeout=200, check=False, env=environment
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "busy nodes: 2" in done.stdout
    assert "3 trials, 2 at once now, up to 3 as there is room, each with 1 CPU" in done.stdout
    tables = [
        pd.read_parquet(run / "trials")[METRICS].sort_values("trial_id") for run in (local, tmp_path / "cluster" / "cluster")
    ]
    pd.testing.assert_frame_equal(*(table.reset_index(drop=True) for table in tables), check_exact=True)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("wish", "num_trials", "is_local", "expected"),
    [(8, 64, True, 2), (None, 64, True, 2), (1, 64, True, 1), (8, 1, True, 1), (8, 64, False, 8), (None, 64, False, 64)],
)
def test_one_machine_holds_no_more_trials_than_it_has_room_for(wish, num_trials: int, is_local: bool, expected: int) -> None:
    """This one has 2 CPUs; what a cluster may come to have is not known."""
    resources = plan_resources(
        num_trials=num_trials, cpus_per_trial=None, gpus_per_trial=None, max_concurrent=wish, is_local=is_local
    )
    assert (resources.max_concurrent, resources.may_grow) == (expected, not is_local)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_room_is_counted_in_whole_trials_on_each_node() -> None:
    assert room_on_nodes(cpus_per_trial=0.5, gpus_per_trial=0) == Room(free=4, total=4)
    assert room_on_nodes(cpus_per_trial=2, gpus_per_trial=0) == Room(free=1, total=1)
    assert room_on_nodes(cpus_per_trial=1, gpus_per_trial=1) == Room(free=0, total=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ü", r"Ray's paths have ASCII letters alone, and .*ü has others\. Set RAY_TMPDIR to another folder\."),
        ("x" * 120, r"The temporary folder's path is too long for Ray's sockets\. Set RAY_TMPDIR to a short one\."),
        ("file", r"Ray's files cannot lie in .*file: File exists\. Set RAY_TMPDIR to another folder\."),
    ],
)
def test_a_temporary_folder_that_is_none_for_ray_is_refused_before_ray_starts(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TemporaryDirectory(prefix="ray") as short_path:
        (Path(short_path) / "file").touch()
        monkeypatch.setenv("RAY_TMPDIR", f"{short_path}/{name}")
        with pytest.raises(InputError, match=message):
            temporary_folder()


def test_a_temporary_folder_as_long_as_sockets_allow_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with TemporaryDirectory(prefix="ray") as short_path:
        longest = 107 - len(f"/tl-12345678/w/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
        path = f"{short_path}/{'x' * longest}"[:longest]
        monkeypatch.setenv("RAY_TMPDIR", path)
        assert temporary_folder() == Path(path)
        monkeypatch.setenv("RAY_TMPDIR", f"{path}x")
        with pytest.raises(InputError, match="too long"):
            temporary_folder()


def test_on_macos_a_users_own_temporary_folder_too_long_for_sockets_gives_way_to_the_common_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every user's is: `/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T`; one that was named is refused as everywhere."""
    with TemporaryDirectory(prefix="ray") as short_path:
        monkeypatch.setattr("tempfile.tempdir", f"{short_path}/{'x' * 50}")
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        with pytest.raises(InputError, match="too long"):
            temporary_folder()
        monkeypatch.setattr("sys.platform", "darwin")
        assert temporary_folder() == Path("/tmp")  # noqa: S108 - as Ray does
        monkeypatch.setenv("RAY_TMPDIR", f"{short_path}/{'x' * 50}")
        with pytest.raises(InputError, match="too long"):
            temporary_folder()
        monkeypatch.setenv("RAY_TMPDIR", short_path)
        assert temporary_folder() == Path(short_path)


def test_the_home_folder_is_written_out_in_the_name_of_rays_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with TemporaryDirectory(prefix="ray") as short_path:
        monkeypatch.setenv("HOME", short_path)
        monkeypatch.setenv("RAY_TMPDIR", "~/own")
        assert temporary_folder() == Path(short_path, "own")
