"""Shared types: arrays, batches, the protocols of an objective, an evaluation and a data iterator, and UserError.

Shapes are written with these letters:
    B batch     N tokens (patches and class token)   L text positions   D width      E embedding
    H heads     K classes    P prompts per class     p patch side       C channels   V vocabulary
    h w rows and columns of an image or a map        V is also visits; n is any other count

Batches are plain dicts of arrays. These are the keys; each objective lists the ones it uses in `batch_spec`.

Images (u8, normalised on the device; a floating-point image counts as already normalised):
    image                        u8 [B h w 3]      one image
    left, right                  u8 [B h w 3]      the two eyes of a patient
    left_present, right_present  bool [B]          False if the patient has no image of that eye
    global, local                u8 [B q h w 3]    crops for self-distillation
    masked                       bool [B q h/p w/p]  patches hidden from the student, per global crop
    low                          u8 [B l l 3]      low-resolution image that a super-resolution model enlarges
    feature                      f32 [B C]         features computed earlier, instead of `image`

Visits (data_pipelines/pipeline/packing.py; N image slots and T text slots are shared by the B visits of a batch):
    images                       u8 [N h w 3]      the views of all visits
    row, slot                    i32 [N]           the visit of each image, -1 for an empty slot, and its number in the visit
    view_modality, view_eye      i32 [N] or [B V]  index into the modalities of the run; 0 left, 1 right, 2 unknown
    texts                        i32 [T L]         the texts of all visits, their eyes and their views
    text_at, view_text_at        i32 [B], i32 [N]  row of `texts`, -1 for none
    eye_text_at                  i32 [B 2]         the same for the left and the right eye
    views, view_present          u8 [B V h w 3], bool [B V]  views in fixed places instead of slots
    view_raw                     f32 [N E]         features of `images` computed earlier
    patient, visit               i32 [B]           hashes of their names, -1 if unknown

Text:
    text                         i32 [B L]         token ids, padded with zeros
    original, hidden             i32, bool [B L]   ids before masking, and the positions to predict

Labels:
    label                        i32 [B]           class, negative if unknown; multi-label: f32 [B K], NaN if unknown
    category                     i32 [B]           equal numbers mean texts with the same meaning
    modality                     i32 [B]           index into data_pipelines.records.MODALITIES
    findings                     f32 [B F]         findings that a report names, 0 or 1
    status                       i32 [B]           0 normal, 1 abnormal, -1 unknown
    mask                         i32 [B h w]       segmentation classes; overlapping classes: 0 or 1, [B h w K]
    points                       f32 [B n 2]       landmarks, (x, y) in pixels of `image`
    value                        f32 [B K]         regression targets, NaN if unknown
    days                         f32 [B] or [B V]  days from each visit to the date predicted for
    present                      bool [B V]        visits that exist
    appearance                   f32 [B A]         unit vector of an image's appearance (objectives.VectorQuantize)
    seed                         i32 [B]           random seed of each image to generate

Bookkeeping:
    frame                        f32 [B 3 2]       original-image coordinates in `image` (evals/original_grid.py)
    truth, truth_fov             [B H W]           mask and field of view at the original resolution
    valid                        bool [B]          False for the padding rows of the last batch
    index                        i64 [B]           row of the source that the example came from
    elite/...                                      the expert half of a mixed batch (KeepFIT)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

Array = jax.Array | np.ndarray
Params = dict[str, Any]  # nested dict of arrays; the paths are public API (see docs)
Extra = dict[str, Any]  # arrays that are carried but not differentiated: EMA teacher, centers, batch statistics
Batch = Mapping[str, Any]  # the keys listed above
Metrics = dict[str, Any]  # names to scalars


class Objective(Protocol):
    """A training method: a frozen, hashable dataclass of Linen modules and hyperparameters."""

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a training batch. The loss sees these keys and no others."""
        ...

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial fp32 parameters and extra state."""
        ...

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """Deterministic outputs for the inputs that the batch contains."""
        ...

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Scalar fp32 loss over the global batch, the next extra state and the metrics to log."""
        ...


@runtime_checkable
class Contrastive(Protocol):
    """An objective whose loss is compare(encode(batch)), so that gradient accumulation can keep every negative."""

    def encode(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        """Features of each example of a batch or micro-batch; the first axis is B."""
        ...

    def compare(self, params: Params, features: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, Metrics]:
        """The loss of the features of a full batch, and its metrics."""
        ...


@runtime_checkable
class ContrastiveWithState(Contrastive, Protocol):
    """A contrastive objective with extra state, such as the running statistics of a ResNet, which training only writes."""

    def encode_next(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array
    ) -> tuple[dict[str, jax.Array], Extra]:
        """The result of `encode`, and the next extra state. The features must not depend on `extra`."""
        ...


class Forward(Protocol):
    """The forward pass passed to evaluations: NumPy batches in, NumPy outputs out; the trainer places the arrays."""

    def __call__(self, params: Params, extra: Extra, batch: Batch) -> dict[str, np.ndarray]: ...


class Eval(Protocol):
    """An evaluation. Scalars in the result are logged as `<eval name>/<key>`; the rest is written to `evals/<eval name>.npz`.

    The library's evals return one of the results of fundax/evals/kinds.py, which figures and reports understand.
    """

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> Mapping[str, Any]: ...


class DataIterator(Protocol):
    """Batches of one process. The position can be restored with any number of workers or processes."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


class Data(Protocol):
    """(shard, shards) -> the iterator of that process. Creating one opens no file."""

    def __call__(self, shard: int, shards: int) -> DataIterator: ...


class UserError(ValueError):
    """An error the user can fix; the message says how.

    The message names the file, field or value and what was expected. The command line prints it on one line, without
    a traceback, and exits with status 2.
    """
