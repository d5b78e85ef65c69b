"""Former names, until the configs use `interop.backbone` (fundax/interop/backbones.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fundax.interop.backbones import ImageBackbone, backbone


class Start(ImageBackbone):
    """An ImageBackbone with the former names of its fields."""

    @property
    def tower(self) -> Any:
        """The former name of `backbone`."""
        return self.backbone

    @property
    def facts(self) -> dict[str, Any]:
        """The former name of `preprocessing`."""
        return self.preprocessing


def encoder(init: str = "", *, size: str = "tiny", **fields: Any) -> Start:
    """Former name of `backbone(init or size)`."""
    return Start(**vars(backbone(init or size, **fields)))


def convolutional(pixels: int = 96, width: int = 24, stages: tuple[int, ...] = (1, 1, 1, 1), **fields: Any) -> Start:
    """Former name of `backbone("resnet-tiny")`."""
    return Start(**vars(backbone("resnet-tiny" if width == 24 else "resnet-smoke", image_size=pixels, **fields)))


def several(inits: Mapping[int, str], *, size: str = "", **fields: Any) -> Start:
    """Former name of `backbone({number: path})`."""
    return Start(**vars(backbone(inits, **fields)))
