"""Run one search on a cluster of Ray nodes on this machine, and kill the node that trains.

Usage: lost_node.py FILE COMMAND..., a search command to which `--address` is added. The first node with a CPU is killed when FILE
is there, which a trial makes before it hangs; a second such node takes over.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

# A lost node is noticed within a second.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", RAY_health_check_failure_threshold="2")
os.environ.update({f"RAY_health_check_{name}_ms": "500" for name in ("initial_delay", "period", "timeout")})

from ray.cluster_utils import Cluster

_NODE_MEMORY_BYTES = 100_000_000


def main() -> int:
    """Start nodes and search, and kill the node whose trial hangs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": _NODE_MEMORY_BYTES})
    node = cluster.add_node(num_cpus=1, object_store_memory=_NODE_MEMORY_BYTES)
    is_killed = False
    try:
        search = subprocess.Popen([*sys.argv[2:], "--address", cluster.address])
        while search.poll() is None:
            if not is_killed and Path(sys.argv[1]).exists():
                cluster.add_node(num_cpus=1, object_store_memory=_NODE_MEMORY_BYTES)
                cluster.remove_node(node, allow_graceful=False)
                is_killed = True
            time.sleep(0.1)
    finally:
        cluster.shutdown()
    sys.stdout.write(f"killed a node: {is_killed}\n")
    return search.returncode


if __name__ == "__main__":
    sys.exit(main())
