"""Evaluations of a model on a data set: zero-shot, retrieval, few-shot, probes, segmentation, landmarks, reports."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.evals.denoising import Denoising
    from fundax.evals.features import Epochs, Frozen, Whole, class_features, encoded, extract, once, passes
    from fundax.evals.few_shot import FewShot, draw
    from fundax.evals.held_out import HeldOutLoss
    from fundax.evals.kinds import (
        KINDS,
        Cases,
        ClassificationResult,
        FewShotResult,
        LandmarkResult,
        MultiLabelResult,
        ReconstructionResult,
        RegressionResult,
        ReportResult,
        Result,
        RetrievalResult,
        Rows,
        Scores,
        SegmentationResult,
    )
    from fundax.evals.landmarks import Landmarks
    from fundax.evals.laterality import Laterality
    from fundax.evals.masked_text import masked_words
    from fundax.evals.original_grid import original_map, original_points, slide
    from fundax.evals.pictures import Thumbnails, extremes, masks_over, points_over
    from fundax.evals.probe import FrozenProbe, Probe, difference, summary
    from fundax.evals.reconstruction import rebuilt
    from fundax.evals.reports import WrittenReports
    from fundax.evals.segmentation import Segmentation, decided
    from fundax.evals.supervised import Classified, Valued
    from fundax.evals.visits import VisitScores
    from fundax.evals.zero_shot import class_rows
