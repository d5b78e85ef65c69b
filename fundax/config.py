"""Config files: the keyword arguments of the function `recipe` in a config are its command-line arguments.

A parameter whose type is a dataclass (Run, data_pipelines.open.Data) adds all of its fields as arguments. The help text of
a plain parameter comes from VOCABULARY, so that an argument means the same in every config, or otherwise from the docstring
of `recipe`. A config may define a dict PRESETS of argument values by name of a preset."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import io
import itertools
import json
import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin

from fundax.recipe import Recipe, Run
from fundax.runtime import argv as words
from fundax.tuning import tuning
from fundax.types import UserError

_log = logging.getLogger("fundax")

VOCABULARY = {
    "appearance": "Run whose features measure how similar two images look; without it only texts are compared.",
    "augment": "Random changes of the training images.",
    "balanced": "Sample every class, data set or modality equally often.",
    "ban": "Leave out the categories that are reserved for testing on unseen ones.",
    "ban_by": "How a reserved category is recognised: as a substring (FLAIR) or by its exact name (KeepFIT).",
    "beams": "Number of hypotheses of the beam search that writes a report; 1 takes the likeliest token.",
    "blocks": "Blocks of the encoder that are read: how many of the last ones.",
    "cache": "Folder that keeps computed features for later runs.",
    "caption": "Also train a decoder that writes the expert report of each image.",
    "checkpoint": "Checkpoint of the run to start from: best, latest or a step; by default best if the run selected one.",
    "conditional": "Condition the images on their modality and, for synthetic eyes, on findings.",
    "context": "Number of tokens of a text.",
    "copies": "Number of augmented copies of each training image whose features are computed.",
    "crop_field": "Crop photographs to the field of view first.",
    "cutmix": "Alpha of CutMix; 0 disables it. With --mixup, every step uses one of the two.",
    "degrees": "Largest rotation of a training image, in degrees.",
    "disc_diameter": "Diameter of the optic disc in pixels of the original images, to report errors in disc diameters.",
    "drop_path": "Probability of dropping the last block (stochastic depth).",
    "dropout": "Dropout rate of the head or decoder.",
    "elite": "CSV files of expert reports, in the forms of MM-Retinal.",
    "ema": "Momentum of the running average of the weights, which predicts instead of them; 0 disables it.",
    "encoder_lr": "Peak learning rate of the encoder, for a batch of 256.",
    "feature": "Feature of an image: class tokens, mean of the patches, or the encoder's own pooling.",
    "findings": "Also learn which findings a report names, and give them to the decoder.",
    "head": "Head on the features: logistic regression, one linear layer, an MLP, or for pixels VisionFM's UNETR.",
    "horizon": "Number of epochs after which the cosine schedule would reach 0.",
    "image_size": "Side of the square images in pixels; 0 takes that of the model size.",
    "init": "Weights to start from: imagenet, timm:NAME, hf:OWNER/NAME, a run, an exported folder or a weights file.",
    "init_text": "Checkpoint to start the text encoder from: a run, an exported folder or a weights file.",
    "jitter": "Strength of the random changes of brightness, contrast and colour.",
    "lam": "Weight of the texts' similarity in the reference; the rest is the similarity of appearance.",
    "language": "Language of the synthetic reports and of the prompts.",
    "level": "Level of a RET-CLIP at which photographs are compared with texts.",
    "depth_decay": "Factor by which the learning rate falls from each block to the one below.",
    "local_crops": "Number of small crops of each image, in addition to the two large ones.",
    "mask": "Patches that are hidden from the student: blocks, or single patches at random.",
    "methods": "Few-shot methods to compare.",
    "min_snr": "Gamma of the min-SNR loss weighting; 0 is the plain squared error.",
    "missing": "Whether a landmark may be absent from an image (an empty cell).",
    "mixup": "Alpha of Mixup; 0 disables it.",
    "modality": "Modality of the images, which decides how they are normalised; empty takes the default.",
    "negatives": "Negatives of the contrastive loss: the whole batch (in dense or ring form), or each device's own part.",
    "optimizer": "Update rule: AdamW, or SGD with momentum 0.9.",
    "overlapping": "A pixel may belong to several classes, each of which has its own mask.",
    "parity": "Reproduce the published code exactly, including its known shortcomings.",
    "points": "Predicted point: the most likely pixel, the mean under the softmax, or that mean near the most likely pixel.",
    "pool": "Pooling of the text encoder; unmasked_mean averages the padding in, as FLAIR does.",
    "positive": "Weight of the eyes that get worse in the loss.",
    "preset": "Set of default values for all other arguments.",
    "probe": "Number of synthetic patients of each modality for linear probes; 0 disables them.",
    "prompt": "Wording of a text, with {text}, {modality} and {eye} (Chinese: {modality_zh}, {eye_zh}).",
    "ratio": "Weight of the adapted feature when it is added to the original one.",
    "raw": "Predict the values in their own units instead of standardised.",
    "reduction": "Factor by which the adapter's hidden layer is narrower than the feature.",
    "resize": "How an image becomes square: squash it, or keep its aspect and pad it with black.",
    "resolution": "Side in pixels that images are resized to; if larger than --image-size, training uses crops of that size.",
    "rfmid_root": "Folder of RFMiD, whose 28 labels are then probed during training.",
    "scale": "Smallest and largest magnification of a training image.",
    "seeds": "Number of random draws of the labelled images.",
    "shift": "Largest translation of a training image, relative to its side.",
    "shots": "Numbers of labelled images per class.",
    "sigma": "Standard deviation in pixels of the Gaussian around a landmark; 0 is a single pixel.",
    "size": "Size of the model; tiny trains on a laptop.",
    "statistics": "Batch statistics of a convolutional encoder: learned from the batches, or as the initial weights have them.",
    "stage": "Stage of the cascade: the base model of small images, or the model that enlarges them.",
    "strength": "Inverse strength of the penalty of logistic regression, scikit-learn's C.",
    "text_rate": "Share of the tokens that are masked.",
    "text_size": "Size of the text encoder.",
    "texts": "Text files, or folders of them, with paragraphs separated by blank lines.",
    "tokenizer": "Tokenizer: a folder, a vocab.txt or a merges file; empty takes that of --init, else the built-in one.",
    "total": "Combine the losses of the three levels by their sum (RET-CLIP) or their mean (RET-CLIP-PLUS).",
    "transpose": "Also exchange rows and columns at random, in addition to flips.",
    "variant": "Form of the reference loss: v2, v1 (the published KeepFIT), or mixed (v1 without the reference).",
    "visits": "Number of an eye's latest images that the model sees.",
    "visits_per_patient": "Number of visits of each synthetic patient.",
    "warmup": "Number of warm-up steps of the learning rate.",
    "wording": 'Wording of a class, such as "{modality} showing {text}"; empty takes descriptions by experts.',
}


# Default values with --smoke, for arguments that a config has. PRESETS["smoke"] of a config adds further defaults.
SMOKE = {
    "batch": 8, "steps": 2, "epochs": 1, "workers": 0, "dtype": "float32", "remat": "none", "size": "smoke",
    "patients": 16, "copies": 1, "context": 32, "save_every": 2, "eval_every": 2,
}  # fmt: skip


# Arguments of Run that are used only in training.
_OF_TRAINING = frozenset(
    {"epochs", "lr", "weight_decay", "accumulate", "eval_every", "save_every", "keep", "best", "tune"}
)


def load(
    path: str | Path,
    argv: Sequence[str] = (),
    *,
    others: Sequence[type] = (),
    prog: str = "launch.py train",
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a config file with these command-line arguments, and the arguments as a flat dict.

    `defaults` are values of arguments that are not in `argv`; names that the config does not have are ignored. `--help`
    prints the help and exits; it also lists the fields of the dataclasses `others`, which take_options reads. Raises
    UserError for a missing file, an unknown argument (with the most similar known argument), a value of the wrong type, or a
    number of steps that the config ignores.
    """
    module = module_of(Path(path))
    parameters = _parameters(module.recipe, _preset(module, argv) | dict(defaults or {}))
    if {"-h", "--help"} & set(argv):
        parameters += _of(others)
    arguments = parse(parameters, argv, f"{prog} {path}", module.recipe.__doc__, vocabulary=VOCABULARY)
    here = _local(arguments)
    built = module.recipe(**here)
    asked = words.given(argv)
    for run in (one for one in parameters if isinstance(one.default, Run) and "batch" in asked and "lr" not in asked):
        if built.steps and (line := arguments[run.name].scaling(run.default)):
            _log.info(line)
    if not isinstance(built, Recipe):
        raise UserError(f"{path}: recipe() returned {type(built).__name__}; expected a fundax.recipe.Recipe")
    flat = _flat(arguments)
    _check_honoured(built, asked, flat, path)
    best = next((one.selects(built.best) for one in arguments.values() if isinstance(one, Run)), built.best)
    tune = tuning(flat["tune"]) if flat.get("tune") else built.tune
    return replace(built, best=best, tune=tune, source=_source(path, argv, flat), data=_used(here, flat)), flat


def _check_honoured(built: Recipe, asked: Collection[str], flat: Mapping[str, Any], path: str | Path) -> None:
    """Raise UserError naming an argument that was given but that the recipe ignores."""
    for name in ("steps", "batch"):
        if name in asked and flat[name] and getattr(built, name) != flat[name]:
            raise UserError(f"--{name} {flat[name]}: {path} takes {getattr(built, name)} instead; leave it out")
    reasons = getattr(getattr(built.objective, "decoder", None), "IGNORES", {})
    for name in sorted(reasons.keys() & set(asked)):
        raise UserError(f"--{name.replace('_', '-')}: {reasons[name]}")
    if not built.steps and (idle := sorted(_OF_TRAINING & set(asked))):
        raise UserError(f"--{idle[0].replace('_', '-')}: {path} trains nothing; leave it out")


def _source(path: str | Path, argv: Sequence[str], flat: Mapping[str, Any]) -> dict[str, Any]:
    """The command as a run stores it, with absolute paths."""
    stored, words_of_data = words.absolute(argv), [*flat.get("data", ()), *flat.get("val", ())]
    if "data_dir" not in words.given(argv) and any(word.startswith("tfds:") for word in words_of_data):
        stored += ["--data-dir", words.absolute_path(flat["data_dir"])]
    arguments = json.loads(json.dumps(words.absolute_values(flat), default=str))
    return {"config": str(path), "argv": stored, "args": arguments}


def _local(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with addresses replaced by the paths of local copies."""
    with_images = not _flat(arguments).get("image_dir")
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        held = _flat({name: value}) if is_dataclass(value) else {}
        local = {
            k: words.fetched_value(k, v, with_images) for k, v in (held or {name: value}).items() if k in words.PATHS
        }
        group: Any = value
        found[name] = replace(group, **local) if held and local else local.get(name, value)
    return found


def _used(arguments: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """The data that a config has read (data_pipelines.open.Sources.used), and the evaluated part."""
    found = next((one.used for one in arguments.values() if hasattr(one, "used")), {})
    return {**json.loads(json.dumps(found)), "part": flat.get("part") or "val"}


def arguments_of(path: str | Path) -> dict[str, str]:
    """The arguments of a config file and their help texts; "" if the help text is in the config's docstring."""
    found: dict[str, str] = {}
    for parameter in _parameters(module_of(Path(path)).recipe, {}):
        kind = parameter.annotation
        fields = [field.name for field in dataclasses.fields(kind)] if is_dataclass(kind) else []
        found |= {name: _field_help(kind, name) for name in fields}
        found |= {} if fields else {parameter.name: VOCABULARY.get(parameter.name, "")}
    return found


def _field_help(kind: Any, name: str) -> str:
    """The help text of a field in the docstring of the dataclass that defines it."""
    owner = next(one for one in reversed(kind.__mro__) if name in getattr(one, "__dataclass_fields__", {}))
    lines = [line.strip() for line in (owner.__doc__ or "").splitlines()]
    return next((line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")), "")


def take_options(argv: Sequence[str], *options: type) -> tuple[list[Any], list[str]]:
    """Parse an instance of each of the dataclasses `options` from a command line; also returns the remaining arguments."""
    asked = {"-h", "--help"} & set(argv)
    plain = [word for word in argv if word not in ("-h", "--help")]
    values, rest = parse(_of(options), plain, "launch.py", None, known_only=True)
    return list(values.values()), [*rest, *(["--help"] if asked else [])]


def call(function: Callable[..., Any], argv: Sequence[str], prog: str, **words: str) -> Any:
    """Call a function with arguments from a command line; `words` are filled into {names} in its docstring."""
    text = inspect.cleandoc(function.__doc__ or "")
    for name, value in words.items():
        text = text.replace("{" + name + "}", value)
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    named = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    values = parse(named, argv, prog, text)
    first = [values.pop(p.name) for p in parameters if p.kind is inspect.Parameter.POSITIONAL_ONLY]
    return function(*first, **values)


def show_help(prog: str, description: str | None, *options: type) -> None:
    """Print the help of a verb with these options, without exiting."""
    with contextlib.suppress(SystemExit):
        parse(_of(options), ["--help"], prog, description)


def _of(options: Sequence[type]) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(o.__name__.lower(), inspect.Parameter.KEYWORD_ONLY, annotation=o, default=o())
        for o in options
    ]


def parse(
    parameters: Sequence[inspect.Parameter],
    argv: Sequence[str],
    prog: str,
    description: str | None,
    *,
    known_only: bool = False,
    vocabulary: Mapping[str, str] | None = None,
) -> Any:
    """Parse the values of `parameters` from a command line; with `known_only`, also returns the remaining arguments.

    `vocabulary` contains help texts by name, which take precedence over the description. `--help` prints the help and exits.
    Raises UserError with a message of one line.
    """
    import tyro

    def keep(**arguments: Any) -> dict[str, Any]:
        return arguments

    names = _names(parameters)
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"{prog}: argument --{twice.replace('_', '-')} is defined twice")
    known: dict[str, Any] = {}
    for parameter in parameters:
        known[parameter.name] = _annotation(parameter, vocabulary or {}, tyro.conf)
    function: Any = keep
    function.__signature__ = inspect.Signature([p.replace(annotation=known[p.name]) for p in parameters])
    function.__annotations__, function.__doc__ = known, description
    if not known_only:
        positional = getattr(tyro.conf.Positional[str], "__metadata__")[0]  # noqa: B009
        flags = [p for p in parameters if positional not in getattr(p.annotation, "__metadata__", ())]
        _check_names(argv, _names(flags))
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(function, args=list(argv), prog=prog, return_unknown_args=known_only)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_first_sentence(output.getvalue())) from None


def _annotation(parameter: inspect.Parameter, vocabulary: Mapping[str, str], conf: Any) -> Any:
    kind = parameter.annotation
    if is_dataclass(kind):
        return conf.OmitArgPrefixes[kind]
    if parameter.name in vocabulary:
        return Annotated[kind, conf.arg(help=vocabulary[parameter.name])]
    return kind


def module_of(path: Path) -> ModuleType:
    """Import a config file, which defines a function `recipe`. Raises UserError if it does not."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"config {path} does not exist{hint}")
    name = f"fundax_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"config {path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"config {path}: {error}; a config of another version of fundax? --config FILE takes its place"
        ) from None
    if not callable(getattr(module, "recipe", None)):
        raise UserError(f"config {path}: expected a function recipe(*, ...) -> Recipe")
    return module


def _preset(module: ModuleType, argv: Sequence[str]) -> dict[str, Any]:
    """The default values that --preset and --smoke select."""
    presets: Mapping[str, Mapping[str, Any]] = getattr(module, "PRESETS", {})
    default = inspect.signature(module.recipe).parameters.get("preset")
    chosen = default.default if default else ""
    smoke = False
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        chosen = (value if equals else following) if name == "--preset" else chosen
        smoke = name == "--smoke" if name in ("--smoke", "--no-smoke") else smoke
    values = dict(presets.get(chosen, {}))  # an unknown name is an error of the parser
    return {**values, **SMOKE, **presets.get("smoke", {})} if smoke else values


def _parameters(function: Callable[..., Any], values: Mapping[str, Any]) -> list[inspect.Parameter]:
    """The parameters of a config's function, with `values` as defaults."""
    found = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        default = parameter.default
        if is_dataclass(default) and not isinstance(default, type):
            fields = {field.name for field in dataclasses.fields(default)}
            default = replace(default, **{key: value for key, value in values.items() if key in fields})
        else:
            choices = get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else None
            value = values.get(name, default)
            default = value if choices is None or value in choices else default
        found.append(parameter.replace(default=default))
    return found


def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        fields = [field.name for field in dataclasses.fields(value)] if is_dataclass(value) else []
        flat |= {field: getattr(value, field) for field in fields} if fields else {name: value}
    return flat


def _names(parameters: Sequence[inspect.Parameter]) -> list[str]:
    names: list[str] = []
    for parameter in parameters:
        kind = parameter.annotation
        own = [getattr(note, "name", None) for note in getattr(kind, "__metadata__", ())]
        name = next((name for name in own if name), parameter.name)
        names += [field.name for field in dataclasses.fields(kind)] if is_dataclass(kind) else [name]
    return names


def _first_sentence(box: str) -> str:
    """The first paragraph of tyro's error box, which describes the error."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    first = itertools.takewhile(lambda line: not line.startswith("─"), lines)
    return " ".join(" ".join(first).split()) + " (--help lists the arguments)"


def _check_names(argv: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError for an unknown argument, in one line; tyro would print a box."""
    known = {f"--{name}".replace("_", "-") for name in names} | {"--help"}
    known |= {f"--no-{name}".replace("_", "-") for name in names}
    for word in argv:
        option = word.split("=")[0].replace("_", "-")
        if option.startswith("--") and option.split(".")[0] not in known:
            near = difflib.get_close_matches(option, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            hint = "; it is --part test now" if option == "--test" else hint
            raise UserError(f"unknown argument {word.split('=')[0]}{hint} (--help lists them)")
