"""Built-in encoders for the synthetic corpus, tests and CI: real Wav2Vec2, RoBERTa and ViT classes,
small, with seeded random weights.

They are *untrained*, and everything that uses them says so. The weights come from NumPy's PCG64, so
they do not depend on torch's random state; `digest` names them by what they are made from.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import zlib
from typing import Any

import numpy as np

from mer.pipeline.encoders import lean
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.terminal import did_you_mean

PREFIX = "builtin:"
NAMES = {
    "audio": "builtin:tiny-wav2vec2",
    "text": "builtin:tiny-roberta",
    "vision": "builtin:tiny-vit",
}
SEED = 20_260
# raise it whenever the weights or the tokenizer change: stores made by another version must not
# match
VERSION = 2
# off: loudness is prosody, and random weights have not learnt to do without
PROCESSOR = {"do_normalize": False, "sampling_rate": 16_000}
# how pictures are scaled for the built-in ViT, in the words of transformers' processor
PICTURES: dict[str, Any] = {
    "size": {"height": 64, "width": 64},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}
PROCESSORS: dict[str, dict[str, Any]] = {"audio": PROCESSOR, "text": {}, "vision": PICTURES}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "builtin:tiny-wav2vec2": (
        "audio",
        {
            "model_type": "wav2vec2",
            "hidden_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 192,
            "conv_dim": [32, 64, 64, 64, 96, 96, 96],
            "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
            "conv_stride": [5, 2, 2, 2, 2, 2, 2],
            "feat_extract_norm": "layer",
            "conv_bias": True,
            "do_stable_layer_norm": True,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 8,
            "layerdrop": 0.0,
            "mask_time_prob": 0.0,
            "vocab_size": 32,
        },
    ),
    "builtin:tiny-roberta": (
        "text",
        {
            "model_type": "roberta",
            "vocab_size": 4096,
            "hidden_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 192,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
    ),
    "builtin:tiny-vit": (
        "vision",
        {
            "model_type": "vit",
            "hidden_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 192,
            "image_size": 64,
            "patch_size": 8,
            "num_channels": 3,
        },
    ),
}


def config(kind: str, encoder: str) -> dict:
    """The configuration of a built-in encoder.

    Raises EncoderError for an unknown name or one of the other kind.
    """
    known = [name for name, (modality, _) in CONFIGS.items() if modality == kind]
    if encoder not in known:
        raise EncoderError(
            f"{kind} encoder '{encoder}': no such built-in{did_you_mean(encoder, known)}; known: "
            f"{', '.join(known)}"
        )
    return CONFIGS[encoder][1]


def digest(encoder: str) -> str:
    """What stands for the weights' hash: the configuration, the seed and the version of the rule
    that fills them.
    """
    kind, settings = CONFIGS[encoder]
    identity = [encoder, settings, SEED, VERSION]
    if kind == "vision":
        identity.append(PICTURES)
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def model(encoder: str):
    """The network with its weights filled in, in name order, from one PCG64 stream."""
    return copy.deepcopy(_filled(encoder))


@functools.cache
def _filled(encoder: str):
    import torch
    from torch.nn.utils import parametrize

    lean.import_transformers()
    from transformers import (
        RobertaConfig,
        RobertaModel,
        ViTConfig,
        ViTModel,
        Wav2Vec2Config,
        Wav2Vec2Model,
    )

    kind, settings = CONFIGS[encoder]
    settings = {name: value for name, value in settings.items() if name != "model_type"}
    # the classes initialise themselves from the global generator; leave that as it was
    with torch.random.fork_rng(devices=[]):
        network: torch.nn.Module
        if kind == "audio":
            network = Wav2Vec2Model(Wav2Vec2Config(**settings))
        elif kind == "vision":
            network = ViTModel(ViTConfig(**settings), add_pooling_layer=False)
        else:
            network = RobertaModel(RobertaConfig(**settings), add_pooling_layer=False)
    random = np.random.Generator(np.random.PCG64(SEED))
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            parameter.copy_(torch.from_numpy(_values(name, tuple(parameter.shape), random)))
    for module in network.modules():
        if parametrize.is_parametrized(module):  # copies of such a module share one class
            parametrize.remove_parametrizations(module, "weight")
    return network


def _values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Norm weights are one and biases zero; matrices and convolutions keep the variance of what
    passes through (LeCun). Embeddings of positions and types are a tenth of those of words:
    untrained, they would drown what a word is, or what is in a patch.
    """
    if name.endswith("bias"):
        return np.zeros(shape, dtype=np.float32)
    if "norm" in name.lower():
        return np.ones(shape, dtype=np.float32)
    values = random.standard_normal(shape, dtype=np.float32)
    if "embeddings" in name and "projection" not in name:
        return values if "word" in name else 0.1 * values
    return values / np.float32(np.sqrt(np.prod(shape[1:])))


class HashTokenizer:
    """Words to ids by CRC-32 of their UTF-8 bytes: no vocabulary file, no unknown words, the same
    on every machine.
    """

    pad_token_id, bos_token_id, eos_token_id = 1, 0, 2
    model_max_length = 512
    special = 3

    def __init__(self, vocabulary: int = CONFIGS["builtin:tiny-roberta"][1]["vocab_size"]):
        self.vocabulary = vocabulary

    def __call__(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Ids of each text, with the special tokens at both ends if asked for."""
        bodies = [[self._id(word) for word in _words(text)] for text in texts]
        if not special:
            return bodies
        return [[self.bos_token_id, *body, self.eos_token_id] for body in bodies]

    def _id(self, word: str) -> int:
        return self.special + zlib.crc32(word.encode("utf-8", "surrogatepass")) % (
            self.vocabulary - self.special
        )


def _words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits; every other visible character, and every CJK one, is
    a word of its own.
    """
    words, run = [], ""
    for character in text.lower():
        if character.isalnum() and not "\u2e80" <= character <= "\ud7ff":
            run += character
            continue
        if run:
            words.append(run)
            run = ""
        if not character.isspace():
            words.append(character)
    return [*words, run] if run else words
