"""Text: tokenizers, prompts, knowledge, report sentences and the findings in a report."""
