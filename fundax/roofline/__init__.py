"""Ahead-of-time compilation: memory, FLOPs, communication and the roofline time of a training step."""
