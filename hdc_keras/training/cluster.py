"""Whether several processes train together, as the environment says. Needs no backend."""

import json
import os

from hdc_keras.errors import ConfigError


def is_multi_process() -> bool:
    """Whether the environment (TF_CONFIG, Slurm, torchrun) says that this process is one of several."""
    return bool(described_cluster())


def described_cluster() -> str:
    """Where the cluster is described: "TF_CONFIG", "slurm" or "torchrun"; "" if there is no cluster."""
    try:
        workers = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    except ValueError as error:
        raise ConfigError(f"TF_CONFIG is not valid JSON: {error}") from error
    if sum(len(hosts) for hosts in workers.values()) > 1:
        return "TF_CONFIG"
    # srun sets both variables for each of its tasks. In a batch script without srun, one of them is missing.
    if int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1 and "SLURM_PROCID" in os.environ:
        return "slurm"
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and "RANK" in os.environ:
        return "torchrun"
    return ""
