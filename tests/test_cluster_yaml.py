"""cluster.yaml, checked by Ray's own code without a cloud; no Ray process is started."""

import copy
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config

REPOSITORY = Path(__file__).resolve().parents[1]
WRITTEN = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text(encoding="utf-8"))
PAGE = (REPOSITORY / "docs" / "clusters.md").read_text(encoding="utf-8")
COMMAND_LISTS = (
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
START_LISTS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture
def cluster():
    """The file as Ray sees it: what is left out filled in with Ray's defaults."""
    return fillout_defaults(copy.deepcopy(WRITTEN))


def start_command(cluster, name):
    (command,) = [command for command in cluster[name] if "ray start" in command]
    return command


def test_file_passes_rays_own_validation(cluster):
    validate_config(cluster)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"max_wrokers": 4}, "max_wrokers"),
        ({"max_workers": "four"}, "is not of type 'integer'"),
        ({"head_node_type": "haed"}, "head_node_type"),
    ],
)
def test_validation_sees_a_wrong_file(cluster, change, match):
    with pytest.raises((jsonschema.ValidationError, ValueError), match=match):
        validate_config(cluster | change)


def test_every_node_type_says_what_it_offers(cluster):
    types = cluster["available_node_types"]
    assert {name: node["resources"] for name, node in types.items()} == {
        "head": {"CPU": 0},
        "gpu_worker": {"CPU": 4, "GPU": 1},
    }
    assert cluster["head_node_type"] == "head"


def test_gpu_workers_come_from_zero_on_spot(cluster):
    worker = cluster["available_node_types"]["gpu_worker"]
    assert worker["min_workers"] == 0
    assert 1 <= worker["max_workers"] <= cluster["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in cluster["available_node_types"]["head"]["node_config"]


@pytest.mark.parametrize("name", START_LISTS)
def test_every_node_starts_with_the_token_and_without_usage_reports(cluster, name):
    exported = start_command(cluster, name).partition("ray start")[0]
    assert "RAY_AUTH_MODE=token" in exported
    assert "RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token" in exported
    assert "RAY_USAGE_STATS_ENABLED=0" in exported


def test_token_is_shipped_to_every_node_and_closed_to_others(cluster):
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"  # noqa: S105 - a path, no token
    assert cluster["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"


def test_dashboard_listens_on_loopback_alone(cluster):
    assert "--dashboard-host=127.0.0.1" in start_command(cluster, "head_start_ray_commands")
    assert "0.0.0.0" not in str(cluster)  # noqa: S104 - the address that must not be there


def test_packages_are_the_tested_ones_on_every_node(cluster):
    (install,) = [command for command in cluster["setup_commands"] if "ray[default,tune]" in command]
    assert "-c ~/tune_lung/constraints.txt" in install
    assert "-r ~/tune_lung/pyproject.toml" in install
    for name in ("constraints.txt", "pyproject.toml"):
        assert cluster["file_mounts"][f"~/tune_lung/{name}"] == name
        assert (REPOSITORY / name).is_file()
    assert not any(word in str(cluster[name]) for name in COMMAND_LISTS for word in ("ray-wheels", "ray=="))


def test_file_system_is_mounted_where_the_job_reads_and_writes(cluster):
    (mount,) = [command for command in cluster["setup_commands"] if "mount -t" in command]
    region = cluster["provider"]["region"]
    assert mount.endswith(f".efs.{region}.amazonaws.com:/ /mnt/tune_lung")
    assert "--data /mnt/tune_lung/data" in PAGE
    assert "--out /mnt/tune_lung/runs" in PAGE


def test_page_names_every_value_to_fill_in():
    placeholders = set(re.findall(r"[\w-]*REPLACE-WITH[\w-]*", str(WRITTEN)))
    assert placeholders == {"ami-REPLACE-WITH-GPU-IMAGE", "fs-REPLACE-WITH-FILE-SYSTEM"}
    assert all(placeholder in PAGE for placeholder in placeholders)


@pytest.mark.parametrize("name", COMMAND_LISTS)
def test_every_command_is_a_sound_line_of_bash(cluster, name):
    for command in cluster[name]:
        assert "\n" not in command
        subprocess.run(["bash", "-n", "-c", command], check=True)  # noqa: S607 - bash is found as Ray finds it
