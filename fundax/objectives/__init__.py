"""One objective per method: `init`, `forward` and `loss` as pure functions of a frozen dataclass."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.objectives.adapter import Adapted, ClipAdapter, TipAdapter, fit, heads, remember
    from fundax.objectives.classify import Classify, MultiModality, Supervision
    from fundax.objectives.clip import CLIP
    from fundax.objectives.dense import Decoder, Landmark, Segment, outputs
    from fundax.objectives.diffusion import Diffusion, pixels
    from fundax.objectives.ensemble import Ensemble, LandmarkEnsemble, SegmentEnsemble
    from fundax.objectives.flair import FLAIR, project
    from fundax.objectives.forecast import Forecast
    from fundax.objectives.ibot import IBOT, Temperature, teacher_part
    from fundax.objectives.keepfit import KeepFIT, TwoTowers, halves
    from fundax.objectives.keepfit_reference import Attention, Reference, agreeing, hide, matmul
    from fundax.objectives.masked_text import MaskedText
    from fundax.objectives.regress import Regress, standardize
    from fundax.objectives.report import Report
    from fundax.objectives.ret_clip import Reconstruction, RetCLIP
    from fundax.objectives.vector_quantize import VectorQuantize, grid_means
    from fundax.objectives.visit import CrossReconstruction, Visit, visit
    from fundax.objectives.visit_levels import BothEyes, WeightedViews
