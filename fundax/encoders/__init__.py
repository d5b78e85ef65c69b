"""The networks: Linen modules that return dicts of named outputs."""
