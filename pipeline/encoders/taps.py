"""Hidden states of a model while it runs: the frames of the chosen layers, and the mean of every
layer over each item's true steps. States that are not asked for are let go at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mer.pipeline.encoders.frozen import to_host
from mer.pipeline.encoders.layers import LayerChoice
from mer.pipeline.encoders.modality import Kept, States
from mer.pipeline.errors import EncoderError

# where transformers' encoders keep their blocks
BLOCKS = (
    "encoder.layers",
    "encoder.layer",
    "transformer.layer",
    "decoder.layers",
    "layers",
    "h",
    "blocks",
    "block",
)


class _Pass(threading.local):
    """What a forward pass leaves for its own thread."""

    def __init__(self) -> None:
        self.clear(())

    def clear(self, spans: Sequence[Kept], longest: int | None = None) -> None:
        self.spans, self.longest = spans, longest
        self.kept: Tensor | None = None  # (B, T) bool: the steps that layer means are over
        self.chosen: list[Tensor] = []
        self.means: list[Tensor] = []

    def mean(self, states: Tensor) -> Tensor:
        """(B, width) fp32 over the kept steps of (B, T, width), whatever the others hold."""
        if self.kept is None:
            ends = torch.tensor([(first, first + steps) for first, steps in self.spans])
            ends = ends.to(states.device, non_blocking=True)
            at = torch.arange(states.shape[1], device=states.device)
            self.kept = (at >= ends[:, :1]) & (at < ends[:, 1:])
        total = states.where(self.kept[:, :, None], 0).sum(1, dtype=torch.float32)
        return total / self.kept.sum(1).clamp(min=1)[:, None]


class LayerTaps:
    """Hooks on the blocks of `model`, and the removal of those that nobody needs.

    Call `begin` before a forward pass and `end` after it, in the same thread; the model takes
    `arguments` besides its own. Without layer means, blocks above the highest chosen layer are
    dropped. A model whose blocks are not where others have them (ALBERT repeats one) is asked for
    all its hidden states, which costs memory.
    """

    def __init__(
        self, model: nn.Module, choice: LayerChoice, *, means: bool, hooks: bool = True
    ) -> None:
        """`hooks`: False asks for all hidden states wherever the blocks are."""
        self.choice, self.means = choice, means
        self._name = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        self.arguments: dict[str, Any] = {}
        self._pass = _Pass()
        if choice.kind == "last" and not means:
            return
        blocks = blocks_of(model, choice.count) if hooks else None
        if blocks is None:
            self.arguments["output_hidden_states"] = True
            return
        blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        for number, block in enumerate(list(blocks)[:-1], start=1):
            if means or number in choice.layers:
                block.register_forward_hook(self._leave(number))
        if not means:
            del blocks[max(1, choice.highest) :]

    @property
    def count(self) -> int:
        """How many layer means an item gets."""
        return self.choice.count + 1 if self.means else 0

    def _enter(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._see(0, args[0] if args else kwargs["hidden_states"])

    def _leave(self, number: int):
        def hook(block: nn.Module, args: tuple, output: Tensor | Sequence[Tensor]) -> None:
            self._see(number, output if isinstance(output, Tensor) else output[0])

        return hook

    def _see(self, number: int, states: Tensor) -> None:
        """Take what is wanted of a layer's states (B, T, width)."""
        state = self._pass
        if not state.spans:  # somebody else runs the model
            return
        states = states[:, : state.longest]
        if self.means:
            state.means.append(state.mean(states))
        if number not in self.choice.layers:
            return
        if self.choice.kind == "mean" and state.chosen:
            state.chosen[0] = state.chosen[0] + states.float()
        else:
            state.chosen.append(states.float())

    def begin(self, spans: Sequence[Kept], longest: int | None = None) -> None:
        """A batch is about to run; `spans` are the steps of each item that its layer means are
        over, and no item has more than `longest` of them.
        """
        self._pass.clear(spans, longest)

    def end(self, output: Any) -> tuple[Tensor, Tensor | None]:
        """(frames (B, T, dim), layer means (B, L, width)), fp32 on the device, after a pass that
        gave `output`. Raises EncoderError for a model without hidden states.
        """
        state, count = self._pass, self.choice.count
        if self.arguments:
            hidden = getattr(output, "hidden_states", None)
            if hidden is None or len(hidden) != count + 1:
                raise EncoderError(
                    f"model type '{self._name}' does not tell its layers apart; use the layer "
                    "setting last, and --no-layer-means"
                )
            for number in range(count):
                self._see(number, hidden[number])
        if self.means or self.choice.highest == count:
            self._see(count, output.last_hidden_state)
        chosen, means = state.chosen, state.means
        state.clear(())
        frames = chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)
        if self.choice.kind == "mean":
            frames = frames / len(self.choice.layers)
        return frames, torch.stack(means, dim=1) if means else None


def hooks_see(blocks: nn.ModuleList, forward: Callable[[], Sequence[Tensor]]) -> bool:
    """Whether hooks on `blocks` see the hidden states that `forward` gives, all but the last.

    Some architectures pad inside, or tell others than enter their blocks.
    """
    seen: list[Tensor] = []

    def enter(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def leave(block: nn.Module, args: tuple, output: Tensor | Sequence[Tensor]) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    handles = [block.register_forward_hook(leave) for block in list(blocks)[:-1]]
    handles.append(blocks[0].register_forward_pre_hook(enter, with_kwargs=True))
    try:
        returned = list(forward())[:-1]
    finally:
        for handle in handles:
            handle.remove()
    same = (a.shape == b.shape and torch.equal(a, b) for a, b in zip(seen, returned, strict=False))
    return len(seen) == len(returned) and all(same)


def blocks_of(model: nn.Module, count: int) -> nn.ModuleList | None:
    """The `count` blocks of a transformer, in their order; None: it keeps them elsewhere."""
    for path in BLOCKS:
        found: Any = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and len(found) == count:
            return found
    return None


def fetch(frames: Tensor, means: Tensor | None):
    """Start the copy to the host of what a pass gave; the call waits for it, and gives (B, T, dim)
    and (B, L, width) or None.

    To be started under `computing`, and waited for outside of it.
    """
    waiting = [to_host(x) for x in (frames, means) if x is not None]

    def wait() -> tuple[np.ndarray, np.ndarray | None]:
        found = [fetched() for fetched in waiting]
        return found[0], found[1] if len(found) > 1 else None

    return wait


def states_of(frames: np.ndarray, means: np.ndarray | None, counts: Sequence[int]) -> list[States]:
    """A batch's arrays as the states of each item, the first `counts[i]` steps of it."""
    found = []
    for row, count in enumerate(counts):
        found.append(States(frames[row, :count], None if means is None else means[row]))
    return found


def spans_of(kept: Sequence[Kept | None] | None, counts: Sequence[int]) -> list[Kept]:
    """The (first step, steps) of each item that is kept, where all `counts[i]` are if nothing else
    is said.
    """
    if kept is None:
        return [(0, count) for count in counts]
    return [span or (0, count) for span, count in zip(kept, counts, strict=True)]
