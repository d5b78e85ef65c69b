"""One contrastive training step of fundax beside transformers.CLIPModel in PyTorch eager, on the same machine.

    python benchmarks/train_step.py                       # ViT-S/16, a 6-layer text tower, batch 8, fp32, all cores
    python benchmarks/train_step.py --size B/16 --batch 64 --dtype bfloat16 --no-torch --peak-tflops 989   # one GPU

Forward, backward and AdamW in both; steps of the two alternate in one process, so that a busy machine slows both, and
medians are compared. The last column is torch's median over fundax's: above 1, fundax is faster. `cpu` is the processor
time of a step over all threads, which a busy machine disturbs less.

What was tried on two CPU cores of a machine busy with other work (jax 0.10.2): processor seconds per step of the default
setting, least of 9 in one process each, one process per row, load changing between them; to be repeated on a quiet one.
    5.8  JAX's own gradient of x @ W
    4.3  layers.product, whose gradient is written x^T g (kept)
    4.7  the same, with g^T x transposed behind an optimization barrier where D_in > D_out; not told apart from 4.3
Why it helps is not settled. In a trace of the first, 130 fused transposing copies took 1.8 of 6.4 s; alone, a stack of MLPs
loses them with layers.product, but in a trace of the whole step 130 remain, the largest a recomputed QuickGELU read by
columns for the gradient of fc2: still to be gained.
Kept without a measurement of its own: the last block computes one row where only the pooled token is used (its other rows
are dead code under jit), one packed product for q, k and v, donated state, unrolled layers (scan was 1.25 times slower in an
earlier study; fast math, oneDNN, 512-bit vectors and the concurrency-optimised scheduler gained nothing there).
Not tried yet: jax.nn.dot_product_attention, other layouts of the heads, gradients of the embedding other than scatter-add.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fundax.objectives.clip import CLIP, clip
from fundax.types import Batch

Step = Callable[[], None]
ADAMW: dict[str, Any] = {"learning_rate": 1e-5, "b1": 0.9, "b2": 0.98, "eps": 1e-6, "weight_decay": 0.2}


def batch_of(objective: CLIP, count: int) -> Batch:
    """Noise and random ids, the last of each text the largest (CLIP's end-of-text)."""
    rng = np.random.default_rng(0)
    size, text = objective.image.image_size, objective.text
    ids = rng.integers(1, text.vocab - 2, (count, text.context)).astype(np.int32)
    ids[:, -1] = text.vocab - 1
    return {"image": rng.integers(0, 256, (count, size, size, 3), np.uint8), "text": ids}


def fundax_step(objective: CLIP, batch: Batch) -> tuple[Step, float]:
    """A compiled step on donated parameters and moments, and the seconds it took to compile."""
    params, extra = jax.jit(objective.init)(jax.random.key(0), batch)
    optimizer = optax.adamw(**ADAMW)
    moments = jax.jit(optimizer.init)(params)

    def step(params: Any, moments: Any, batch: Batch) -> tuple[Any, Any]:
        gradients, _ = jax.grad(objective.loss, has_aux=True)(params, extra, batch, jax.random.key(0), jnp.int32(0))
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments

    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, moments, batch).compile()
    seconds = time.perf_counter() - start
    state = [params, moments]

    def run() -> None:
        state[:] = compiled(*state, batch)
        jax.block_until_ready(state)

    return run, seconds


def torch_step(objective: CLIP, batch: Batch) -> Step:
    """The same model as transformers.CLIPModel with its default attention, and torch.optim.AdamW."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    image, text = objective.image, objective.text
    config = CLIPConfig(
        projection_dim=objective.embed,
        vision_config={
            "image_size": image.image_size, "patch_size": image.patch, "hidden_size": image.width,
            "intermediate_size": 4 * image.width, "num_hidden_layers": image.depth, "num_attention_heads": image.heads,
        },
        text_config={
            "vocab_size": text.vocab, "max_position_embeddings": text.context, "hidden_size": text.width,
            "intermediate_size": 4 * text.width, "num_hidden_layers": text.depth, "num_attention_heads": text.heads,
            "eos_token_id": text.vocab - 1,
        },
    )  # fmt: skip
    model = CLIPModel(config).train()
    lr, betas = ADAMW["learning_rate"], (ADAMW["b1"], ADAMW["b2"])
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas, ADAMW["eps"], ADAMW["weight_decay"])
    mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (objective.mean, objective.std))
    pixels = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
    ids = torch.from_numpy(batch["text"]).long()

    def run() -> None:
        out = model(pixel_values=(pixels / 255 - mean) / std, input_ids=ids, return_loss=True)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()

    return run


def alternate(steps: dict[str, Step], rounds: int) -> dict[str, np.ndarray]:
    """(wall, processor) seconds of each step, [rounds 2], after one uncounted step of each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if i:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: np.array(rows) for name, rows in times.items()}


def flops(objective: CLIP, batch: int) -> float:
    """Products of one training step: 6 per weight and token, 12 per pair of tokens and channel (arXiv:2204.02311, B)."""
    total = 0.0
    for tower, tokens in ((objective.image, objective.image.patches + 1), (objective.text, objective.text.context)):
        weights = 12 * tower.width**2 * tower.depth
        total += 6 * weights * tokens + 12 * tower.depth * tower.width * tokens**2
    patch = 3 * objective.image.patch**2 * objective.image.width * objective.image.patches
    return batch * (total + 4 * patch)  # pixels need no gradient


def report(times: dict[str, np.ndarray], objective: CLIP, options: argparse.Namespace, compiled: float) -> None:
    """Machine, date, versions; then one row per program."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy") + (() if options.no_torch else ("torch", "transformers"))
    print(f"{platform.processor() or platform.machine()}, {jax.devices()[0].device_kind}, {datetime.date.today()}")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print(f"{options.size}, text {objective.text.depth} layers, batch {options.batch}, {options.dtype},", end=" ")
    print(f"scan {options.scan}, remat {options.remat}; compiled in {compiled:.1f} s")
    print(f"{'':24}{'median s':>10}{'least s':>10}{'cpu s':>10}{'GFLOP/s':>10}{'ratio':>8}")
    ours = np.median(times["fundax"][:, 0])
    for name, rows in times.items():
        median, least, cpu = np.median(rows[:, 0]), rows[:, 0].min(), np.median(rows[:, 1])
        rate = flops(objective, options.batch) / median
        print(f"{name:24}{median:10.3f}{least:10.3f}{cpu:10.3f}{rate / 1e9:10.0f}{median / ours:8.2f}")
    if options.peak_tflops:
        print(f"model FLOP utilisation {flops(objective, options.batch) / ours / options.peak_tflops / 1e12:.1%}")


def main() -> None:
    """Parses, runs both, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="S/16", help="row of fundax.encoders.vit.SIZES")
    parser.add_argument("--text-depth", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32", help="of fundax; torch stays in float32")
    parser.add_argument("--scan", action="store_true")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument(
        "--peak-tflops", type=float, help="of the device at that dtype: prints the model FLOP utilisation"
    )
    options = parser.parse_args()
    objective = clip(options.size, dtype=options.dtype, scan=options.scan, remat=options.remat)
    objective = replace(objective, text=objective.text.clone(depth=options.text_depth))
    batch = batch_of(objective, options.batch)
    run, compiled = fundax_step(objective, batch)
    steps = {"fundax": run}
    if not options.no_torch:
        steps["transformers (torch)"] = torch_step(objective, batch)
    report(alternate(steps, options.rounds), objective, options, compiled)


if __name__ == "__main__":
    main()
