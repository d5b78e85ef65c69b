"""Resuming and repeating runs.

stored    what a run stores about itself, and the check whether a command continues it
rerun     the arguments of a stored run, with changes
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.resume.rerun import repeated, trusted_config
    from fundax.resume.stored import changes, check_evaluation, describe
