"""Data of whole tasks: labelled splits, follow-up visits, modality mixes, KeepFIT's expert set."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from data_pipelines.tasks import (
        dense,
        eye_pairs,
        forecasting,
        image_text,
        keepfit,
        labelled,
        modality_mix,
        visionfm_labels,
    )
