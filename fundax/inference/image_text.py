"""Image-text models, such as CLIP, as the starting point of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

from data_pipelines.language import tokenizers
from fundax.encoders.backbone import Encoder
from fundax.evals.features import class_features
from fundax.evals.laterality import Laterality
from fundax.evals.probe import Probe
from fundax.evals.retrieval import retrieval
from fundax.evals.visits import VIEWS, VisitScores
from fundax.evals.zero_shot import zero_shot
from fundax.interop.initial import WarmStart
from fundax.interop.read import load
from fundax.objectives.clip import MEAN, STD, clip
from fundax.objectives.ibot import IBOT
from fundax.objectives.ret_clip import RetCLIP
from fundax.types import Extra, Params, UserError


@dataclass(frozen=True)
class ImageText:
    """An image-text model, and what a Recipe needs to start from it.

    Attributes:
        objective: a model of single images and texts; its `embed` is the width of the features.
        preprocessing: image_size, mean, std, resize and interpolation.
        tokenizer: the tokenizer of the model.
        init_from, init_extra: fields of the Recipe that set the initial weights; () for random initialisation.
    """

    objective: Any
    preprocessing: Mapping[str, Any]
    tokenizer: Any
    init_from: tuple[Callable[[Params], Params], ...] = ()
    init_extra: tuple[Callable[[Extra], Extra], ...] = ()

    @property
    def features(self) -> tuple[str, str]:
        """Outputs that are compared with texts or class means, and that linear probes read."""
        if isinstance(self.objective, Encoder | IBOT):
            return "features", "features"
        return "image_features", "visual" if isinstance(self.objective, RetCLIP) else "image_features"

    def behind(self, adapter: Any, prompts: Sequence[Any]) -> WarmStart:
        """The start of an `adapter` on top of the model (objectives.Adapted), with its features of the classes.

        prompts: token ids i32 [P L] of each class.
        """

        def start(params: Params) -> Params:
            filled = {**params, "model": reduce(lambda tree, change: change(tree), self.init_from, params["model"])}
            extra = {"model": reduce(lambda tree, change: change(tree), self.init_extra, {})}
            return adapter.with_heads(filled, extra, partial(class_features, prompts=prompts))

        extra = tuple(lambda fresh, change=change: {"model": change(fresh["model"])} for change in self.init_extra)
        return WarmStart((start,), extra)


def image_text(
    init: str, checkpoint: int | str = "", *, smoke: bool = False, encoders: bool = False, level: str = "patient"
) -> ImageText:
    """Load an image-text model from any path that interop.load supports.

    smoke: without `init`, create a tiny untrained model instead (smoke test). encoders: also take an image encoder (VisionFM,
    DINO, RETFound), whose tokenizer is None. level: of a RET-CLIP, "patient", "left" or "right". Raises UserError if `init`
    is empty, holds another kind of model or an image-text model without a tokenizer.
    """
    if not init and smoke:
        words = tokenizers.bundled(48)
        objective = clip("smoke", vocab=words.vocab_size, context=words.context)
        facts = {"image_size": 32, "mean": MEAN, "std": STD, "resize": "squash", "interpolation": "bicubic"}
        return ImageText(objective, facts, words)
    if not init:
        raise UserError("--init is missing: a run, an exported folder or a weights file of an image-text model")
    model = load(init, checkpoint)
    alone = encoders and isinstance(model.objective, Encoder | IBOT)
    if not hasattr(model.objective, "encode") and not alone:
        kind = type(model.objective).__name__
        raise UserError(f"{init} holds {kind}; expected a model of single images and texts, such as CLIP")
    if model.tokenizer is None and not alone:
        raise UserError(f"{init} has no tokenizer, which is needed to describe the classes")
    objective = model.objective
    if level != "patient" and not isinstance(objective, RetCLIP):
        raise UserError(f"{init} holds {type(objective).__name__}, which has no level {level!r}; a RET-CLIP has")
    objective = replace(objective, single=level) if isinstance(objective, RetCLIP) else objective
    start = (lambda fresh: model.params,), (lambda fresh: model.extra,)
    return ImageText(objective, dict(model.preprocessing), model.tokenizer, *start)


def scores_of(tests: Sequence[Any], *, labels: bool = True, pairs: bool = True) -> dict[str, Any]:
    """The fields evals and best of a Recipe: zero-shot scores of labelled images, retrieval of images with texts.

    tests: data_pipelines.tasks.image_text.tests. The best checkpoint is chosen by the mean over the sources, of zero-shot
    AUC if there are labels, else of retrieval.
    """
    found: dict[str, Any] = {}
    for one in tests:
        if pairs and one.pairs:
            found[f"retrieval{one.suffix}"] = retrieval(one.pairs)
        if labels and one.labelled:
            found[f"zero_shot{one.suffix}"] = zero_shot(one.labelled, one.classes, one.prompts)
    ranked = any(name.startswith("zero_shot") for name in found)
    best = "zero_shot*/macro_auc" if ranked else "retrieval*/image_to_text_R@1"
    return {"evals": found, "best": best if found else None}


def visit_scores_of(passes: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluations of a model of visits. passes: the arguments of evals.VisitScores by the name of the evaluation.

    With classes, visit_zero_shot scores the visits again as single answers, for the subgroups and the cases of a
    report.
    """
    found: dict[str, Any] = {name: VisitScores(**arguments) for name, arguments in passes.items()}
    ranked = any(one.classes for one in found.values())
    for name, one in list(found.items()):
        if one.classes:
            scored = zero_shot(one.data, one.classes, one.prompts, inputs=("images", *VIEWS, "valid"))
            found[f"visit_zero_shot{name.removeprefix('visits')}"] = scored
    return {
        "evals": found,
        "best": ("visits*/macro_auc" if ranked else "visits*/R@10/report to visit") if found else None,
    }


def eye_scores_of(
    passes: Mapping[str, Any], drawn: Any, probe: Any, inputs: Sequence[str], *, parity: bool = False
) -> dict[str, Any]:
    """Evaluations of a model of both eyes and a report.

    Args:
        passes: pairs of eyes with their reports, by the name of the evaluation; `inputs` are the keys of the eyes.
        drawn: None, or labelled synthetic patients: batches, classes, and prompts by level (patient, left, right).
        probe: None, or what data_pipelines.tasks.eye_pairs.probe_data gives.
        parity: score retrieval as RET-CLIP's own code does.
    """
    found: dict[str, Any] = {name: retrieval(one, parity=parity, inputs=inputs) for name, one in passes.items()}
    best = "retrieval*/image_to_text_R@1" if found else None
    if drawn:
        batches, classes, prompts = drawn
        found["zero_shot"] = zero_shot(batches, classes, prompts["patient"], inputs=("left", "right"))
        found["laterality"] = Laterality(data=batches, prompts={eye: prompts[eye] for eye in ("left", "right")})
        best = "zero_shot/macro_auc"
    if probe:
        found["probe"] = Probe(**probe[0], label=probe[1], feature="visual")
    return {"evals": found, "best": best}
