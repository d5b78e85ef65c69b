"""Metrics on numpy arrays: classification, calibration, segmentation, text, and their confidence intervals."""
