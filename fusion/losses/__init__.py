"""The equations in readable PyTorch: the reference that `mer.fusion.ops` is held to."""

from mer.fusion.losses.contrastive import info_nce, mi_lower_bound, nt_xent
from mer.fusion.losses.distillation import kl_to_label, kl_to_posterior
from mer.fusion.losses.reconstruction import masked_mse
from mer.fusion.losses.supervised import balanced_bce, same_emotion, task_loss

__all__ = [
    "balanced_bce",
    "info_nce",
    "kl_to_label",
    "kl_to_posterior",
    "masked_mse",
    "mi_lower_bound",
    "nt_xent",
    "same_emotion",
    "task_loss",
]
