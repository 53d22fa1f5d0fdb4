"""The equations in readable PyTorch; the contrastive ones have fused twins in `mer.fusion.ops`."""

from mer.fusion.losses.contrastive import (
    Contrast,
    Impl,
    contrastive_losses,
    info_nce,
    mi_lower_bound,
    nt_xent,
    nt_xent_apart,
)
from mer.fusion.losses.distillation import kl_to_label, kl_to_posterior
from mer.fusion.losses.reconstruction import masked_mse
from mer.fusion.losses.supervised import balanced_bce, same_emotion, same_label, task_loss

__all__ = [
    "Contrast",
    "Impl",
    "balanced_bce",
    "contrastive_losses",
    "info_nce",
    "kl_to_label",
    "kl_to_posterior",
    "masked_mse",
    "mi_lower_bound",
    "nt_xent",
    "nt_xent_apart",
    "same_emotion",
    "same_label",
    "task_loss",
]
