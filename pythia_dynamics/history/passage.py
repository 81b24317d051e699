"""Checksums of a tensor that is read in parts, by one process or by several, in any order. No I/O.

The CRC of adjacent parts is combined from those of each: CRC(AB) = x^(8 |B|) CRC(A) + CRC(B) in polynomials over GF(2)
modulo that of the CRC, as in `crc32_combine` of zlib.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

__all__ = ["CRC32", "CRC32C", "Passage", "Passed", "combined"]

CRC32 = 0xEDB88320
"""The polynomial of the CRC-32 of zip files, its bits reversed."""

CRC32C = 0x82F63B78
"""The polynomial of the CRC-32C of chunks, its bits reversed."""

_ONE, _X = 1 << 31, 1 << 30  # the polynomials 1 and x, bits reversed

Passed = Mapping[int, Mapping[int, tuple[int, int]]]
"""By step and first byte of a part: its end, and its checksum."""


class Passage:
    """Which parts of the bytes of each step have been read, and their checksums. For several threads; a copy is empty.

    Parameters
    ----------
    polynomial
        `CRC32` or `CRC32C`.
    """

    def __init__(self, polynomial: int) -> None:
        self.polynomial = polynomial
        self._parts: dict[int, dict[int, tuple[int, int]]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Passage, (self.polynomial,)

    def add(self, step: int, start: int, stop: int, checksum: int) -> None:
        """Note a part, together with those beside it.

        Parameters
        ----------
        step
            The step.
        start, stop
            The bytes.
        checksum
            Their CRC.
        """
        with self._lock:
            parts = self._parts.setdefault(step, {})
            if stop in parts:
                end, after = parts.pop(stop)
                stop, checksum = end, combined(checksum, after, end - stop, self.polynomial)
            for first, (end, before) in parts.items():
                if end == start:
                    start, checksum = first, combined(before, checksum, stop - start, self.polynomial)
                    break
            parts[start] = stop, checksum

    def whole(self, step: int, nbytes: int) -> int | None:
        """The checksum of all bytes of a step, which is forgotten; None if not all have been read.

        Parameters
        ----------
        step
            The step.
        nbytes
            How many bytes it has.
        """
        with self._lock:
            stop, checksum = self._parts.get(step, {}).get(0, (-1, 0))
            if stop != nbytes:
                return None
            del self._parts[step]
            return checksum

    def take(self) -> dict[int, dict[int, tuple[int, int]]]:
        """What is noted, and forgotten here, to be added to another passage."""
        with self._lock:
            parts, self._parts = self._parts, {}
            return parts

    def absorb(self, passed: Passed) -> None:
        """Add what another passage has noted."""
        for step, parts in passed.items():
            for start, (stop, checksum) in parts.items():
                self.add(step, start, stop, checksum)


def combined(first: int, second: int, length: int, polynomial: int) -> int:
    """The CRC of two adjacent parts.

    Parameters
    ----------
    first, second
        The CRC of each.
    length
        Bytes of the second part.
    polynomial
        `CRC32` or `CRC32C`.
    """
    return _product(_power(8 * length, polynomial), first, polynomial) ^ second


def _product(a: int, b: int, polynomial: int) -> int:
    """a b modulo the polynomial, all with their bits reversed."""
    total = 0
    while a:
        if a & _ONE:
            total ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (polynomial if b & 1 else 0)
    return total


@cache
def _power(exponent: int, polynomial: int) -> int:
    """x^exponent modulo the polynomial."""
    total, square = _ONE, _X
    while exponent:
        if exponent & 1:
            total = _product(square, total, polynomial)
        square = _product(square, square, polynomial)
        exponent >>= 1
    return total
