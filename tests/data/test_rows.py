from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from bert.data.rows import Example, stratified_split


@given(
    st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=12, max_size=60),
    st.integers(0, 5),
)
def test_nothing_is_held_out_that_is_never_learnt(truths: list[set[str]], seed: int) -> None:
    truths += [{"a"}] * 8  # so that something can be held out
    examples = [Example(f"text {i}", sorted(t), f"rows:{i}") for i, t in enumerate(truths)]
    train, held_out = stratified_split(
        examples, lambda truth: truth, lambda example: example.texts, 0.3, seed
    )
    assert held_out
    assert sorted(e.where for e in (*train, *held_out)) == sorted(e.where for e in examples)
    learnt = {label for example in train for label in example.truth}
    assert {label for example in held_out for label in example.truth} <= learnt
