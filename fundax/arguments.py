"""Arguments of the command line's verbs that have many; launch.py reads them before anything heavy is imported."""

from __future__ import annotations

from argparse import ArgumentParser


def synth(parser: ArgumentParser) -> None:
    """Those of `synth`."""
    parser.add_argument("workdir", help="a run of configs/diffusion.py; of a cascade the super-resolution stage")
    parser.add_argument("--n", type=int, required=True, help="how many images")
    parser.add_argument("--out", required=True)
    parser.add_argument("--base", help="the run that draws the small images, where WORKDIR enlarges them")
    parser.add_argument("--seed", type=int, default=0, help="of the first image; the next has the next")
    parser.add_argument("--sampler", choices=("ddim", "ddpm"), default="ddim")
    parser.add_argument("--steps", type=int, default=50, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=1.0, help="1: as learnt; more exaggerates the condition")
    parser.add_argument("--findings", help="of a conditional model, separated by commas; by default those of its data")
    parser.add_argument("--modality", default="", help="of a conditional model; else what the manifest says")
    parser.add_argument("--batch", type=int, default=32, help="images drawn at once")
    parser.add_argument("--checkpoint", default="latest", help="latest, best or a step")
    parser.add_argument("--no-check", action="store_true", help="do not look for the nearest training images")
    parser.add_argument("--overwrite", action="store_true")


def explain(parser: ArgumentParser) -> None:
    """Those of `explain`."""
    parser.add_argument("workdir")
    parser.add_argument("images", nargs="+", help="photographs")
    parser.add_argument("--out", required=True)
    parser.add_argument("--checkpoints", default="latest", help="latest, best, steps with commas, or all: a film strip")
    parser.add_argument("--modality", default="CFP", help="of the photographs")
    parser.add_argument("--mass", type=float, default=1.0, help="0.6: the patches that hold 60 %% of the attention")
    parser.add_argument("--overwrite", action="store_true")
