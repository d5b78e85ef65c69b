"""What the parts of KeepFIT V2 are worth on synthetic eyes: a table of zero-shot and five-shot AUC, by arm.

    python benchmarks/keepfit_ablation.py                  # three seeds; prints the table, appends it to docs/keepfit.md
    python benchmarks/keepfit_ablation.py --smoke          # every part once, in a minute; nothing is appended

The public part has categories alone, of ten conditions, a fifth of them wrong. The elite part is a twentieth as many
patients with a full report each, of fourteen conditions: four are absent from the public part. Everything is judged
on patients nobody has learnt from, by the macro AUC over the ten and over the four.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
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

ABSENT = ("retinal detachment", "pathologic myopia", "macular hole", "cataract")  # from the public part
PRESENT = tuple(name for name in CONDITIONS if name not in ABSENT)
DOCS = Path(__file__).parent.parent / "docs" / "keepfit.md"
COLUMNS = ("zero-shot, known", "zero-shot, absent", "5-shot, known", "5-shot, absent")


@dataclass(frozen=True)
class Scale:
    """How large everything is; the whole takes some minutes on two cores."""

    patients: int = 1200
    test: int = 30  # of each condition
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
    """A row of the table."""

    name: str
    objective: Any  # None: parameters as they are drawn
    masked_text: bool = False


@dataclass(frozen=True)
class Eyesight:
    """Images with what is known of them."""

    image: np.ndarray  # u8 [N h w 3]
    label: np.ndarray  # i32 [N], of CONDITIONS
    category: tuple[str, ...]  # as given, noise included
    report: np.ndarray  # i32 [N L]
    appearance: np.ndarray  # f32 [N A]


def arms(base: FLAIR, words: tokenizers.Tokenizer, appearance: int) -> list[Arm]:
    """The rows, in the order of the table."""
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
    """All pictures of a Diagnosed source, made once."""
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
    """Public and elite halves of a step for ever; a category is said in a way drawn from what is known of it."""
    rng = np.random.default_rng(seed)
    ids = np.array([category_id(name) for name in public.category])
    healthy = [np.array([status((name,)) for name in part.category], np.int32) for part in (public, elite)]
    while True:
        order = rng.permutation(len(public.image))
        for at in range(0, len(order) - size + 1, size):
            rows, told = order[at : at + size], rng.integers(len(elite.image), size=size)
            said = [captions[public.category[row]] for row in rows]
            image = public.image[rows].copy()
            mirrored = rng.random(size) < 0.5
            image[mirrored] = image[mirrored, :, ::-1]
            yield {
                "image": image,
                "text": np.stack([ways[rng.integers(len(ways))] for ways in said]),
                "category": ids[rows],
                "status": healthy[0][rows],
                "appearance": public.appearance[rows],
                "elite/image": elite.image[told],
                "elite/text": elite.report[told],
                "elite/status": healthy[1][told],
                "elite/appearance": elite.appearance[told],
            }


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def update(objective: Any, rates: tuple[float, int], state: tuple, batch: dict, key: jax.Array) -> tuple:
    """One step of AdamW; state is (step, parameters, extra, optimizer)."""
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
    """The state before the first step, with the text tower of stage 0 where there is one."""
    one = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in objective.batch_spec(1).items()}
    params, extra = objective.init(key, one)
    if text_tower is not None:
        params["text"] = text_tower
    return jnp.zeros((), jnp.int32), params, extra, _optimizer(objective, *rates).init(params)


def fit(
    objective: Any, data: Iterator[dict], steps: int, seed: int, text_tower: Any = None, lr: float = 1e-3
) -> tuple[Any, Any]:
    """Parameters and extra state after so many steps."""
    key, rates = jax.random.key(seed), (lr, max(steps, 2))
    state = started(objective, rates, key, text_tower)
    wanted = objective.batch_spec(1)
    for _ in range(steps):
        batch = next(data)
        state, _ = update(objective, rates, state, {name: batch[name] for name in wanted}, key)
    return state[1], state[2]


def masked_text(base: FLAIR, words: tokenizers.Tokenizer, reports: tuple[str, ...], scale: Scale, seed: int) -> Any:
    """The text tower after stage 0 on the knowledge base and the elite reports."""
    corpus = Corpus((*descriptions(knowledge.bundled()).texts, *reports))
    ids, mask = words(corpus.texts), MaskWords(words)

    def examples() -> Iterator[dict]:
        rng, position = np.random.default_rng(seed), 0
        while True:
            rows = rng.integers(len(ids), size=scale.batch)
            made = [mask({"text": ids[row]}, stream(seed, position + i, "MaskWords", 0)) for i, row in enumerate(rows)]
            position += len(rows)
            yield {name: np.stack([one[name] for one in made]) for name in made[0]}

    return fit(MaskedText(base.text, scale.context, mask.longest), examples(), scale.mlm_steps, seed)[0]["text"]


def seen(parts: list[Eyesight], scale: Scale) -> tuple[list[Eyesight], int]:
    """The parts with appearances by an autoencoder trained on the images of the first, and their length."""
    coder = VectorQuantize(ImageEncoder((16, 32), 64), ImageDecoder((16, 32)), scale.side, codes=128)

    def pictures() -> Iterator[dict]:
        rng = np.random.default_rng(0)
        while True:
            yield {"image": parts[0].image[rng.integers(len(parts[0].image), size=scale.batch)]}

    params, extra = fit(coder, pictures(), scale.vq_steps, 0)
    look = jax.jit(lambda image: coder.forward(params, extra, {"image": image})["appearance"])
    found = [np.concatenate([look(part.image[at : at + 40]) for at in range(0, len(part.image), 40)]) for part in parts]
    return [replace(part, appearance=a) for part, a in zip(parts, found, strict=True)], coder.appearance


@partial(jax.jit, static_argnums=0)
def forward(base: FLAIR, params: Any, extra: Any, batch: dict) -> dict[str, jax.Array]:
    """What the evaluations read."""
    return base.forward(params, extra, batch)


def judge(
    base: FLAIR, params: Any, extra: Any, test: Eyesight, pool: Eyesight, prompts: list[np.ndarray]
) -> list[float]:
    """The four columns: zero-shot and five-shot macro AUC over PRESENT and over ABSENT, on `test`."""

    def features(part: Eyesight) -> dict[str, np.ndarray]:
        cut = [
            forward(base, params, extra, {"image": part.image[at : at + 70]}) for at in range(0, len(part.image), 70)
        ]
        return {name: np.concatenate([np.asarray(one[name]) for one in cut]) for name in ("visual", "image_features")}

    there = features(test)
    heads = class_features(lambda batch: jax.device_get(forward(base, params, extra, batch)), prompts)
    zero = there["image_features"] @ heads.T
    few = _few_shot(features(pool)["visual"], pool.label, there["visual"])
    return [_macro(scores, test.label, names) for scores in (zero, few) for names in (PRESENT, ABSENT)]


def _macro(scores: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> float:
    auc = class_rows(scores, labels, CONDITIONS)["auc"]
    return float(np.mean([auc[CONDITIONS.index(name)] for name in names]))


def _few_shot(features: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Scores of FLAIR's linear probe on the pool's examples, five of each class."""
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
    """Columns [seeds 4] of every arm."""
    words, known = tokenizers.bundled(scale.context), knowledge.bundled()
    tower = BERT(words.vocab_size, scale.context, scale.width, 2, 2, 2 * scale.width, dropout=0.0, pool="mean",
                 pool_layers=POOL_LAYERS)  # fmt: skip
    base = FLAIR(ViT(scale.side, 8, scale.width, scale.depth, 2), tower, embed=64, context=scale.context)
    names = {name: finding.name if (finding := known.find(name)) else name for name in CONDITIONS}
    captions = {k: words([known.caption(way) for way in known.ways(v)]) for k, v in names.items()}
    prompts = [words(list(known.ensemble(names[name]))) for name in CONDITIONS]
    test, pool = balanced(1_000_000, scale.test, scale, words), balanced(3_000_000, 5, scale, words)
    found: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        experts = Diagnosed(Eyes(scale.patients // 20, seed, 2_000_000, size=scale.side))
        crowd = Diagnosed(Eyes(scale.patients, seed, size=scale.side, conditions=PRESENT), scale.noise, seed)
        (public, elite), length = seen([look_at(part, words, scale.side) for part in (crowd, experts)], scale)
        reports = tuple(experts[row].report for row in range(len(experts)))
        stage0 = masked_text(base, words, reports, scale, seed)
        for arm in (arm for arm in arms(base, words, length) if only in arm.name):
            start = time.perf_counter()
            data = batches(public, elite, captions, scale.batch, seed)
            steps = 0 if arm.objective is None else scale.steps
            state = fit(arm.objective or base, data, steps, seed, stage0 if arm.masked_text else None)
            row = judge(base, *state, test, pool, prompts)
            found.setdefault(arm.name, []).append(row)
            said = "  ".join(f"{value:.3f}" for value in row)
            console.print(f"seed {seed}  {arm.name:30} {said}  {time.perf_counter() - start:.0f} s")
    return {name: np.array(rows) for name, rows in found.items()}


def table(found: dict[str, np.ndarray]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    lines = ["| arm | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for name, rows in found.items():
        spread = rows.std(0, ddof=1) if len(rows) > 1 else np.zeros(len(COLUMNS))
        cells = [f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(rows.mean(0), spread, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(seeds: int = 3, scale: Scale = Scale(), only: str = "", smoke: bool = False, docs: Path = DOCS) -> None:
    """Train and judge every arm (whose name holds `only`) with every seed; print the table, and append it if whole."""
    if smoke:
        seeds, scale = (
            1,
            Scale(patients=160, test=4, side=32, width=16, depth=1, batch=8, steps=3, mlm_steps=3, vq_steps=3),
        )
    console, start = Console(width=160), time.perf_counter()
    text_table = table(measure(scale, seeds, only, console))
    took = (time.perf_counter() - start) / 60
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    note = (
        f"{date.today()}, {os.cpu_count()}-core {platform.machine()} CPU, {memory:.0f} GiB, jax {jax.__version__}, "
        f"Python {platform.python_version()}, {took:.0f} minutes; {seeds} seeds, {scale}"
    )
    console.print(text_table + "\n\n" + note, soft_wrap=True, markup=False)
    if not smoke and not only:
        with docs.open("a", encoding="utf-8") as file:
            file.write(f"\n{text_table}\n\n{note}\n")


if __name__ == "__main__":
    tyro.cli(main)
