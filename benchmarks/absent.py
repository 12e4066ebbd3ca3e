"""Accelerators that are not there, for which XLA compiles all the same: nothing runs.

A TPU's compiler comes by `pip install libtpu`, a GPU's by `pip install 'jax[cuda12]'`.
"""

import contextlib
import os

import jax
from jax._src import xla_bridge
from jax.experimental import topologies

from dvq_jax import host, nearest_gpu

PLATFORMS = {'v5e': 'tpu', 'h100': 'gpu'}  # as JAX names them

# What XLA asks of an H100 80GB HBM3, and of the libraries beside it.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  device_memory_size: 84929347584 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 9 }
"""
_NO_TRITON = '--xla_gpu_enable_triton_gemm=false'
_pmap, _canonical = jax.pmap, xla_bridge.canonicalize_platform


def _devices(kind: str, count: int) -> list:
    if kind == 'v5e':
        shape = '2x2' if count <= 4 else '2x4'
        return topologies.get_topology_desc(platform='tpu', topology_name=f'v5e:{shape}').devices[:count]
    shape = f'1x1x{count}'
    return topologies.get_topology_desc(platform='cuda', target_config=_H100, topology=shape).devices


def map_over(kind: str, count: int) -> None:
    """From now on this process maps over so many accelerators, and goes the ways that are for them.

    Args:
      kind: one of `PLATFORMS`.
      count: how many, of TPUs up to 8.
    """
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # do not look for a TPU's host
    flags = os.environ.get('XLA_FLAGS', '')
    if kind == 'h100' and _NO_TRITON not in flags:  # as `launch/gpu.sh` has it
        os.environ['XLA_FLAGS'] = f'{flags} {_NO_TRITON}'
    jax.devices()  # JAX looks for its own ones before it is told of others
    devices = _devices(kind, count)
    jax.pmap = lambda function, **settings: _pmap(function, **{**settings, 'devices': devices})
    host.is_all_there_is = lambda: False
    if kind == 'h100':
        # JAX knows the name of a GPU's platform by the GPUs that it has found (jax-ml/jax issue 23971).
        xla_bridge.canonicalize_platform = lambda name: 'cuda' if name == 'gpu' else _canonical(name)
        nearest_gpu._runs = lambda count, width: True
        with contextlib.suppress(ImportError):  # a JAX before 0.11, which takes none for an H100
            from jax._src.pallas.triton import gpu_info

            gpu_info.get_gpu_info = lambda: gpu_info._get_gpu_info_impl(gpu_info.GpuVersion.H100)
