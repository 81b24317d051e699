"""The pass itself: slabs, threads, executors, failures; and several analyses from one pass."""

from __future__ import annotations

import pickle
import tracemalloc
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.walks import DTYPES, walk

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.history import History
from pythia_dynamics.history.vocabulary import tokenizer_entries
from pythia_dynamics.measures import MEASURES
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.measures.density import density
from pythia_dynamics.measures.displacement import Integral, msd
from pythia_dynamics.measures.order import order_parameter
from pythia_dynamics.measures.rank import covariance_rank
from pythia_dynamics.measures.spectrum import spectrum
from pythia_dynamics.measures.two_time import two_time
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.frames import Frames, MissingStepsWarning, NonFiniteWarning, slabs
from pythia_dynamics.sweep.gram import Gram
from pythia_dynamics.sweep.sweep import sweep


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 7),
    dtype=st.sampled_from(DTYPES),
    slab=st.integers(1, 3000),
    threads=st.integers(1, 4),
    pool=st.booleans(),
)
def test_any_slab_size_thread_count_and_dtype_give_the_same(rows, columns, dtype, slab, threads, pool):
    history = History.from_array(walk(5, rows, columns, dtype))
    kinds: list[Any] = [Counts(), Integral(), Gram(), Gram(double=True)]
    whole = sweep(history, kinds, slab=rows * columns, compute=Compute(threads=1))
    with ThreadPoolExecutor(threads) as executor:
        parts = sweep(history, kinds, slab=slab, compute=Compute(threads=threads, executor=executor if pool else None))
    np.testing.assert_array_equal(parts[0].table, whole[0].table)
    np.testing.assert_allclose(parts[0].moments.std, whole[0].moments.std, rtol=1e-12, atol=1e-15)
    total, expected = parts[1].total, whole[1].total
    np.testing.assert_allclose(total, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    for found, wanted, rtol in zip(parts[2:], whole[2:], (1e-6, 1e-12), strict=True):
        products = wanted.increments()
        np.testing.assert_allclose(found.increments(), products, rtol=rtol, atol=rtol * np.abs(products).max())
        np.testing.assert_allclose(found.total, wanted.total, rtol=rtol, atol=rtol * wanted.total[:, 1].max())


def test_the_last_bit_does_not_depend_on_the_number_of_threads():
    w = walk(9, 900, 40, np.float32)
    one, three = (msd(w, compute=Compute(threads=n)) for n in (1, 3))
    assert one.identical(three)
    assert density(w, compute=Compute(threads=1)).identical(density(w, compute=Compute(threads=3)))
    assert two_time(w, compute=Compute(threads=1)).identical(two_time(w, compute=Compute(threads=3)))


def test_processes_take_the_slabs_as_pickles():
    w = walk(6, 500, 40, np.float16)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        assert msd(w, compute=Compute(threads=2, executor=executor)).identical(msd(w))
        assert density(w, compute=Compute(threads=1, executor=executor)).identical(density(w))
        assert spectrum(w, compute=Compute(executor=executor)).identical(spectrum(w))


def test_frames_survive_pickling():
    history = History.from_array(walk(4, 10, 3, np.float16), missing={2: "lost"})
    frames = Frames(history, 7, without=[0])
    again = pickle.loads(pickle.dumps(frames))
    assert again.steps.tolist() == frames.steps.tolist() == [1, 3]
    assert again.size == frames.size == 21
    np.testing.assert_array_equal(again.values(1, 0, 21), frames.values(1, 0, 21))


def test_frames_at_odd_addresses_are_read():
    buffer = np.zeros(2 * 3 * 5 * 7 + 1, np.uint8)
    w = buffer[1:].view(np.float16).reshape(3, 5, 7)
    w[:] = walk(3, 5, 7, np.float16)
    history = History(
        name="odd",
        tensor="w",
        steps=np.arange(3),
        frame_shape=(5, 7),
        dtype=np.dtype(np.float16),
        missing={},
        frames=tuple(w),
    )
    assert msd(history).equals(msd(w.copy()))
    assert density(history).equals(density(w.copy()))


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 10**7), slab=st.none() | st.integers(1, 10**5))
def test_slabs_cover_everything_once(size, slab):
    found = slabs(size, slab)
    assert found[0][0] == 0
    assert found[-1][1] == size
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert all(start % 64 == 0 and start < stop for start, stop in found)
    with pytest.raises(PythiaDynError, match="at least one weight"):
        slabs(size, 0)


def test_weights_whose_squares_overflow_are_refused():
    w = walk(3, 40, 5, np.float64)
    w[1] *= 1e200
    for analysis in (msd, two_time):
        with pytest.raises(PythiaDynError, match="of array at step 1 are too large for their squares"):
            analysis(w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_share_the_tables_of_many_steps(dtype):
    w = walk(90, 700, 32, dtype)
    tracemalloc.start()
    (found,) = sweep(History.from_array(w), [Counts()], compute=Compute(threads=4), slab=4096)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * found.table.nbytes
    codes = w if w.dtype.itemsize == 2 else w.astype(np.float16)
    for row, frame in zip(found.table, codes, strict=True):
        np.testing.assert_array_equal(row, np.bincount(frame.view(np.uint16).ravel(), minlength=65536))


def test_progress_is_told_from_the_calling_thread():
    seen = []
    sweep(
        History.from_array(walk(2, 1000, 40, np.float16)),
        [Counts()],
        compute=Compute(progress=lambda *now: seen.append(now)),
    )
    assert seen[0] == (0, 5)
    assert seen[-1] == (5, 5)
    assert seen == sorted(seen)


def test_a_failure_in_a_slab_reaches_the_caller():
    class Failing(Counts):
        def update(self, frames, start, stop):
            raise ValueError("broken slab")

    with pytest.raises(ValueError, match="broken slab"):
        sweep(History.from_array(walk(2, 1000, 40, np.float16)), [Failing()])


def test_the_entries_of_the_tokenizer_are_the_rows_to_keep(tmp_path):
    from tokenizers import Tokenizer, models

    def of(source, rows=50_304):
        return History.from_array(np.zeros((1, rows, 1), np.float16), name=str(source))

    assert tokenizer_entries(of("EleutherAI/pythia-70m-deduped")) == 50_277
    with pytest.raises(PythiaDynError, match="there is no padding to drop"):
        tokenizer_entries(of("EleutherAI/pythia-70m-deduped", 1536))
    for unknown in ("by hand", "someone/else", tmp_path):
        with pytest.raises(PythiaDynError, match="is not known; give --drop-padding a number"):
            tokenizer_entries(of(unknown))
    (tmp_path / "step1000").mkdir()
    file = tmp_path / "step1000" / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0, "b": 6}, unk_token="a")).save(str(file))
    assert tokenizer_entries(of(tmp_path)) == 7  # up to the entry of the highest number
    file.write_text("{")
    with pytest.raises(PythiaDynError, match="cannot read"):
        tokenizer_entries(of(tmp_path))


def test_the_number_of_threads():
    assert Compute(threads=3).workers == 3
    assert Compute().workers >= 1
    with pytest.raises(PythiaDynError, match="at least 1"):
        Compute(threads=0)


def test_analyse_gives_what_each_analysis_gives():
    w = walk(5, 60, 12, np.float16)
    loss = {0: 3.0, 1: 2.5, 2: 2.0, 3: 1.9, 4: 1.8}
    seen = []
    options: dict[str, Any] = {
        "order": {"loss": loss},
        "rank": {"draws": 2, "batch_sizes": (4,)},
        "density": {"bins": 20},
    }
    found = analyse(w, options=options, compute=Compute(progress=lambda *now: seen.append(now)))
    assert tuple(found) == tuple(MEASURES)
    assert found["density"].identical(density(w, bins=20))
    assert found["msd"].identical(msd(w))
    assert found["order"].identical(order_parameter(w, loss=loss))
    assert found["rank"].identical(covariance_rank(w, draws=2, batch_sizes=(4,)))
    assert found["spectrum"].identical(spectrum(w))
    assert found["two_time"].identical(two_time(w))
    assert seen[-1] == (1000, 1000)
    assert seen == sorted(seen)
    for name in MEASURES:
        assert analyse(w, [name], options={name: options.get(name, {})})[name].identical(found[name])


def test_analyse_reads_each_weight_once(monkeypatch):
    w = walk(5, 600, 40, np.float16)
    ranges: dict[Any, list[Any]] = {Counts: [], Integral: []}
    for kind, seen in ranges.items():
        update = kind.update
        monkeypatch.setattr(
            kind,
            "update",
            lambda self, frames, start, stop, update=update, seen=seen: (
                seen.append((start, stop)),
                update(self, frames, start, stop),
            ),
        )
    analyse(w, ("density", "msd", "order"))
    for seen in ranges.values():
        assert sorted(seen) == slabs(24000)


def test_analyse_names_gaps_once():
    w = walk(5, 60, 12, np.float16)
    w[3, 0, 0] = np.nan
    history = History.from_array(w, missing={1: "lost"})
    with pytest.warns(UserWarning, match="array") as caught:
        found = analyse(history)
    assert [item.category for item in caught].count(MissingStepsWarning) == 1
    assert [item.category for item in caught].count(NonFiniteWarning) == 1
    assert len(caught) == 2
    for name in ("msd", "order_parameter", "effective_rank", "mean"):
        (values,) = [result[name] for result in found.values() if name in result]
        assert np.isnan(values.values).tolist() == [False, True, False, True, False], name


def test_unknown_analyses_are_refused():
    w = walk(2, 3, 3, np.float16)
    with pytest.raises(UnknownNameError, match="density"):
        analyse(w, ["densty"])
    with pytest.raises(PythiaDynError, match="nothing to analyse"):
        analyse(w, [])
