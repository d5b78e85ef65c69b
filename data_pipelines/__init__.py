"""Data sets of ophthalmic images and reports as batches of numpy arrays. Never imports JAX or fundax.

records          Record, View and Source: what a data set is made of
sources          CSV files, class folders, shards, FLAIR, RET-CLIP, VisionFM, and patient-wise splits
datasets         public data sets by name
synthetic        synthetic patients: fundus photographs, angiograms and OCT scans with reports
open             one function that opens any of these from a string
transforms       steps from a record to an example: resize, augmentation, crops, captions
language         tokenizers, prompts, expert knowledge, findings in reports
pipeline         train, mix and one_epoch: sources and steps to batches, with worker processes
files            read files safely: addresses, JSON and pickles
tasks            data of whole tasks: labelled sets, follow-up visits, modality mixes
convert          any source to ArrayRecord shards of small images
contact_sheet    the images of a source in one PNG
images           decode files to RGB, and masks to class numbers; damage, bit depths, orientation
geometry, notices    affine transforms of images, and warnings that are logged once

The names most programs need, each imported at its first use:

    Sources, Data          the images to train and evaluate on, as arguments of a config
    joined                 several sources as one
    synthetic_parts        synthetic patients to train and to evaluate on
    train, mix, one_epoch  batches to train on, and one pass for an evaluation
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from data_pipelines import datasets, files, images, language, pipeline, sources, synthetic, tasks, transforms
    from data_pipelines.open import Data, Sources, joined, synthetic_parts
    from data_pipelines.pipeline import mix, one_epoch, train
    from data_pipelines.records import MODALITIES, DataError, Record, View, modality_name
