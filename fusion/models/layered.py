"""Any model of the registry on features of several layers: they are mixed by learned weights, and
the model sees the mixture as one layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from mer.fusion.batch import Batch, Block
from mer.fusion.models import Prediction
from mer.fusion.models.base import FusionModel
from mer.fusion.modules.layer_mix import LayerMix
from mer.fusion.modules.pooling import Moments, zero_padding

# On the learning rate of the weights. At the rate of the others they hardly leave where they begin,
# all equal: a corpus of a few hundred utterances has a few hundred steps. Dev figures at 1, 10 and
# 100 are in docs/training.md.
LR_SCALE = 100.0


class Layered(FusionModel):
    """`core`, the model, behind a mix of layers for every block of numbers that has several."""

    def __init__(self, core: FusionModel) -> None:
        nn.Module.__init__(self)
        self.config, self.spec, self.summary = core.config, core.spec, core.summary
        self.inner = core
        self.blocks: dict[str, list[Block]] = {}
        self.mix = nn.ModuleDict()
        self.modalities = core.modalities
        for m in core.modalities:
            blocks = core.spec.blocks(m, summary=core.summary)
            if any(len(block.layers) > 1 for block in blocks):
                self.blocks[m] = blocks
                self.mix[m] = nn.ModuleList(map(_mix_of, blocks))
        self.lr_scale = {f"inner.{name}": scale for name, scale in core.lr_scale.items()}
        for name, _ in self.mix.named_parameters():
            self.lr_scale[f"mix.{name}"] = LR_SCALE

    @property
    def core(self) -> FusionModel:
        return self.inner

    def forward(self, batch: Batch) -> Prediction:
        return self.inner(self.mixed(batch))

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        return self.inner.losses(self.mixed(batch), progress)

    def weights(self, progress: float) -> dict[str, float]:
        return self.inner.weights(progress)

    def set_class_weights(self, weights: Tensor) -> None:
        self.inner.set_class_weights(weights)

    def diagnostics(self) -> dict[str, float]:
        return self.inner.diagnostics()

    def observed(self) -> dict[str, Tensor | float]:
        return self.inner.observed()

    def mixed(self, batch: Batch) -> Batch:
        masks = {m: batch.mask(m) for m in self.blocks}
        mixed = replace(batch, x=self._mixed_steps(batch.x, masks))
        context = batch.context
        if context is None:
            return mixed
        turns = replace(context, x=self._mixed_steps(context.x, context.there))
        return replace(mixed, context=turns)

    def _mixes(self, modality: str) -> nn.ModuleList:
        """What mixes each block of a modality."""
        return cast(nn.ModuleList, self.mix[modality])

    def _mixed_steps(self, steps: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """The steps (B, T, D_m) of each modality, with layers mixed where there are several; mixed
        steps are zero beyond the mask (B, T).
        """
        x = dict(steps)
        for m, blocks in self.blocks.items():
            mask = masks[m]
            parts = zero_padding(x[m], mask).split([block.numbers for block in blocks], -1)
            done = [mix(part) for mix, part in zip(self._mixes(m), parts, strict=True)]
            x[m] = zero_padding(torch.cat(done, -1), mask)
        return x

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Twice through the training part: the scale of every layer, then whatever the model itself
        learns from the mixture as it is in the beginning.
        """
        moments = {m: Moments() for m in self.blocks}
        for batch in batches:
            for m in moments:
                moments[m].update(batch.x[m][batch.mask(m)])
        for m, blocks in self.blocks.items():
            at = 0
            for block, mix in zip(blocks, self._mixes(m), strict=True):
                if isinstance(mix, LayerMix):
                    mix.standardise.set(moments[m].part(at, at + block.numbers))
                at += block.numbers
        self.inner.calibrate(map(self.mixed, batches))

    def layer_weights(self) -> dict[str, dict[str, float]]:
        found = {}
        for m, blocks in self.blocks.items():
            for block, mix in zip(blocks, self._mixes(m), strict=True):
                if isinstance(mix, LayerMix):
                    names = map(str, block.layers)
                    found[block.label] = dict(zip(names, mix.shares().tolist(), strict=True))
        return found


def _mix_of(block: Block) -> nn.Module:
    """What makes one layer of a block."""
    several = len(block.layers) > 1
    return LayerMix(len(block.layers), block.width) if several else nn.Identity()
