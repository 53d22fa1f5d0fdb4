"""Waveforms → words, with a Whisper checkpoint of transformers (Radford et al. 2022), decoder
included: greedily, window by window, so that the same sound gives the same words whatever else is
transcribed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mer.pipeline.encoders import lean
from mer.pipeline.encoders.frozen import load_model
from mer.pipeline.encoders.geometry import SAMPLE_RATE, mel_settings, whisper_geometry
from mer.pipeline.encoders.loading import SAFE, VOCABULARY, Checkpoint, matching, resolve
from mer.pipeline.errors import DataError, EncoderError
from mer.pipeline.runtime.machine import choose_device
from mer.pipeline.runtime.terminal import shown

KIND = "speech"  # what its checkpoint is called in messages
# Files that generation needs besides those of an encoder.
GENERATION = ("generation_config.json", "normalizer.json")
WINDOWS_TOGETHER = 8  # of one clip
QUIET_SHARE = 1 / 6  # of a window, at its end, in which a longer clip is cut: 5 of 30 s
QUIET_SECONDS = 0.1  # over which loudness is taken
LANGUAGES_SHOWN = 12  # codes in a message


class Transcriber:
    """`words` turns a waveform (n,) float32 at 16 kHz into text.

    Args:
        source: A hub id with an optional @REVISION, or a folder.
        language: Code of the language that is spoken; None: the checkpoint tells it by the sound.
        device: auto, cpu, cuda or cuda:N.
        offline: Never touch a network.

    Raises:
        EncoderError: It is no Whisper checkpoint, or incomplete.
        DataError: It does not know the language.
    """

    def __init__(
        self,
        source: str,
        *,
        language: str | None = None,
        device: str = "auto",
        offline: bool = False,
    ):
        # no key is made of it, so its weights need no hash
        checkpoint = resolve(KIND, source, offline=offline, sha256=lambda path: "", also=GENERATION)
        _check(checkpoint)
        lean.import_transformers()
        from transformers import (
            WhisperFeatureExtractor,
            WhisperForConditionalGeneration,
            WhisperTokenizer,
        )

        geometry, mel = whisper_geometry(checkpoint), mel_settings(checkpoint)
        self.name = checkpoint.name
        self.window = geometry.window  # samples
        self.device = choose_device(device)
        try:
            self.tokenizer = WhisperTokenizer.from_pretrained(
                cast(Path, checkpoint.folder), local_files_only=True
            )
        except Exception as error:  # of whatever kind a damaged file raises
            raise EncoderError(
                f"{KIND} checkpoint {self.name}: its tokenizer cannot be loaded "
                f"({shown(str(error).strip().splitlines()[0] if str(error).strip() else error)})"
            ) from None
        self.extractor = WhisperFeatureExtractor(
            feature_size=mel.bins,
            hop_length=mel.hop,
            n_fft=mel.n_fft,
            chunk_length=self.window // SAMPLE_RATE,
        )
        kind = WhisperForConditionalGeneration
        self.model = load_model(checkpoint, self.device, kind)
        self.asked = _asked(self.model.generation_config, self.name, language)

    def words(self, waveform: np.ndarray) -> str:
        """What is said; "" where the checkpoint hears nothing."""
        pieces = list(windows(waveform, self.window))
        found: list[str] = []
        for at in range(0, len(pieces), WINDOWS_TOGETHER):
            found += self._words(pieces[at : at + WINDOWS_TOGETHER])
        return " ".join(text for text in found if text)

    def _words(self, pieces: list[np.ndarray]) -> list[str]:
        """The words of windows of one clip."""
        from transformers.utils import logging

        mels = self.extractor(pieces, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        features = mels.input_features.to(self.device)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # hints on options that are not ours
        try:
            with torch.inference_mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # likewise
                tokens = self.model.generate(
                    features, do_sample=False, num_beams=1, temperature=None, **self.asked
                )
        finally:
            logging.set_verbosity(verbosity)
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def windows(waveform: np.ndarray, longest: int) -> Iterator[np.ndarray]:
    """A waveform in pieces of at most `longest` samples, each cut where it is quietest towards its
    end, so that few words are cut in two.

    >>> [len(piece) for piece in windows(np.zeros(10, np.float32), 16)]
    [10]
    """
    hop = round(QUIET_SECONDS * SAMPLE_RATE)
    while len(waveform) > longest:
        searched = waveform[longest - max(hop, round(longest * QUIET_SHARE)) : longest]
        blocks = searched[: len(searched) // hop * hop].reshape(-1, hop)
        quietest = int(np.square(blocks, dtype=np.float64).mean(1).argmin())
        end = longest - len(searched) + quietest * hop + hop // 2
        yield waveform[:end]
        waveform = waveform[end:]
    yield waveform


def _check(checkpoint: Checkpoint) -> None:
    """Raise EncoderError for what cannot transcribe, before its weights are read."""
    what, folder = f"{KIND} checkpoint {checkpoint.name}", checkpoint.folder
    found = checkpoint.config.get("model_type")
    if found != "whisper" or folder is None:
        raise EncoderError(
            f"{what}: its model type is '{shown(found, 40)}', expected whisper; name a Whisper "
            "checkpoint, e.g. openai/whisper-base"
        )
    if not _has_decoder(folder):
        raise EncoderError(
            f"{what}: holds Whisper's encoder alone, which gives features and no words; name a "
            "checkpoint with its decoder"
        )
    if not matching(folder, VOCABULARY):
        raise EncoderError(
            f"{what}: has no tokenizer; tokenizer.json, or vocab.json and merges.txt, belong "
            "beside its weights"
        )


def _has_decoder(folder: Path) -> bool:
    """Whether there are weights of a decoder; also where that cannot be told."""
    from safetensors import SafetensorError, safe_open

    files = [path for path in matching(folder, SAFE) if path.suffix == ".safetensors"]
    try:
        for path in files:
            with safe_open(path, framework="pt") as file:
                if any("decoder." in name for name in file.keys()):
                    return True
    except (SafetensorError, OSError, ValueError):
        return True  # loading it says what is wrong
    return not files


def _asked(settings: Any, name: str, language: str | None) -> dict[str, str]:
    """What generation is told of language and task; raises DataError for a language that the
    checkpoint does not know.
    """
    several = getattr(settings, "is_multilingual", None)
    known = getattr(settings, "lang_to_id", None) or {}
    tasks = getattr(settings, "task_to_id", None) or {}
    # never a translation, whatever the checkpoint's own setting
    asked = {"task": "transcribe"} if several is not False and "transcribe" in tasks else {}
    if language is None:
        return asked
    if several is False:
        raise DataError(
            f"--language {shown(language, 40)}: {name} knows English alone; leave it out"
        )
    if not known:
        raise DataError(
            f"--language {shown(language, 40)}: {name} does not say which languages it knows "
            "(generation_config.json has no lang_to_id); leave it out"
        )
    codes = sorted(token.strip("<|>") for token in known)
    if language.lower() not in codes:
        more = ", …" if len(codes) > LANGUAGES_SHOWN else ""
        raise DataError(
            f"--language {shown(language, 40)}: {name} does not know it; it knows "
            f"{', '.join(codes[:LANGUAGES_SHOWN])}{more}"
        )
    return {**asked, "language": language.lower()}
