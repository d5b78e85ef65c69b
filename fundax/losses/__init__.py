"""Loss functions on arrays: contrastive (dense and ring), supervised, dense, distillation and diffusion."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from fundax.losses.contrastive import (
        Similarity,
        as_ring,
        bounded,
        contrast,
        contrast_pairs,
        contrastive_accuracy,
        label_aware,
        matching_targets,
        sigmoid_contrastive,
        similarity,
        softmax_contrastive,
        spread,
    )
    from fundax.losses.dense import (
        dice_focal,
        dice_loss,
        expected_points,
        focal_loss,
        heat_maps,
        inside,
        landmark_loss,
        one_hot,
        peaks,
        probabilities,
        spatial_log_softmax,
    )
    from fundax.losses.diffusion import (
        cosine_level,
        ddim_step,
        ddpm_step,
        denoised,
        linear_level,
        min_snr,
        noise_of_velocity,
        noised,
        posterior,
        signal_and_noise,
        thresholded,
        walk,
    )
    from fundax.losses.distillation import centered, entropy, koleo, patch_loss, sinkhorn, token_loss, update_center
    from fundax.losses.nearest import Best
    from fundax.losses.ring import (
        Ring,
        Side,
        Tally,
        block_logits,
        go_round,
        make_ring,
        mapped,
        paired,
        sigmoid,
        softmax,
        softmax_pairs,
    )
    from fundax.losses.supervised import (
        binary_cross_entropy,
        class_targets,
        cross_entropy,
        graded_loss,
        inverse_frequencies,
        smooth_l1,
    )
