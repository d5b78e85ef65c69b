"""Text: tokenizers, prompts, expert knowledge, and the findings in a report.

tokenizers    CLIP's byte pairs, BERT's word pieces, and the bundled vocabulary
prompts       zero-shot prompts of a class
knowledge     descriptions and synonyms of findings (data/eyes.json)
findings      extract findings from a report
conditions    names of conditions, findings and biomarkers
wording       wordings of conditions and findings in reports
"""
