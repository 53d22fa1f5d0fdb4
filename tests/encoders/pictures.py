"""Small image models with random weights, saved in the formats that real ones come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.encoders.checkpoints import save

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 40, "max_position_embeddings": 8,
}  # fmt: skip
STAGES = {"hidden_sizes": [12, 16, 20, 24], "depths": [1, 1, 1, 1], "num_channels": 3}
SQUARE = {"height": 32, "width": 32}
NORMAL = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {"size": SQUARE, "resample": 2},
    "BitImageProcessor": {
        "size": {"shortest_edge": 36}, "crop_size": SQUARE, "do_center_crop": True, "resample": 3,
        "do_convert_rgb": True,
    },
    "CLIPImageProcessor": {
        "size": {"shortest_edge": 32}, "crop_size": SQUARE, "do_center_crop": True, "resample": 3,
        "do_convert_rgb": True,
    },
    "SiglipImageProcessor": {"size": SQUARE, "resample": 3},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 32}, "crop_pct": 0.875, "resample": 3},
}  # fmt: skip
# model type → (processor, configuration)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTImageProcessor", SMALL),
    "deit": ("ViTImageProcessor", SMALL),
    "dinov2": ("BitImageProcessor", {**SMALL, "mlp_ratio": 2}),
    "dinov2_with_registers": (
        "BitImageProcessor", {**SMALL, "mlp_ratio": 2, "num_register_tokens": 3},
    ),
    "clip": ("CLIPImageProcessor", {"vision_config": SMALL, "text_config": TEXT}),
    "clip_vision_model": ("CLIPImageProcessor", SMALL),
    "siglip": ("SiglipImageProcessor", {"vision_config": SMALL, "text_config": TEXT}),
    "siglip_vision_model": ("SiglipImageProcessor", SMALL),
    "convnext": ("ConvNextImageProcessor", STAGES),
    "resnet": (
        "ConvNextImageProcessor",
        {**STAGES, "embedding_size": 12, "layer_type": "basic"},
    ),
    "swin": (
        "ViTImageProcessor",
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
         "window_size": 4},
    ),
}  # fmt: skip
DEFAULTS = {
    "vit": "cls", "deit": "cls", "dinov2": "cls", "dinov2_with_registers": "cls",
    "clip": "pooler", "clip_vision_model": "pooler", "siglip": "pooler",
    "siglip_vision_model": "pooler", "convnext": "pooler", "resnet": "mean", "swin": "mean",
}  # fmt: skip


def checkpoint(folder: Path, family: str, **changes: Any) -> Path:
    """A checkpoint of a family with its image processor."""
    from transformers import AutoConfig, AutoModel

    processor, settings = FAMILIES[family]
    torch.manual_seed(9)
    model = AutoModel.from_config(AutoConfig.for_model(family, **{**settings, **changes}))
    with torch.no_grad():  # norms that do something, and batch norms that were trained
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save(model, folder, pickled=False)
    described = {"image_processor_type": processor, **PROCESSORS[processor], **NORMAL}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return folder


def photographs(count: int = 5, size: tuple[int, int] = (50, 70)) -> list[np.ndarray]:
    """Pictures that no two of are alike, with edges and gradients."""
    random = np.random.default_rng(1)
    rows, columns = np.indices(size)
    found = []
    for number in range(count):
        waves = [np.sin(rows / 7 + number) + np.cos(columns / (5 + k)) for k in range(3)]
        noise = random.uniform(-40, 40, (*size, 3))
        found.append(np.clip(120 + 50 * np.stack(waves, 2) + noise, 0, 255).astype(np.uint8))
    return found
