"""Ablation of KeepFIT V2 on synthetic eyes: zero-shot and five-shot AUC of each variant.

    python benchmarks/keepfit_ablation.py                  # three seeds
    python benchmarks/keepfit_ablation.py --smoke          # every variant once, in a minute; writes no results

The public part has only categories, of ten conditions, a fifth of which are wrong. The elite part has a twentieth of this
number of patients, with reports, of fourteen conditions, four of which are absent from the public part. All variants are
evaluated on unseen patients by the macro AUC over the ten and over the four conditions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from record import Table, record
from rich.console import Console

from data_pipelines.language import knowledge, tokenizers
from data_pipelines.language.conditions import CONDITIONS
from data_pipelines.sources.texts import Corpus, descriptions
from data_pipelines.synthetic.sources import Eyes
from data_pipelines.transforms.flair import Diagnosed, category_id, status
from data_pipelines.transforms.steps import stream
from data_pipelines.transforms.word_masks import MaskWords
from fundax.encoders.autoencoder import ImageDecoder, ImageEncoder
from fundax.encoders.bert import BERT
from fundax.encoders.report_decoder import ReportDecoder
from fundax.encoders.vit import ViT
from fundax.evals.zero_shot import class_features, class_rows
from fundax.objectives.flair import FLAIR, POOL_LAYERS
from fundax.objectives.keepfit import KeepFIT
from fundax.objectives.keepfit_reference import V1, V2
from fundax.objectives.masked_text import MaskedText
from fundax.objectives.vector_quantize import VectorQuantize
from fundax.optim import MAX_LOG_SCALE, adamw, clip_params, cosine

ABSENT = ("retinal detachment", "pathologic myopia", "macular hole", "cataract")  # absent from the public part
PRESENT = tuple(name for name in CONDITIONS if name not in ABSENT)
COLUMNS = ("zero-shot, known", "zero-shot, absent", "5-shot, known", "5-shot, absent")


@dataclass(frozen=True)
class Scale:
    """Sizes of data, model and training; the default takes some minutes on two cores."""

    patients: int = 1200
    test: int = 30  # eyes per condition
    side: int = 48
    width: int = 64
    depth: int = 3
    batch: int = 32
    steps: int = 240
    mlm_steps: int = 240
    vq_steps: int = 200
    noise: float = 0.2
    context: int = 40


@dataclass(frozen=True)
class Arm:
    """A variant: its objective, and whether its text encoder is pretrained."""

    name: str
    objective: Any  # None if it is not trained
    masked_text: bool = False


@dataclass(frozen=True)
class Eyesight:
    """Images with labels, categories, reports and appearances."""

    image: np.ndarray  # u8 [N h w 3]
    label: np.ndarray  # i32 [N], index of CONDITIONS
    category: tuple[str, ...]  # with label noise
    report: np.ndarray  # i32 [N L]
    appearance: np.ndarray  # f32 [N A]


def arms(base: FLAIR, words: tokenizers.Tokenizer, appearance: int) -> list[Arm]:
    """All variants, in the order of the table."""
    v2 = partial(KeepFIT, base, appearance=appearance, by_status=True)
    decoder = ReportDecoder(words.vocab_size, words.context - 1, 64, 1, 2, 128, bos=words.start, eos=words.end,
                            pad=words.pad)  # fmt: skip
    return [
        Arm("random weights", None),
        Arm("FLAIR (public part alone)", base),
        Arm("mixed (V1 without reference)", KeepFIT(base, None)),
        Arm("KeepFIT V1", KeepFIT(base, V1)),
        Arm("V2 without masked text", v2(reference=V2)),
        Arm("V2, meaning alone", v2(reference=replace(V2, lam=1.0)), True),
        Arm("V2, appearance alone", v2(reference=replace(V2, lam=0.0)), True),
        Arm("V2, both", v2(reference=V2), True),
        Arm("V2, both, with captions", v2(reference=V2, caption=decoder), True),
    ]


def look_at(source: Any, words: tokenizers.Tokenizer, side: int) -> Eyesight:
    """Render all images of a Diagnosed source."""
    names = source.source.classes
    records = [source[row] for row in range(len(source))]
    return Eyesight(
        np.stack([np.asarray(record.views[0].image) for record in records]),
        np.array([CONDITIONS.index(names[int(record.targets["label"])]) for record in records], np.int32),
        tuple(record.findings[0] for record in records),
        words([record.report for record in records]),
        np.zeros((len(records), 1), np.float32),
    )


def batches(public: Eyesight, elite: Eyesight, captions: dict[str, np.ndarray], size: int, seed: int) -> Iterator[dict]:
    """Endless batches of public and elite examples. Captions of categories are drawn from the knowledge base."""
    rng = np.random.default_rng(seed)
    ids = np.array([category_id(name) for name in public.category])
    healthy = [np.array([status((name,)) for name in part.category], np.int32) for part in (public, elite)]
    while True:
        order = rng.permutation(len(public.image))
        for at in range(0, len(order) - size + 1, size):
            rows, chosen = order[at : at + size], rng.integers(len(elite.image), size=size)
            phrasings = [captions[public.category[row]] for row in rows]
            image = public.image[rows].copy()
            mirrored = rng.random(size) < 0.5
            image[mirrored] = image[mirrored, :, ::-1]
            yield {
                "image": image,
                "text": np.stack([ways[rng.integers(len(ways))] for ways in phrasings]),
                "category": ids[rows],
                "status": healthy[0][rows],
                "appearance": public.appearance[rows],
                "elite/image": elite.image[chosen],
                "elite/text": elite.report[chosen],
                "elite/status": healthy[1][chosen],
                "elite/appearance": elite.appearance[chosen],
            }


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def update(objective: Any, rates: tuple[float, int], state: tuple, batch: dict, key: jax.Array) -> tuple:
    """Take a step of AdamW. `state` is (step, parameters, extra, optimizer)."""
    step, params, extra, opt = state
    rng = jax.random.fold_in(key, step)
    (_, (extra, metrics)), grads = jax.value_and_grad(objective.loss, has_aux=True)(params, extra, batch, rng, step)
    changes, opt = _optimizer(objective, *rates).update(grads, opt, params)
    return (step + 1, optax.apply_updates(params, changes), extra, opt), metrics


def _optimizer(objective: Any, lr: float, steps: int) -> optax.GradientTransformation:
    chain = [optax.clip_by_global_norm(1.0), adamw(cosine(lr, steps, warmup=max(steps // 10, 1)), weight_decay=0.01)]
    if isinstance(objective, FLAIR | KeepFIT):
        chain.append(clip_params({"log_scale$": (0.0, MAX_LOG_SCALE)}))
    return optax.chain(*chain)


@partial(jax.jit, static_argnums=(0, 1))
def started(objective: Any, rates: tuple[float, int], key: jax.Array, text_tower: Any) -> tuple:
    """The initial state, with the text encoder of stage 0 if given."""
    example = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in objective.batch_spec(1).items()}
    params, extra = objective.init(key, example)
    if text_tower is not None:
        params["text"] = text_tower
    return jnp.zeros((), jnp.int32), params, extra, _optimizer(objective, *rates).init(params)


def fit(
    objective: Any, data: Iterator[dict], steps: int, seed: int, text_tower: Any = None, lr: float = 1e-3
) -> tuple[Any, Any]:
    """Parameters and extra state after `steps` steps."""
    key, rates = jax.random.key(seed), (lr, max(steps, 2))
    state = started(objective, rates, key, text_tower)
    wanted = objective.batch_spec(1)
    for _ in range(steps):
        batch = next(data)
        state, _ = update(objective, rates, state, {name: batch[name] for name in wanted}, key)
    return state[1], state[2]


def masked_text(base: FLAIR, words: tokenizers.Tokenizer, reports: tuple[str, ...], scale: Scale, seed: int) -> Any:
    """Train stage 0 on the knowledge base and the elite reports, and return the text encoder."""
    corpus = Corpus((*descriptions(knowledge.bundled()).texts, *reports))
    ids, mask = words(corpus.texts), MaskWords(words)

    def examples() -> Iterator[dict]:
        rng, position = np.random.default_rng(seed), 0
        while True:
            rows = rng.integers(len(ids), size=scale.batch)
            made = [mask({"text": ids[row]}, stream(seed, position + i, "MaskWords", 0)) for i, row in enumerate(rows)]
            position += len(rows)
            yield {name: np.stack([example[name] for example in made]) for name in made[0]}

    return fit(MaskedText(base.text, scale.context, mask.longest), examples(), scale.mlm_steps, seed)[0]["text"]


def with_appearance(parts: list[Eyesight], scale: Scale) -> tuple[list[Eyesight], int]:
    """Add appearances by an autoencoder trained on the first part; also return the width of an appearance."""
    coder = VectorQuantize(ImageEncoder((16, 32), 64), ImageDecoder((16, 32)), scale.side, codes=128)

    def pictures() -> Iterator[dict]:
        rng = np.random.default_rng(0)
        while True:
            yield {"image": parts[0].image[rng.integers(len(parts[0].image), size=scale.batch)]}

    params, extra = fit(coder, pictures(), scale.vq_steps, 0)
    look = jax.jit(lambda image: coder.forward(params, extra, {"image": image})["appearance"])
    looks = [np.concatenate([look(part.image[at : at + 40]) for at in range(0, len(part.image), 40)]) for part in parts]
    return [replace(part, appearance=a) for part, a in zip(parts, looks, strict=True)], coder.appearance


@partial(jax.jit, static_argnums=0)
def forward(base: FLAIR, params: Any, extra: Any, batch: dict) -> dict[str, jax.Array]:
    """Outputs for the evaluations."""
    return base.forward(params, extra, batch)


def evaluate(
    base: FLAIR, params: Any, extra: Any, test: Eyesight, pool: Eyesight, prompts: list[np.ndarray]
) -> list[float]:
    """Zero-shot and five-shot macro AUC over PRESENT and over ABSENT, on `test`."""

    def features(part: Eyesight) -> dict[str, np.ndarray]:
        cut = [
            forward(base, params, extra, {"image": part.image[at : at + 70]}) for at in range(0, len(part.image), 70)
        ]
        return {name: np.concatenate([np.asarray(out[name]) for out in cut]) for name in ("visual", "image_features")}

    there = features(test)
    heads = class_features(lambda batch: jax.device_get(forward(base, params, extra, batch)), prompts)
    zero = there["image_features"] @ heads.T
    few = _few_shot(features(pool)["visual"], pool.label, there["visual"])
    return [_macro(scores, test.label, names) for scores in (zero, few) for names in (PRESENT, ABSENT)]


def _macro(scores: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> float:
    auc = class_rows(scores, labels, CONDITIONS)["auc"]
    return float(np.mean([auc[CONDITIONS.index(name)] for name in names]))


def _few_shot(features: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Scores of FLAIR's linear probe trained on the pool, five examples per class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    probe = LogisticRegression(C=0.316, class_weight="balanced", max_iter=1000)
    return probe.fit(scaler.transform(features), labels).decision_function(scaler.transform(test))


def balanced(start: int, each: int, scale: Scale, words: tokenizers.Tokenizer) -> Eyesight:
    """`each` eyes of every condition, of patients from `start` on."""
    parts = [
        look_at(Diagnosed(Eyes(each, 0, start + 10_000 * k, size=scale.side, conditions=(name,))), words, scale.side)
        for k, name in enumerate(CONDITIONS)
    ]

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    names = tuple(name for part in parts for name in part.category)
    return Eyesight(join("image"), join("label"), names, join("report"), join("appearance"))


def measure(scale: Scale, seeds: int, only: str, console: Console) -> dict[str, np.ndarray]:
    """Scores [seeds 4] of every variant."""
    words, known = tokenizers.bundled(scale.context), knowledge.bundled()
    tower = BERT(words.vocab_size, scale.context, scale.width, 2, 2, 2 * scale.width, dropout=0.0, pool="mean",
                 pool_layers=POOL_LAYERS)  # fmt: skip
    base = FLAIR(ViT(scale.side, 8, scale.width, scale.depth, 2), tower, embed=64, context=scale.context)
    names = {name: finding.name if (finding := known.find(name)) else name for name in CONDITIONS}
    captions = {k: words([known.caption(way) for way in known.ways(v)]) for k, v in names.items()}
    prompts = [words(list(known.ensemble(names[name]))) for name in CONDITIONS]
    test, pool = balanced(1_000_000, scale.test, scale, words), balanced(3_000_000, 5, scale, words)
    out: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        experts = Diagnosed(Eyes(scale.patients // 20, seed, 2_000_000, size=scale.side))
        crowd = Diagnosed(Eyes(scale.patients, seed, size=scale.side, conditions=PRESENT), scale.noise, seed)
        (public, elite), length = with_appearance(
            [look_at(part, words, scale.side) for part in (crowd, experts)], scale
        )
        reports = tuple(experts[row].report for row in range(len(experts)))
        stage0 = masked_text(base, words, reports, scale, seed)
        for arm in (arm for arm in arms(base, words, length) if only in arm.name):
            start = time.perf_counter()
            data = batches(public, elite, captions, scale.batch, seed)
            steps = 0 if arm.objective is None else scale.steps
            state = fit(arm.objective or base, data, steps, seed, stage0 if arm.masked_text else None)
            row = evaluate(base, *state, test, pool, prompts)
            out.setdefault(arm.name, []).append(row)
            scores = "  ".join(f"{value:.3f}" for value in row)
            console.print(f"seed {seed}  {arm.name:30} {scores}  {time.perf_counter() - start:.0f} s")
    return {name: np.array(rows) for name, rows in out.items()}


def table(scores: dict[str, np.ndarray], title: str) -> Table:
    """Mean and standard deviation over the seeds."""
    lines = []
    for name, rows in scores.items():
        spread = rows.std(0, ddof=1) if len(rows) > 1 else np.zeros(len(COLUMNS))
        cells = [f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(rows.mean(0), spread, strict=True)]
        lines.append((name, *cells))
    return Table(title, ("variant", *COLUMNS), lines)


def main(seeds: int = 3, scale: Scale = Scale(), only: str = "", smoke: bool = False, keep: bool = True) -> None:
    """Train and evaluate the variants with `only` in their names, with all seeds. Results are written if all were run."""
    if smoke:
        seeds, scale = (
            1,
            Scale(patients=160, test=4, side=32, width=16, depth=1, batch=8, steps=3, mlm_steps=3, vq_steps=3),
        )
    console, start = Console(width=160), time.perf_counter()
    scores = measure(scale, seeds, only, console)
    minutes = (time.perf_counter() - start) / 60
    title = f"Macro AUC, mean ± standard deviation over {seeds} seeds; {minutes:.0f} minutes; {scale}"
    record("keepfit_ablation", [table(scores, title)], keep=keep and not smoke and not only)


if __name__ == "__main__":
    tyro.cli(main)
