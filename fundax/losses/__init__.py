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
        mean_over_devices,
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
        cosine_logsnr,
        ddim_step,
        ddpm_step,
        dynamic_threshold,
        linear_logsnr,
        min_snr,
        noise_of_velocity,
        posterior,
        predict_x0,
        q_sample,
        sample_loop,
        signal_and_noise,
    )
    from fundax.losses.distillation import centered, entropy, koleo, patch_loss, sinkhorn, token_loss, update_center
    from fundax.losses.relations import Relations, agreeing_pairs, equal_rows, no_negatives, relations
    from fundax.losses.ring import Ring, make_ring, sigmoid, softmax, softmax_pairs
    from fundax.losses.supervised import (
        binary_cross_entropy,
        class_targets,
        cross_entropy,
        graded_loss,
        inverse_frequencies,
        smooth_l1,
    )
