"""Training: the loop, its state, and what a run stores about itself so that it resumes or is repeated.

loop      fit: restore or initialise, train, evaluate and save; the same for every method
state     parameters, extra state and optimizer state, as shapes and as arrays
stored    what a run stores about itself, and the check whether a command continues it
rerun     the arguments of a stored run, with changes
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.train.loop import fit, is_complete, train_step
    from fundax.train.rerun import repeated, trusted_config
    from fundax.train.state import TrainState, abstract_state, fresh
    from fundax.train.stored import changes, check_evaluation, describe
