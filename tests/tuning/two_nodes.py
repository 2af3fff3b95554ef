"""Run one search on a cluster of two Ray nodes on this machine; started as a process of its own by test_cluster.py.

Usage: two_nodes.py COMMAND..., a search command to which `--address` is added. Prints how many nodes were ever busy.
"""

import os
import subprocess
import sys
import time

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")

import ray
from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster

_NODE_MEMORY_BYTES = 100_000_000


def main() -> int:
    """Start the nodes, run the search, watch which nodes lend their CPU."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": _NODE_MEMORY_BYTES})
    cluster.add_node(num_cpus=1, object_store_memory=_NODE_MEMORY_BYTES)
    ray.init(address=cluster.address, log_to_driver=False)
    busy = set()
    try:
        search = subprocess.Popen([*sys.argv[1:], "--address", cluster.address])
        while search.poll() is None:
            busy |= {node for node, free in available_resources_per_node().items() if free.get("CPU", 0.0) < 1}
            time.sleep(0.2)
    finally:
        ray.shutdown()
        cluster.shutdown()
    sys.stdout.write(f"busy nodes: {len(busy)}\n")
    return search.returncode


if __name__ == "__main__":
    sys.exit(main())
