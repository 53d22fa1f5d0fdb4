"""Queue and gathered negatives."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mer.fusion.ops import (
    FeatureQueue,
    Term,
    contrastive_terms,
    gather_views,
    info_nce,
    mi_lower_bounds,
    nt_xent,
)

from tests.ops import oracle

TERMS = (Term((0, 1), (0, 1)), Term((0, 1), (0, 1), mask_self=False), Term((1,), (0,)))


def test_queue_keeps_the_last_rows():
    queue = FeatureQueue(5, 1)
    assert queue.rows().shape == (0, 1)
    queue.push(torch.tensor([[1.0], [2.0], [3.0]]))
    assert sorted(queue.rows().flatten().tolist()) == [1, 2, 3]
    queue.push(torch.tensor([[4.0], [5.0], [6.0]]))
    assert sorted(queue.rows().flatten().tolist()) == [2, 3, 4, 5, 6]
    queue.push(torch.arange(10.0, 20.0)[:, None])  # larger than the queue
    assert sorted(queue.rows().flatten().tolist()) == [15, 16, 17, 18, 19]


def test_queue_is_part_of_the_checkpoint():
    first, second = FeatureQueue(4, 2), FeatureQueue(4, 2)
    first.push(torch.randn(3, 2))
    second.load_state_dict(first.state_dict())
    first.push(torch.ones(2, 2))
    second.push(torch.ones(2, 2))
    assert torch.equal(first.rows(), second.rows())


def test_queue_negatives_and_their_bound():
    queue = FeatureQueue(6, 4)
    queue.push(torch.randn(6, 4))
    x, y, q = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), queue.rows()
    for got, term in (
        (nt_xent(x, y, 0.2, queue=q), Term((0, 1), (0, 1, 2))),
        (info_nce(x, y, 0.2, queue=q), Term((0,), (1, 2))),
        (info_nce(x, y, 0.2, queue=q, symmetric=True), Term((0, 1), (0, 1, 2), mask_self=False)),
    ):
        torch.testing.assert_close(
            got.detach(), oracle.loops([x.detach(), y, q], torch.tensor(0.2), (term,))[0]
        )
    bound = mi_lower_bounds(torch.zeros(1), (Term((0,), (1, 2)),), (3, 3, 6))
    torch.testing.assert_close(bound, torch.log(torch.tensor([9.0])))
    loss = nt_xent(x, y, 0.2, queue=q)
    queue.push(y)  # must not disturb the pending backward pass
    (after,) = torch.autograd.grad(loss, x)
    x2 = x.detach().requires_grad_()
    torch.testing.assert_close(after, torch.autograd.grad(nt_xent(x2, y, 0.2, queue=q), x2)[0])


def _rank(rank: int, world: int, port: int) -> list:
    """[losses, d x, d y, d tau] of this rank, gradients averaged as data parallelism does."""
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    try:
        views, tau = _inputs(world)
        mine = [v.view(world, -1, v.shape[1])[rank].clone().requires_grad_() for v in views]
        tau.requires_grad_()
        gathered, rows = gather_views(*mine)
        losses = contrastive_terms(gathered, tau, TERMS, anchor_rows=rows)
        losses.sum().backward()
        tau_grad = tau.grad.clone()
        dist.all_reduce(tau_grad)
        return [
            t.tolist()
            for t in (losses.detach(), mine[0].grad / world, mine[1].grad / world, tau_grad / world)
        ]
    finally:
        dist.destroy_process_group()


def _other_rank(queue, *where: int) -> None:
    torch.set_num_threads(1)
    queue.put(_rank(*where))


def _inputs(world: int):
    g = torch.Generator().manual_seed(5)
    return [
        torch.randn(3 * world, 4, generator=g, dtype=torch.float64) for _ in range(2)
    ], torch.tensor(0.3, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore")  # gloo warns about the machine's name resolution
def test_two_ranks_are_one_big_batch():
    """Losses averaged over ranks, and gradients averaged as data parallelism does, are those of one
    process with everything.
    """
    world = 2
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = mp.get_context("spawn")
    queue = processes.Queue()
    other = processes.Process(target=_other_rank, args=(queue, 1, world, port))
    other.start()
    ranks = [
        [torch.tensor(x, dtype=torch.float64) for x in each]
        for each in (_rank(0, world, port), queue.get(timeout=60))
    ]
    other.join()
    views, tau = _inputs(world)
    want = oracle.gradients(lambda v, t: oracle.loops(v, t, TERMS), views, tau, torch.ones(3))
    torch.testing.assert_close(sum(r[0] for r in ranks) / world, want[0])
    for i in (1, 2):
        torch.testing.assert_close(torch.cat([r[i] for r in ranks]), want[i])
    torch.testing.assert_close(ranks[0][3], want[3])


def test_without_a_process_group_nothing_is_gathered():
    x = torch.randn(3, 2)
    assert gather_views(x, x) == ((x, x), (0, 3))
