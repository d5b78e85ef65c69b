"""Running a program: mesh, processes, accumulation, prefetching, checkpoints, run directories, logging and JSON."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.runtime.checkpoint import Checkpoints, load_params, partial, resolve, saved_steps
    from fundax.runtime.distributed import Flags, has_tpu, initialize, resolve_distributed
    from fundax.runtime.log import Log, to_console
    from fundax.runtime.mesh import batch_axes, batch_parts, batch_sharding, make_mesh
    from fundax.runtime.preemption import Preemption
    from fundax.runtime.prefetch import Prefetcher
    from fundax.runtime.process import configure_orbax, exit_at_once, ignore_abandoned_reads
    from fundax.runtime.workdir import read_config, write_json
