"""Loss functions on arrays: contrastive, supervised, dense, distillation and diffusion."""
