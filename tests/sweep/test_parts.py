"""Measures of parts of fused tensors: the same numbers, to the last bit, as of the array that NumPy cuts out."""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.walks import DTYPES, walk

from pythia_dynamics.errors import IntegrityError, PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.measures.order import order_parameter
from pythia_dynamics.sweep import frames as module
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.frames import Frames, NonFiniteWarning, slabs
from pythia_dynamics.sweep.sweep import SlabSums, sweep

NEOX = "gpt_neox.layers.0.attention.query_key_value.weight"
GPT2 = "h.0.attn.c_attn.weight"
ALL = ["density", "msd", "two_time", "angles", "order", "rank", "spectrum", "tails", "rows"]


def stored(path: Path, array: Any, steps: Any, tensor: str, missing: Mapping[int, str] | None = None) -> History:
    """The history of an array from a store."""
    store = Store.create(path / "model.zarr", source="here")
    store.ensure([TensorSpec(tensor, array.dtype.name, array.shape[1:])], steps)
    for step, frame in zip(steps, array, strict=True):
        if step not in (missing or {}):
            store.write(tensor, step, frame, {"commit": None})
    return History.from_store(store, tensor)


def cut(array: Any, tensor: str, kind: str, head: int | None, heads: int) -> Any:
    """The part of frames, by reshaping: GPT-NeoX's rows are (heads, 3, size), GPT-2's columns (3, heads, size)."""
    steps, place = len(array), ("query", "key", "value").index(kind)
    if tensor == NEOX:
        width = array.shape[-1]
        split = array.reshape(steps, heads, 3, -1, width)[:, :, place]
        return (split if head is None else split[:, head]).reshape(steps, -1, width)
    split = array.reshape(steps, array.shape[1], 3, heads, -1)[:, :, place]
    return (split if head is None else split[:, :, head]).reshape(steps, array.shape[1], -1)


def assert_identical(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert set(found.variables) == set(expected.variables)
    for name in found.variables:
        np.testing.assert_array_equal(found[name].to_numpy(), expected[name].to_numpy(), err_msg=str(name))


def fused(tensor: str, steps: int, heads: int, size: int, width: int, dtype: Any, seed: int = 0) -> Any:
    shape = (3 * heads * size, width) if tensor == NEOX else (heads * size, 3 * heads * size)
    return walk(steps, *shape, dtype, seed=seed)


@pytest.mark.filterwarnings("ignore::pythia_dynamics.sweep.frames.MissingStepsWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tensor", [NEOX, GPT2])
@pytest.mark.parametrize("head", [None, 2])
def test_every_measure_of_a_part_is_that_of_the_array_cut_out(tmp_path, tensor, dtype, head):
    steps, missing = [0, 10, 20, 40, 80, 100], {40: "lost"}
    array = fused(tensor, len(steps), 4, 8, 48, dtype)
    history = stored(tmp_path, array, steps, tensor, missing)
    for kind in ("query", "value"):
        part = history.part(kind, head=head, heads=4)
        alone = cut(array, tensor, kind, head, 4)
        assert part.frame_shape == alone.shape[1:]
        assert part.frame(3) is None
        assert part.frame(1).tobytes() == alone[1].tobytes()
        np.testing.assert_array_equal(np.asarray(part.weights[[0, 5]]), alone[[0, 5]])
        expected = History.from_array(alone, steps, missing=missing)
        found, wanted = (analyse(each, ALL) for each in (part, expected))
        for name in ALL:
            assert_identical(found[name], wanted[name])


@settings(max_examples=60, deadline=None)
@example(NEOX, 1, 15, 135, "query", False, np.float16, None, None, 1)  # as wide as columns of GPT-2 would be
@given(
    tensor=st.sampled_from([NEOX, GPT2]),
    heads=st.integers(1, 5),
    size=st.integers(1, 20),
    width=st.integers(1, 300),
    kind=st.sampled_from(["query", "key", "value"]),
    whole=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    rows=st.one_of(st.none(), st.integers(1, 12)),
    slab=st.one_of(st.none(), st.integers(1, 20_000)),
    short=st.sampled_from([1, 256, module._SHORT_RUN]),
)
def test_sums_are_the_same_to_the_last_bit_for_any_shape_and_slab(
    tensor, heads, size, width, kind, whole, dtype, rows, slab, short
):
    """With the least length of a run that is read in place varied as well, so that small arrays take every path."""
    from pythia_dynamics.measures.displacement import Integral
    from pythia_dynamics.sweep.gram import Gram
    from pythia_dynamics.sweep.row_sums import RowSums

    array = fused(tensor, 5, heads, size, width, dtype)
    head = None if whole else heads - 1
    alone = cut(array, tensor, kind, head, heads)
    part = History.from_array(array, tensor=tensor).part(kind, head=head, heads=heads)
    kinds: list[Any] = [Counts(), Integral(), Gram(), Gram(double=True), RowSums(), SlabSums(_sums)]
    compute = Compute(rows=None if rows is None else min(rows, alone.shape[1]), threads=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SHORT_RUN", short)
        found = sweep(part, kinds, compute, slab=slab)
    wanted = sweep(History.from_array(alone), kinds, compute, slab=slab)
    np.testing.assert_array_equal(found[0].table, wanted[0].table)
    np.testing.assert_array_equal(found[0].moments.std, wanted[0].moments.std)
    for one, other in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_array_equal(one.total, other.total)
    for one, other in zip(found[2:4], wanted[2:4], strict=True):
        np.testing.assert_array_equal(one.increments(), other.increments())


def _sums(values: Any) -> tuple[float, float]:
    wide = values.astype(np.float64)
    return float(wide.sum()), float(np.abs(wide).sum())


@settings(max_examples=100, deadline=None)
@given(
    run=st.integers(1, 9000),
    count=st.integers(1, 9),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    unit=st.integers(1, 3000),
    multiple=st.integers(1, 5),
)
def test_pieces_are_all_weights_once_and_meet_at_multiples_of_the_unit(run, count, low, high, unit, multiple):
    whole = np.arange(2 * 2 * count * run, dtype=np.float32).reshape(2, count * 2 * run)
    history = History.from_array(whole.reshape(2, count * 2, run))
    frames = Frames(history, count * 2)
    # The second half of each pair of runs.
    frames._arrays = [array.reshape(count, 2 * run)[:, run:] for array in frames._arrays]
    frames._addresses = np.array([array.ctypes.data for array in frames._arrays], np.uint64)
    frames._strides = np.array([array.strides[0] for array in frames._arrays], np.uint64)
    frames.run, frames.size = run, count * run
    start, stop = sorted(int(share * frames.size) for share in (low, high))
    expected = whole.reshape(2, count, 2, run)[:, :, 1].reshape(2, -1)
    place = start
    for addresses, begin, end in frames.pieces(start, stop, multiple=multiple, unit=unit):
        assert begin == place < end <= stop
        assert end == stop or (end - start) % unit == 0
        assert len(addresses) % multiple == 0
        assert len(addresses) - 2 < multiple
        for t, address in enumerate((addresses + np.uint64(4) * np.uint64(begin))[:2].tolist()):
            seen = np.ctypeslib.as_array((ctypes.c_float * (end - begin)).from_address(address))
            np.testing.assert_array_equal(seen, expected[t, begin:end])
        place = end
    assert place == stop


def test_kinds_and_heads_add_up_to_the_whole(tmp_path):
    """‖QKV‖² = ‖Q‖² + ‖K‖² + ‖V‖², each the sum of its heads; the counts of every value add exactly."""
    array = fused(NEOX, 4, 4, 16, 64, ml_dtypes.bfloat16)
    history = stored(tmp_path, array, range(4), NEOX)
    kinds = [history.part(kind, heads=4) for kind in ("query", "key", "value")]
    heads = [history.part(part.tensor.split(".")[-1], head=head, heads=4) for part in kinds for head in range(4)]

    def squares(each: History) -> Any:
        return order_parameter(each)["frobenius_norm"].to_numpy() ** 2

    def table(each: History) -> Any:
        return sweep(each, [Counts()])[0].table

    for parts in (kinds, heads):
        np.testing.assert_allclose(sum(map(squares, parts)), squares(history), rtol=1e-12)
        np.testing.assert_array_equal(sum(map(table, parts)), table(history))
        moved = [analyse(each, ["msd"])["msd"]["displacement"].to_numpy() * each.weights[0].size for each in parts]
        expected = analyse(history, ["msd"])["msd"]["displacement"].to_numpy() * array[0].size
        np.testing.assert_allclose(sum(moved), expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_only_the_part_with_weights_that_are_not_finite_loses_a_step(bad):
    array = fused(NEOX, 5, 2, 8, 32, np.float32)
    array[2, 3, 7] = bad  # in the query of head 0
    history = History.from_array(array, tensor=NEOX)
    for kind, head in (("query", None), ("query", 0)):
        alone = History.from_array(cut(array, NEOX, kind, head, 2))
        with pytest.warns(NonFiniteWarning, match="step 2"):
            found = analyse(history.part(kind, head=head, heads=2), ["msd", "spectrum", "density"])
        with pytest.warns(NonFiniteWarning, match="step 2"):
            wanted = analyse(alone, ["msd", "spectrum", "density"])
        for name in found:
            assert_identical(found[name], wanted[name])
    for kind, head in (("key", None), ("query", 1)):
        assert np.isfinite(analyse(history.part(kind, head=head, heads=2), ["order"])["order"]["frobenius_norm"]).all()


@pytest.mark.parametrize("in_memory", [True, False])
def test_processes_get_the_part(tmp_path, in_memory):
    array = fused(NEOX, 6, 4, 16, 64, np.float16)
    history = History.from_array(array, tensor=NEOX) if in_memory else stored(tmp_path, array, range(6), NEOX)
    part = history.part("key", heads=4)
    alone = analyse(part, ["msd", "spectrum", "density"])
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        found = analyse(part, ["msd", "spectrum", "density"], compute=Compute(executor=executor))
    for name, expected in alone.items():
        assert_identical(found[name], expected)
    sent = len(pickle.dumps(part))
    assert sent < (array.nbytes / 3 + 5000 if in_memory else 5000)


def test_a_part_of_a_file_is_read_in_place(tmp_path):
    array = fused(NEOX, 3, 4, 128, 256, np.float16)
    history = stored(tmp_path, array, range(3), NEOX)
    head, query = history.part("query", head=1, heads=4), history.part("query", heads=4)
    assert head.segments(0).shape == (1, 128 * 256)
    assert not head.frame(0).flags.owndata
    assert query.segments(0).shape == (4, 128 * 256)
    frames = Frames(query, query.frame_shape[0])
    assert frames.run == 128 * 256
    pieces = [(begin, end) for _, begin, end in frames.pieces(0, frames.size)]
    assert pieces == [(i * frames.run, (i + 1) * frames.run) for i in range(4)]
    assert slabs(frames.size) == slabs(4 * 128 * 256)
    with pytest.raises(PythiaDynError, match=r"read it with Frames\.pieces"):
        _ = frames.addresses
    path = query.frames[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="are damaged"):
        query.frame(0)


def test_a_part_keeps_what_its_history_knows(tmp_path):
    array = fused(NEOX, 4, 2, 8, 16, np.float16)
    history = stored(tmp_path, array, [0, 5, 7, 9], NEOX, {7: "lost"}).with_learning_rate({0: 1.0, 9: 0.5})
    part = history.part("value", head=1, heads=2)
    assert part.tensor == f"{NEOX}.value.head1" == part.provenance["tensor"]
    assert dict(part.missing) == dict(history.missing)
    np.testing.assert_array_equal(part.coordinates["learning_rate"], history.coordinates["learning_rate"])
    np.testing.assert_array_equal(part.select([5]).at(5), cut(array, NEOX, "value", 1, 2)[1])
    np.testing.assert_array_equal(part[1:][0], part.at(5))
    with pytest.raises(PythiaDynError, match="is a part already"):
        part.part("value")


def test_measures_of_users_see_the_part():
    array = fused(GPT2, 4, 2, 8, 200, np.float32)
    found = Measure("total", "Total", "here", _finish, (_Total,))(
        History.from_array(array, tensor=GPT2).part("key", head=1, heads=2)
    )
    expected = cut(array, GPT2, "key", 1, 2).astype(np.float64).sum(axis=(1, 2))
    np.testing.assert_allclose(found["total"], expected, rtol=1e-12)


def _Total() -> SlabSums:
    return SlabSums(_sums)


def _finish(history: History, sums: SlabSums) -> xr.Dataset:
    return xr.Dataset({"total": ("step", sums.total[:, 0])}, {"step": history.steps})
