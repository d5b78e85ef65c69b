"""Upload an exported folder to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from fundax.interop.folder import RECORD, read_record
from fundax.types import UserError

CARD = "README.md"


def push(folder: str | Path, name: str, *, private: bool = True) -> str:
    """Upload an exported folder as a repository of the Hugging Face hub; returns a line with its address.

    Args:
        folder: the folder that an export wrote, with its model card.
        name: OWNER/NAME of the repository, which is made if there is none.
        private: whether a new repository is private.
    Raises:
        UserError: no exported folder, a card without license, a name of another form, no network or no login.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    _check(Path(folder), name)
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=name, commit_message="Export of fundax")
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise UserError(f"{name}: the hub refused the upload ({_line(error)}); log in by: hf auth login") from error
    except (OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{name}: the Hugging Face hub cannot be reached ({_line(error)}); where there is a network, run this again or: "
            f"hf upload {name} {folder}"
        ) from error
    return f"{folder}: uploaded to https://huggingface.co/{name}"


def _check(folder: Path, name: str) -> None:
    if not read_record(folder) or not (folder / CARD).is_file():
        raise UserError(f"{folder} is not an exported folder: it has no {RECORD} or no {CARD}; see launch.py export")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"the repository is {name!r}; expected OWNER/NAME")
    if re.search(r"^license: other$", (folder / CARD).read_text(encoding="utf-8"), re.MULTILINE):
        raise UserError(
            f"{folder / CARD} says no license; export again with --license, such as apache-2.0, which must agree with that of "
            "the weights the model started from"
        )


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
