"""Visits of patients in, batches of arrays out. Never imports JAX or fundax."""
