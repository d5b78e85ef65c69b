"""The words every file shares: arrays, batches, and what an objective and an eval are.

Shape letters trail a line as `# [B N D]`:
    B batch     N tokens (patches + class token)   L text positions   D width      E embedding
    H heads     K classes    P prompts per class   p patch side       C channels   V vocabulary

Keys of a batch (a plain dict of arrays; images are uint8, normalised on the device):
    image          u8  [B h w 3]   one view; float32 means "already normalised"
    left, right    u8  [B h w 3]   the two eyes of a patient
    left_present, right_present  bool [B]   False where the patient has no image of that eye
    text           i32 [B L]       token ids, zero padded
    label          i32 [B]         one class;  multi-label: f32 [B K]
    category       i32 [B]         identical values mean "the same text in meaning"
    modality       i32 [B]         index into data_pipelines.records.MODALITIES
    mask           i32 [B h w]     segmentation classes, or [B h w K] of 0 and 1 where they overlap
    points         f32 [B n 2]     landmarks as (x, y) in pixels of `image`
    frame          f32 [B 3 2]     where pixels of the original image are in `image` (fundax/evals/original_grid.py)
    truth, truth_fov  [B H W]      mask and field of view of the original image
    value          f32 [B K]       regression targets
    days           f32 [B]         days between visits
    valid          bool [B]        False for padding rows of the last batch of a pass
    index          i64 [B]         row of the source the example came from
    elite/image, elite/text        the expert half of a mixed batch

The one error that means: the user's input or configuration is at fault, not the program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np

Array = jax.Array | np.ndarray


Params = dict[str, Any]  # nested dict of arrays; the path is public API (see docs)


Extra = dict[str, Any]  # arrays carried but not differentiated: EMA teacher, centers, batch statistics


Batch = Mapping[str, Any]  # the keys above


Metrics = dict[str, Any]  # flat names to scalars


class Objective(Protocol):
    """A frozen, hashable dataclass of Linen modules and numbers: all that makes one method that method."""

    needs: ClassVar[tuple[str, ...]]  # the batch keys loss() reads

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the batch that loss() takes."""
        ...

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh fp32 parameters and extra state."""
        ...

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """Deterministic outputs for whichever keys the batch has."""
        ...

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Scalar fp32 loss over the global batch, the next extra state, and scalars to log."""
        ...


@runtime_checkable
class Contrastive(Protocol):
    """An objective whose loss is compare(encode(batch)): gradient accumulation then keeps every negative."""

    def encode(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        """Per-example features of a (micro) batch, first axis B."""
        ...

    def compare(self, params: Params, features: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, Metrics]:
        """The loss of a full batch of features."""
        ...


class Forward(Protocol):
    """The forward pass evals get: numpy batches in, numpy outputs out; placement is the trainer's concern."""

    def __call__(self, params: Params, extra: Extra, batch: Batch) -> dict[str, np.ndarray]: ...


class Eval(Protocol):
    """Numbers in the result are logged as `<eval name>/<key>`; the rest is written to `evals/<eval name>.npz`.

    The library's evals return one of the results of fundax/evals/kinds.py, which figures and reports understand.
    """

    def __call__(self, forward: Forward, params: Params, extra: Extra) -> Mapping[str, Any]: ...


class DataIterator(Protocol):
    """Batches of one process, with a position that survives a restart on any number of workers or processes."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


class Data(Protocol):
    """(shard, shards) -> the iterator of that process. Building one opens no file."""

    def __call__(self, shard: int, shards: int) -> DataIterator: ...


class UserError(ValueError):
    """A mistake of the caller's that a message can mend.

    The message names the file, field or value at fault and what was expected. The command line prints it on one
    line, without a traceback, and exits with status 2.
    """
