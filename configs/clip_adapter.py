"""python launch.py train configs/clip_adapter.py --init runs/quickstart --workdir runs/adapter --data labels.csv,images=photos

CLIP-Adapter (arXiv:2110.04544): two small matrices, trained on the features of a frozen image-text model. The features are
computed once, and the classes are described by prompts. Without --data, the images are synthetic eyes. The checkpoint is
selected on the validation part; evaluate the test part at the end: launch.py eval runs/adapter --part test
"""

from data_pipelines import Data
from data_pipelines.language import prompts_of
from data_pipelines.tasks import labelled
from data_pipelines.tasks.image_text import check_words, fingerprint
from data_pipelines.transforms import Grouped, SingleView
from fundax import Recipe, Run, evals, objectives, optim
from fundax.inference.image_text import image_text

PRESETS = {"smoke": {"steps": 3, "patients": 28}}


def recipe(
    *,
    data: Data = Data(patients=700, fractions=labelled.FRACTIONS),
    run: Run = Run(batch=64, epochs=40, lr=1e-3, weight_decay=0.01),
    init: str = "",
    checkpoint: str = "",
    wording: str = "",
    ratio: float = 0.2,
    reduction: int = 4,
    cache: str = "",
) -> Recipe:
    """CLIP-Adapter with FLAIR's settings, except that a step has a batch instead of a single image."""
    model = image_text(init, checkpoint, smoke=run.smoke)
    parts = labelled.parts(data, data.eyes(run.seed, int(model.preprocessing["image_size"])), run.seed)
    check_words(parts.kind()[1], "--data")
    modality = parts.train[0].views[0].modality
    prompts = [model.tokenizer(list(prompts_of(name, modality, wording))) for name in parts.classes]
    adapter = objectives.ClipAdapter(model.objective.embed, len(parts.classes), ratio, reduction)
    objective = objectives.Adapted(model.objective, adapter)
    begin = model.behind(objective, prompts)
    view = Grouped(SingleView(text=None, targets=("label",)))
    read = labelled.Reader(parts, model.preprocessing, first=view, workers=run.workers)
    rows = evals.encoded(objective, begin, read, run.seed, cache, fingerprint(data, run.seed))
    epoch = max(len(parts.train) // run.batch, 1)
    steps = run.total(epoch)
    rule = optim.adamw(optim.cosine_schedule(run.lr, 0, steps), weight_decay=run.weight_decay, decay=optim.decay_all)
    return Recipe(
        **run.recipe(steps, begin, log=max(steps // 20, 1), save=0, eval=max(epoch, steps // 20)),
        objective=objective,
        train=evals.Epochs(rows("train"), run.batch, run.seed),
        optimizer=rule,
        evals={parts.name: evals.Classified(data=evals.once(rows("scored")), classes=parts.classes)},
        best="val/macro_auc",
        preprocessing={**model.preprocessing, "classes": parts.classes},
        tokenizer=model.tokenizer,
    )
