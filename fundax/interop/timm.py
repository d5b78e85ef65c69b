"""ViTs under timm's key names, which DINO, iBOT, VisionFM and RETFound share: the table, and bare state dicts.

Source: the layouts in the public repositories facebookresearch/dino, bytedance/ibot and huggingface/pytorch-image-models.
"""
