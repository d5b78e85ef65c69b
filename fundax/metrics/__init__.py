"""Metrics on numpy arrays: classification, calibration, segmentation, text, and their confidence intervals."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.metrics.calibration import brier, reliability, temperature
    from fundax.metrics.classification import (
        best_threshold,
        by_horizon,
        kappa_f1,
        multi_label,
        nanmean,
        quadratic_kappa,
    )
    from fundax.metrics.generative import Neighbours, draw_pairs, frechet, memorised, nearest
    from fundax.metrics.operating_points import (
        OperatingPoint,
        apply,
        at_kappa_f1,
        at_sensitivity,
        at_specificity,
        read,
        write,
    )
    from fundax.metrics.ranking import ranks, summary
    from fundax.metrics.segmentation import hausdorff_95, scores
    from fundax.metrics.statistics import (
        Comparison,
        Estimate,
        auc_interval,
        auc_test,
        blank,
        bootstrap,
        bootstrap_weighted,
        holm,
        mcnemar,
        weighted_difference,
    )
    from fundax.metrics.subgroups import Row, age_bands, gaps
    from fundax.metrics.text import all_scores, bleu, cider, meteor_like, rouge_l, words
    from fundax.metrics.weighted import average_precision, class_aucs, pearson, r2, recalls
