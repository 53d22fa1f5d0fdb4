"""What an image model's configuration says of it: pure, no torch."""

from __future__ import annotations

from typing import Any

from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.terminal import shown

POOLS = ("auto", "cls", "mean", "pooler")
# Families by what stands for a whole picture in what they were trained for: a class token, …
CLASS_TOKEN = {
    "beit", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit",
    "vit_msn",
}  # fmt: skip
# … or what their own pooler gives: CLIP's class token after its norm, SigLIP's attention over all
# tokens, the norm of a feature map's mean.
POOLER = {
    "clip", "clip_vision_model", "convnext", "convnextv2", "metaclip_2",
    "metaclip_2_vision_model", "siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model",
}  # fmt: skip
# Keys that say how pictures come in: one of them is in every image model's configuration.
OF_PICTURES = ("image_size", "patch_size", "num_channels")
OF_FILMS = ("num_frames", "tubelet_size")  # models that take several pictures at once


def tower(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration of the part that sees. Raises EncoderError for what is no image model."""
    config, what = checkpoint.config, f"vision encoder {checkpoint.name}"
    part = config.get("vision_config")
    seen = part if isinstance(part, dict) else config
    kind = config.get("model_type")
    if any(key in seen for key in OF_FILMS):
        raise EncoderError(
            f"{what}: model type '{shown(kind)}' takes several pictures at once; a model of single "
            "pictures is needed"
        )
    speaks = "vocab_size" in seen and "image_size" not in seen
    if speaks or not (part or any(key in seen for key in OF_PICTURES)):
        raise EncoderError(f"{what}: model type '{shown(kind)}' is no image model")
    return seen


def layers_of(checkpoint: Checkpoint) -> int:
    """How many blocks, or stages of a hierarchy, it has. Raises EncoderError."""
    seen = tower(checkpoint)
    if is_hierarchy(checkpoint):
        return len(seen["depths"])
    # a configuration that leaves it out has what CLIP and SigLIP have by default
    count = seen.get("num_hidden_layers", 12)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise EncoderError(
            f"vision encoder {checkpoint.name}: its config.json has no usable num_hidden_layers"
        )
    return count


def is_hierarchy(checkpoint: Checkpoint) -> bool:
    """Whether its stages give maps of different size and width."""
    return isinstance(tower(checkpoint).get("depths"), list)


def default_pool(checkpoint: Checkpoint, *, last: bool) -> str:
    """What stands for a picture where nothing was asked for; only the last layer has a pooler."""
    kind = checkpoint.config.get("model_type")
    if kind in POOLER and last:
        return "pooler"
    has_class_token = kind in CLASS_TOKEN or "clip" in str(kind)
    return "cls" if has_class_token else "mean"
