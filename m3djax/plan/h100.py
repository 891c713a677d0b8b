"""Absent H100s as compile targets.

JAX has no public way to compile for absent GPUs. All private hooks, as of jax 0.10, are in this
file. The cuDNN calls in such a program are not checked: neither their workspace nor whether an
engine exists for them. GEMMs are not tuned.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import jax

from data_pipelines.errors import ConfigError

# Description of one H100 SXM5 for the compiler: the limits of compute capability 9.0 (CUDA C++
# Programming Guide) and NVIDIA's data sheet.
_TARGET = """
gpu_device_info {
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  name: "NVIDIA H100 80GB HBM3"
  device_vendor: "NVIDIA Corporation"
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3350000000000
  device_memory_size: 84942979072
  device_address_bits: 64
  runtime_version: "12.8.0"
  driver_version: "12.8.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_CURE = "Cure: pip install -r requirements-plan-gpu.txt, with the version of jax that it names"


def devices(count: int) -> list[jax.Device]:
    """Returns absent H100s of one host, for compilation only.

    Raises:
      ConfigError: the CUDA plugin is not installed, or this version of jax lacks the hooks.
    """
    if not installed():
        raise ConfigError(f"planning for H100 needs jax's CUDA plugin (but no GPU). {_CURE}")
    try:
        plugin = _plugin()
        from jax._src.lib import xla_client

        topology: Any = xla_client.make_c_api_device_topology(
            plugin, "h100", topology=f"1x1x{count}", target_config=_TARGET
        )
        return list(topology._make_compile_only_devices())
    except (AttributeError, ImportError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"planning for H100 uses private hooks of jax 0.10, which failed: {error}. {_CURE}"
        ) from error


def installed() -> bool:
    """Returns whether JAX's CUDA plugin is installed."""
    return bool(
        importlib.util.find_spec("jax_plugins")
        and importlib.util.find_spec("jax_plugins.xla_cuda12")
    )


@functools.cache
def _plugin() -> Any:
    """Returns the CUDA plugin's C interface; registers its callbacks, although no GPU exists."""
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from jax._src import xla_bridge
    from jax._src.lib import xla_client

    register, kept = xla_bridge.register_plugin, []

    def keep(*args: Any, **kwargs: Any) -> Any:
        kept.append(register(*args, **kwargs))
        return kept[-1]

    xla_bridge.register_plugin = keep
    try:
        jax.devices()  # the first call discovers plugins and starts the CPU backend
    finally:
        xla_bridge.register_plugin = register
    if not kept:
        raise RuntimeError("JAX was initialised before the absent GPUs were requested")
    if not xla_client.pjrt_plugin_initialized("cuda"):
        xla_client.initialize_pjrt_plugin("cuda")
    for callback in list(xla_bridge._plugin_callbacks):
        callback(c_api=kept[-1])  # registers CustomSPMDPartitioning, which cuDNN calls need
    return kept[-1]
