"""The data of each task: sources, splits and evaluation passes.

labelled           labelled images for fine-tuning and probes
image_text         image-text pairs and class prompts
eye_pairs          both eyes of a patient (RET-CLIP)
keepfit            public images paired with expert reports (KeepFIT)
modality_mix       images of several modalities (VisionFM pretraining)
visionfm_labels    the thirteen labels of VisionFM's decoder
dense              masks and landmarks
forecasting        follow-up visits
"""

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
