"""Use a trained model: predict, embed, explain, write reports and synthesize images."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.inference.appearance import appearance_width, looking
    from fundax.inference.dispatch import predictor_of
    from fundax.inference.explain import Looker, inside, over_photograph, overlay, read_looker
    from fundax.inference.model import Model, load
    from fundax.inference.saliency import points_at, saliency_maps
    from fundax.inference.synthesize import How, summary
