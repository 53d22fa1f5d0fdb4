"""Which hidden states of an encoder are kept as frames: the layer settings. Pure, no torch.

Layers are counted as transformers does with `output_hidden_states`: layer 0 enters the first block,
layer N is what block N gives, and the layer of the last block is the encoder's output, after its
final norm if it has one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import shown

EXPECTED = "expected last, N, mean:A-B or stack:A-B[:S]"
# `last` stands for the number of blocks; at most four digits, and no sign
SETTING = re.compile(
    r"(?:(?P<form>mean|stack):(?P<first>\d{1,4})-)?(?P<last>\d{1,4}|last)(?::(?P<step>\d{1,4}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class LayerChoice:
    """The layers whose states become frames, in ascending order.

    `kind` says how: `last` and `one` keep one layer, `mean` averages several, `stack` puts several
    side by side. `count` is the number of the encoder's blocks, and thus of its last layer.
    """

    kind: str  # last | one | mean | stack
    layers: tuple[int, ...]
    count: int

    @property
    def highest(self) -> int:
        return self.layers[-1]

    @property
    def stack(self) -> tuple[int, ...]:
        """The layers that stand side by side in a step; () where it is one vector."""
        return self.layers if self.kind == "stack" else ()

    @property
    def copies(self) -> int:
        """How many times as wide as a hidden state a step is."""
        return len(self.layers) if self.kind == "stack" else 1

    @property
    def text(self) -> str:
        """The setting as recipes hold it: equal settings of an encoder have equal texts.

        The last layer is always written `last`. Before it could be averaged with others, a mean up
        to the last block was one without the final norm: stores that were made so say its number.
        """
        first, last = self.layers[0], self.layers[-1]
        end = "last" if last == self.count else str(last)
        if self.kind in ("last", "one"):
            return end
        step = self.layers[1] - first if len(self.layers) > 1 else 1
        return f"{self.kind}:{first}-{end}" + (f":{step}" if step > 1 else "")


def parse_layers(text: str, count: int, option: str = "--audio-layer") -> LayerChoice:
    """The layers that a setting asks of an encoder with `count` blocks.

    Args:
        text: `last`, `N`, `mean:A-B` or `stack:A-B[:S]` (every S-th layer from A on); B may be
            `last`.
        count: the encoder's blocks; its layers are 0 to `count`.
        option: what the setting was given with, for errors.

    Raises:
        DataError: no such setting, or the encoder has no such layer.
    """
    match = SETTING.fullmatch(text)
    if not match or (match["step"] and match["form"] != "stack"):
        raise DataError(f"{option} '{shown(text)}': {EXPECTED}")
    last = count if match["last"] == "last" else int(match["last"])
    first = int(match["first"]) if match["first"] else last
    step = int(match["step"] or 1)
    if not step:
        raise DataError(f"{option} {text}: every 0th layer is none; {EXPECTED}")
    if first > last:
        raise DataError(
            f"{option} {text}: the first layer, {first}, is above the last, {last}; {EXPECTED} "
            "with A up to B"
        )
    if last > count:
        raise DataError(f"{option} {text}: this encoder has layers 0 to {count}")
    layers = tuple(range(first, last + 1, step))
    if layers == (count,):
        return LayerChoice("last", layers, count)
    return LayerChoice(match["form"] or "one", layers, count)
