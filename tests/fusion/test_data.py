from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mer.fusion.config import DataConfig
from mer.fusion.data import feature_sets, sources, splits
from mer.fusion.modules.pooling import masked_mean_std
from mer.pipeline.errors import DataError
from mer.pipeline.store import ModalityInfo, ShardWriter, build_index

from tests.fusion.stores import make_store


def whole(store, *, summary: bool = False, **options) -> sources.BatchSource:
    config = DataConfig(**{"pool_hz": float("inf"), **options})
    target = splits.targets(store.table(), store.header.task, store.header.labels)
    return sources.batch_source(
        store,
        feature_sets.spec(store, config),
        config,
        np.arange(len(store)),
        target,
        device="cpu",
        summary=summary,
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 5))
def test_pool_equals_a_plain_loop(lengths, factor):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3)).astype(np.float32) for n in lengths]
    packed, shorter = sources.pool(np.concatenate(parts), np.array(lengths), factor)
    wanted = [[p[i : i + factor].mean(0) for i in range(0, len(p), factor)] for p in parts]
    assert shorter.tolist() == [len(w) for w in wanted]
    flat = [v for w in wanted for v in w]
    np.testing.assert_allclose(packed, np.array(flat).reshape(-1, 3), atol=1e-6)


def test_pooling_follows_the_frame_rate(tmp_path):
    store = make_store(tmp_path, n=12, rate=50.0)
    part = whole(store, pool_hz=12.5)
    assert part.spec.frame_rates == {"audio": 12.5, "text": None}
    np.testing.assert_array_equal(part.n["audio"], -(-store.lengths("audio") // 4))
    np.testing.assert_array_equal(part.n["text"], store.lengths("text"))  # tokens are never pooled
    np.testing.assert_allclose(
        part.batch(np.array([3])).x["audio"][0, 0],
        store.features("audio", 3)[:4].mean(0),
        atol=1e-6,
    )
    # a pooled store is not pooled twice
    slow = whole(make_store(tmp_path / "slow", n=12, rate=12.5), pool_hz=12.5)
    np.testing.assert_array_equal(slow.n["audio"], slow.store.lengths("audio"))


@pytest.mark.parametrize("residence", ["device", "stream"])
def test_a_batch_is_the_rows_of_the_store(tmp_path, residence):
    store = make_store(tmp_path, n=30)
    part = whole(store, residence=residence)
    assert part.resident == (residence == "device")
    index = np.array([7, 0, 29, 7])
    batch = part.batch(index)
    for m in ("audio", "text"):
        assert batch.x[m].shape[1] == batch.lengths[m].max()
        for b, r in enumerate(index):
            n = int(batch.lengths[m][b])
            np.testing.assert_array_equal(batch.x[m][b, :n], store.features(m, int(r)))
            assert (batch.x[m][b, n:] == 0).all()
    assert batch.row.tolist() == index.tolist()
    assert batch.target.tolist() == part.target[torch.from_numpy(index)].tolist()


@pytest.mark.parametrize("summary", [False, True])
def test_streamed_batches_equal_resident_ones(tmp_path, summary):
    store = make_store(tmp_path, n=50)
    resident, streamed = (
        whole(store, residence=r, pool_hz=12.5, summary=summary) for r in ("device", "stream")
    )
    # more batches than are gathered at once, one of them smaller
    order = resident.shuffled(3, (1, 2))
    for a, b in zip(resident.batches(order), streamed.batches(order), strict=True):
        for m in a.x:
            torch.testing.assert_close(a.x[m], b.x[m], rtol=0, atol=0)
            torch.testing.assert_close(a.lengths[m], b.lengths[m])
        torch.testing.assert_close(a.target, b.target)
        torch.testing.assert_close(a.row, b.row)


def test_small_room_means_streaming(tmp_path):
    store = make_store(tmp_path, n=12)
    config = DataConfig()
    spec, target = feature_sets.spec(store, config), np.zeros(12, dtype=np.int64)
    room = whole(store, pool_hz=12.5).nbytes()
    assert sources.batch_source(
        store, spec, config, np.arange(12), target, device="cpu", room=room
    ).resident
    assert not sources.batch_source(
        store, spec, config, np.arange(12), target, device="cpu", room=room - 1
    ).resident


def test_an_error_while_reading_ahead_surfaces(tmp_path):
    part = whole(make_store(tmp_path, n=12), residence="stream")
    with pytest.raises(IndexError):
        list(part.batches([np.array([0]), np.array([99])]))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 5))
def test_shuffled_batches_cover_every_row_once(n, size, seed):
    part = sources.BatchSource(
        None, None, None, np.arange(n), torch.zeros(n), torch.device("cpu"), {}
    )
    part._total_length = lambda: np.arange(n) % 7
    order = part.shuffled(size, (seed, 1))
    assert sorted(np.concatenate(order)) == list(range(n))
    assert sorted(map(len, order)) == sorted([size] * (n // size) + [n % size] * (n % size > 0))
    assert [i.tolist() for i in part.shuffled(size, (seed, 1))] == [i.tolist() for i in order]


def test_batches_are_of_similar_length_and_change_with_the_epoch(tmp_path):
    part = whole(make_store(tmp_path, n=120), modalities="audio")
    n = part.n["audio"]

    def padded(order):
        return sum(len(i) * n[i].max() for i in order) / n.sum()

    rng = np.random.default_rng(0).permutation(120)
    assert (
        padded(part.shuffled(8, (0, 1))) < 1.15 < padded([rng[i : i + 8] for i in range(0, 120, 8)])
    )
    assert [i.tolist() for i in part.shuffled(8, (0, 1))] != [
        i.tolist() for i in part.shuffled(8, (0, 2))
    ]


def test_absent_modalities_have_length_zero(tmp_path):
    (tmp_path / "feats.shards").mkdir()
    shard = tmp_path / "feats.shards" / "shard-00000.h5"
    with ShardWriter(shard, {"audio": 3, "text": 2}) as writer:
        writer.add("a", {"audio": np.ones((4, 3)), "text": None})
        writer.add("b", {"audio": None, "text": np.ones((2, 2))})
    store = build_index(
        tmp_path / "feats.h5",
        [shard],
        [{"id": "a", "split": "train", "label": "x"}, {"id": "b", "split": "train", "label": "x"}],
        dataset="gaps",
        task="single",
        labels=("x",),
        modalities={"audio": ModalityInfo(3, 50.0), "text": ModalityInfo(2)},
    )
    for residence in ("device", "stream"):
        batch = whole(store, residence=residence).batch(np.array([0, 1]))
        assert batch.lengths["audio"].tolist() == [4, 0] and batch.lengths["text"].tolist() == [
            0,
            2,
        ]
        assert (batch.x["audio"][1] == 0).all() and (batch.x["text"][0] == 0).all()
        alone = whole(store, residence=residence).batch(np.array([1]))
        # one step of padding: models need not handle empty sequences
        assert alone.x["audio"].shape == (1, 1, 3)
        summary = whole(store, residence=residence, summary=True).batch(np.array([1, 0, 1]))
        assert summary.x["text"].shape == (3, 1, 4) and summary.x["text"].any(2)[:, 0].tolist() == [
            True,
            False,
            True,
        ]


def test_modalities_are_chosen_in_a_fixed_order(tmp_path):
    store = make_store(tmp_path, n=12, modalities={"vision": 3, "text": 2, "audio": 4})
    assert list(feature_sets.spec(store, DataConfig()).modalities) == ["audio", "text", "vision"]
    assert feature_sets.spec(store, DataConfig(modalities="vision, audio")).modalities == {
        "audio": 4,
        "vision": 3,
    }
    with pytest.raises(DataError, match="the store has audio, text, vision"):
        feature_sets.spec(store, DataConfig(modalities="audio,smell"))


@pytest.mark.parametrize("residence", ["device", "stream"])
def test_a_summary_is_the_mean_and_deviation_of_the_sequence(tmp_path, residence):
    store = make_store(tmp_path, n=30, rate=50.0)
    config = DataConfig(residence=residence, pool_hz=12.5)
    spec, target = (
        feature_sets.spec(store, config),
        splits.targets(store.table(), store.header.task, store.header.labels),
    )
    plain, summary = (
        sources.batch_source(store, spec, config, np.arange(30), target, device="cpu", summary=s)
        for s in (False, True)
    )
    index = np.array([3, 29, 3, 0])
    a, b = plain.batch(index), summary.batch(index)
    for m in a.x:
        assert (
            b.x[m].shape == (4, 1, 2 * spec.modalities[m])
            and b.lengths[m].tolist() == (a.lengths[m] > 0).long().tolist()
        )
        torch.testing.assert_close(
            b.x[m][:, 0], masked_mean_std(a.x[m], a.mask(m)), rtol=1e-5, atol=1e-5
        )


def test_a_summary_of_nothing_is_nothing():
    packed, n = sources.summarise(np.array([[1, 2], [3, 2]], np.float32), np.array([0, 2, 0]))
    np.testing.assert_allclose(packed, [[2, 2, 1, 1e-4]], atol=1e-6)
    assert n.tolist() == [0, 1, 0] and sources.summarise(
        np.zeros((0, 2), np.float32), np.array([0])
    )[0].shape == (0, 4)
