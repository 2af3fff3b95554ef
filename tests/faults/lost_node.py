"""Run one search on a cluster of two Ray nodes on this machine, and kill one of them when it trains.

Usage: lost_node.py RUN COMMAND..., the run's folder and a search command to which `--address` is added.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

# A lost node is noticed within a second.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", RAY_health_check_failure_threshold="2")
os.environ.update({f"RAY_health_check_{name}_ms": "500" for name in ("initial_delay", "period", "timeout")})

import ray
from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster

_NODE_MEMORY_BYTES = 100_000_000


def main() -> int:
    """Start the nodes and the search, and kill the second node once it is busy and the run has epochs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": _NODE_MEMORY_BYTES})
    node = cluster.add_node(num_cpus=1, object_store_memory=_NODE_MEMORY_BYTES)
    ray.init(address=cluster.address, log_to_driver=False)
    epochs, is_killed = Path(sys.argv[1]) / "epochs", False
    try:
        search = subprocess.Popen([*sys.argv[2:], "--address", cluster.address])
        while search.poll() is None:
            is_busy = available_resources_per_node().get(node.node_id, {}).get("CPU", 0.0) < 1
            if not is_killed and is_busy and len(list(epochs.glob("*.parquet"))) > 1:
                cluster.remove_node(node, allow_graceful=False)
                is_killed = True
            time.sleep(0.1)
    finally:
        ray.shutdown()
        cluster.shutdown()
    sys.stdout.write(f"killed a node: {is_killed}\n")
    return search.returncode


if __name__ == "__main__":
    sys.exit(main())
