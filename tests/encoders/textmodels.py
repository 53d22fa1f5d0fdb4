"""Text checkpoints of many architectures with random weights, saved in the formats that real ones
come in: a fast tokenizer beside `config.json` and `model.safetensors`.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch

from tests.encoders import checkpoints

VOCABULARY = 300
BLOCKS = 3
POSITIONS = 64
# what a tokenizer of the family puts at both ends of a transcript
BOTH, CLOSING, OPENING, NONE = "<s> $A </s>", "$A </s>", "<s> $A", "$A"
ENCODERS = {
    "albert": BOTH,
    "bert": BOTH,
    "deberta-v2": BOTH,
    "distilbert": BOTH,
    "electra": BOTH,
    "longformer": BOTH,
    "modernbert": BOTH,
    "mpnet": BOTH,
    "roberta": BOTH,
    "xlm": BOTH,
}
DECODERS = {
    "bloom": NONE,
    "gemma": OPENING,
    "gemma2": OPENING,
    "gemma3_text": OPENING,
    "gpt2": NONE,
    "gpt_neox": NONE,
    "llama": OPENING,
    "mamba": NONE,
    "mistral": OPENING,
    "mpt": NONE,
    "opt": OPENING,
    "phi": NONE,
    "phi3": NONE,
    "qwen2": NONE,
    "qwen3": NONE,
}
ENCODER_DECODERS = {"bart": BOTH, "m2m_100": BOTH, "marian": CLOSING, "mt5": CLOSING, "t5": CLOSING}
FAMILIES = ENCODERS | DECODERS | ENCODER_DECODERS


def settings(family: str, **changes) -> dict:
    """A small configuration; its widths are drawn, but always the same for a family."""
    random = np.random.default_rng(zlib.crc32(family.encode()))
    heads, head = int(random.choice([2, 4])), int(random.choice([4, 8, 12]))
    width, inner = heads * head, int(random.integers(20, 60))
    found = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": heads,
        "max_position_embeddings": POSITIONS,
        "intermediate_size": inner,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    match family:
        case "gemma" | "gemma2" | "gemma3_text" | "llama" | "mistral" | "qwen2" | "qwen3" | "phi3":
            found["num_key_value_heads"] = heads // 2
            if family.startswith("gemma") or family == "qwen3":
                found["head_dim"] = head
            if family in ("gemma2", "gemma3_text", "mistral"):
                found["sliding_window"] = 8  # shorter than the longest test text
        case "opt":
            found |= {"ffn_dim": inner, "word_embed_proj_dim": width}
        case "t5" | "mt5":
            found |= {"d_model": width, "d_ff": inner, "d_kv": head, "n_positions": POSITIONS}
        case "bart" | "marian" | "m2m_100":
            found |= {"d_model": width, "encoder_layers": BLOCKS, "decoder_layers": 2}
            found |= {"encoder_attention_heads": heads, "decoder_attention_heads": heads}
            found |= {"encoder_ffn_dim": inner, "decoder_ffn_dim": inner}
            if family == "marian":
                found["decoder_vocab_size"] = VOCABULARY
        case "modernbert":
            found |= {"global_attn_every_n_layers": 2, "local_attention": 8}
        case "longformer":
            found["attention_window"] = [8] * BLOCKS
        case "deberta-v2":
            found |= {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
        case "roberta" | "mpnet":
            found["max_position_embeddings"] = POSITIONS + 2  # counted from padding_idx + 1
    return found | changes


def tokenizer(ends: str):
    """A byte-level BPE tokenizer that puts `ends` around a text; it has a padding token only where
    a family of that kind has one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainer)
    made.post_processor = processors.TemplateProcessing(
        single=ends, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if ends in (BOTH, CLOSING):
        names["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=10**30, **names)


def save(folder: Path, family: str, *, head: str = "AutoModel", **changes) -> Path:
    """A checkpoint of that architecture; `head` names the class that it was saved from."""
    import transformers

    config = transformers.AutoConfig.for_model(family, **settings(family, **changes))
    torch.manual_seed(11)
    model = getattr(transformers, head).from_config(config)
    _fill(model)
    checkpoints.save(model, folder, pickled=False)
    tokenizer(FAMILIES[family]).save_pretrained(folder)
    return folder


def _fill(model) -> None:
    """Weights that do something: as they are initialised, attention hardly tells tokens apart."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                weight.normal_(0, 0.5 * weight.shape[-1] ** -0.5 if "emb" not in name else 0.5)
