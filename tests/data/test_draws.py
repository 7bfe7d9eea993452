"""Draws are functions of their keys."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from bert.data.batches import step_samples
from bert.data.draws import hashed, permutation, uniform

keys = st.lists(st.integers(0, 2**40), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(keys, st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.randoms())
def test_a_draw_knows_nothing_of_the_others(prefix: list[int], places: list[int], draw) -> None:  # type: ignore[no-untyped-def]
    together = uniform(*prefix, np.array(places))
    assert [float(uniform(*prefix, place)) for place in places] == together.tolist()
    order = list(range(len(places)))
    draw.shuffle(order)
    assert uniform(*prefix, np.array(places)[order]).tolist() == together[order].tolist()


def test_draws_are_these_numbers_forever() -> None:
    # Other numbers would change every run that is to be resumed.
    assert [int(hashed(*key)) for key in ((0,), (1,), (1, 2), (2, 1))] == [
        12035550249420947055,
        6791897765849424158,
        3080718623640203302,
        15668115326600172676,
    ]


def test_draws_are_uniform_and_independent() -> None:
    n = 100_000
    for values in (uniform(1, 7, np.arange(n)), uniform(np.arange(n), 3), uniform(0, np.arange(n))):
        assert values.min() >= 0
        assert values.max() < 1
        counts = np.histogram(values, bins=20, range=(0, 1))[0]
        chi_square = float(((counts - n / 20) ** 2 / (n / 20)).sum())
        assert chi_square < 50  # 19 degrees of freedom: above it once in 10,000 times
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(uniform(1, np.arange(n)), uniform(2, np.arange(n)))[0, 1]) < 0.02


def test_every_key_and_its_place_matter() -> None:
    found = {int(hashed(*key)) for key in ((1, 2, 3), (3, 2, 1), (1, 2), (1, 2, 3, 0), (1, 2, 4))}
    assert len(found) == 5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 500), keys)
def test_a_permutation_is_one(count: int, key: list[int]) -> None:
    order = permutation(count, *key)
    assert sorted(order.tolist()) == list(range(count))
    assert permutation(count, *key).tolist() == order.tolist()


def test_permutations_differ_and_reach_every_place() -> None:
    orders = np.array([permutation(8, 5, epoch) for epoch in range(4000)])
    for place in range(8):
        counts = np.bincount(orders[:, place], minlength=8)
        assert (abs(counts - 500) < 120).all()  # five deviations


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 5))
def test_an_epoch_takes_every_sample_once(count: int, batch_size: int, seed: int) -> None:
    per_epoch = -(-count // batch_size)
    for epoch in range(2):
        seen: list[int] = []
        for index in range(per_epoch):
            found, samples = step_samples(epoch * per_epoch + index, count, batch_size, seed)
            assert found == epoch
            assert 0 < len(samples) <= batch_size
            seen += samples.tolist()
        assert sorted(seen) == list(range(count))
