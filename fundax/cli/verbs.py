"""The verbs of the command line that need no config: their signatures and docstrings are their arguments and help."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from data_pipelines.contact_sheet import contact_sheet
from data_pipelines.convert import Sizing
from data_pipelines.convert import convert as write_shards
from data_pipelines.datasets import VISITS, build_visits
from data_pipelines.datasets import build as build_data_set
from data_pipelines.sources.modality_stats import measure, write_stats
from data_pipelines.synthetic.sources import Visits
from data_pipelines.synthetic.tables import write_visits
from data_pipelines.words import DATA_DIR, named
from fundax import interop
from fundax.inference import embed as embeddings
from fundax.inference import explain as explanations
from fundax.inference import synthesize as synthesis
from fundax.inference.model import load as load_model
from fundax.interop import adapters
from fundax.results import page
from fundax.runtime.environment import environment
from fundax.runtime.workdir import check_output
from fundax.serving import web
from fundax.serving.answers import kind_of
from fundax.serving.calibration import calibrations
from fundax.serving.neighbours import open_neighbours
from fundax.types import UserError


def export(
    run: Positional[str],
    out: Positional[str],
    /,
    *,
    to: str,
    checkpoint: str = "",
    overwrite: bool = False,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    license: str = "",
    base_model: str = "",
) -> None:
    """Write a run as a folder that another program opens.

    Args:
        run: Folder of the run.
        out: Folder to write.
        to: Format of the folder: {formats}; or adapters, the trained adapters alone of a run with --tune lora:RANK.
        checkpoint: Checkpoint: best, latest or a step; by default best if the run selected one.
        overwrite: Replace a folder that is not empty.
        dtype: Dtype of the weights.
        license: Licence in the model card, such as apache-2.0; the licence of the initial weights still applies.
        base_model: What the run started from, in the model card; empty takes the name of its --init.
    """
    if to == adapters.NAME:
        print(adapters.write_adapters(run, out, checkpoint, overwrite))
        return
    fields = {"checkpoint": checkpoint, "overwrite": overwrite, "license": license, "base_model": base_model}
    print(interop.export(run, to, out, dtype=dtype, **fields))


def push(folder: Positional[str], name: Positional[str], /, *, public: bool = False) -> None:
    """Upload an exported folder to the Hugging Face hub.

    Args:
        folder: Folder that export wrote, with the --license of the weights in its model card.
        name: OWNER/NAME of the repository, which is made if there is none.
        public: Make a new repository public; by default it is private.
    """
    print(interop.push(folder, name, private=not public))


def import_(
    path: Positional[str],
    /,
    *,
    workdir: str,
    like: str = "",
    activation: Literal["quick_gelu", "gelu", ""] = "",
    modality: str = "",
    resize: str = "",
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    base: str = "",
) -> None:
    """Write the checkpoint of another program as a run, or a run's adapters merged into their base.

    Args:
        path: Folder or weights file.
        workdir: Folder of the run to write.
        like: Size, such as H/14-378, of a CLIP file without a configuration.
        activation: Activation of such a file: quick_gelu (OpenAI, DFN) or gelu (LAION and most others).
        modality: Modality of the images of an image encoder, which decides how they are normalised; empty: as ImageNet.
        resize: How photographs become square, where the files do not say: squash, shortest, longest or canvas.
        mean: Mean of red, green and blue between 0 and 1, where the files do not say.
        std: Standard deviation of red, green and blue, where the files do not say.
        base: Model that exported adapters belong to: what their run started from.
    """
    if base:
        print(interop.import_model(adapters.read_adapters(path, base), path, workdir))
        return
    shown = {name: value for name, value in (("resize", resize), ("mean", mean), ("std", std)) if value}
    print(interop.import_checkpoint(path, workdir, like=like, modality=modality, activation=activation, shown=shown))


def synth(
    run: Positional[str],
    /,
    *,
    n: int,
    out: str,
    base: str | None = None,
    seed: int = 0,
    sampler: Literal["ddim", "ddpm"] = "ddim",
    steps: int = 50,
    guidance: float = 1.0,
    findings: str | None = None,
    modality: str = "",
    batch: int = 32,
    checkpoint: str = "",
    no_check: bool = False,
    overwrite: bool = False,
    trust: bool = False,
) -> None:
    """Generate images with a diffusion run, with a manifest that marks each as synthetic and a check against memorisation.

    Args:
        run: A run of configs/diffusion.py; of a cascade the super-resolution stage.
        n: Number of images.
        out: Folder to write.
        base: The run that generates the small images, where RUN enlarges them.
        seed: Seed of the first image; image i has the seed plus i.
        sampler: Sampler of the diffusion.
        steps: Number of steps of the sampler.
        guidance: Scale of classifier-free guidance; 1 disables it.
        findings: Findings that a conditional model is given, separated by commas; by default those of its data.
        modality: Modality that a conditional model is given; by default that of its data.
        batch: Number of images generated at once.
        checkpoint: Checkpoint: best, latest or a step; by default best if the run selected one.
        no_check: Do not look for the nearest training images.
        overwrite: Replace a folder that is not empty.
        trust: Run the copy of the config in the run, even if it is not one of fundax's configs. It is a program: read it first.
    """
    names = None if findings is None else tuple(name.strip() for name in findings.split(",") if name.strip())
    how = synthesis.How(seed, steps, sampler, guidance, names, modality, batch)
    fields = {"checkpoint": checkpoint, "base": base, "check": not no_check, "overwrite": overwrite, "trust": trust}
    print(synthesis.summary(out, synthesis.synthesize(run, out, n, how, **fields)))


def embed(
    run: Positional[str],
    images: Positional[tuple[str, ...]],
    /,
    *,
    out: str,
    checkpoint: str = "",
    feature: str = "",
    modality: str = "",
    batch: int = 32,
    skip_bad: bool = False,
) -> None:
    """Write the features of all images of folders and tables as .npz or .parquet; the same command resumes after a stop.

    Args:
        run: A run, or an exported folder.
        images: Image files, folders of images, CSV files with a column image, or other sources (docs/guide/data.md).
        out: File to write, .npz or .parquet.
        checkpoint: Checkpoint: best, latest or a step; by default best if the run selected one.
        feature: Feature: features (compared with texts), pooled (of the image encoder), mean (of its patches), or visual,
            left or right of a RET-CLIP; empty takes features of an image-text model and pooled of others.
        modality: Modality of the images, which decides how they are normalised; empty takes CFP.
        batch: Number of images in a forward pass of a device.
        skip_bad: Leave out images that cannot be read.
    """
    fields = {"checkpoint": checkpoint, "feature": feature, "modality": modality, "batch": batch}
    print(embeddings.embed(run, images, out, **fields, skip_bad=skip_bad))


def explain(
    run: Positional[str],
    images: Positional[tuple[str, ...]],
    /,
    *,
    out: str,
    checkpoints: str = "",
    modality: str = "CFP",
    mass: float = 1.0,
    text: tuple[str, ...] = (),
    target: str = "",
    masks: tuple[str, ...] = (),
    overwrite: bool = False,
) -> None:
    """Draw over photographs what a model reads: attention of a ViT, Grad-CAM of an answer or a text, similarity with a text.

    Args:
        run: A run, or an exported folder.
        images: Photographs.
        out: Folder to write.
        checkpoints: Checkpoints: best, latest, steps separated by commas, or all for a film strip; by default best if the
            run selected one.
        modality: Modality of the photographs.
        mass: Share of the attention that the marked patches hold; 1 draws all of it.
        text: What to look for with an image-text model, such as "hard exudates"; several are drawn one by one.
        target: Class, value, structure or landmark that Grad-CAM explains; empty takes the likeliest or the first.
        masks: Mask of each photograph; explain.json then says which maps point into it.
        overwrite: Replace a folder that is not empty.
    """
    fields = {"checkpoints": checkpoints, "modality": modality, "mass": mass, "overwrite": overwrite}
    for path in explanations.explain(run, images, out, texts=text, target=target, masks=masks, **fields):
        print(path)


def serve(
    run: Positional[str],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    checkpoint: str = "",
    modality: str = "",
    classes: tuple[str, ...] = (),
    neighbours: str = "",
    megabytes: float = 20,
    megapixels: float = 50,
) -> None:
    """Serve a page and a JSON API where a photograph, or the views of a visit, can be shown to a model. For research only.

    Args:
        run: A run, or an exported folder.
        host: Address to listen on; any other than that of this machine alone lets others ask, without a password.
        port: Port to listen on; 0 takes a free one.
        checkpoint: Checkpoint: best, latest or a step; by default best if the run selected one.
        modality: Modality of the photographs, which decides how they are normalised; empty takes CFP.
        classes: Conditions that the page suggests; by default those of the run's evaluation.
        neighbours: Show the most similar cases of a file of launch.py embed, or of the run's own data files: data.
        megabytes: Largest file that is accepted.
        megapixels: Largest image that is accepted.
    """
    model = load_model(run, checkpoint, modality=modality)
    kind_of(model)
    found, near = calibrations(run), open_neighbours(model, run, neighbours)
    suggested = classes or next((one.classes for one in found), ())
    limits = web.Limits(megabytes, round(megapixels * 1e6))
    web.run(web.Served(model, suggested, found, near, limits), host, port)


def report(
    runs: Positional[tuple[str, ...]],
    /,
    *,
    out: str,
    title: str = "",
    resamples: int = 1000,
    attention: bool = False,
) -> None:
    """Write one HTML page about one run or several: scores with intervals, curves, subgroups, cases, tests, configuration.

    Args:
        runs: Folders of runs that have been evaluated.
        out: HTML file to write.
        title: Title of the page; by default the names of the runs.
        resamples: Number of bootstrap resamples.
        attention: Draw the attention of a ViT over the cases; this loads the checkpoints.
    """
    if not runs:
        raise UserError("report: name at least one run")
    check_output(out)
    print(page.report(runs, out, title=title, resamples=resamples, attention=attention))


def data_show(
    *, source: str = "synthetic", out: str = "sheet.png", count: int = 24, start: int = 0, data_dir: str = ""
) -> None:
    """Draw a contact sheet of a source with its labels.

    Args:
        source: A CSV file, a folder of images, tfds:NAME, array_record:FOLDER or synthetic, with options after commas.
        out: Image file to write.
        count: Number of images on the sheet.
        start: Number of the first image.
        data_dir: Folder of the data sets that `data build` wrote.
    """
    check_output(out)
    print(contact_sheet(named(source, data_dir=data_dir or DATA_DIR).source, out, count=count, start=start))


def data_stats(*, source: str, out: str, declare: tuple[str, ...] = (), most: int = 2000, data_dir: str = "") -> None:
    """Measure the mean and deviation of each modality of a source; train with the file by --modality-file.

    Args:
        source: A CSV file, a folder of images, tfds:NAME, array_record:FOLDER or synthetic, with options after commas.
        out: JSON file to write.
        declare: Names of modalities in the source that fundax does not know: OCTA, SLO, "specular microscopy".
        most: Number of records that are read at most, evenly spaced.
        data_dir: Folder of the data sets that `data build` wrote.
    """
    own = {"declare": "+".join(declare)} if declare else {}
    found = measure(named(source, own, data_dir=data_dir or DATA_DIR).source, most)
    for name, one in found.items():
        numbers = (" ".join(f"{x:.4f}" for x in row) for row in one[:2])
        print("{}: mean {}, deviation {}, {} images".format(name, *numbers, one.images))
    print(write_stats(found, out))


def data_convert(
    *,
    source: str,
    out: str,
    size: int,
    images: Literal["jpeg", "png"] = "jpeg",
    quality: int = 95,
    shard: int = 1024,
    workers: int = 0,
    data_dir: str = "",
) -> None:
    """Write a source as ArrayRecord shards of smaller images, which train faster; read them by array_record:FOLDER.

    Args:
        source: A CSV file, a folder of images, tfds:NAME, array_record:FOLDER or synthetic, with options after commas.
        out: Folder to write.
        size: Images are shrunk until their shorter side has this many pixels.
        images: Format of the stored images; png is lossless.
        quality: Quality of the JPEG images.
        shard: Number of records in a file.
        workers: Number of processes.
        data_dir: Folder of the data sets that `data build` wrote.
    """
    chosen = named(source, data_dir=data_dir or DATA_DIR).source
    print(write_shards(chosen, out, Sizing(size, images, quality), shard=shard, workers=workers))


def data_synthesize(
    *,
    visits: int,
    out: str,
    modalities: tuple[str, ...] = ("CFP", "OCT", "FFA"),
    missing: float = 0.4,
    size: int = 96,
    seed: int = 0,
    language: Literal["en", "zh", "both"] = "en",
) -> None:
    """Write synthetic visits as image files and two tables, one row per image and one row per visit, to see the format.

    Args:
        visits: Number of visits; each patient has two.
        out: Folder to write: images/, images.csv and visits.csv.
        modalities: Modalities of the visits: CFP, OCT, FFA or UWF.
        missing: Share of the views that are missing at random.
        size: Width and height of the images in pixels.
        seed: Random seed.
        language: Language of the reports.
    """
    source = Visits(
        max(-(-visits // 2), 0), seed, visits=2, modalities=modalities, missing=missing, size=size, language=language
    )
    print(write_visits(source, out, visits))


def data_build(name: Positional[str], /, *, from_dir: Annotated[str, arg(name="from")], data_dir: str = "") -> None:
    """Write a public data set, or visits of your own, in the format of TensorFlow Datasets.

    Args:
        name: Name of the data set: idrid, kermany_oct, or visits.
        from_dir: Folder that the data set was unpacked to; for visits a source such as visits.csv,visits=true.
        data_dir: Folder to write; read it by tfds:NAME.
    """
    folder = data_dir or DATA_DIR
    visits = named(from_dir, data_dir=folder).source if name == VISITS else None
    print(build_data_set(name, from_dir, folder) if visits is None else build_visits(visits, folder))


def env(platform: Positional[Literal["cpu", "gpu", "tpu"]], /, *, cache: str = "") -> None:
    """Print variables that make training on a platform faster, for a shell: eval "$(python launch.py env tpu)".

    Args:
        platform: Platform to train on.
        cache: Folder or address such as gs://bucket/jax for compiled programs, which all hosts can share.
    """
    print(environment(platform, cache))


VERBS: Mapping[str, Callable[..., None]] = {
    "export": export, "push": push, "import": import_, "synth": synth, "embed": embed, "explain": explain,
    "serve": serve, "report": report, "env": env, "data show": data_show, "data stats": data_stats,
    "data convert": data_convert, "data build": data_build, "data synthesize": data_synthesize,
}  # fmt: skip


def list_data_verbs() -> None:
    """Print the verbs of `launch.py data` with the first line of their help."""
    for name, function in VERBS.items():
        if name.startswith("data "):
            print(f"launch.py {name}: {(function.__doc__ or '').splitlines()[0]}")
