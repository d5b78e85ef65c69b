"""Every form of a checkpoint against every kind of objective: it is filled with equal parameters, or refused with a reason."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from fundax.encoders.bert import BERT
from fundax.encoders.clip_text import TextTransformer
from fundax.encoders.heads import IBOTHead
from fundax.encoders.report_decoder import ReportDecoder
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT, dino_vit
from fundax.interop import backbone, bert, flair, load, open_clip, ret_clip, vit, warm_start, write_safetensors
from fundax.interop.checkpoint import Checkpoint
from fundax.interop.formats import writer
from fundax.objectives.clip import CLIP
from fundax.objectives.flair import FLAIR, POOL_LAYERS
from fundax.objectives.ibot import IBOT
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.keepfit_reference import V1
from fundax.objectives.masked_text import MaskedText
from fundax.objectives.report import Report
from fundax.objectives.ret_clip import RetCLIP
from fundax.params import flatten, unstack_blocks
from fundax.runtime.checkpoint import Checkpoints
from fundax.runtime.serialize import to_json
from fundax.runtime.workdir import write_json
from fundax.types import UserError

WORDS = {"vocab": 13, "context": 6, "width": 8, "depth": 2, "heads": 2, "hidden": 16}
TEXT = BERT(**WORDS, pool="unmasked_mean", pool_layers=POOL_LAYERS)
PHOTO = ViT(8, 4, 8, 1, 1)
DINO = dino_vit("B/16").clone(image_size=8, patch=4, width=8, depth=2, heads=1, mask_token=True)
RESNET = ResNet(32, 4, (1, 1, 1, 1))
KINDS = {
    "clip": CLIP(PHOTO, TextTransformer(13, 6, 8, 1, 2), embed=6),
    "ret_clip": RetCLIP(PHOTO, BERT(**WORDS), embed=6, context=6),
    "flair": FLAIR(RESNET, TEXT, embed=4, context=6),
    "keepfit": KeepFIT(FLAIR(RESNET, TEXT, embed=4, context=6), V1, appearance=1),
    "masked_text": MaskedText(TEXT, 6),
    "ibot": IBOT(DINO, IBOTHead(6, None, 8, 4), steps=2, epoch_steps=1),
    "report": Report(RESNET, ReportDecoder(13, context=5, width=8, depth=1, heads=8, hidden=8)),
}
FORMS = [
    *(("clip", form) for form in ("run", "huggingface", "open_clip", "file")),
    *(("ret_clip", form) for form in ("run", "ret_clip", "file")),
    *(("flair", form) for form in ("run", "flair", "file")),
    *(("keepfit", form) for form in ("run", "flair")),
    *(("masked_text", form) for form in ("run", "bert", "file")),
    *(("ibot", form) for form in ("run", "huggingface", "timm", "retfound", "visionfm", "file")),
    *(("report", form) for form in ("run", "ffa_captioner")),
]
ALL = ("image", "text", "project", "log_scale")
OTHER_IMAGE, OTHER_TEXT = "the checkpoint's image encoder is a", "the checkpoint's text encoder is a"
EITHER = "the checkpoint's (image|text) encoder is a"
ACTIVATION, NOTHING = r"image\.activation = ", "no encoder in common"
# What each kind takes from each: the parts that are equal afterwards, or why it is refused.
EXPECTED = {
    ("clip", "clip"): ALL, ("clip", "ret_clip"): OTHER_TEXT, ("clip", "flair"): EITHER, ("clip", "keepfit"): EITHER,
    ("clip", "masked_text"): OTHER_TEXT, ("clip", "ibot"): ACTIVATION, ("clip", "report"): OTHER_IMAGE,
    ("ret_clip", "clip"): OTHER_TEXT, ("ret_clip", "ret_clip"): ALL, ("ret_clip", "flair"): OTHER_IMAGE,
    ("ret_clip", "keepfit"): OTHER_IMAGE, ("ret_clip", "masked_text"): ("text",), ("ret_clip", "ibot"): ACTIVATION,
    ("ret_clip", "report"): OTHER_IMAGE,
    ("flair", "clip"): EITHER, ("flair", "ret_clip"): OTHER_IMAGE, ("flair", "flair"): ALL, ("flair", "keepfit"): ALL,
    ("flair", "masked_text"): ("text",), ("flair", "ibot"): OTHER_IMAGE, ("flair", "report"): ("image",),
    ("masked_text", "clip"): OTHER_TEXT, ("masked_text", "ret_clip"): ("text",), ("masked_text", "flair"): ("text",),
    ("masked_text", "keepfit"): ("text",), ("masked_text", "masked_text"): ("text", "masked"),
    ("masked_text", "ibot"): NOTHING, ("masked_text", "report"): NOTHING,
    ("ibot", "clip"): ACTIVATION, ("ibot", "ret_clip"): ACTIVATION, ("ibot", "flair"): OTHER_IMAGE,
    ("ibot", "keepfit"): OTHER_IMAGE, ("ibot", "masked_text"): NOTHING, ("ibot", "ibot"): ("image",),
    ("ibot", "report"): OTHER_IMAGE,
    ("report", "clip"): OTHER_IMAGE, ("report", "ret_clip"): OTHER_IMAGE, ("report", "flair"): ("image",),
    ("report", "keepfit"): ("image",), ("report", "masked_text"): NOTHING, ("report", "ibot"): OTHER_IMAGE,
    ("report", "report"): ("image", "decoder"),
}  # fmt: skip
EXPECTED |= {("keepfit", target): EXPECTED["flair", target] for target in KINDS}
EXPECTED["keepfit", "keepfit"] = (*ALL, "reference")
UNCONFIGURED = r"nothing says what its tensors compute"
UNREADABLE = {
    *(("clip", target) for target in KINDS if target not in ("clip", "ret_clip")),
    *(("masked_text", target) for target in ("clip", "ibot", "report")),
}
OTHER_KEYS = "the keys do not fit the model: missing image/"


@pytest.fixture(scope="module")
def shapes():
    """Shapes of (params, extra) of every kind; nothing is computed."""

    def of(objective):
        batch = {key: np.zeros(spec.shape, spec.dtype) for key, spec in objective.batch_spec(1).items()}
        return jax.eval_shape(objective.init, jax.random.key(0), batch)

    return {name: of(objective) for name, objective in KINDS.items()}


def random(tree, seed):
    """Numbers of these shapes, which differ from array to array."""
    rng = np.random.default_rng(seed)
    draw = lambda x: np.abs(rng.standard_normal(x.shape)).astype(x.dtype)  # noqa: E731
    return jax.tree.map(draw, tree)


@pytest.fixture(scope="module")
def forms(tmp_path_factory, shapes):
    """(kind, form) -> its folder or file, and the parameters and extra state that are in it; made once each."""
    folder, made = tmp_path_factory.mktemp("forms"), {}

    def of(kind, form):
        if (kind, "run") not in made:
            params, extra = random(shapes[kind], list(KINDS).index(kind))
            made[kind, "run"] = (a_run(folder / kind, KINDS[kind], params, extra), params, extra)
        run, params, extra = made[kind, "run"]
        if (kind, form) not in made:
            path = folder / f"{kind}_{form}"
            if form == "file":
                path = path.with_suffix(".safetensors")
                write_safetensors(file_state(kind, params, extra), path)
            else:
                model = load(run)
                found = writer(form, model)
                found.write(found.select(model), path, False)
            made[kind, form] = (path, params, extra)
        return made[kind, form]

    return of


def a_run(path, objective, params, extra):
    path.mkdir()
    write_json(path / "config.json", {"objective": to_json(objective)})
    with Checkpoints(path) as checkpoints:
        checkpoints.save(3, {"params": params, "extra": extra, "opt": {}}, {}, {})
    return path


def file_state(kind, params, extra):
    """A bare state dict as the original program has it."""
    if kind == "ibot":
        teacher = vit.encoder_of(Checkpoint(KINDS["ibot"], params, {}, extra=extra))
        return vit.from_fundax(teacher.objective, teacher.params)
    if kind == "flair":
        return flair.from_fundax(KINDS["flair"], params, extra)
    return {"clip": open_clip, "ret_clip": ret_clip, "masked_text": bert}[kind].from_fundax(KINDS[kind], params)


def equal(a, b):
    a, b = (flatten(unstack_blocks({"x": tree})) for tree in (a, b))
    for path in a.keys() | b.keys():
        if not path.endswith("mask_token"):
            np.testing.assert_array_equal(a[path], b[path], err_msg=path)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("kind, form", FORMS, ids=map("-".join, FORMS))
def test_every_form_fills_an_objective_or_says_why_not(forms, shapes, kind, form, target):
    path, params, extra = forms(kind, form)
    fresh, fresh_extra = random(shapes[target], 99)
    start, expected = warm_start(path, KINDS[target]), EXPECTED[kind, target]
    if (kind, form, target) == (
        "clip",
        "file",
        "ret_clip",
    ):  # which CLIP's weights fill where it reads texts as CLIP does
        expected = "open_clip has CLIP's text transformer; this model has a BERT"
    elif form == "file" and (kind, target) in UNREADABLE:
        expected = UNCONFIGURED
    elif form in ("file", "retfound") and expected == ACTIVATION:
        expected = OTHER_KEYS  # nothing says which activation such a file is for, but a ViT for CLIP has another norm
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            start.init_from[0](fresh)
        return
    filled = start.init_from[0](fresh)
    assert jax.tree.map(np.shape, filled) == jax.tree.map(np.shape, fresh)
    student = kind == target == "ibot" and form in ("run", "visionfm")
    source = params if student or kind != "ibot" else extra["teacher"]
    for part in expected:
        equal(filled[part], source[part])
    for part in fresh.keys() - set(expected) - {"head", "log_scale"}:
        equal(filled[part], fresh[part])
    statistics = start.init_extra[0](fresh_extra)
    if "image" in expected and "image" in fresh_extra:
        equal(statistics["image"], extra["image"])
    else:
        equal(statistics, fresh_extra)


@pytest.mark.parametrize("kind, form", FORMS, ids=map("-".join, FORMS))
def test_every_form_gives_a_backbone_or_says_why_not(forms, kind, form):
    path, params, extra = forms(kind, form)
    if kind == "masked_text" or (kind, form) == ("clip", "file"):
        with pytest.raises(
            UserError, match=r"expected a model with one image encoder|no \w+\.json in the folder of the weights"
        ):
            backbone(path)
        return
    found = backbone(path)
    owner = extra["teacher"] if kind == "ibot" else params
    equal(found.init_from[0]({"image": owner["image"]})["image"], owner["image"])
    if "image" in extra:
        equal(found.init_extra[0](jax.tree.map(np.zeros_like, extra))["image"], extra["image"])
    assert found.preprocessing["image_size"] == found.image.image_size


def test_named_parts_alone(forms, shapes):
    path, params, _ = forms("clip", "run")
    fresh, _ = random(shapes["ret_clip"], 7)
    filled = warm_start(path, KINDS["ret_clip"], ("image",)).init_from[0](fresh)
    equal(filled["image"], params["image"])
    equal(filled["text"], fresh["text"])
    with pytest.raises(UserError, match="the checkpoint has no decoder; it has image, log_scale, project, text"):
        warm_start(path, KINDS["ret_clip"], ("decoder",)).init_from[0](fresh)


def test_nothing_to_start_from(shapes):
    start = warm_start("", KINDS["clip"])
    assert start.init_from == start.init_extra == ()
    assert (start + start).init_from == ()


def test_a_new_decoder_and_a_new_head_stay_fresh(forms, shapes):
    """A head of another size is new: what it knew belongs to other prototypes."""
    path, params, _ = forms("ibot", "run")
    wider = replace(KINDS["ibot"], head=IBOTHead(9, None, 8, 4))
    batch = {key: np.zeros(spec.shape, spec.dtype) for key, spec in wider.batch_spec(1).items()}
    fresh = random(jax.eval_shape(wider.init, jax.random.key(0), batch)[0], 5)
    filled = warm_start(path, wider).init_from[0](fresh)
    equal(filled["image"], params["image"])
    equal(filled["head"], fresh["head"])
