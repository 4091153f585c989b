"""Accelerators that are not there, for which XLA compiles all the same."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.run.operations import CHIPS, Chip

# libtpu would ask the cloud which machine this is, and wait.
SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at once
}
EXAMPLES = "'v5e:2x2', 'v6e:2x4', 'v5p:2x2x1' or 'h200:1x1x8'"

# What XLA asks of a GPU that is not there: facts of the H200, and versions of CUDA and
# cuDNN of the plugin's wheels.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
runtime_version { major: 13 minor: 0 patch: 0 }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H200"
"""


class Topology(NamedTuple):
    """Chips that a program is compiled for.

    Attributes:
      name: As it is given.
      devices: Devices as JAX describes them; no array can be put there.
      chip: Peaks and memory of one of them.
      num_processes: Number of processes that would share them.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip
    num_processes: int


def make_topology(name: str) -> Topology:
    """Returns the chips of a name.

    Args:
      name: `v5e:2x2`, a generation of TPU and the chips along each axis of a slice; or
        `h200:<slices>x<hosts>x<gpus>`.

    Raises:
      ValueError: If the name is unknown.
      ImportError: If the compiler is not installed.
    """
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    family, colon, layout = name.partition(":")
    if not (colon and family and layout.replace("x", "").isdigit()):
        raise ValueError(f"topology must be such as {EXAMPLES}, got {name!r}")
    try:
        if family == "h200":
            found = topologies.get_topology_desc(
                family, platform="cuda", target_config=H200, topology=layout
            )
            kind = "NVIDIA H200"
        else:
            found = topologies.get_topology_desc(name, platform="tpu")
            kind = found.devices[0].device_kind
    except Exception as error:  # of the plugins, which have no common class
        reason = str(error).strip().partition("\n")[0]
        missing = ("nknown backend", "libtpu", "not installed", "not implemented")
        if any(words in reason for words in missing):
            package = "jax[cuda13]" if family == "h200" else "jax[tpu]"
            raise ImportError(
                f"{name}: XLA's compiler for it is not installed; pip install"
                f" '{package}' ({reason})"
            ) from error
        raise ValueError(
            f"topology must be such as {EXAMPLES}, got {name!r}: {reason}"
        ) from error
    if kind not in CHIPS:
        raise ValueError(f"{name}: the limits of {kind!r} are not in operations.CHIPS")
    processes = {device.process_index for device in found.devices}
    return Topology(name, found.devices, CHIPS[kind], len(processes))
