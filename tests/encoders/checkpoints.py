"""Small checkpoints with random weights, saved in the formats that real ones come in."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 7,
    "vocab_size": 20,
}


def audio(
    folder: Path, family: str = "wav2vec2", *, norm: str = "group", pickled: bool = False, **changes
) -> Path:
    """A wav2vec2-family checkpoint; `norm` is that of the feature extractor (base models: group,
    large lv60 ones: layer).
    """
    from transformers import AutoConfig, AutoModel

    settings = (
        SMALL | {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"} | changes
    )
    if family == "data2vec-audio":
        settings.pop("num_conv_pos_embeddings")
        settings |= {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3}
    torch.manual_seed(7)
    model = AutoModel.from_config(AutoConfig.for_model(family, **settings))
    save(model, folder, pickled)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": True, "sampling_rate": 16000})
    )
    return folder


def whisper(
    folder: Path, *, form: str = "encoder", processor: dict | None = None, **changes
) -> Path:
    """A Whisper checkpoint with windows of two seconds; `form`: encoder (nothing else is there),
    model (with its decoder), generation (the same with another prefix, as most on the hub) or
    pickled (likewise, not in safetensors).
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    settings = {
        "d_model": 24,
        "encoder_layers": 3,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "num_mel_bins": 20,
        "max_source_positions": 100,
        "max_target_positions": 8,
        "vocab_size": 30,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    config = WhisperConfig(**settings | changes)
    torch.manual_seed(9)
    model = WhisperForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.encoder.conv1.weight, std=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    if form == "encoder":
        weights = model.model.encoder.state_dict()
        save_file({f"encoder.{k}": v for k, v in weights.items()}, folder / "model.safetensors")
        config.save_pretrained(folder)
    else:
        save(model.model if form == "model" else model, folder, pickled=form == "pickled")
    extractor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config.num_mel_bins,
        "chunk_length": config.max_source_positions // 50,
        "hop_length": 160,
        "n_fft": 400,
        "sampling_rate": 16000,
    }
    text = json.dumps(extractor | (processor or {}))
    (folder / "preprocessor_config.json").write_text(text)
    return folder


def wav2vec2_bert(folder: Path, **changes) -> Path:
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

    settings = {
        "vocab_size": 20,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_depthwise_kernel_size": 5,
        "left_max_position_embeddings": 8,
        "right_max_position_embeddings": 4,
    }
    torch.manual_seed(10)
    save(Wav2Vec2BertModel(Wav2Vec2BertConfig(**settings | changes)), folder, pickled=False)
    extractor = {
        "feature_extractor_type": "SeamlessM4TFeatureExtractor",
        "feature_size": 80,
        "num_mel_bins": 80,
        "stride": 2,
        "sampling_rate": 16000,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return folder


def text(folder: Path, *, pickled: bool = False, **changes) -> Path:
    """A RoBERTa checkpoint with a trained byte-level BPE tokenizer; its pooler is left out, as in
    most published ones.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=10**30,
    )
    torch.manual_seed(8)
    settings = {
        "vocab_size": 300,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 66,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    }
    config = RobertaConfig(**settings | changes)
    save(RobertaModel(config, add_pooling_layer=False), folder, pickled)
    fast.save_pretrained(folder)
    return folder


def save(model, folder: Path, pickled: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if pickled:
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)


def transcriber(folder: Path, *, languages: tuple[str, ...] = ("en", "pl"), **changes) -> Path:
    """A Whisper checkpoint with windows of two seconds and all that transcribing takes: decoder,
    tokenizer (one token a byte), generation settings. No `languages`: it knows English alone.
    """
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # one stands for each byte
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokens = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in languages)]
    tokens += ["<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    special = {token: number for number, token in enumerate(tokens, start=len(vocabulary))}
    end, start = special["<|endoftext|>"], special["<|startoftranscript|>"]
    settings = {
        "vocab_size": len(vocabulary) + len(special),
        "init_std": 0.5,  # so that other sound gives other words
        "tie_word_embeddings": False,
        "max_target_positions": 16,
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": start,
    }
    whisper(folder, form="generation", **settings | changes)
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"<|endoftext|>": end}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {token: number for token, number in special.items() if number != end}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    named = {"additional_special_tokens": list(special), "model_max_length": 16}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        named[key] = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(
        json.dumps(named | {"tokenizer_class": "WhisperTokenizer"})
    )
    generation = {
        "decoder_start_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
        "bos_token_id": end,
        "max_length": 16,
        "no_timestamps_token_id": special["<|notimestamps|>"],
        "is_multilingual": bool(languages),
    }
    if languages:
        generation["lang_to_id"] = {f"<|{code}|>": special[f"<|{code}|>"] for code in languages}
        generation["task_to_id"] = {
            task: special[f"<|{task}|>"] for task in ("translate", "transcribe")
        }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
