"""python launch.py train configs/visit.py --workdir runs/visit

Contrastive pretraining on visits with both eyes, several modalities, and reports of the visit, the eyes and the views, any of
which may be missing. --data is a table of visits; without it, the visits are synthetic, with CFP, OCT and FFA of both eyes,
on which a small model trains on a CPU. See docs/methods/visits.md.
"""

from data_pipelines import Data, mix, synthetic_parts
from data_pipelines.language import bundled
from data_pipelines.synthetic.sources import Visits
from data_pipelines.tasks.image_text import rows_of, templated
from data_pipelines.tasks.visits import VisitOptions, visit_passes
from data_pipelines.transforms import Squash
from fundax import Recipe, Run, encoders, interop, optim
from fundax.inference.image_text import visit_scores_of
from fundax.objectives.clip import optimizer
from fundax.objectives.visit import Terms, visit

TEMPLATES = ("{}.", "both eyes: {}.", "right eye: {}.", "left eye: {}.", "findings consistent with {}.")
PRESETS = {"smoke": {"patients": 24, "image_slots": 6, "text_slots": 9}}


def recipe(
    *,
    data: Data = Data(patients=1200, modalities=("CFP", "OCT", "FFA")),
    run: Run = Run(batch=24, steps=800, lr=1e-3, weight_decay=0.1),
    visits: VisitOptions = VisitOptions(),
    terms: Terms = Terms(),
    size: str = "tiny",
    init: str = "",
    tokenizer: str = "",
    context: int = 48,
) -> Recipe:
    """Image-text terms at every level, and image-image terms between the modalities of an eye, with one shared encoder."""
    words, names = interop.tokenizer(tokenizer or init, bundled(context), context), data.wanted
    fields = terms.fields() | {"images": visits.image_slots, "texts": visits.text_slots}
    mean, std = data.moments()
    model = {"vocab": words.vocab_size, "context": words.context, **run.compute(encoders.ViT)[0]}
    objective = visit(size, names, mean=mean, std=std, **model, **fields)
    side = objective.image.image_size
    drawn = Visits(data.patients, run.seed, modalities=names, size=side, missing=visits.missing_views)
    parts = data.parts(synthetic_parts(drawn, keep=not run.workers, val=min(data.patients, 420)), run.seed)
    steps = run.total(-(-rows_of(parts["train"]) // run.batch))
    chain = visits.parts(parts["train"], names, (Squash(side),), words, terms.levels())
    passes = visit_passes(data, parts, names, (Squash(side),), words, templated(TEMPLATES), run.batch)
    return Recipe(
        **run.recipe(steps, interop.warm_start(init, objective), log=20, save=200, eval=400),
        objective=objective,
        train=mix(chain, room=visits.room(), **run.loader()),
        optimizer=optimizer(optim.cosine(run.lr, steps, min(50, steps // 2)), run.weight_decay, published=False),
        **visit_scores_of(passes),
        preprocessing={"modalities": names},
        tokenizer=words,
    )
