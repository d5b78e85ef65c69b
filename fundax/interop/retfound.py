"""RETFound's checkpoints, both ways: its encoder under timm's names within {"model": ...}, or the teacher of its DINOv2.

Layout: github.com/rmaphoh/RETFound_MAE. The decoder of the masked autoencoder, mask tokens and classification heads are
left out (encoder_layout.DROPPED); everything else must fit."""

from __future__ import annotations

from pathlib import Path

from fundax.interop import bundle as folder
from fundax.interop import encoder
from fundax.interop.bundle import Bundle
from fundax.interop.weights import write_torch
from fundax.types import UserError

NAME = "RETFound"


WEIGHTS = "retfound.pth"


USAGE = """
import torch

state = torch.load("FOLDER/retfound.pth", weights_only=True)["model"]
"""


def write_folder(bundle: Bundle, out: str | Path, overwrite: bool = False) -> None:
    """A folder with retfound.pth, {"model": encoder}; needs torch.

    Raises UserError for a tower the layout cannot hold, and for a folder that is there and not empty.
    """
    state = encoder.from_fundax(bundle.objective, bundle.params)
    with folder.fresh_folder(out, overwrite) as temporary:
        write_torch({"model": state}, temporary / WEIGHTS)
        folder.write_card(temporary, bundle, "fundax", USAGE, "image-feature-extraction")


def read_folder(path: str | Path) -> Bundle:
    """The encoder of a folder that write_folder wrote. Raises UserError for anything missing, damaged or unknown."""
    file = Path(path) / WEIGHTS
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    objective, params = encoder.to_fundax(encoder.load_encoder(file), str(file))
    return Bundle(objective, params, {"image_size": objective.image.image_size})


def difference(path: str | Path, bundle: Bundle) -> float | None:
    """None: RETFound's code is no package; its encoder is timm's, which export --to timm compares."""
    del path, bundle
    return None
