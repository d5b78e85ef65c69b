"""Compare one contrastive training step of fundax with transformers.CLIPModel in PyTorch, eager and compiled.

    python benchmarks/train_step.py                                          # ViT-S/16, 6 text layers, batch 8, fp32
    python benchmarks/train_step.py --size B/16 --batch 8 --text-depth 12    # or L/14, H/14-378; all text layers: 0
    python benchmarks/train_step.py --size B/16 --text-depth 0 --batch 0 --dtype bfloat16 --attention cudnn   # a GPU

A step is forward, backward and AdamW. The programs, each in a process of its own, take steps by turns, so that the load of the
machine affects all of them equally, and medians are compared. The last column is the median of fundax divided by the median of
the program: below 1, fundax is faster. `cpu` is the processor time of a step over all threads. MFU is printed for chips in
fundax/runtime/chips.py. --batch 0 takes the largest power of two whose temporaries, as XLA counts them, fill at most 40 % of
the device's memory, so that torch fits as well. On an accelerator, torch uses it too, with autocast to the same dtype; this
has not been tested.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from beside import Start, Step, alternate
from record import Table, record

from fundax.objectives.clip import CLIP, clip
from fundax.runtime.chips import chip_of
from fundax.runtime.flops import training_flops
from fundax.types import Batch

ADAMW: dict[str, Any] = {"learning_rate": 1e-5, "b1": 0.9, "b2": 0.98, "eps": 1e-6, "weight_decay": 0.2}


def batch_of(objective: CLIP, count: int) -> Batch:
    """Random images and token ids; the last id of each text is the largest (CLIP's end-of-text)."""
    rng = np.random.default_rng(0)
    size, text = objective.image.image_size, objective.text
    ids = rng.integers(1, text.vocab - 2, (count, text.context)).astype(np.int32)
    ids[:, -1] = text.vocab - 1
    return {"image": rng.integers(0, 256, (count, size, size, 3), np.uint8), "text": ids}


def program(objective: CLIP) -> Any:
    """The jitted step (parameters, moments, batch) -> (parameters, moments); the first two are donated."""
    optimizer = optax.adamw(**ADAMW)

    def step(params: Any, moments: Any, batch: Batch) -> tuple[Any, Any]:
        gradients, _ = jax.grad(objective.loss, has_aux=True)(params, {}, batch, jax.random.key(0), jnp.int32(0))
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments

    return jax.jit(step, donate_argnums=(0, 1))


def state_of(objective: CLIP, batch: Batch) -> tuple[Any, Any]:
    """Initial parameters and moments."""
    params = objective.init(jax.random.key(0), batch)[0]
    return params, optax.adamw(**ADAMW).init(params)


def largest_batch(objective: CLIP, memory: float, probe: int = 16) -> int:
    """The largest power of two of which the temporaries fill 40 % of `memory`, in proportion to those of `probe`."""
    batch = batch_of(objective, probe)
    compiled = program(objective).lower(*jax.eval_shape(lambda: state_of(objective, batch)), batch).compile()
    one = compiled.memory_analysis().temp_size_in_bytes / probe
    return max(probe, 2 ** int(np.log2(0.4 * memory / one)))


def device_memory() -> float:
    """Bytes of memory of the first device; of a CPU, the memory of the machine."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def fundax_step(objective: CLIP, batch: Batch) -> Step:
    """Compile a step."""
    state = list(jax.jit(lambda: state_of(objective, batch))())
    compiled = program(objective).lower(*state, batch).compile()

    def run() -> None:
        state[:] = compiled(*state, batch)
        jax.block_until_ready(state)

    return run


def torch_step(objective: CLIP, batch: Batch, compiled: bool) -> Step:
    """A step of the same model as transformers.CLIPModel with torch.optim.AdamW, optionally with torch.compile."""
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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = CLIPModel(config)
    model = model.train().to(device)
    lr, betas = ADAMW["learning_rate"], (ADAMW["b1"], ADAMW["b2"])
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas, ADAMW["eps"], ADAMW["weight_decay"])
    mean, std = (torch.tensor(x, device=device).reshape(1, 3, 1, 1) for x in (objective.mean, objective.std))
    pixels = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).to(device)
    ids = torch.from_numpy(batch["text"]).long().to(device)
    low = objective.image.dtype == "bfloat16"
    dtype = torch.autocast(device, torch.bfloat16) if low else contextlib.nullcontext()
    forward = torch.compile(model) if compiled else model

    def run() -> None:
        with dtype:
            out = forward(pixel_values=(pixels / 255 - mean) / std, input_ids=ids, return_loss=True)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def model_flops(objective: CLIP, batch: Batch) -> int:
    """FLOPs of a step, counted from the program (fundax/runtime/flops.py)."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(batch))
    params, extra = jax.eval_shape(objective.init, jax.random.key(0), shapes)
    rng, step = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
    return training_flops(objective.loss, params, extra, shapes, rng, step)


def table(times: dict[str, np.ndarray], done: int, title: str, peak: float | None) -> Table:
    """One row per program. `peak` is the peak of the chip in FLOP/s, for the MFU."""
    ours, rows = np.median(times["fundax"][:, 0]), []
    for name, its in times.items():
        median, least, cpu = np.median(its[:, 0]), its[:, 0].min(), np.median(its[:, 1])
        mfu = f"{done / median / peak:.1%}" if peak else "unknown"
        numbers = [f"{x:.3f}" for x in (median, least, cpu)]
        rows.append([name, *numbers, f"{done / median / 1e9:,.0f}", mfu, f"{ours / median:.2f}"])
    return Table(title, ("program", "median s", "least s", "cpu s", "GFLOP/s", "MFU", "fundax / program"), rows)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="S/16", help="model size, a key of fundax.encoders.vit.SIZES")
    parser.add_argument(
        "--text-depth", type=int, default=6, help="layers of the text encoder; 0 uses the depth of the size"
    )
    parser.add_argument("--batch", type=int, default=8, help="image-text pairs per step; 0 fills the memory")
    parser.add_argument("--rounds", type=int, default=9, help="steps per program")
    parser.add_argument("--dtype", default="float32", help="compute dtype of fundax and of torch's autocast")
    parser.add_argument("--attention", default="plain", help="attention of fundax: plain, xla or cudnn")
    parser.add_argument("--scan", action="store_true", help="scan over layers instead of unrolling them")
    parser.add_argument("--remat", default="none", help="rematerialisation policy")
    parser.add_argument("--no-torch", action="store_true", help="measure fundax only")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile")
    parser.add_argument("--name", default="train_step", help="name of the results")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    parser.add_argument(
        "--peak-tflops", type=float, help="peak TFLOP/s of a device that is not in fundax/runtime/chips.py"
    )
    return parser.parse_args()


def main() -> None:
    """Measure all programs."""
    options = arguments()
    fields = {"dtype": options.dtype, "scan": options.scan, "remat": options.remat, "attention": options.attention}
    objective = clip(options.size, **fields)
    if options.text_depth:
        objective = replace(objective, text=objective.text.clone(depth=options.text_depth))
    batch = batch_of(objective, options.batch or largest_batch(objective, device_memory()))
    programs: dict[str, Start] = {"fundax": partial(fundax_step, objective, batch)}
    versions = ""
    if not options.no_torch:
        programs["torch eager"] = partial(torch_step, objective, batch, compiled=False)
        versions = "; " + ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
        if not options.no_compile:
            programs["torch.compile"] = partial(torch_step, objective, batch, compiled=True)
    words = ", ".join(f"{name} {value}" for name, value in fields.items())
    title = f"{options.size}, {objective.text.depth} text layers, batch {len(batch['text'])}, {words}"
    title += versions
    chip = chip_of(jax.devices()[0].device_kind)
    peak = 1e12 * options.peak_tflops if options.peak_tflops else (chip.flops if chip else None)
    times = alternate(programs, options.rounds)
    record(options.name, [table(times, model_flops(objective, batch), title, peak)], keep=not options.no_keep)


if __name__ == "__main__":
    main()
