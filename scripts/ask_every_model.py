"""Ask the smoke run of every config from the shell: predict (or embed), explain, and export to all of its formats.

    python scripts/ask_every_model.py PHOTOGRAPH --runs /tmp/runs

Prints a table: ok, or the error line of the command. Missing runs are trained with --smoke first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).parents[1]
CLASSES = ("--classes", "normal, glaucoma, diabetic retinopathy")
# Further arguments that `predict` needs, and the original program's format.
ASKED: dict[str, tuple[tuple[str, ...], str]] = {
    "quickstart": (CLASSES, "open_clip"),
    "mm_fundus_clip": (CLASSES, "open_clip"),
    "ret_clip": (CLASSES, "ret_clip"),
    "flair": (CLASSES, "flair"),
    "keepfit": (CLASSES, "keepfit"),
    "keepfit_report": ((), "ffa_captioner"),
    "visionfm": ((), "visionfm"),
    "finetune": ((), "retfound"),
    "linear_probe": ((), "timm"),
    "multi_modality": ((), ""),
    "regression": ((), ""),
    "segmentation": (("--out", "{out}"), "visionfm"),
    "landmark": ((), "visionfm"),
}


def launch(*words: str) -> str:
    """Run launch.py; "ok", or the last line that it printed."""
    command = [sys.executable, str(REPO / "launch.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
    return "ok" if done.returncode == 0 else lines[-1]


def ask(name: str, run: str, photograph: str, out: Path) -> dict[str, str]:
    """The answers of one run by verb."""
    more, original = ASKED[name]
    predict = ["predict", run, "--image", photograph, *(word.format(out=out / "masks") for word in more)]
    if name == "visionfm":
        predict = ["embed", run, photograph, "--out", str(out / "features.npz")]
    answers = {
        "predict": launch(*predict),
        "explain": launch("explain", run, photograph, "--out", str(out / "maps")),
        "huggingface": launch("export", run, str(out / "huggingface"), "--to", "huggingface"),
    }
    if original:
        answers["original"] = launch("export", run, str(out / "original"), "--to", original)
    return answers


def main() -> None:
    """Print the answers of every run and how many of them are ok."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph")
    parser.add_argument(
        "--runs", required=True, help="folder of the smoke runs, which are trained where they are missing"
    )
    parser.add_argument("--only", nargs="+", choices=tuple(ASKED), default=tuple(ASKED))
    own = parser.parse_args()
    counts = {"asked": 0, "original": 0}
    for name in own.only:
        run = Path(own.runs) / name
        if not (run / "checkpoints").is_dir():
            launch("train", f"configs/{name}.py", "--smoke", "--workdir", str(run))
        with tempfile.TemporaryDirectory() as out:
            answers = ask(name, str(run), own.photograph, Path(out))
        for verb, answer in answers.items():
            counts["original" if verb == "original" else "asked"] += answer == "ok"
            print(f"{name:16} {verb:12} {answer}", flush=True)
    print(f"{counts['asked']} of {3 * len(own.only)} answer; {counts['original']} exports to an original format")


if __name__ == "__main__":
    main()
