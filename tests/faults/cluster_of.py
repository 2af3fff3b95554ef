"""Run one search on a cluster of Ray nodes on this machine, each with an address, resources and a fault of its own.

Usage: cluster_of.py NODES COMMAND..., a search command to which `--address` is added. NODES is a JSON list with what each node
beside the head, which has no CPU, is started with; `fault` is what befalls the processes there.
"""

import json
import os
import subprocess
import sys

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")

from ray.cluster_utils import Cluster

_NODE_MEMORY_BYTES = 100_000_000


def main() -> int:
    """Start the nodes and run the search."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": _NODE_MEMORY_BYTES})
    try:
        for number, node in enumerate(json.loads(sys.argv[1]), start=2):
            cluster.add_node(
                object_store_memory=_NODE_MEMORY_BYTES,
                node_ip_address=f"127.0.0.{number}",
                env_vars={"TUNE_LUNG_FAULT": json.dumps(node.pop("fault", None))},
                **node,
            )
        return subprocess.run([*sys.argv[2:], "--address", cluster.address], check=False).returncode
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main())
