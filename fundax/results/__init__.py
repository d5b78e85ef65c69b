"""Figures, console tables and the report page of runs."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.results.evaluation import Evaluation
    from fundax.results.figures import confusion, curves, pairs, roc, scatter, shots
    from fundax.results.finished import draw_run, show
    from fundax.results.kinds import KINDS, Kind, evaluations
    from fundax.results.page import report
    from fundax.results.read import Run, read_curves, read_result, read_run
    from fundax.results.scores import compare, headline, subgroups
