"""python launch.py train configs/ret_clip.py --workdir runs/ret_clip --data patients.csv

RET-CLIP as published: ViT-B/16 and BERT-base, with both eyes and one report per patient. --data is a CSV file (patient, left,
right, text), S_imgs.tsv with S_texts.jsonl in the same folder, or an LMDB folder; without --data, the patients are synthetic.
A small model, ten minutes on two CPU cores: python launch.py train configs/ret_clip.py --preset laptop --workdir runs/ret_clip
"""

from typing import Literal

from data_pipelines import Sources, joined, synthetic_parts, train
from data_pipelines.language import bundled
from data_pipelines.synthetic.sources import Patients
from data_pipelines.tasks.eye_pairs import level_prompts, paired, pairs, probe_data, retrieval_passes
from data_pipelines.tasks.image_text import report_cut_texts
from data_pipelines.transforms import Flip, PairedEyes, Select, Squash, Tokenize, ret_clip_aug
from fundax import Recipe, Run, encoders, interop
from fundax.inference.image_text import eye_scores_of
from fundax.objectives.ret_clip import optimizer, ret_clip

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
    """AdamW with 50 steps of warm-up and cosine decay. --augment flip also clips gradients and decays only matrices."""
    words = interop.tokenizer(tokenizer or init, bundled(context), context)
    image, _ = run.compute(encoders.ViT, encoders.BERT)
    published = augment == "published"
    objective = ret_clip(
        size, text_size, vocab=words.vocab_size, context=words.context, total=total, presence=not parity,
        negatives="local" if parity else "global", repeats="negatives" if parity else "mask", patients=not parity,
        scan=published, **image,
    )  # fmt: skip
    side = objective.image.image_size
    patients = Patients(data.patients, run.seed, modalities=data.modalities, size=side, language=language)
    unseen = patients.split("val", min(data.patients, 420))
    parts = data.parts(synthetic_parts(patients, keep=not run.workers, val=len(unseen)), run.seed, opener=pairs(data))
    report_cut_texts(parts["train"], words)
    source = joined(parts["train"])
    steps = run.total(-(-len(source) // run.batch))
    see = ret_clip_aug(side, parity=parity) if published else (Flip(), Squash(side))
    passes = retrieval_passes(data, parts, (Squash(side), Tokenize(words), Select(KEYS)), run.batch)
    drawn = None if data.data else (paired(unseen, run.batch), unseen.classes, level_prompts(unseen, words))
    probe = probe_data(unseen, rfmid_root, run.batch) if rfmid_root or drawn else None
    return Recipe(
        **run.recipe(steps, interop.warm_start(init, objective), log=20, save=200, eval=200),
        objective=objective,
        train=train(source, (PairedEyes(), *see, Tokenize(words), Select((*KEYS, "patient"))), **run.loader()),
        optimizer=optimizer(run.lr, steps, run.weight_decay, published),
        **eye_scores_of(passes, drawn, probe, KEYS[:4], parity=parity),
        tokenizer=words,
    )
