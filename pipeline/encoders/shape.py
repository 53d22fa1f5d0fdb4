"""What a text encoder's configuration says of it: blocks, vocabulary, positions. Pure, no
torch.

The names are those of transformers' configurations, which differ from one architecture to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.terminal import shown

WIDTH = ("hidden_size", "n_embd", "d_model", "emb_dim", "dim")
# the encoder's of an encoder-decoder model come first
BLOCKS = (
    "encoder_layers",
    "num_encoder_layers",
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
)
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
# what only models of sound or pictures have
FOREIGN = (
    "audio_config",
    "conv_kernel",
    "image_size",
    "input_feat_per_channel",
    "num_channels",
    "num_mel_bins",
    "patch_size",
    "vision_config",
)


@dataclass(frozen=True)
class Shape:
    """`blocks` is how many there are, `vocabulary` how many token ids, `positions` how many tokens
    (None: the configuration knows no limit).
    """

    blocks: int
    vocabulary: int
    positions: int | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Shape:
        """Raises EncoderError for a configuration that is not of a text model, or incomplete."""
        config, what = checkpoint.config, f"text encoder {checkpoint.name}"
        kind = f"model type '{shown(config.get('model_type'), 40)}'"
        foreign = next((name for name in FOREIGN if _is_foreign(config, name)), None)
        if foreign is not None:
            raise EncoderError(f"{what}: {kind} is not a text encoder (it has {foreign})")
        nested = next((name for name in ("text_config", "encoder") if name in config), None)
        if nested is not None and "vocab_size" not in config:
            raise EncoderError(
                f"{what}: {kind} holds its text model as a part ({nested}), which is not supported"
            )
        _number(config, WIDTH, f"{what}: {kind}")  # a model of text has one
        blocks = _number(config, BLOCKS, f"{what}: {kind}")
        vocabulary = _number(config, ("vocab_size",), f"{what}: {kind}")
        positions = None
        if any(config.get(name) for name in POSITIONS):
            positions = _number(config, POSITIONS, f"{what}: {kind}")
        return cls(blocks, vocabulary, positions)


def _is_foreign(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name)
    # Mamba's only convolution has a single width
    return isinstance(value, list) if name == "conv_kernel" else value is not None


def _number(config: Mapping[str, Any], names: Sequence[str], what: str) -> int:
    """The first of `names` that a configuration has, which must be a number above 0."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise EncoderError(f"{what}: its {name} is {shown(value, 40)}, not a number above 0")
        return value
    raise EncoderError(f"{what} is not a text encoder: its config.json has no {' or '.join(names)}")
