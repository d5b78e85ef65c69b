"""Recipes of fine-tuning: what the encoder gives, the layers of the classifier, the optimizer, and the values of arguments.

Sources: github.com/rmaphoh/RETFound_MAE, github.com/ABILab-CUHK/VisionFM and the fine-tuning of RET-CLIP."""

from __future__ import annotations

from typing import Any

import optax

from fundax.encoders.backbone import Feature
from fundax.optim import adamw, constant, cosine_schedule, decay_all, decay_matrices, grouped, layer_decay

# Fine-tuning recipes: the encoder's feature, blocks that are read, layers of the classifier, whether it is normalised, and
# epochs of warm-up. visionfm, retfound and ret_clip are published; laptop is ours, for two CPU cores, and photographs, for
# a convolutional encoder and 100 to 300 images.
RECIPES: dict[str, tuple[Feature, int, int, bool, int]] = {
    "laptop": ("token", 4, 1, True, 2),
    "visionfm": ("token", 4, 3, True, 0),
    "retfound": ("mean", 1, 1, False, 10),
    "ret_clip": ("pooled", 1, 1, False, 0),
    "photographs": ("pooled", 1, 1, False, 1),
}

# The arguments of configs/finetune.py that each row sets; learning rates are for a batch of 256.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {"batch": 32, "epochs": 30, "lr": 8e-3, "encoder_lr": 4e-3, "drop_path": 0.1, "smoothing": 0.1, "depth_decay": 0.75},
    "visionfm": {"batch": 128, "epochs": 100, "lr": 1e-3, "encoder_lr": 1e-4},
    "retfound": {"batch": 16, "epochs": 50, "lr": 5e-3, "encoder_lr": 5e-3, "drop_path": 0.2, "smoothing": 0.1,
                 "depth_decay": 0.65},
    "ret_clip": {"batch": 16, "epochs": 50, "lr": 1.6e-2, "encoder_lr": 3.2e-5, "weight_decay": 0.01, "smoothing": 0.1},
    "photographs": {"batch": 16, "epochs": 20, "lr": 1.6e-2, "encoder_lr": 4.8e-3, "drop_path": 0.1, "smoothing": 0.1,
                    "ema": 0.98, "statistics": "frozen", "image_size": 448, "init": "imagenet", "test_flips": True},
    "smoke": {"steps": 3},
}  # fmt: skip


def fine_tuning(
    recipe: str,
    lr: float,
    encoder_lr: float,
    steps: int,
    epoch: int,
    weight_decay: float = 0.05,
    depth_decay: float = 1.0,
    depth: int = 1,
) -> optax.GradientTransformation:
    """AdamW of a row of RECIPES, with a learning rate for the encoder and one for the rest.

    RET-CLIP's are constant, the others fall to 0. epoch: steps of a pass. depth_decay: factor of the learning rate from
    each of the `depth` blocks of the encoder to the one below.
    """
    level, warmup = recipe == "ret_clip", RECIPES[recipe][4]
    rule = decay_all if recipe in ("visionfm", "ret_clip") else decay_matrices
    chains = {}
    for pattern, rate in (("^image/", encoder_lr), ("", lr)):
        schedule = constant(rate) if level else cosine_schedule(rate, 0, steps, min(warmup * epoch, steps // 2))
        betas, eps = (0.9, 0.98 if level else 0.999), 1e-8
        if level and not pattern:
            betas, eps = (0.9, 0.99), 1e-6
        chains[pattern] = adamw(schedule, betas, eps, weight_decay, rule)
    return optax.chain(grouped(chains), layer_decay(depth_decay, depth))
