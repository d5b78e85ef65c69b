"""Encoders and decoders: Flax Linen modules that return dicts of named outputs."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.encoders.attention import attend
    from fundax.encoders.autoencoder import (
        ImageDecoder,
        ImageEncoder,
        MaskedDecoder,
        Unit,
        hidden_patches,
        pixel_loss,
        reconstruct,
        unpatch,
    )
    from fundax.encoders.backbone import (
        Backbone,
        BackboneWithHead,
        Encoder,
        Feature,
        apply_encoder,
        apply_head,
        batch_spec,
        encoder_of,
        image_features,
        init_head,
        normalized,
        owner_of,
        preprocessing,
        tower_of,
        with_encoder,
    )
    from fundax.encoders.bert import BERT, MaskedHead, PostNormBlock
    from fundax.encoders.clip_text import Embedding, TextTransformer, text_transformer
    from fundax.encoders.convnext import ConvNeXt, ConvNeXtBlock
    from fundax.encoders.convolution import BatchNorm, Conv, convolve
    from fundax.encoders.efficientnet import EfficientNet, InvertedResidual
    from fundax.encoders.heads import ForecastHead, IBOTHead, MLPHead, PrototypeLayer, interval_encoding
    from fundax.encoders.layers import (
        MLP,
        Attention,
        Block,
        BlockInit,
        Dense,
        LayerNorm,
        LayerScale,
        PackedProjection,
        Stack,
        apply,
        drop_branch,
        gelu_exact,
        gelu_tanh,
        init_clip_text,
        init_clip_vision,
        l2_normalize,
        product,
        quick_gelu,
        take_rows,
        uniform,
    )
    from fundax.encoders.levels import image_levels, initial_heads, project, text_levels
    from fundax.encoders.pixels import brightened, contrasted, jittered, mixup_cutmix, normalize, standardize
    from fundax.encoders.positions import (
        aligned_corners,
        antialiased,
        cubic,
        pixel_centres,
        resize_positions,
        scaled,
        sin_cos,
    )
    from fundax.encoders.pyramid import FPN
    from fundax.encoders.report_decoder import (
        CrossAttention,
        ReportBlock,
        ReportDecoder,
        TorchNorm,
        beam_search,
        greedy,
        sinusoid,
        token_loss,
    )
    from fundax.encoders.resnet import Basic, Bottleneck, ResNet
    from fundax.encoders.saliency import attention_maps, class_attention, grad_cam, rollout
    from fundax.encoders.unet import ResidualBlock, UNet, waves
    from fundax.encoders.unetr import (
        UNETR,
        ConvNorm,
        Enlarge,
        Linear,
        Maps,
        check,
        decoder_blocks,
        drop_channels,
        init,
        logits,
        training_logits,
    )
    from fundax.encoders.view_pool import ViewAttention, Views, placed, places, pooled
    from fundax.encoders.vit import (
        AttentionPool,
        PatchEmbedding,
        Size,
        ViT,
        chosen_layers,
        dino_vit,
        init_dino,
        intermediate_layers,
        kept_patches,
        patches,
        size_named,
    )
