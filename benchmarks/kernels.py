"""The inner loops of the sweep against the plain way and against their roofs, on one core.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py

Gram matrices: ours with eigenvalues against `sgemm` of two buffers with `eigvalsh`, and against NumPy's ``x.T @ x``,
for which NumPy calls `ssyrk`: half the arithmetic of `sgemm`, the roof. Wide matrices: against their transpose.
Counting: against the same loop with one table of uint16 that is added up at the end, and against a loop that only
stores a number at the same places. Pairs of frames (`compare`): against float64 arrays of NumPy, block by block. Each
time is the least of seven, in turn.
"""

# The annotations of Numba are incomplete:
# mypy: disable-error-code="untyped-decorator, no-untyped-call, attr-defined, call-arg, unreachable, arg-type"

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numba as nb
import numpy as np
from machine import describe_machine
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from pythia_dynamics.history.history import History
from pythia_dynamics.measures.comparison import compare_summaries, summarise_frame
from pythia_dynamics.measures.rank import BATCH_SIZES, TOLERANCES, Projection
from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.frame_gram import frame_gram
from pythia_dynamics.sweep.intrinsics import pointer

ROUNDS = 7
TALL = {"70m": (50304, 512), "160m": (50304, 768)}
WIDE = ((512, 2048), (1024, 4096), (64, 32768))
CODES = 1 << 23


def main() -> None:
    with threadpool_limits(1):
        report: dict[str, Any] = {
            "machine": describe_machine(),
            "column_gram": {name: tall(shape) for name, shape in TALL.items()},
            "wide": {f"{rows}x{columns}": wide(rows, columns) for rows, columns in WIDE},
            "counting_ns": counting(),
            "pairs_ns": {name: pairs(np.dtype(name)) for name in ("float16", "float32")},
        }
    out = Path(__file__).parent / "results" / "kernels.json"
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def least(works: dict[str, Callable[[], object]], clock: Callable[[], float] = perf_counter) -> dict[str, float]:
    """Seconds of each of several works: the least of `ROUNDS`, in turn, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS + 1):
        for name, work in works.items():
            start = clock()
            work()
            times[name].append(clock() - start)
    return {name: min(found[1:]) for name, found in times.items()}


def tall(shape: tuple[int, int]) -> dict[str, float]:
    """Milliseconds for the Gram matrix of float16 weights and its eigenvalues, and how many times as fast ours is."""
    weights = np.random.default_rng(0).standard_normal(shape).astype(np.float16)

    def sgemm() -> object:
        widened = weights.astype(np.float32)
        return np.linalg.eigvalsh(widened.T @ widened.copy())

    def ssyrk() -> object:
        widened = weights.astype(np.float32)
        return np.linalg.eigvalsh(widened.T @ widened)

    widened = weights.astype(np.float32)
    times = least(
        {
            "ours": lambda: frame_gram(weights),
            "sgemm": sgemm,
            "ssyrk": ssyrk,
            "ssyrk alone": lambda: widened.T @ widened,
        }
    )
    found = {f"{name} ms": 1e3 * seconds for name, seconds in times.items()}
    return found | {f"{name} / ours": times[name] / times["ours"] for name in ("sgemm", "ssyrk", "ssyrk alone")}


def wide(rows: int, columns: int) -> dict[str, float]:
    """Milliseconds for the Gram matrices of a wide matrix and its transpose, and for the batches of `rank` after it."""
    weights = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float16)
    turned = np.ascontiguousarray(weights.T)
    works: dict[str, Callable[[], object]] = {"wide": lambda: frame_gram(weights), "tall": lambda: frame_gram(turned)}
    if columns <= 4096:
        rank = Projection(BATCH_SIZES, TOLERANCES, 8, 0)
        both = frame_gram(weights), frame_gram(turned)
        works |= {"rank of wide": lambda: rank(both[0]), "rank of tall": lambda: rank(both[1])}
    times = least(works)
    return {f"{name} ms": 1e3 * seconds for name, seconds in times.items()} | {"ratio": times["wide"] / times["tall"]}


def counting() -> dict[str, float]:
    """Nanoseconds a value for counting the codes of float16 weights."""
    weights = np.random.default_rng(0).standard_normal(CODES).astype(np.float16) * np.float16(0.02)
    address, table, narrow = np.uint64(weights.ctypes.data), np.zeros(65536, np.uint32), np.zeros(65536, np.uint16)
    times = least(
        {
            "ours": lambda: kernels.count_codes(address, CODES, table),
            "uint16": lambda: _count_narrow(address, CODES, narrow),
            "stores alone": lambda: _store(address, CODES, table),
        }
    )
    found = {name: 1e9 * seconds / CODES for name, seconds in times.items()}
    return found | {"share of the store limit": found["stores alone"] / found["ours"]}


def pairs(dtype: np.dtype[Any]) -> dict[str, float]:
    """CPU nanoseconds a weight for the distances between two frames of (50304, 512)."""
    rng = np.random.default_rng(0)
    frames = [(rng.standard_normal((50304, 512), np.float32) * 0.02).astype(dtype) for _ in range(2)]
    one, other = (summarise_frame(History.from_array(frame[None]), 0) for frame in frames)
    assert one is not None
    assert other is not None
    times = least({"ours": lambda: compare_summaries(one, other), "plain": lambda: _plain_pair(*frames)}, process_time)
    return {name: 1e9 * seconds / one.weights.size for name, seconds in times.items()}


def _plain_pair(first: Any, second: Any) -> list[Any]:
    """The angle, the displacement and the angles of the rows, from the formulas."""
    norms = [
        np.sqrt(sum(float(np.square(part.astype(np.float64)).sum()) for part in _parts(x))) for x in (first, second)
    ]
    found = []
    for one, two in zip(_parts(first), _parts(second), strict=True):
        x, y = one.astype(np.float64), two.astype(np.float64)
        found.append(np.square(x - y).sum())
        for u, v in ((x / norms[0], y / norms[1]), (_unit_rows(x), _unit_rows(y))):
            found += [np.square(u - v).sum(axis=1), np.square(u + v).sum(axis=1)]
    return found


def _parts(frame: Any) -> list[Any]:
    return np.array_split(frame, len(frame) // 512)


def _unit_rows(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@nb.njit(nogil=True)
def _count_narrow(address: Any, size: int, table: Any) -> None:
    words = nb.carray(pointer(address, np.empty(0, np.uint64)), (size // 4,))
    low = np.uint64(0xFFFF)
    for i in range(words.size):
        word = words[i]
        table[word & low] += np.uint16(1)
        table[(word >> np.uint64(16)) & low] += np.uint16(1)
        table[(word >> np.uint64(32)) & low] += np.uint16(1)
        table[word >> np.uint64(48)] += np.uint16(1)


@nb.njit(nogil=True)
def _store(address: Any, size: int, table: Any) -> None:
    """One store for each value, at the same places of the table, without the load and the addition."""
    words = nb.carray(pointer(address, np.empty(0, np.uint64)), (size // 4,))
    low = np.uint64(0xFFFF)
    for i in range(words.size):
        word, count = words[i], np.uint32(i)
        table[word & low] = count
        table[(word >> np.uint64(16)) & low] = count
        table[(word >> np.uint64(32)) & low] = count
        table[word >> np.uint64(48)] = count


if __name__ == "__main__":
    main()
