"""Bytes of one dtype become those of a wider one, wherever the pieces end."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pythia_dynamics.history.chunk import widening
from pythia_dynamics.history.spec import DTYPES


@pytest.mark.parametrize(
    ("source", "target"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float64"), ("float16", "float64")],
)
@given(numbers=st.binary(max_size=64), cuts=st.lists(st.integers(0, 64), max_size=6))
def test_pieces_may_end_inside_a_number(source: str, target: str, numbers: bytes, cuts: list[int]) -> None:
    numbers = numbers[: len(numbers) - len(numbers) % 8]
    written = bytearray()
    write = widening(written.extend, source, target)
    edges = [0, *sorted(min(cut, len(numbers)) for cut in cuts), len(numbers)]
    for start, stop in pairwise(edges):
        write(numbers[start:stop])
    expected = np.frombuffer(numbers, DTYPES[source]).astype(DTYPES[target])
    assert bytes(written) == expected.tobytes()


def test_equal_dtypes_are_written_as_they_are() -> None:
    assert widening(print, "float16", "float16") is print
