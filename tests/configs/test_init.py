"""`--init` of every config with every form of a model: the run starts from its numbers, or one line says why not.

A recipe is built as `train` does, its parameters are initialised by shape alone, and the steps of init_from are applied;
nothing is trained.
"""

import functools
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.language import tokenizers
from data_pipelines.records import DataError
from fundax.config import arguments_of, load
from fundax.encoders.heads import IBOTHead
from fundax.encoders.vit import dino_vit
from fundax.interop import write_safetensors
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.formats import writer
from fundax.interop.initial import own_state
from fundax.interop.read import read_run
from fundax.objectives.clip import clip
from fundax.objectives.flair import flair
from fundax.objectives.ibot import IBOT
from fundax.objectives.ret_clip import ret_clip
from fundax.recipe import Recipe
from fundax.runtime.checkpoint import Checkpoints
from fundax.train.stored import describe
from fundax.types import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
WITH_INIT = [path for path in CONFIGS if "init" in arguments_of(path)]
WORDS = tokenizers.bundled(48)
TEXTS = {"vocab": WORDS.vocab_size, "context": 48}
DINO = dino_vit("B/16").clone(image_size=32, patch=8, width=32, depth=4, heads=1, mask_token=True)
MODELS = {
    "clip": clip("smoke", **TEXTS),
    "ret_clip": ret_clip("smoke", "smoke", **TEXTS),
    "flair": flair("smoke", vocab=WORDS.vocab_size, context=32),
    "ibot": IBOT(DINO, IBOTHead(16, None, 16, 8), steps=2, epoch_steps=1),
    "visionfm": load(CONFIGS[0].parent / "visionfm.py", ["--smoke"])[0].objective,
}
# Exports that need no PyTorch, and the weights of that export alone.
EXPORTS = {"clip": ("huggingface", "open_clip"), "ibot": ("huggingface", "timm")}
FORMS = [(name, form) for name in MODELS for form in ("run", "file", *EXPORTS.get(name, ()))]
ANY = ("linear_probe", "finetune", "regression", "forecasting", "multi_modality")
DENSE = ("landmark", "segmentation")  # their decoders read four blocks, which the small ViTs above do not have
TEXT = ("zero_shot", "few_shot", "clip_adapter")
# Which configs start from which model; the others refuse it in one line. The ResNet of keepfit_report --smoke is not flair's.
STARTS = {
    "clip": {*ANY, *TEXT, "mm_fundus_clip", "quickstart"},
    "ret_clip": {*ANY, *TEXT, "ret_clip"},
    "flair": {*ANY, *TEXT, *DENSE, "flair", "keepfit", "keepfit_text"},
    "ibot": {*ANY, *DENSE, "few_shot"},
    "visionfm": {*ANY, "visionfm", "few_shot"},
}
NEEDS_CONFIGURATION = {"clip": {*ANY, *TEXT}}  # weights alone do not say what they compute


def numbers(shapes):
    return jax.tree.map(lambda x: np.random.default_rng(x.size).standard_normal(x.shape).astype(x.dtype), shapes)


@functools.cache
def initial(objective, batch):
    """Shapes of parameters and extra state."""
    spec = {name: np.zeros(s.shape, s.dtype) for name, s in objective.batch_spec(batch).items()}
    return jax.eval_shape(lambda key: objective.init(key, spec), jax.random.key(0))


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """(model, form) -> path."""
    folder, found = tmp_path_factory.mktemp("forms"), {}
    for name, objective in MODELS.items():
        path = found[name, "run"] = folder / f"{name}_run"
        tokenizer = None if name in ("ibot", "visionfm") else tokenizers.bundled(32) if name == "flair" else WORDS
        describe(Recipe(objective=objective, train=None, optimizer=None, steps=1, batch=2, tokenizer=tokenizer), path)
        params, extra = numbers(initial(objective, 2))
        with Checkpoints(path) as checkpoints:
            checkpoints.save(1, {"params": params, "extra": extra, "opt": {}}, {}, {})
        model = read_run(path)
        for form in EXPORTS.get(name, ()):
            format_ = writer(form, model)
            found[name, form] = folder / f"{name}_{form}"
            format_.write(format_.select(model), found[name, form], False)
        found[name, "file"] = bare(name, model, folder / f"{name}_bare")
    return found


def bare(name: str, model: Checkpoint, folder: Path) -> Path:
    """The weights alone, without a configuration, under the names of the original program."""
    from fundax.interop import flair as flair_format
    from fundax.interop import open_clip, vit
    from fundax.interop import ret_clip as ret_clip_format

    folder.mkdir()
    if name == "clip":
        state = open_clip.from_fundax(model.objective, model.params)
    elif name == "ret_clip":
        theirs = replace(model.objective, text=model.objective.text.clone(pool="cls"))  # their program's
        state = ret_clip_format.from_fundax(theirs, model.params)
    elif name == "flair":
        state = flair_format.from_fundax(model.objective, model.params, model.extra)
    else:
        encoder = vit.encoder_of(model)
        state = vit.from_fundax(encoder.objective, encoder.params)
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
    write_safetensors(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize("config", WITH_INIT, ids=lambda path: path.stem)
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_a_config_starts_from_it_or_says_why_not(forms, config, name, form):
    starts = STARTS[name] - (NEEDS_CONFIGURATION.get(name, set()) if form == "file" else set())
    try:
        recipe, _ = load(config, ["--smoke", "--init", str(forms[name, form])])
        params, extra = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), initial(recipe.objective, recipe.batch))
        for step in recipe.init_from:
            params = step(params)
        for step in recipe.init_extra:
            extra = step(extra)
    except (UserError, DataError) as error:
        assert config.stem not in starts, error
        assert len(str(error).splitlines()) == 1
        return
    assert config.stem in starts, "started, but is not expected to"
    taken = own_state(params) | own_state({"extra": extra})
    assert any(np.any(leaf) for path, leaf in taken.items() if any(part in path for part in ("image/", "text/")))
