"""Numbers from a model: zero-shot, retrieval, figures."""
