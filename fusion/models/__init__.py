"""Fusion models: one published system per file, and one registry.

A model is an `nn.Module` built as `Model(config, spec)`, with `config` its own frozen dataclass
(the only place for its defaults) and `spec` a `mer.fusion.batch.DataSpec`. It offers

- `forward(batch) -> Prediction`      inference; needs no labels, draws no random numbers in eval
                                      mode
- `losses(batch, progress) -> dict`   named scalar loss terms, unweighted, each a mean over what it
                                      is defined on; `progress`
                                      in [0, 1] is the share of training done. Terms that cannot be
                                      computed are left out.
- `weights(progress) -> dict`         the weight of every term that `losses` may return
- `calibrate(batches)`                once before training: statistics of the training rows
                                      (standardisation), kept in the state dict; `batches` can be
                                      gone through again
- `set_class_weights(weights)`        (C,), when the configuration asks for class weighting
- `lr_scale: dict[str, float]`        parameters whose learning rate is a multiple of the
                                      optimizer's, by name
- `summary: bool`                     whether batches of mean and deviation, x (B, 1, 2D)
                                      (`mer.fusion.data.sources.summarise`), are all it needs;
                                      `reads_summary(config)` where that depends on an argument
- `turns`                             what reads the neighbours of an utterance, where the spec has
                                      a `context` (`mer.fusion.modules.context`); None: it sees each
                                      utterance alone, and `data.context` is refused
- `unimodal_heads: bool`              whether there is a head for each modality that learns what
                                      `Batch.taught` gives for it: its own label, where one is to be
                                      learnt; False: `data.unimodal_labels` is refused
- `pairs_by_own_labels: bool`         whether such labels are needed, for pairs of two utterances
- `left_out(batch_size) -> list`      what its configuration asks for and the spec, or a batch of
                                      that size, has nothing for: said before it is trained
- `diagnostics() -> dict`             floats worth logging (temperature, MI bounds in nats,
                                      raw/augmented cosine, ...)
- `observed() -> dict`                the diagnostics of the last `losses` call alone, detached and
                                      on their device; the log has their means over the epoch

A model sees one layer of features. Where several are kept, `layered` mixes them into that one and
hands the batch on, so that no model knows of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import did_you_mean

if TYPE_CHECKING:  # a mistyped `--set` is told without torch
    from torch import Tensor

    from mer.fusion.batch import DataSpec

# name -> (module, class, config class). Adding a model is one file and one line here.
REGISTRY = {
    "drkf": ("mer.fusion.models.drkf", "DRKF", "DRKFConfig"),
    "dmd": ("mer.fusion.models.dmd", "DMD", "DMDConfig"),
    "dhmd": ("mer.fusion.models.dhmd", "DHMD", "DHMDConfig"),
    "fusion": ("mer.fusion.models.baselines", "FusionEncoderModel", "FusionConfig"),
    "concat": ("mer.fusion.models.baselines", "Concat", "ConcatConfig"),
    "audio": ("mer.fusion.models.baselines", "Audio", "UnimodalConfig"),
    "text": ("mer.fusion.models.baselines", "Text", "UnimodalConfig"),
    "vision": ("mer.fusion.models.baselines", "Vision", "UnimodalConfig"),
}
LAYERED = "mer.fusion.models.layered"


@dataclass(frozen=True)
class Prediction:
    """`logits` (B, C) or (B, 1) for regression; `unimodal[m]` the same shape from one modality
    alone; `attention` (B, M) share of [CLS] attention per modality in the order of
    `spec.modalities`, rows sum to 1; `disagreement` (B,) probability that the modalities carry
    different emotions. None: the model has no such thing.
    """

    logits: Tensor
    unimodal: dict[str, Tensor] | None = None
    attention: Tensor | None = None
    disagreement: Tensor | None = None


def model_class(name: str) -> tuple[Any, Any]:
    """(model class, config class) of a registered name; raises DataError with the known names."""
    if name not in REGISTRY:
        guess = did_you_mean(name, REGISTRY)
        raise DataError(f"--model {name}: unknown{guess}; known: {', '.join(REGISTRY)}")
    place, model, config = REGISTRY[name]
    module = import_module(place)
    return getattr(module, model), getattr(module, config)


def reads_summary(name: str, args: Any) -> bool:
    """Whether a model with these arguments reads nothing but mean and deviation of a sequence."""
    return model_class(name)[0].reads_summary(args)


def build(name: str, args: Any, spec: DataSpec) -> Any:
    """A model of the registry: a `FusionModel` of base.py, which imports this module. Where the
    spec has layers to mix, they are mixed before it.

    Raises DataError for arguments with which it cannot be built: sizes beyond the memory, for
    example.
    """
    try:
        model = model_class(name)[0](args, spec)
        if spec.context is not None and model.turns is None:
            raise DataError(
                f"data.context = {spec.context.kind}: {name} reads no neighbours; leave it out"
            )
        return import_module(LAYERED).Layered(model) if spec.mixes else model
    except (
        RuntimeError,
        ValueError,
        TypeError,
        OverflowError,
        MemoryError,
        ZeroDivisionError,
    ) as error:
        raise DataError(
            f"{name} cannot be built with these model_args ({str(error).splitlines()[0]}); change "
            "them"
        ) from None
