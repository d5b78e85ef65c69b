"""Synthetic patients: eyes with diseases, drawn as fundus photographs, angiograms and OCT, with reports."""
