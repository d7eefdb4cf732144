"""Who meets whom: blocks, orders, pairs and the numbered steps of a run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd.loading.schedule import Schedule
from fgkd.views import orders

SIZES = {"n": st.integers(1, 60), "size": st.integers(1, 25), "seed": st.integers(0, 2**63)}


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_blocks_partition_the_samples(n: int, size: int, seed: int) -> None:
    blocks = orders.blocks(seed, n, size)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(n))
    assert [len(rows) for rows in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert 1 <= len(blocks[-1]) <= size
    assert all(rows.dtype == np.int64 for rows in blocks)
    again = orders.blocks(seed, n, size)
    assert all(np.array_equal(a, b) for a, b in zip(blocks, again, strict=True))


def test_blocks_mix_classes() -> None:
    labels = np.arange(1000) // 100  # in order, as datasets come
    for rows in orders.blocks(0, 1000, 100):
        assert len(set(labels[rows])) >= 8


@settings(max_examples=60, deadline=None)
@given(view=st.integers(0, 9), **SIZES)
def test_partners_are_an_involution_inside_blocks(n: int, size: int, seed: int, view: int) -> None:
    blocks = orders.blocks(seed, n, size)
    partner = orders.partners(seed, view, blocks)
    assert np.array_equal(partner[partner], np.arange(n))
    block_of = np.empty(n, np.int64)
    for number, rows in enumerate(blocks):
        block_of[rows] = number
        assert (partner[rows] == rows).sum() == len(rows) % 2  # the last of an odd block
    assert np.array_equal(block_of[partner], block_of)


def test_partners_change_with_the_view() -> None:
    blocks = orders.blocks(0, 100, 50)
    drawn = {tuple(orders.partners(0, view, blocks)) for view in range(5)}
    assert len(drawn) == 5


@settings(max_examples=60, deadline=None)
@given(epoch=st.integers(0, 9), **SIZES)
def test_epoch_order_is_a_permutation(n: int, size: int, seed: int, epoch: int) -> None:
    order = orders.epoch_order(seed, epoch, n)
    assert sorted(order.tolist()) == list(range(n))
    partner = orders.partners(seed, epoch, orders.blocks(seed, n, size))
    paired = orders.epoch_order(seed, epoch, n, partner)
    assert sorted(paired.tolist()) == list(range(n))
    num_paired = int((partner != np.arange(n)).sum())
    first, second = paired[:num_paired:2], paired[1:num_paired:2]
    assert np.array_equal(partner[first], second)  # side by side
    loners = paired[num_paired:]
    assert np.array_equal(partner[loners], loners)  # and the others last


def test_orders_of_epochs_and_seeds_differ() -> None:
    found = {tuple(orders.epoch_order(s, epoch, 50)) for s in (0, 1) for epoch in range(3)}
    assert len(found) == 6
    partner = orders.partners(0, 0, orders.blocks(0, 50, 10))
    assert not np.array_equal(
        orders.epoch_order(0, 0, 50, partner), orders.epoch_order(0, 1, 50, partner)
    )


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 25), epochs=st.integers(1, 4), views=st.integers(1, 3), **SIZES)
def test_schedule(n: int, size: int, seed: int, batch: int, epochs: int, views: int) -> None:
    schedule = Schedule(seed, n, batch, epochs, views)
    specs = [spec for epoch in range(epochs) for spec in schedule.epoch_specs(epoch)]
    assert [spec.step for spec in specs] == list(range(schedule.total_steps))
    for epoch in range(epochs):
        mine = [spec for spec in specs if spec.epoch == epoch]
        assert len(mine) == schedule.steps_per_epoch
        assert {spec.view for spec in mine} == {epoch % views}
        assert [spec.start for spec in mine] == list(range(0, n, batch))
        rows = np.concatenate([spec.rows for spec in mine])
        assert np.array_equal(rows, orders.epoch_order(seed, epoch, n))
        assert [len(spec.rows) for spec in mine[:-1]] == [batch] * (len(mine) - 1)
        assert len(mine[-1].rows) == n - batch * (len(mine) - 1)  # the short last batch counts


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_schedule_resumes_anywhere(first: int) -> None:
    schedule = Schedule(3, 14, 4, 2, 2)
    partner = orders.partners(3, 1, orders.blocks(3, 14, 5))
    paired = orders.epoch_order(3, 1, 14, partner)
    for order in (None, paired, np.arange(14)):
        whole = schedule.epoch_specs(1, order=order)
        rest = schedule.epoch_specs(1, first, order)
        if order is not None:
            assert np.array_equal(np.concatenate([spec.rows for spec in whole]), order)
        assert len(rest) == 4 - first
        for a, b in zip(rest, whole[first:], strict=True):
            assert (a.step, a.epoch, a.view, a.start) == (b.step, b.epoch, b.view, b.start)
            assert np.array_equal(a.rows, b.rows)


def test_goldens() -> None:
    """Caches on disk and resumed runs depend on these: they may never change."""
    blocks = orders.blocks(7, 11, 4)
    assert [rows.tolist() for rows in blocks] == [[3, 1, 4, 2], [5, 0, 10, 9], [8, 7, 6]]
    partner = orders.partners(7, 2, blocks)
    assert partner.tolist() == [5, 3, 4, 1, 2, 0, 8, 7, 6, 10, 9]
    assert orders.epoch_order(7, 3, 11).tolist() == [6, 1, 2, 4, 8, 7, 5, 0, 9, 10, 3]
    paired = orders.epoch_order(7, 3, 11, partner)
    assert paired.tolist() == [1, 3, 2, 4, 9, 10, 0, 5, 6, 8, 7]
