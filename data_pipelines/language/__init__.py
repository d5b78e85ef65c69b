"""Text: tokenizers, prompts, expert knowledge, and the findings in a report.

tokenizers    CLIP's byte pairs, BERT's word pieces, and the bundled vocabulary
prompts       zero-shot prompts of a class
knowledge     descriptions and synonyms of findings (data/eyes.json)
findings      extract findings from a report
conditions    names of conditions, findings and biomarkers
phrases       match known phrases in a text
scopes        negation and uncertainty of findings
wording       wordings of conditions and findings in reports
"""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from data_pipelines.language import conditions, findings, knowledge, prompts, tokenizers, wording
    from data_pipelines.language.conditions import CONDITIONS, FINDINGS
    from data_pipelines.language.prompts import prompts_of
    from data_pipelines.language.tokenizers import bundled
