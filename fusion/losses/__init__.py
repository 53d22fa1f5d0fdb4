"""The equations in readable PyTorch: the reference that `fusion.ops` is held to."""

from fusion.losses.contrastive import info_nce, mi_lower_bound, nt_xent
from fusion.losses.distillation import kl_to_label, kl_to_posterior
from fusion.losses.reconstruction import masked_mse
from fusion.losses.supervised import balanced_bce, same_emotion, task_loss

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
