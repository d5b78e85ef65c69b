"""Ahead-of-time compilation: memory, FLOPs, communication and the roofline time of a training step."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.roofline.collectives import Collective
    from fundax.roofline.compile import CompiledStep
    from fundax.runtime.chips import Chip, chip_named, chip_of
    from fundax.runtime.flops import training_flops
