"""Models in and out: open checkpoints of any program, start training from them, export runs to other programs."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.interop.backbones import Encoder, ImageBackbone, backbone
    from fundax.interop.checkpoint import Checkpoint, Format, preprocessing_of
    from fundax.interop.exchange import export, import_checkpoint, import_model
    from fundax.interop.folder import fresh_folder
    from fundax.interop.formats import all_formats, export_names
    from fundax.interop.hub import push
    from fundax.interop.initial import WarmStart, sized_like, warm_start
    from fundax.interop.read import is_run, load, read_objective, tokenizer
    from fundax.interop.weights import read_state, write_safetensors
