"""Data-parallel training under `torchrun`: the batches of a step are dealt over the processes.

A step is the sum of the gradients of its `optim.accumulate` batches, whoever computes which.
Process r of W takes batches r, r + W, ... of the step, gradients are added over the processes, and
all of them take the same step. Nothing but the order of that sum depends on W, for any model:
contrastive negatives come from the batch they are in, here as there, and dropout is drawn from
(seed, epoch, batch). A process computes what all need (dev scores, folders) once: the first one,
which alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from mer.pipeline.errors import DataError, MerError

T = TypeVar("T")
# environment of a process that torchrun started
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; by default it is alone."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batches: Sequence[T]) -> Sequence[T]:
        """Those of a step's batches that this process computes.

        >>> Processes(1, 2).share([0, 1, 2, 3, 4])
        [1, 3]
        """
        return batches[self.rank :: self.size]

    def check(self, accumulate: int) -> None:
        """Raise DataError when a step has fewer batches than there are processes."""
        if accumulate < self.size:
            raise DataError(
                f"{self.size} processes, but a step has optim.accumulate = {accumulate} batches: "
                "some would have nothing to do; "
                f"use --set optim.accumulate={self.size} (a step then sees {self.size} x "
                "train.batch_size rows, so lower that to match)"
            )

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; a parameter that nobody used keeps
        none.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        used = torch.tensor(
            [float(p.grad is not None) for p in parameters], device=parameters[0].device
        )
        # One message: the gradients end to end, then which of them there are.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), used])
        dist.all_reduce(flat)
        *summed, used = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for p, gradient, anyone in zip(parameters, summed, used.tolist(), strict=True):
            p.grad = gradient.view_as(p) if anyone else None

    def gather(self, value: T) -> list[T]:
        """The value of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def agree(self, call: Callable[[], T]) -> T:
        """`call()`, made by the first process alone, for all of them; its MerError, too."""
        if self.size == 1:
            return call()
        found: list[Any] = [None]
        if self.first:
            try:
                found = [(call(), None)]
            except MerError as error:
                found = [(None, error)]
        dist.broadcast_object_list(found, src=0)
        value, failed = found[0]
        if failed is not None:
            raise failed
        return value


ALONE = Processes()


@contextmanager
def processes() -> Iterator[Processes]:
    """The processes that `torchrun` started, connected; otherwise this one alone.

    On CUDA each takes the GPU of its local rank.
    """
    if not all(name in os.environ for name in LAUNCHED) or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    # Its functions take the group that there is when it is imported as their default. Imported
    # later, by the first compiled step, it would keep the group's threads beyond
    # `destroy_process_group`, and now and then they abort a process that is ending.
    import torch.distributed.nn  # noqa: F401

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
