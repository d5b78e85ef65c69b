"""A config that trains in seconds, for tests of the trainer: synthetic eyes, a ViT with one block, drop path and flips."""

from data_pipelines import Data, train
from data_pipelines.transforms import Flip, Select, SingleView, Squash
from fundax import Recipe, Run, encoders, objectives, optim

SIDE = 32


def recipe(*, data: Data = Data(patients=64), run: Run = Run(batch=8, steps=200, lr=1e-3, save_every=2)) -> Recipe:
    """Classify the conditions of synthetic eyes."""
    eyes = data.eyes(run.seed, SIDE)
    vit = encoders.ViT(image_size=SIDE, patch=8, width=16, depth=1, heads=2, drop_path=0.2)
    backbone = encoders.Backbone(vit, blocks=1, frozen=False)
    return Recipe(
        **run.recipe(run.steps, log=1, save=2, eval=0),
        objective=objectives.Classify(
            backbone, encoders.MLPHead(len(eyes.classes), 1, norm=False), classes=eyes.classes
        ),
        train=train(eyes, (SingleView(), Flip(), Squash(SIDE), Select(("image", "label"))), **run.loader()),
        optimizer=optim.adamw(optim.constant(run.lr), weight_decay=run.weight_decay),
    )
