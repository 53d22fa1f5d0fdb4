"""DHMD: Decoupled Hierarchical Multimodal Distillation (arXiv 2602.04260, IEEE TPAMI 2026), the
fine stage RECONSTRUCTED.

Known from the abstract: DMD's decoupling; a coarse stage, a GD-Unit in each space; a fine stage,
cross-modal dictionary matching. Everything about the dictionary below is ours: no body of the paper
and no code was at hand. Each choice is a config field. docs/papers/dhmd.md separates what is known
from what is reconstructed; figures of this file are not figures of the paper.

    a_m, e_m = dictionary(F_m)     F = C in the homo space, the memory transformers' output in the
                                   hetero space    modules/dictionary.py
    L_dict   = sum over m < n of symmetric InfoNCE(e_m, e_n), in each space
    L_act    = sum over edges j <- i of w_ji JS(sg(a_i), a_j), w the GD-Unit's edges: ties the fine
             stage to the coarse one
    heads read their vector and e_m
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor, nn

from mer.fusion.batch import Batch, DataSpec
from mer.fusion.losses.contrastive import Impl, info_nce
from mer.fusion.losses.graph import distillation
from mer.fusion.models.base import summed
from mer.fusion.models.dmd import DMD, DMDConfig, DMDOutputs
from mer.fusion.modules.dictionary import (
    Dictionary,
    Matches,
    dead_atoms,
    jensen_shannon,
    top_atom_overlap,
    usage_entropy,
)
from mer.fusion.modules.graph_distillation import pairs


@dataclass(frozen=True)
class DHMDConfig(DMDConfig):
    # coarse: GD-Units, i.e. DMD; fine: dictionary matching
    stage: Literal["coarse", "fine", "both"] = "both"
    # one set of atoms for all modalities of a space, or one each
    dictionary: Literal["shared", "separate"] = "shared"
    atoms: int = 64  # K; 512 in the closest public code, 64-128 for MOSI-sized data
    activation: Literal["sparsemax", "softmax"] = "sparsemax"
    dictionary_temperature: float = 2.0  # of the similarity before the activation
    join_codes: bool = True  # heads read e_m beside their vector
    match_activations: bool = True  # L_act
    match_temperature: float = 0.1  # of InfoNCE
    weight_dictionary: float = 0.1
    weight_activation: float = 0.05
    usage_decay: float = 0.98  # of the running mean activation that the monitors read
    impl: Impl = "auto"  # of InfoNCE: auto | eager | chunked | triton

    def __post_init__(self):
        super().__post_init__()
        if self.atoms < 2:
            raise ValueError(f"atoms = {self.atoms}: a dictionary needs at least 2")


class DHMD(DMD):
    config: DHMDConfig

    def __init__(self, config: DHMDConfig, spec: DataSpec):
        super().__init__(config, spec)
        m, d = len(self.modalities), config.width
        if config.stage == "fine":
            self.graph.clear()
        widths = {} if config.stage == "coarse" else {"homo": d, "hetero": (m - 1) * d}
        self.dictionary = nn.ModuleDict()
        for space, width in widths.items():
            self.dictionary[space] = Dictionary(
                self.modalities,
                width,
                config.atoms,
                shared=config.dictionary == "shared",
                activation=config.activation,
                temperature=config.dictionary_temperature,
            )
        for space in self.dictionary:
            self.register_buffer(f"usage_{space}", torch.zeros(m, config.atoms))
        self.overlap: dict[str, Tensor] = {}

    def extra_width(self, space: str, width: int) -> int:
        return width if self.config.stage != "coarse" and self.config.join_codes else 0

    def lookup(
        self, space: str, sequences: dict[str, Tensor], masks: dict[str, Tensor]
    ) -> Matches | None:
        return self.dictionary[space](sequences, masks) if space in self.dictionary else None

    def joined(self, vectors: dict[str, Tensor], matches: Matches | None) -> dict[str, Tensor]:
        return super().joined(vectors, matches if self.config.join_codes else None)

    def activations(self, batch: Batch) -> dict[str, Tensor]:
        """(M, B, K) by space, modalities in the order of `self.modalities`. For pictures."""
        return {space: found.activation for space, found in self.encode(batch).matches.items()}

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        outputs = self.encode(batch)
        terms = self.task_terms(outputs, batch) | self.decoupling_terms(outputs, batch)
        edges = self.edges(outputs)
        return terms | self.graph_terms(outputs, edges) | self.dictionary_terms(outputs, edges)

    def dictionary_terms(self, o: DMDOutputs, edges: dict[str, Tensor]) -> dict[str, Tensor]:
        config, terms = self.config, {}
        edges_of_all = pairs(self.modalities)
        students = [self.modalities.index(student) for student, _ in edges_of_all]
        teachers = [self.modalities.index(teacher) for _, teacher in edges_of_all]
        complete = bool(o.present.all()) if o.matches else True  # the one wait for the device
        for space, found in o.matches.items():
            present = None if complete else o.present
            terms[f"{space}_dictionary"] = summed(
                self.matching(found.code, present, i, j)
                for i, j in combinations(range(len(self.modalities)), 2)
            )
            if config.match_activations:
                # The coarse stage says who teaches whom; the fine stage must not move its edges,
                # hence detached.
                usable = o.present[students] & o.present[teachers]
                weights = edges[space].detach() if space in edges else usable / len(students)
                distance = jensen_shannon(
                    found.activation[students], found.activation.detach()[teachers]
                )
                terms[f"{space}_activation"] = distillation(distance * usable, weights)
            self.monitor(space, found, o.present)
        return terms

    def matching(self, code: Tensor, present: Tensor | None, i: int, j: int) -> Tensor:
        """Symmetric InfoNCE between the codes of two modalities, over the utterances that have both
        (None: all do).
        """
        x, y = code[i], code[j]
        if present is not None:
            both = present[i] & present[j]
            x, y = x[both], y[both]
        if len(x) == 0:
            return code.sum() * 0
        return info_nce(
            x, y, temperature=self.config.match_temperature, symmetric=True, impl=self.config.impl
        )

    @torch.no_grad()
    def monitor(self, space: str, found: Matches, present: Tensor) -> None:
        self.overlap[space] = top_atom_overlap(found.activation, present)
        if self.training:
            usage = getattr(self, f"usage_{space}")
            now = found.activation.sum(1) / present.sum(1, keepdim=True).clamp(min=1)
            usage.lerp_(now, torch.where(usage.any(), 1 - self.config.usage_decay, 1.0).to(usage))

    def compared(self) -> list[str]:
        matched = self.dictionary and self.config.weight_dictionary
        return super().compared() + (["weight_dictionary"] if matched else [])

    def weights(self, progress: float) -> dict[str, float]:
        weights = super().weights(progress)
        for space in self.dictionary:
            weights[f"{space}_dictionary"] = self.config.weight_dictionary
            weights[f"{space}_activation"] = self.config.weight_activation
        return weights

    def diagnostics(self) -> dict[str, float]:
        """DMD's, and by space: `overlap`, share of utterance pairs of modalities with the same
        strongest atom, in the last `losses` call; and by modality, over the recent batches:
        `entropy` of atom usage (1: even) and `dead`, the share of unused atoms.
        """
        values = super().diagnostics()
        for space, overlap in self.overlap.items():
            usage = getattr(self, f"usage_{space}")
            values[f"dictionary/{space}/overlap"] = overlap.item()
            entropies, dead = usage_entropy(usage).tolist(), dead_atoms(usage).tolist()
            for number, name in enumerate(self.modalities):
                values[f"dictionary/{space}/entropy/{name}"] = entropies[number]
                values[f"dictionary/{space}/dead/{name}"] = dead[number]
        return values

    def observed(self) -> dict[str, Tensor | float]:
        shared = {f"dictionary/{space}/overlap": share for space, share in self.overlap.items()}
        return super().observed() | shared
