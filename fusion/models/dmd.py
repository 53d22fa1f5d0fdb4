"""DMD: Decoupled Multimodal Distilling for emotion recognition (Li, Wang, Cui; CVPR 2023, arXiv
2303.13802).

    X_m -> X~_m          projection to width d, m in {L text, V vision, A audio}
    X~_m -> S_m, C_m     decoupling into a specific (heterogeneous) and a shared (homogeneous) part
                         modules/decoupling.py
    C_m -> homo heads    one prediction and representation per modality; a GD-Unit distils between
                         them  modules/graph_distillation.py
    C_m -> C_fus         self-attention within each modality, read out and concatenated; a
                         prediction of its own
    S_m, S_n -> h_m      cross-modal transformers m <- n, concatenated, then a memory transformer
                         modules/crossmodal.py
    h_m -> hetero heads  as the homo heads, with a GD-Unit of their own
    h_m, C_fus -> y      gated, concatenated, residual MLP
                         (with data.context, which is ours, beside what they take from neighbours)

What the authors' code (github.com/mdswyz/DMD, commit 516d4e1) does differently, and what is right,
is in PUBLISHED below; every entry is one switch of `DMDConfig.as_published`. docs/papers/dmd.md
explains each and says what the trainer corrects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mer.fusion.batch import Batch, DataSpec
from mer.fusion.losses.disentangle import orthogonality, orthogonality_over_batch
from mer.fusion.losses.graph import (
    distillation,
    edge_regulariser,
    logit_distances,
    representation_distances,
)
from mer.fusion.losses.margin import margin_loss, margin_loss_as_published
from mer.fusion.losses.precision import widened
from mer.fusion.losses.reconstruction import masked_mse
from mer.fusion.losses.supervised import same_emotion
from mer.fusion.models import Prediction
from mer.fusion.models.base import FusionModel, standardiser_of, summed
from mer.fusion.modules.context import TurnAttention
from mer.fusion.modules.crossmodal import CrossModalEncoder
from mer.fusion.modules.decoupling import Decoupled, Decoupling
from mer.fusion.modules.dictionary import Matches
from mer.fusion.modules.dropout import Dropout
from mer.fusion.modules.graph_distillation import GDUnit
from mer.fusion.modules.pooling import Standardise, masked_mean, zero_padding
from mer.fusion.runtime.typed import added
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import did_you_mean

# The published orders: of modalities everywhere (L, V, A), and of the streams a memory transformer
# concatenates (L, A, V).
ORDER = ("text", "vision", "audio")
STREAM_ORDER = ("text", "audio", "vision")

# What the public code does. Each is off by default; `as_published = ["all"]` reproduces the public
# model, number for number.
PUBLISHED = {
    "valid_convolution": (
        "the projection is not padded: kernel - 1 steps are lost, and streams of equal "
        "length become unequal"
    ),
    "flatten": (
        "homo and alignment layers read the flattened sequence, so weights are tied to one "
        "padded length (`length_*`)"
    ),
    "no_padding_mask": "padding takes part in attention, readout and every loss",
    "last_step": "sequences are read out at their last padded step",
    "band_mask": (
        "attention is limited to key - query <= |T_q - T_k|, which is causal only for equal lengths"
    ),
    "zero_positions": "a step whose channel 0 is exactly 0 gets no position",
    "relu_representation": "the homo representation is taken after an in-place ReLU",
    "no_gate": "the fusion gate sigmoid(W h) replaces h instead of scaling it",
    "authors_prior": (
        "the GD-Units' prior favours text -> others (homo) and also vision -> audio (hetero)"
    ),
    "homo_repr_unused": (
        "the homo representation distillation is computed and left out of the total"
    ),
    "hetero_repr_repels": "the hetero representation term pushes modalities apart: max(0, cos)",
    "hetero_repr_reduced": "and it is averaged over the batch before the edges weigh it",
    "orthogonality": "max(0, cos), summed over the batch axis instead of the features",
    "margin": (
        "positives share the exact float label, negatives come from any modality, the "
        "margin is 0.15 |label difference|"
    ),
    "unused_layers": "a projection of the flattened S_m is computed that no loss uses",
}


@dataclass(frozen=True)
class DMDConfig:
    width: int = 32  # d
    heads: int = 4
    layers: int = 2  # of the shared and cross-modal transformers; published 4
    memory_layers: int = 2  # of the memory transformers; published max(layers, 3)
    # of the projections' convolutions; published 5/5/5 (MOSI), text 5, audio 1, vision 3 (MOSEI)
    kernel_text: int = 3
    kernel_audio: int = 3
    kernel_vision: int = 3
    # of the transformers: mean over the real steps, or the last real one
    readout: Literal["mean", "last"] = "mean"
    causal: bool = False  # transformers see no later steps

    dropout: float = 0.1  # everywhere where the next ones say nothing
    text_dropout: float | None = None  # on the text features
    embedding_dropout: float | None = None  # on the transformers' inputs
    # on attention weights where text is the source, and in the memory transformers
    attention_dropout: float | None = None
    attention_dropout_audio: float | None = None
    attention_dropout_vision: float | None = None
    hidden_dropout: float | None = None  # inside the transformers' feed-forward part
    residual_dropout: float | None = None
    output_dropout: float | None = None  # in the heads
    # with data.context: on the features of neighbours, and the share of them hidden in training
    context_dropout: float = added(0.5)
    turn_dropout: float = added(0.3)

    graph_width_homo: int = 64  # node code per half
    graph_width_hetero: int = 32
    # over all edges of an utterance, or over those into one student
    edge_softmax: Literal["all", "incoming"] = "all"
    edge_temperature: float = 8.0
    prior: Literal["uniform", "authors"] = "uniform"
    distill_temperature: float = 4.0  # classification only
    homo_representation: Literal["off", "match", "l1"] = "match"
    # the specific parts are meant to differ
    hetero_representation: Literal["off", "match", "repel"] = "off"
    orthogonality: Literal["squared", "absolute", "hinge"] = "squared"
    margin: float = 0.15
    label_smoothing: float = 0.0  # of the task terms, classification only
    regression_loss: Literal["l1", "mse", "ccc"] = "l1"
    # with several targets: shared: one last head answers all of them; per_target: one each
    target_heads: Literal["shared", "per_target"] = added("shared")

    weight_heads: float = 1.0  # every unimodal head's task loss
    weight_shared: float = 1.0  # the shared branch's task loss
    weight_graph: float = 0.05  # logit distillation; times the next two for their terms
    weight_edges: float = 10.0
    weight_representation: float = 1.0  # published 10
    weight_reconstruction: float = 0.1  # reconstruction and cycle
    weight_margin: float = 0.01
    weight_orthogonality: float = 0.01

    length_text: int = 50  # padded lengths, read by as_published "flatten" only
    length_audio: int = 50
    length_vision: int = 50
    as_published: tuple[str, ...] = ()  # names of PUBLISHED, or "all"

    def __post_init__(self):
        names = tuple(PUBLISHED) if "all" in self.as_published else tuple(self.as_published)
        unknown = [n for n in names if n not in PUBLISHED]
        if unknown:
            guess = did_you_mean(unknown[0], ("all", *PUBLISHED))
            raise ValueError(
                f"as_published: unknown '{unknown[0]}'{guess}; known: all, {', '.join(PUBLISHED)}"
            )
        object.__setattr__(self, "as_published", names)
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"width = {self.width} is not divisible by heads = {self.heads}")
        if self.edge_softmax == "incoming" and "authors" in (
            self.prior,
            *(n.split("_")[0] for n in names),
        ):
            raise ValueError(
                "the authors' prior is a distribution over all edges; it does not fit "
                "edge_softmax = 'incoming'"
            )

    def drop(self, kind: str) -> float:
        value = getattr(self, f"{kind}_dropout")
        return self.dropout if value is None else value

    def drop_attention(self, source: str) -> float:
        value = self.attention_dropout if source == "text" else self.of("attention_dropout", source)
        return self.dropout if value is None else value

    def of(self, field: str, modality: str):
        """The value for one modality; names beyond the three known ones are treated like audio."""
        return getattr(self, f"{field}_{modality}", getattr(self, f"{field}_audio"))


@dataclass(frozen=True)
class DMDOutputs:
    """All that one pass computes, modalities in the model's order.

    present (M, B) bool; homo and hetero: logits (M, B, C) and representations (M, B, d) and (M, B,
    n); aligned (M, B, d), shared vectors for the margin loss; last (M, B, n), the h_m read out;
    shared_logits and logits (B, C); unused (M, B, d) only as published; matches: what a dictionary
    found in each space (DHMD).
    """

    parts: dict[str, Decoupled]
    present: Tensor
    homo_logits: Tensor
    homo_representation: Tensor
    hetero_logits: Tensor
    hetero_representation: Tensor
    aligned: Tensor
    last: Tensor
    shared_logits: Tensor
    logits: Tensor
    unused: Tensor | None
    matches: dict[str, Matches]


class HeadOutputs(NamedTuple):
    """What one head gives: logits (B, C), W1 x (B, hidden), y (B, n)."""

    logits: Tensor
    hidden: Tensor
    output: Tensor


class SharedBranch(NamedTuple):
    """`vectors` (B, n) of the C_m by modality, what the homo heads made of them and their codes,
    and C_fus (B, n).
    """

    vectors: dict[str, Tensor]
    heads: list[HeadOutputs]
    in_common: Tensor
    matches: Matches | None


class SpecificBranch(NamedTuple):
    """h_m (B, n) by modality as read out, with its code joined, and what the hetero heads made of
    it.
    """

    last: dict[str, Tensor]
    joined: dict[str, Tensor]
    heads: list[HeadOutputs]
    matches: Matches | None


def _place(modality: str, order: tuple[str, ...]) -> int:
    """Position in a published order; modalities that it does not know come last."""
    return order.index(modality) if modality in order else len(order)


class ResidualHead(nn.Module):
    """y = x + W2 dropout(relu(W1 x)); logits = W y."""

    def __init__(self, width: int, hidden: int, outputs: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.out = nn.Linear(width, outputs)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> HeadOutputs:
        """x (B, n)."""
        hidden = self.fc1(x)
        y = x + self.fc2(self.dropout(F.relu(hidden)))
        return HeadOutputs(self.out(y), hidden, y)


class HeadPerTarget(nn.Module):
    """The last head of each of several targets."""

    def __init__(self, heads: Iterable[ResidualHead]):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> HeadOutputs:
        """x (B, n)."""
        each = zip(*(head(x) for head in self.heads), strict=True)
        return HeadOutputs(*(torch.cat(parts, 1) for parts in each))


class DMD(FusionModel):
    config: DMDConfig

    def __init__(self, config: DMDConfig, spec: DataSpec):
        super().__init__(config, spec)
        names = sorted(spec.modalities, key=lambda m: (_place(m, ORDER), m))
        if len(names) < 2:
            raise DataError(
                f"{type(self).__name__} distils between modalities and needs two; got only "
                f"{names[0]}: use --model {names[0]}"
            )
        self.modalities = tuple(names)
        d, others = config.width, len(names) - 1
        # widths of what the heads and the fusion read
        self.shared_width = len(names) * (d + self.extra_width("homo", d))
        self.specific_width = others * d + self.extra_width("hetero", others * d)
        self._build_decoupling(spec)
        self._build_shared(spec.outputs)
        self._build_specific(spec.outputs, others * d)
        self._build_fusion(spec.outputs)
        self.logged: dict[str, Tensor] = {}

    def _build_decoupling(self, spec: DataSpec) -> None:
        config, names = self.config, self.modalities
        self.decoupling = Decoupling(
            {n: spec.modalities[n] for n in names},
            config.width,
            {n: config.of("kernel", n) for n in names},
            valid=self.published("valid_convolution"),
        )
        self.standardise = nn.ModuleDict({n: Standardise(spec.modalities[n]) for n in names})
        self.text_dropout = Dropout(config.drop("text"))

    def _build_shared(self, outputs: int) -> None:
        """A vector is the mean over steps, or (as published) all steps one after the other."""
        config, d, names = self.config, self.config.width, self.modalities
        vector = {n: d * self.steps(n) if self.published("flatten") else d for n in names}
        homo = {n: width + self.extra_width("homo", d) for n, width in vector.items()}
        unused = names if self.published("unused_layers") else ()
        self.align = nn.ModuleDict({n: nn.Linear(vector[n], d) for n in names})
        self.unused = nn.ModuleDict({n: nn.Linear(vector[n], d) for n in unused})
        self.homo_head = nn.ModuleDict(
            {n: ResidualHead(homo[n], d, outputs, config.drop("output")) for n in names}
        )
        self.self_attention = nn.ModuleDict({n: self.encoder(d, config.layers, n) for n in names})
        self.shared_head = self._head(self.shared_width, outputs)

    def _build_specific(self, outputs: int, memory: int) -> None:
        """`memory`: width of the concatenated cross-modal streams."""
        config, names = self.config, self.modalities
        self.cross = nn.ModuleDict()
        for n in names:
            for source in self.sources(n):
                self.cross[f"{n}<-{source}"] = self.encoder(config.width, config.layers, source)
        self.memory = nn.ModuleDict(
            {n: self.encoder(memory, config.memory_layers, "text") for n in names}
        )
        self.hetero_head = nn.ModuleDict(
            {n: self._head(self.specific_width, outputs) for n in names}
        )

    def _build_fusion(self, outputs: int) -> None:
        """The gates, the last head, and the graph of each space."""
        config, names, hetero = self.config, self.modalities, self.specific_width
        self.gate = nn.ModuleDict({n: nn.Linear(hetero, hetero) for n in names})
        self.shared_gate = nn.Linear(self.shared_width, self.shared_width)
        fused, taken = len(names) * hetero + self.shared_width, 0
        if self.spec.context is not None:
            taken = config.width
            self.turns = TurnAttention(
                fused,
                self.turn_widths(),
                taken,
                self.spec.context,
                dropout=config.context_dropout,
                hidden=config.turn_dropout,
            )
        each = [self._head(fused + taken, 1) for _ in range(outputs)] if self.per_target else []
        self.fused_head = HeadPerTarget(each) if each else self._head(fused + taken, outputs)
        sizes = {
            "homo": (config.width, config.graph_width_homo),
            "hetero": (hetero, config.graph_width_hetero),
        }
        self.graph = nn.ModuleDict()
        for space, (width, size) in sizes.items():
            self.graph[space] = GDUnit(
                names,
                outputs,
                width,
                size,
                space=space,
                softmax=config.edge_softmax,
                temperature=config.edge_temperature,
                prior="authors" if self.published("authors_prior") else config.prior,
            )

    def _head(self, width: int, outputs: int) -> ResidualHead:
        return ResidualHead(width, width, outputs, self.config.drop("output"))

    def published(self, name: str) -> bool:
        return name in self.config.as_published

    def sources(self, modality: str) -> list[str]:
        """The other modalities, in the order in which their streams are concatenated."""
        others = [n for n in self.modalities if n != modality]
        return sorted(others, key=lambda n: _place(n, STREAM_ORDER))

    def steps(self, modality: str) -> int:
        """Steps of a flattened sequence."""
        length, kernel = self.config.of("length", modality), self.config.of("kernel", modality)
        steps = length - kernel + 1 if self.published("valid_convolution") else length
        if steps < 1:
            raise DataError(
                f"model_args.length_{modality} = {length} leaves no step to a convolution of "
                f"kernel_{modality} = {kernel}; "
                f"set model_args.kernel_{modality} lower or leave out as_published "
                "'valid_convolution'"
            )
        return steps

    def encoder(self, width: int, layers: int, source: str) -> CrossModalEncoder:
        config = self.config
        return CrossModalEncoder(
            width,
            config.heads,
            layers,
            attention_dropout=config.drop_attention(source),
            embedding_dropout=config.drop("embedding"),
            hidden_dropout=config.drop("hidden"),
            residual_dropout=config.drop("residual"),
            causal=config.causal,
            band=self.published("band_mask"),
            zero_positions=self.published("zero_positions"),
        )

    def extra_width(self, space: str, width: int) -> int:
        """How much `refine` adds to a vector of this space."""
        return 0

    def lookup(
        self, space: str, sequences: dict[str, Tensor], masks: dict[str, Tensor]
    ) -> Matches | None:
        """A hook for what finds codes in the sequences of a space; their vectors are joined to
        those that the heads read.
        """
        return None

    def joined(self, vectors: dict[str, Tensor], matches: Matches | None) -> dict[str, Tensor]:
        if matches is None:
            return vectors
        return {
            m: torch.cat([v, code], 1)
            for (m, v), code in zip(vectors.items(), matches.code, strict=True)
        }

    # --- one pass

    def decouple(self, batch: Batch) -> dict[str, Decoupled]:
        parts = {}
        for m in self.modalities:
            mask = batch.mask(m)
            x = zero_padding(self.standardise[m](batch.x[m]), mask)
            if self.published("flatten"):
                x, mask = self.pad(m, x, mask)
            if self.published("no_padding_mask"):
                mask = torch.ones_like(mask)
            parts[m] = self.decoupling(m, self.text_dropout(x) if m == "text" else x, mask)
        return parts

    def pad(self, modality: str, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        length = self.config.of("length", modality)
        if x.shape[1] > length:
            raise DataError(
                f"{modality}: {x.shape[1]} steps, but as_published 'flatten' ties the weights to "
                f"{length}; "
                f"set model_args.length_{modality} to the longest sequence of the corpus or leave "
                "the switch out"
            )
        return F.pad(x, (0, 0, 0, length - x.shape[1])), F.pad(mask, (0, length - x.shape[1]))

    def readout(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, n) -> (B, n); zeros for an absent modality."""
        if self.published("last_step"):
            return x[:, -1]
        if self.config.readout == "mean":
            return masked_mean(x, mask)
        last = x[torch.arange(len(x), device=x.device), (mask.sum(1) - 1).clamp(min=0)]
        return last * mask.any(1, keepdim=True)

    def vector(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, d) -> (B, n), for the layers that may be flattening."""
        return (
            zero_padding(x, mask).flatten(1) if self.published("flatten") else masked_mean(x, mask)
        )

    def attend(self, modality: str, parts: dict[str, Decoupled]) -> Tensor:
        """The specific part of one modality as the others see it: (B, T, (M-1) d)."""
        own = parts[modality]
        streams = []
        for source in self.sources(modality):
            other = parts[source]
            encoder = self.cross[f"{modality}<-{source}"]
            streams.append(
                encoder(own.specific, other.specific, mask=own.mask, source_mask=other.mask)
            )
        return self.memory[modality](torch.cat(streams, -1), mask=own.mask)

    def gated(self, gate: nn.Module, x: Tensor) -> Tensor:
        share = gate(x).sigmoid()
        return share if self.published("no_gate") else share * x

    def encode(self, batch: Batch) -> DMDOutputs:
        """Everything that the losses and the prediction read, in one pass."""
        parts = self.decouple(batch)
        shared, specific = self.shared_branch(parts), self.specific_branch(parts)
        # autograd adds up gradients in the reverse order of these lines: another order, another run
        gated = self.all_gated(specific.joined, shared.in_common)
        representation = self.homo_representation(shared.heads)
        unused = self.unused_projections(parts)
        matches = {"homo": shared.matches, "hetero": specific.matches}
        return DMDOutputs(
            parts=parts,
            present=torch.stack([p.mask.any(1) for p in parts.values()]),
            homo_logits=torch.stack([head.logits for head in shared.heads]),
            homo_representation=representation,
            hetero_logits=torch.stack([head.logits for head in specific.heads]),
            hetero_representation=torch.stack([head.output for head in specific.heads]),
            aligned=torch.stack([self.align[m](x) for m, x in shared.vectors.items()]),
            last=torch.stack(list(specific.last.values())),
            shared_logits=self.shared_head(shared.in_common).logits,
            logits=self.fused_head(self.with_turns(torch.cat(gated, 1), batch)).logits,
            unused=unused,
            matches={space: found for space, found in matches.items() if found is not None},
        )

    def shared_branch(self, parts: dict[str, Decoupled]) -> SharedBranch:
        """C_m to homo heads, and to C_fus."""
        sequences = {m: p.shared for m, p in parts.items()}
        masks = {m: p.mask for m, p in parts.items()}
        vectors = {m: self.vector(x, masks[m]) for m, x in sequences.items()}
        matches = self.lookup("homo", sequences, masks)
        heads = [self.homo_head[m](x) for m, x in self.joined(vectors, matches).items()]
        attended = {m: self.attended(m, x, masks[m]) for m, x in sequences.items()}
        in_common = torch.cat(list(self.joined(attended, matches).values()), 1)
        return SharedBranch(vectors, heads, in_common, matches)

    def specific_branch(self, parts: dict[str, Decoupled]) -> SpecificBranch:
        """S_m, S_n to h_m, and to hetero heads."""
        memory = {m: self.attend(m, parts) for m in parts}
        masks = {m: p.mask for m, p in parts.items()}
        last = {m: self.readout(x, masks[m]) for m, x in memory.items()}
        matches = self.lookup("hetero", memory, masks)
        joined = self.joined(last, matches)
        heads = [self.hetero_head[m](x) for m, x in joined.items()]
        return SpecificBranch(last, joined, heads, matches)

    def attended(self, modality: str, shared: Tensor, mask: Tensor) -> Tensor:
        """(B, d) the shared part of one modality after self-attention, read out."""
        return self.readout(self.self_attention[modality](shared, mask=mask), mask)

    def homo_representation(self, heads: list[HeadOutputs]) -> Tensor:
        """(M, B, d)."""
        hidden = torch.stack([head.hidden for head in heads])
        return hidden.relu() if self.published("relu_representation") else hidden

    def all_gated(self, specific: dict[str, Tensor], in_common: Tensor) -> list[Tensor]:
        """Every h_m (B, n), and C_fus."""
        gated = [self.gated(self.gate[m], x) for m, x in specific.items()]
        return [*gated, self.gated(self.shared_gate, in_common)]

    def unused_projections(self, parts: dict[str, Decoupled]) -> Tensor | None:
        """(M, B, d) only as published: no loss reads them."""
        if not self.unused:
            return None
        vectors = {m: self.vector(parts[m].specific, parts[m].mask) for m in self.unused}
        return torch.stack([layer(vectors[m]) for m, layer in self.unused.items()])

    def forward(self, batch: Batch) -> Prediction:
        outputs = self.encode(batch)
        return Prediction(
            outputs.logits, unimodal=dict(zip(self.modalities, outputs.homo_logits, strict=True))
        )

    def spaces(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """{"shared": C_m, "specific": S_m} by modality, each the mean over real steps, (B, d). For
        pictures.
        """
        parts = self.decouple(batch)
        return {
            "shared": {m: masked_mean(p.shared, p.mask) for m, p in parts.items()},
            "specific": {m: masked_mean(p.specific, p.mask) for m, p in parts.items()},
        }

    # --- losses

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Terms over several modalities or edges are sums over them, as in the paper; each summand
        is a mean over its samples or steps.
        """
        outputs = self.encode(batch)
        return (
            self.task_terms(outputs, batch)
            | self.decoupling_terms(outputs, batch)
            | self.graph_terms(outputs, self.edges(outputs))
        )

    @property
    def unimodal_heads(self) -> bool:
        return bool(self.config.weight_heads)

    def left_out(self, batch_size: int) -> list[str]:
        if batch_size > 1:
            return []
        return [f"{name}: nothing is learnt in batches of one row" for name in self.compared()]

    def compared(self) -> list[str]:
        """The weights of terms that compare utterances of one batch."""
        return ["weight_margin"] if self.config.weight_margin else []

    def task_terms(self, o: DMDOutputs, batch: Batch) -> dict[str, Tensor]:
        common = batch.target, batch.soft

        def term(
            logits: Tensor, present: Tensor, taught: tuple[Tensor, Tensor | None] = common
        ) -> Tensor:
            target, shares = taught
            unknown = -1 if self.spec.task == "single" else torch.nan
            seen = present if target.ndim == 1 else present[:, None]
            soft = None if shares is None else shares.where(present[:, None], torch.nan)
            return self.task_loss(widened(logits), target.where(seen, unknown), soft)

        some = o.present.any(0)
        # hetero heads read h_m, which has seen the other modalities: theirs is the common label
        own = [batch.taught(m) for m in self.modalities]
        return {
            "task": term(o.logits, some),
            "shared": term(o.shared_logits, some),
            "homo": summed(map(term, o.homo_logits, o.present, own)),
            "hetero": summed(map(term, o.hetero_logits, o.present)),
        }

    def decoupling_terms(self, o: DMDOutputs, batch: Batch) -> dict[str, Tensor]:
        def parallel(p: Decoupled) -> Tensor:
            if self.published("orthogonality"):
                return orthogonality_over_batch(p.specific, p.shared)
            return orthogonality(p.specific, p.shared, p.mask, kind=self.config.orthogonality)

        def unlike(p: Decoupled) -> Tensor:
            return masked_mse(widened(p.restored), widened(p.origin), p.mask)

        def unlike_again(p: Decoupled) -> Tensor:
            return masked_mse(widened(p.again), widened(p.specific), p.mask)

        parts = list(o.parts.values())
        orthogonal = summed(map(parallel, parts))
        return {
            "reconstruction": summed(map(unlike, parts)),
            "cycle": summed(map(unlike_again, parts)),
            "orthogonality": orthogonal,
            "margin": self.margin_term(o, batch),
        }

    def margin_term(self, o: DMDOutputs, batch: Batch) -> Tensor:
        # rows are utterance-major there; the loss does not depend on their order
        if self.published("margin"):
            score = batch.target.flatten(1)[:, 0] if batch.target.ndim > 1 else batch.target
            return margin_loss_as_published(
                o.aligned.flatten(0, 1), score.float().repeat(len(self.modalities))
            )
        same, known = same_emotion(batch.target, task=self.spec.task)
        return margin_loss(o.aligned, same, known, o.present, margin=self.config.margin)

    def graphs(self) -> dict[str, GDUnit]:
        return {space: cast(GDUnit, unit) for space, unit in self.graph.items()}

    def edges(self, o: DMDOutputs) -> dict[str, Tensor]:
        """(E, B) by space."""
        seen = {
            "homo": (o.homo_logits, o.homo_representation),
            "hetero": (o.hetero_logits, o.hetero_representation),
        }
        edges = {space: graph(*seen[space], o.present) for space, graph in self.graphs().items()}
        self.logged = {space: e.detach().mean(1) for space, e in edges.items()}
        return edges

    def graph_terms(self, o: DMDOutputs, edges: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        logits = {"homo": o.homo_logits, "hetero": o.hetero_logits}
        representation = {"homo": o.homo_representation, "hetero": o.hetero_representation}
        kind = {"homo": config.homo_representation, "hetero": config.hetero_representation}
        if self.published("homo_repr_unused"):
            kind["homo"] = "off"
        if self.published("hetero_repr_repels"):
            kind["hetero"] = "repel"
        terms = {}
        for space, graph in self.graphs().items():
            weights = graph.weights(edges[space], o.present)
            ends = graph.student, graph.teacher
            distances = logit_distances(
                logits[space], *ends, task=self.spec.task, temperature=config.distill_temperature
            )
            terms[f"{space}_logit"] = distillation(distances, weights)
            terms[f"{space}_edges"] = edge_regulariser(edges[space], graph.prior, o.present.all(0))
            if kind[space] != "off":
                distances = representation_distances(representation[space], *ends, kind=kind[space])
                if space == "hetero" and self.published("hetero_repr_reduced"):
                    distances = distances.mean(1, keepdim=True)
                terms[f"{space}_representation"] = distillation(distances, weights)
        return terms

    def weights(self, progress: float) -> dict[str, float]:
        config = self.config
        weights = {
            "task": 1.0,
            "shared": config.weight_shared,
            "homo": config.weight_heads,
            "hetero": config.weight_heads,
        }
        weights |= {
            "reconstruction": config.weight_reconstruction,
            "cycle": config.weight_reconstruction,
        }
        weights |= {"orthogonality": config.weight_orthogonality, "margin": config.weight_margin}
        for space in ("homo", "hetero"):
            weights[f"{space}_logit"] = config.weight_graph
            weights[f"{space}_edges"] = config.weight_graph * config.weight_edges
            weights[f"{space}_representation"] = config.weight_graph * config.weight_representation
        return weights

    def standardisers(self) -> dict[str, list[Standardise]]:
        return {m: [standardiser_of(self.standardise, m)] for m in self.modalities}

    def diagnostics(self) -> dict[str, float]:
        """`edge/<space>/<teacher>-><student>`: mean edge weights of the last `losses` call, before
        the prior is added.
        """
        values, graphs = {}, self.graphs()
        for space, mean in self.logged.items():
            for name, weight in zip(graphs[space].names(), mean.tolist(), strict=True):
                values[f"edge/{space}/{name}"] = weight
        return values

    def observed(self) -> dict[str, Tensor | float]:
        values: dict[str, Tensor | float] = {}
        graphs = self.graphs()
        for space, mean in self.logged.items():
            for name, weight in zip(graphs[space].names(), mean.unbind(), strict=True):
                values[f"edge/{space}/{name}"] = weight
        return values


# The authors' parameter names, and ours. Groups are translated by WORDS.
WORDS = {
    "l": "text",
    "v": "vision",
    "a": "audio",
    "proj1": "fc1",
    "proj2": "fc2",
    "out_layer": "out",
}
WORDS |= {"W_logit": "logit", "W_repr": "representation", "W_edge": "edge"}
RENAMED = {
    r"proj_([lva])": "decoupling.project.{}",
    r"encoder_s_([lva])": "decoupling.private.{}",
    r"encoder_c": "decoupling.common",
    r"decoder_([lva])": "decoupling.decoder.{}",
    r"align_c_([lva])": "align.{}",
    r"proj_cosine_([lva])": "unused.{}",
    r"self_attentions_c_([lva])": "self_attention.{}",
    r"trans_([lva])_with_([lva])": "cross.{}<-{}",
    r"trans_([lva])_mem": "memory.{}",
    r"(proj1|proj2|out_layer)_([lva])_low": "homo_head.{1}.{0}",
    r"(proj1|proj2|out_layer)_([lva])_high": "hetero_head.{1}.{0}",
    r"(proj1|proj2|out_layer)_c": "shared_head.{}",
    r"(proj1|proj2|out_layer)": "fused_head.{}",
    r"weight_c": "shared_gate",
    r"weight_([lva])": "gate.{}",
    r"homo\.(W_logit|W_repr|W_edge)": "graph.homo.{}",
    r"hetero\.(W_logit|W_repr|W_edge)": "graph.hetero.{}",
}
LAYER = {
    "self_attn.in_proj_": "attention.qkv.",
    "self_attn.out_proj": "attention.out",
    "layer_norms.0": "norm1",
    "layer_norms.1": "norm2",
}
LAYER |= {"layer_norm.": "norm."}


def _renamed(name: str) -> str:
    """The authors' name of a parameter in this model's words."""
    for pattern, template in RENAMED.items():
        match = re.match(rf"(?:{pattern})(?=\.)", name)
        if match is not None:
            rest = name[match.end() :]
            for theirs, ours in LAYER.items():
                rest = rest.replace(theirs, ours)
            return template.format(*(WORDS[group] for group in match.groups())) + rest
    raise DataError(f"{name} is no parameter of the published model")


def from_published(state: dict[str, Tensor], config: DMDConfig) -> dict[str, Tensor]:
    """The authors' `state_dict` (its GD-Units' entries prefixed `homo.` and `hetero.`) under this
    model's names.

    For text, vision and audio, and as_published "flatten"; the other switches are free. 1x1
    convolutions become linear layers, and the columns of the alignment layers are reordered from
    channel-major to time-major.
    """
    renamed = {}
    for name, value in state.items():
        if name.endswith(".version") or ".embed_positions." in name:  # not weights
            continue
        new = _renamed(name)
        if new.startswith("unused.") and "unused_layers" not in config.as_published:
            continue
        if new.startswith(("decoupling.private", "decoupling.common", "decoupling.decoder")):
            value = value.squeeze(-1)
        elif new.startswith("align.") and new.endswith("weight"):
            value = value.unflatten(1, (config.width, -1)).transpose(1, 2).flatten(1)
        renamed[new] = value
    return renamed
