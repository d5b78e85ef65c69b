"""Foundation models for eyes in JAX: pretrain, fine-tune, evaluate, predict and export.

The functions most programs need:

    fundax.load               open a model to ask: a run, or a folder or file in another program's format
    fundax.fit                train a recipe in a run directory; an interrupted run resumes
    fundax.load_recipe        build the recipe of a config file from command-line arguments
    fundax.Recipe             the objective, data, optimizer and evaluations of a run
    fundax.Run                the settings that every run has: batch, steps, mesh, dtype, seed, ...
    fundax.Intervals          how often a run logs, saves and evaluates
    fundax.export             write a run in another program's format
    fundax.import_checkpoint  turn another program's checkpoint into a run
    fundax.report             write an HTML page about one or several runs
    fundax.UserError          the error that is raised for invalid input

The rooms, each with its own table of contents (`help(fundax.losses)`):

    fundax.encoders     Flax Linen modules: ViT, ResNet, text transformers, BERT, UNETR
    fundax.losses       loss functions on arrays: contrastive (dense and ring), supervised, dense, diffusion
    fundax.objectives   one frozen dataclass per method: CLIP, RetCLIP, FLAIR, KeepFIT, IBOT, Classify
    fundax.metrics      metrics on numpy arrays, and their confidence intervals
    fundax.evals        evaluations on a data set: zero-shot, retrieval, probes, segmentation, reports
    fundax.optim        optimizers, schedules, weight decay and freezing
    fundax.interop      checkpoint formats of other programs, in and out
    fundax.inference    predict, embed, explain, write reports, synthesize images
    fundax.results      figures, tables and the report page
    fundax.runtime      devices, processes, checkpoints, run directories and logging
    fundax.roofline     memory, communication and step time of a compiled training step
    fundax.train        the training loop, its state, and what a run stores so that it resumes or is repeated
    fundax.serving      a page and an API to ask a model
    fundax.cli          verbs of the command line and their arguments, and cross-validation

Importing fundax imports neither JAX nor Flax; each name is imported at its first use.
"""

from etils import epy as _epy

__version__ = "0.1.0"

with _epy.lazy_api_imports(globals()):
    from fundax import (
        cli,
        encoders,
        evals,
        inference,
        interop,
        losses,
        metrics,
        objectives,
        optim,
        results,
        roofline,
        runtime,
        serving,
        train,
    )
    from fundax.config import load as load_recipe
    from fundax.inference.model import load
    from fundax.interop.exchange import export, import_checkpoint
    from fundax.recipe import Intervals, Recipe, Run
    from fundax.results.page import report
    from fundax.train.loop import fit
    from fundax.types import UserError
