"""Variables that make training faster, by platform; `launch.py env` prints them for a shell. None changes a result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

# Collectives that run while the devices compute, and large enough to use the links: those of FSDP gather a layer's weights
# while the one before it is computed. jaxlib and libtpu end a process at a flag that they do not know; these were
# accepted by jaxlib 0.10.2 and libtpu 0.0.42.
GPU = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_pipelined_all_gather=true",
    "--xla_gpu_enable_pipelined_reduce_scatter=true",
    "--xla_gpu_enable_pipelined_all_reduce=true",
    "--xla_gpu_enable_while_loop_double_buffering=true",
    "--xla_gpu_all_gather_combine_threshold_bytes=134217728",
    "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728",
    "--xla_gpu_all_reduce_combine_threshold_bytes=134217728",
)
TPU = (
    "--xla_tpu_enable_latency_hiding_scheduler=true",
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_enable_async_all_gather=true",
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
)
PRESETS: Mapping[str, Mapping[str, str]] = {
    "cpu": {"JAX_PLATFORMS": "cpu"},
    "gpu": {"XLA_FLAGS": " ".join(GPU), "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"},
    "tpu": {"LIBTPU_INIT_ARGS": " ".join(TPU)},
}


def environment(platform: str, cache: str = "") -> str:
    """Lines of a shell that export the variables of a platform: "cpu", "gpu" or "tpu".

    cache: folder or address of compiled programs, which all hosts of a cluster can share.
    """
    variables = dict(PRESETS[platform])
    if cache:
        variables["JAX_COMPILATION_CACHE_DIR"] = cache
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
