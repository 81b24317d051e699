"""Checksums of parts, held to those of the whole."""

from __future__ import annotations

import pickle
from itertools import pairwise
from zlib import crc32

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pythia_dynamics.history.passage import CRC32, CRC32C, Passage, combined

CHECKSUMS = {CRC32: crc32, CRC32C: google_crc32c.value}


@given(first=st.binary(max_size=300), second=st.binary(max_size=300), polynomial=st.sampled_from([CRC32, CRC32C]))
def test_two_parts(first: bytes, second: bytes, polynomial: int) -> None:
    of = CHECKSUMS[polynomial]
    assert combined(of(first), of(second), len(second), polynomial) == of(first + second)


@pytest.mark.parametrize("polynomial", [CRC32, CRC32C])
def test_long_parts(polynomial: int) -> None:
    """Beyond the length after which powers of x would repeat in a table of 32 squares."""
    of, block = CHECKSUMS[polynomial], bytes(range(256)) * 4096  # 1 MiB
    total, length = of(block), len(block)
    for _ in range(6):
        total, length = combined(total, total, length, polynomial), 2 * length
    assert total == of(block * 64)
    zeros = 2**29 + 5  # more than 2³² bits
    one = of(bytes(zeros))
    assert combined(of(b"x"), one, zeros, polynomial) == of(b"x" + bytes(zeros))


@given(data=st.data(), content=st.binary(min_size=1, max_size=200), polynomial=st.sampled_from([CRC32, CRC32C]))
def test_parts_in_any_order_by_any_process(data: st.DataObject, content: bytes, polynomial: int) -> None:
    of = CHECKSUMS[polynomial]
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=8))})
    parts = data.draw(st.permutations(list(pairwise(cuts))))
    here, there = Passage(polynomial), Passage(polynomial)
    for number, (start, stop) in enumerate(parts):
        reader = data.draw(st.sampled_from([here, there]))
        reader.add(7, start, stop, of(content[start:stop]))
        if number < len(parts) - 1:
            assert here.whole(7, len(content)) is None
            assert there.whole(7, len(content)) is None
    here.absorb(there.take())
    assert here.whole(8, len(content)) is None
    assert here.whole(7, len(content)) == of(content)
    assert here.take() == {}
    assert there.take() == {}


def test_a_part_that_is_not_there() -> None:
    passage = Passage(CRC32C)
    passage.add(1, 0, 10, 5)
    passage.add(1, 11, 20, 5)
    assert passage.whole(1, 20) is None
    passage.add(1, 0, 8, 3)  # read again, otherwise divided
    assert passage.take() == {1: {0: (8, 3), 11: (20, 5)}}


def test_a_copy_is_empty() -> None:
    passage = Passage(CRC32C)
    passage.add(1, 0, 10, 5)
    copy = pickle.loads(pickle.dumps(passage))
    assert copy.polynomial == CRC32C
    assert copy.take() == {}
    assert passage.take()
