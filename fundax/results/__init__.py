"""Figures, tables and the report page of a run."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.results.cases import draw_cases
    from fundax.results.figures import draw_run
    from fundax.results.html import Html, Section, captioned, joined, number, picture, plain, table, tag, write
    from fundax.results.page import report
    from fundax.results.read import Cases, Judged, Run, read_run
    from fundax.results.reports import draw_reports
    from fundax.results.scores import binary, positives
    from fundax.results.svg import Frame, Line, key, panel
    from fundax.results.tables import zero_shot_table
