"""All that knows Ray: connecting, stateless tasks, streams to stateful workers, and groups that hold shards."""

from __future__ import annotations

from raypipe.cluster.protocol import Cluster, Resources


def connect(address: str, resources: Resources) -> Cluster:
    """Open the place of work that `address` names.

    Args:
        address: `auto` (RAY_ADDRESS if it is set, else `local`), `local` (a new small Ray on this machine, never one
            that happens to run here), `inprocess` (no Ray) or HOST:PORT (joins that cluster). A Ray that this process
            has initialised before is joined, and left running at the end.
        resources: What each worker may use, and how many there are.

    Raises:
        ClusterError: the address cannot be used or reached, or no node there can hold one worker.
    """
    if address == "inprocess":
        from raypipe.cluster.inprocess import InProcess

        return InProcess(resources)
    from raypipe.cluster.ray_cluster import open_ray

    return open_ray(address, resources)
