from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from bert.text.duplicates import PLACES, SHINGLE, exact_duplicates, near_duplicates, signatures


def signed(documents: list[list[int]]) -> NDArray[np.uint16]:
    starts = np.cumsum([0, *map(len, documents)])
    return signatures(np.array([n for d in documents for n in d], np.uint16), starts)


def numbers(seed: int, size: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(30_000) for _ in range(size)]


def jaccard(one: list[int], two: list[int]) -> float:
    a, b = ({tuple(d[i : i + SHINGLE]) for i in range(len(d) - SHINGLE + 1)} for d in (one, two))
    return len(a & b) / len(a | b)


def test_a_signature_depends_on_its_document_alone() -> None:
    documents = [numbers(seed, size) for seed, size in enumerate([300, 5, 4, 0, 40, 1000])]
    together = signed(documents)
    assert together.shape == (6, PLACES)
    for number, document in enumerate(documents):
        assert (signed([document])[0] == together[number]).all()
    assert not together[2:4].any()  # no whole shingle
    assert together[[0, 1, 4, 5]].any(axis=1).all()


@pytest.mark.parametrize("size", [60, 400, 5000])
@pytest.mark.parametrize("changed", [0.005, 0.02, 0.06])
def test_equal_places_estimate_similarity(size: int, changed: float) -> None:
    errors = []
    for seed in range(40):
        draw = random.Random(seed)
        one = numbers(seed, size)
        two = [draw.randrange(30_000) if draw.random() < changed else n for n in one]
        a, b = signed([one, two])
        errors.append(float((a == b).mean()) - jaccard(one, two))
    assert abs(np.mean(errors)) < 0.02  # no bias
    assert np.std(errors) < 0.06


def test_different_documents_share_nothing() -> None:
    a = signed([numbers(seed, 500) for seed in range(50)])
    shares = [(a[i] == a[j]).mean() for i in range(50) for j in range(i)]
    assert max(shares) < 0.05


def test_exact_duplicates_are_the_later_ones() -> None:
    hashes = np.array([7, 3, 7, 2**63, 3, 7], np.uint64)
    assert exact_duplicates(hashes).tolist() == [-1, -1, 0, -1, 1, 0]
    assert exact_duplicates(np.empty(0, np.uint64)).tolist() == []


def test_near_duplicates_are_found_and_others_are_not() -> None:
    documents, expected = [], []
    for seed in range(200):
        one = numbers(seed, 300)
        documents.append(one)
        expected.append(-1)
        if seed % 4 == 0:  # five words in 300 changed: a similarity of about 0.85
            two = list(one)
            for place in random.Random(seed).sample(range(300), 4):
                two[place] = 30_001
            assert jaccard(one, two) > 0.85
            documents.append(two)
            expected.append(len(documents) - 2)
    assert near_duplicates(signed(documents), 0.8).tolist() == expected


def test_similarity_is_a_threshold() -> None:
    one = numbers(1, 2000)
    two = list(one)
    for place in range(0, 2000, 50):
        two[place] = 30_001
    both = signed([one, two])
    similarity = jaccard(one, two)
    assert near_duplicates(both, similarity - 0.1)[1] == 0
    assert near_duplicates(both, similarity + 0.1)[1] == -1


def test_documents_without_shingles_are_not_alike() -> None:
    assert near_duplicates(signed([[1, 2], [1, 2], [3]]), 0.5).tolist() == [-1, -1, -1]
    assert near_duplicates(np.empty((0, PLACES), np.uint16), 0.8).tolist() == []
