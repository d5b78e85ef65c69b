"""Steps that turn a record into an example of numpy arrays.

views         first steps: one view or both eyes of a visit, with text and targets
visits        first step for a whole visit, with the texts of views, eyes and visit
steps         resizing, augmentation, flips with consistent sides, tokenization
field_of_view the crop to the field of view of a fundus photograph
photographs   random changes for a few hundred photographs
dense         images with masks or landmarks
flair         FLAIR's captions, padding and augmentation
multi_crop    iBOT's global and local crops with patch masks
word_masks    whole-word masking for masked-language pretraining
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from data_pipelines.transforms.dense import Prepared, RandomCrop, RandomMove, Ready, RightAngles
    from data_pipelines.transforms.field_of_view import FieldOfViewCrop
    from data_pipelines.transforms.flair import Canvas, CategoryCaption, Diagnosed, EliteReport, FlairAugment
    from data_pipelines.transforms.multi_crop import MultiCrop, published_colours
    from data_pipelines.transforms.photographs import RandomBlur, RandomJPEG, photograph_changes
    from data_pipelines.transforms.steps import (
        ColorJitter,
        Flip,
        IndependentFlip,
        RandomAffine,
        RandomErasing,
        RandomResizedCrop,
        Select,
        Squash,
        Tokenize,
        eval_step,
        extra_aug,
        ret_clip_aug,
    )
    from data_pipelines.transforms.views import Grouped, PairedEyes, SingleView
    from data_pipelines.transforms.visits import FlipVisit, PadVisit, TokenizeVisit, VisitViews
    from data_pipelines.transforms.word_masks import MaskWords
