"""python launch.py train configs/ret_clip.py --workdir runs/ret_clip --data patients.csv

RET-CLIP as published: ViT-B/16 and a BERT of base size, both eyes and one report per patient. --data is a CSV (patient,
left, right, text), S_imgs.tsv beside S_texts.jsonl, or a folder of LMDB; without it, synthetic patients. A small model
that two CPU cores train in ten minutes: python launch.py train configs/ret_clip.py --preset laptop --workdir runs/ret_clip
"""

from typing import Literal

import optax

from data_pipelines.language.tokenizers import bundled
from data_pipelines.open import Sources, joined, synthetic_parts
from data_pipelines.pipeline import one_epoch, train
from data_pipelines.synthetic.sources import Patients
from data_pipelines.tasks.eye_pairs import level_prompts, paired, pairs, probe_data
from data_pipelines.tasks.image_text import report_cut_texts, scored_names
from data_pipelines.transforms.steps import Flip, Select, Squash, Tokenize, ret_clip_aug
from data_pipelines.transforms.views import PairedEyes
from fundax import encoders, evals, interop, optim
from fundax.evals.retrieval import retrieval
from fundax.evals.zero_shot import zero_shot
from fundax.objectives.ret_clip import ret_clip
from fundax.recipe import Recipe, Run

LAPTOP = {"batch": 64, "epochs": 8, "workers": 0, "dtype": "float32", "remat": "none", "patients": 4000, "context": 96}
PRESETS = {"laptop": LAPTOP | {"size": "tiny", "augment": "flip", "lr": 1e-3, "weight_decay": 0.1}}
KEYS = ("left", "right", "left_present", "right_present", "text")


def recipe(
    *,
    preset: Literal["published", "laptop"] = "published",
    data: Sources = Sources(patients=20_000),
    run: Run = Run(batch=256, epochs=10, workers=4, dtype="bfloat16", remat="full", lr=3e-5, weight_decay=1e-3),
    size: str = "B/16",
    text_size: str = "base",
    init: str = "",
    tokenizer: str = "",
    context: int = 100,
    language: Literal["en", "zh"] = "en",
    augment: Literal["published", "flip"] = "published",
    rfmid_root: str = "",
    total: Literal["sum", "mean"] = "sum",
    parity: bool = False,
) -> Recipe:
    """RET-CLIP: AdamW with 50 steps of warm-up and a cosine. --augment flip also clips gradients and decays matrices only."""
    words = interop.tokenizer(tokenizer or init, bundled(context), context)
    image, _ = run.compute(encoders.ViT, encoders.BERT)
    published = augment == "published"
    objective = ret_clip(
        size, text_size, vocab=words.vocab_size, context=words.context, total=total, presence=not parity,
        negatives="local" if parity else "global", scan=published, **image,
    )  # fmt: skip
    side = objective.image.image_size
    patients = Patients(data.patients, run.seed, modalities=data.modalities, size=side, language=language)
    unseen = patients.split("val", min(data.patients, 420))
    parts = data.parts(synthetic_parts(patients, keep=not run.workers, val=len(unseen)), run.seed, opener=pairs(data))
    report_cut_texts(parts["train"], words)
    source = joined(parts["train"])
    steps = run.total(-(-len(source) // run.batch))
    see = ret_clip_aug(side, parity=parity) if published else (Flip(), Squash(side))
    eyes, prompts = paired(unseen, run.batch), level_prompts(unseen, words)
    probes, label = probe_data(unseen, rfmid_root, run.batch)
    chain = (PairedEyes(), Squash(side), Tokenize(words), Select(KEYS))
    held_out = {n: one_epoch(one.source, chain, batch=run.batch) for n, one in scored_names(data, parts)}
    scores = {f"retrieval{n}": retrieval(one, parity=parity, inputs=KEYS[:4]) for n, one in held_out.items()}
    drawn = {
        "zero_shot": zero_shot(eyes, unseen.classes, prompts["patient"], inputs=("left", "right")),
        "laterality": evals.Laterality(data=eyes, prompts={eye: prompts[eye] for eye in KEYS[:2]}),
    }
    probe = {"probe": evals.Probe(**probes, label=label, feature="visual")}
    rule = optim.peer_ret_clip if published else optim.decay_matrices
    return Recipe(
        **run.recipe(steps, interop.warm_start(init, objective), log=20, save=200, eval=200),
        objective=objective,
        train=train(source, (PairedEyes(), *see, Tokenize(words), Select(KEYS)), **run.loader()),
        optimizer=optax.chain(
            optax.identity() if published else optax.clip_by_global_norm(1.0),
            optim.adamw(optim.cosine(run.lr, steps, min(50, steps // 2)), (0.9, 0.98), 1e-6, run.weight_decay, rule),
            optim.clip_params({"^log_scale/": (0.0, optim.MAX_LOG_SCALE)}),
        ),
        evals=scores | (probe if rfmid_root else {}) if data.data else drawn | probe,
        best="zero_shot/macro_auc" if not data.data else "retrieval*/image_to_text_R@1" if scores else None,
        tokenizer=words,
    )
