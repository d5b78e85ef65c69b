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


def report(parser: ArgumentParser) -> None:
    """Those of `report`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directories of runs with evaluations")
    parser.add_argument("--out", required=True, metavar="PAGE.html")
    parser.add_argument("--title", default="", help="of the page; by default the runs' names")
    parser.add_argument("--resamples", type=int, default=1000, help="draws of a bootstrap")
    parser.add_argument(
        "--attention", action="store_true", help="over the cases, where the model is a ViT; loads checkpoints"
    )


def data(parser: ArgumentParser) -> None:
    """Those of `data show`, `data convert` and `data build`."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    show = verbs.add_parser("show", help="a labelled contact sheet")
    show.add_argument("--source", default="synthetic", help="a CSV, an image folder, tfds:NAME or synthetic")
    show.add_argument("--out", default="sheet.png")
    show.add_argument("--count", type=int, default=24, help="records on the sheet")
    show.add_argument("--start", type=int, default=0, help="the first of them")
    show.add_argument("--data-dir", default=None, help="where tfds data sets are built")
    change = verbs.add_parser("convert", help="ArrayRecord shards of shrunk images, to train from at speed")
    change.add_argument("--source", required=True, help="as of show; read back as array_record:DIR")
    change.add_argument("--out", required=True, metavar="DIR")
    change.add_argument("--size", type=int, required=True, help="longer shorter sides are shrunk to this")
    change.add_argument("--images", default="jpeg", choices=("jpeg", "png"), help="png loses nothing")
    change.add_argument("--quality", type=int, default=95, help="of JPEG")
    change.add_argument("--shard", type=int, default=1024, help="records per file")
    change.add_argument("--workers", type=int, default=0, help="processes")
    change.add_argument("--data-dir", default=None, help="where tfds data sets are built")
    build = verbs.add_parser("build", help="a public data set, from the folder it was unpacked to")
    build.add_argument("name")
    build.add_argument("--from", dest="from_dir", required=True)
    build.add_argument("--data-dir", default=None)
