"""Compare a training step over visits, of whose views 40 % are missing, with a step of plain CLIP over as many images.

    python benchmarks/visit_step.py                                      # the model of configs/visit.py, 24 visits
    python benchmarks/visit_step.py --size B/16 --visits 64 --rounds 20  # on an accelerator

Both steps are forward and backward, and alternate in one process. CLIP gets as many images and texts as the visits have slots,
all of them used; the visits use the slots as far as packing fills them. The target is a ratio of at most 1.1. The patterns of
missing views differ from step to step, and the number of compiled programs is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from record import Table, record

from data_pipelines.pipeline.packing import Pack, Plan, pack
from data_pipelines.transforms.visits import Size
from fundax.objectives.clip import clip
from fundax.objectives.visit import visit
from fundax.types import Batch

NAMES = ("CFP", "OCT", "FFA")
VIEWS = 6  # of a visit with nothing missing: both eyes in three modalities


def batches(visits: int, slots: int, side: int, context: int, missing: float) -> Iterator[Batch]:
    """Packed batches of random visits with a text of the visit and of each eye."""
    rng, room = np.random.default_rng(0), Pack(images=slots, texts=slots, parts=1)
    stream: list[list[int]] = []

    def size(position: int) -> Size:
        while len(stream) <= position:
            stream.append([v for v in range(VIEWS) if rng.random() >= missing] or [0])
        eyes = len({v % 2 for v in stream[position]})
        return Size(len(stream[position]), 1 + eyes, position)

    plan = Plan(size, visits, room, {"step": 0})
    step = 0
    while True:
        rows = plan.rows(step)
        yield pack([_example(stream[p], side, context, rng) if p >= 0 else None for p in rows], room, 1)
        step += 1


def _example(views: list[int], side: int, context: int, rng: np.random.Generator) -> dict[str, Any]:
    eyes = sorted({v % 2 for v in views})
    at = np.full(2, -1, np.int32)
    at[eyes] = 1 + np.arange(len(eyes))
    return {
        "views": rng.integers(0, 256, (len(views), side, side, 3), np.uint8),
        "view_modality": np.array(views, np.int32) // 2,
        "view_eye": np.array(views, np.int32) % 2,
        "texts": rng.integers(1, 400, (1 + len(eyes), context), np.int32),
        "text_at": np.int32(0),
        "eye_text_at": at,
        "view_text_at": np.full(len(views), -1, np.int32),
        "patient": np.int32(rng.integers(2**31 - 1)),
        "visit": np.int32(0),
        "valid": np.bool_(True),
    }


def step_of(objective: Any, batch: Batch) -> tuple[Callable[[Batch], None], Any]:
    """A function that runs forward and backward once, and the jitted program."""
    params, extra = jax.jit(objective.init)(jax.random.key(0), batch)
    program = jax.jit(
        lambda p, b: jax.grad(objective.loss, has_aux=True)(p, extra, b, jax.random.key(0), jnp.int32(0))[0]
    )
    return lambda b: jax.block_until_ready(program(params, b)), program


def main(
    size: str = "tiny", visits: int = 24, slots: int = 3, missing: float = 0.4, rounds: int = 15, keep: bool = True
) -> None:
    """Measure both steps, with `slots` images and texts for each visit of a batch."""
    context, vocab = 48, 512
    ours = visit(size, NAMES, vocab=vocab, context=context, images=slots, texts=slots)
    theirs = clip(size, vocab=vocab, context=context)
    side, count = ours.image.image_size, visits * slots
    stream = batches(visits, slots, side, context, missing)
    given = [
        {key: batch[key] for key in ours.batch_spec(visits)} for batch in (next(stream) for _ in range(rounds + 1))
    ]
    plain = {"image": given[0]["images"], "text": given[0]["texts"]}
    (run, program), (run_clip, _) = step_of(ours, given[0]), step_of(theirs, plain)
    seconds: list[tuple[float, float]] = []
    for batch in given:
        start = time.perf_counter()
        run(batch)
        middle = time.perf_counter()
        run_clip(plain)
        seconds.append((middle - start, time.perf_counter() - middle))
    times = np.median(np.array(seconds[1:]), axis=0)
    used = np.mean([(batch["row"] >= 0).mean() for batch in given])
    rows = [
        ["visits", f"{times[0]:.4f}", f"{count * used:.0f} of {count}", f"{times[0] / times[1]:.2f}",
         f"{times[0] / times[1] / used:.2f}", str(program._cache_size())],
        ["CLIP", f"{times[1]:.4f}", f"{count} of {count}", "1.00", "1.00", ""],
    ]  # fmt: skip
    columns = ("step", "median s", "images", "time / CLIP", "for each image", "programs compiled")
    title = f"{size}, {visits} visits, {missing:.0%} of the views missing, {rounds} steps of different patterns"
    record("visit_step", [Table(title, columns, rows)], keep=keep)


if __name__ == "__main__":
    tyro.cli(main)
