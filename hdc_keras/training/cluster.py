"""Whether several processes train together, as the environment says. Needs no backend."""

import json
import os
import re

from hdc_keras.errors import ConfigError

# By name of a cluster's description: what started its processes, for messages.
STARTED_BY = {
    "TF_CONFIG": "TF_CONFIG describes several processes",
    "slurm": "srun started several tasks",
    "torchrun": "torchrun started several processes",
    "keras": "KERAS_DISTRIBUTION_NUM_PROCESSES names several processes",
}
# By backend: the descriptions that it understands.
UNDERSTOOD = {"tensorflow": ("TF_CONFIG", "slurm"), "jax": ("keras", "slurm"), "torch": ("torchrun", "slurm")}


def is_multi_process() -> bool:
    """Whether the environment (TF_CONFIG, Slurm, torchrun, Keras' variables) says that this is one of several."""
    return bool(described_cluster())


def described_cluster() -> str:
    """Where the cluster is described: "TF_CONFIG", "slurm", "torchrun" or "keras"; "" if there is no cluster."""
    try:
        workers = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    except ValueError as error:
        raise ConfigError(f"TF_CONFIG is not valid JSON: {error}") from error
    if sum(len(hosts) for hosts in workers.values()) > 1:
        return "TF_CONFIG"
    # torchrun may have been started by srun, with one task for each machine. Its variables are the inner ones.
    if _count("WORLD_SIZE") > 1 and "RANK" in os.environ:
        return "torchrun"
    if _count("KERAS_DISTRIBUTION_NUM_PROCESSES") > 1:
        return "keras"
    # srun sets both variables for each of its tasks. In a batch script without srun, one of them is missing.
    if _count("SLURM_STEP_NUM_TASKS") > 1 and "SLURM_PROCID" in os.environ:
        return "slurm"
    return ""


def slurm_address() -> tuple[str, int]:
    """Host and port at which the tasks of a Slurm step meet: the first node, and a port that depends on the step."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "localhost"
    # As in `node[03-05,9],other`: the first node is the text before the bracket and the first number in it.
    first = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    job = int(os.environ.get("SLURM_JOB_ID") or 0) + int(os.environ.get("SLURM_STEP_ID") or 0)
    return (first[1] + (first[2] or "") if first else nodes), 61440 + job % 4096


def _count(variable: str) -> int:
    value = os.environ.get(variable) or "1"
    if not value.isdigit():
        raise ConfigError(f"{variable}: expected a number of processes. Received: {value!r}")
    return int(value)
