"""The table of all file formats of other programs; `launch.py export --to`, help texts and docs are made from it."""

from __future__ import annotations

from fundax.interop import bert, captioner, dinov2, flair, huggingface, open_clip, ret_clip, timm, unetr, visionfm
from fundax.interop.checkpoint import Checkpoint, Format
from fundax.interop.weights import State
from fundax.types import UserError

# In the order in which they are tried: a format whose keys include another's comes first.
FORMATS: tuple[Format, ...] = (
    ret_clip.FORMAT,
    ret_clip.CHINESE_CLIP,
    open_clip.FORMAT,
    huggingface.FORMAT,
    flair.FORMAT,
    captioner.FORMAT,
    unetr.FORMAT,
    visionfm.FORMAT,
    dinov2.FORMAT,
    timm.FORMAT,
    timm.RETFOUND,
    bert.FORMAT,
)


def format_of(state: State, source: str) -> Format:
    """The format with these keys. Raises UserError naming a few of the keys if there is none."""
    for found in FORMATS:
        if found.detect(state):
            return found
    titles = " or ".join(dict.fromkeys(found.title for found in FORMATS))
    raise UserError(f"{source}: the keys are not those of {titles}; it has {', '.join(sorted(state)[:5])}, ...")


def export_names() -> tuple[str, ...]:
    """The choices of `export --to`."""
    return tuple(dict.fromkeys(found.name for found in FORMATS if found.write is not None))


def check_name(name: str) -> None:
    """Raise UserError unless `name` is one of `export_names()`."""
    if name not in export_names():
        raise UserError(f"cannot export to '{name}'; expected {', '.join(export_names())}")


def writer(name: str, checkpoint: Checkpoint) -> Format:
    """The format of that name which holds a model. Raises UserError listing the names that would do."""
    fitting = [found for found in FORMATS if found.write and isinstance(checkpoint.objective, found.holds)]
    for found in fitting:
        if found.name == name:
            return found
    kind = type(checkpoint.objective).__name__
    names = ", ".join(dict.fromkeys(found.name for found in fitting)) or "none of the formats"
    title = next(found.title for found in FORMATS if found.name == name)
    raise UserError(f"{title} cannot hold a {kind}: cannot export to '{name}'; expected {names}")
