import errno
import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr

from pythia_dynamics.errors import IntegrityError, PythiaDynError, StoreError, UnknownNameError
from pythia_dynamics.history.cache import as_history, cached, open_history
from pythia_dynamics.history.chunk import CHECKSUM_BYTES
from pythia_dynamics.history.history import History
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.states import step_states
from pythia_dynamics.history.store import Store

W_U = TensorSpec("embed_out.weight", "float16", (7, 3))
STEPS = (1000, 2000, 3000)
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def frame(step: int, spec: TensorSpec = W_U) -> np.ndarray:
    rng = np.random.default_rng(step)
    return rng.normal(size=spec.shape).astype(DTYPES[spec.dtype])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "cache" / "suite.zarr", source="owner/suite")
    store.ensure([W_U], STEPS)
    for step in (1000, 3000):
        store.write(W_U.name, step, frame(step), {"commit": f"c{step}"})
    store.record_missing(W_U.name, {2000: "no branch step2000"})
    return store


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_everyone_reads_what_was_written(tmp_path: Path, dtype: str) -> None:
    spec = TensorSpec("embed_out.weight", dtype, (7, 3))
    store = Store.create(tmp_path / "suite.zarr", source="owner/suite")
    store.ensure([spec], STEPS)
    for step in STEPS:
        store.write(spec.name, step, frame(step, spec), {})
    expected = np.stack([frame(step, spec) for step in STEPS])

    ours = History.from_store(store).weights
    by_zarr = zarr.open_group(store.path, mode="r")[spec.name]
    by_xarray = xr.open_zarr(store.path, consolidated=False)
    by_tensorstore = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store.path}/{spec.name}/"}}
    ).result()

    for read in (np.asarray(ours), by_zarr[:], by_xarray[spec.name].values, by_tensorstore.read().result()):
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read.view(np.uint8), expected.view(np.uint8))
    assert by_xarray[spec.name].dims == ("step", "vocab", "d_model")
    assert by_xarray["step"].values.tolist() == list(STEPS)
    assert by_zarr.chunks == (1, 7, 3)


def test_what_a_killed_process_left_of_metadata_is_swept_away(tmp_path: Path) -> None:
    path = tmp_path / "killed.zarr"
    path.mkdir()
    (path / "zarr.0a1b.partial").write_bytes(b"{")  # killed at the very first file
    store = Store.create(path, source="somewhere")
    store.ensure([TensorSpec("w", "float16", (2, 2))], [1, 2])
    left = [path / "w" / "zarr.77.partial", path / "step" / "zarr.77.partial", path / "step" / "c" / "0.77.partial"]
    for file in left:
        file.write_bytes(b"{")
    Store.create(path, source="somewhere")
    assert not list(path.rglob("*.partial"))
    assert sorted(Store.open(path).steps) == [1, 2]


def test_a_chunk_file_is_the_tensor_and_its_checksum(store: Store) -> None:
    content = store.chunk_path(W_U.name, 1000).read_bytes()
    assert content[:-CHECKSUM_BYTES] == frame(1000).tobytes()
    assert len(content) == W_U.nbytes + CHECKSUM_BYTES


def test_frames_are_read_only_views_of_the_file(store: Store) -> None:
    view = History.from_store(store).frame(0)
    assert view is not None
    assert not view.flags.writeable
    assert not view.flags.owndata
    np.testing.assert_array_equal(view, frame(1000))


def test_missing_steps_are_data(store: Store) -> None:
    history = History.from_store(store)
    assert history.steps.tolist() == list(STEPS)
    assert history.missing == {2000: "no branch step2000"}
    assert history.present.tolist() == [True, False, True]
    assert history.frame(1) is None
    assert np.isnan(history.weights[1]).all()
    assert np.isnan(zarr.open_group(store.path, mode="r")[W_U.name][1]).all()  # type: ignore[arg-type]
    with pytest.raises(PythiaDynError, match="step 2000 of suite is missing: no branch step2000"):
        history.at(2000)
    with pytest.raises(UnknownNameError, match="no step 1001 in suite; did you mean 1000"):
        history.at(1001)


def test_writing_a_missing_step_forgets_the_reason(store: Store) -> None:
    store.write(W_U.name, 2000, frame(2000), {})
    assert store.entries(W_U.name)["missing"] == {}
    assert History.from_store(store).missing == {}


def test_steps_may_come_later_and_in_any_order(store: Store) -> None:
    before = store.chunk_path(W_U.name, 3000)
    store.ensure([W_U], (512, 2500))
    store.write(W_U.name, 512, frame(512), {})
    history = History.from_store(store)
    assert history.steps.tolist() == [512, 1000, 2000, 2500, 3000]
    assert history.missing == {2000: "no branch step2000", 2500: "not fetched"}
    assert store.chunk_path(W_U.name, 3000) == before
    np.testing.assert_array_equal(history.at(512), frame(512))
    np.testing.assert_array_equal(history.at(3000), frame(3000))
    labelled = xr.open_zarr(store.path, consolidated=False)[W_U.name].sel(step=512)
    np.testing.assert_array_equal(labelled.values, frame(512))


def test_several_tensors_share_the_steps(store: Store) -> None:
    bias = TensorSpec("gpt_neox.final_layer_norm.bias", "float32", (3,))
    store.ensure([bias], [4000])
    store.write(bias.name, 4000, frame(4000, bias), {})
    assert set(store.tensors) == {W_U.name, bias.name}
    assert store.tensors[bias.name] == bias
    assert History.from_store(store).tensor == W_U.name
    np.testing.assert_array_equal(History.from_store(store, bias.name).at(4000), frame(4000, bias))
    xr.open_zarr(store.path, consolidated=False).load()
    with pytest.raises(UnknownNameError, match=r"no tensor 'embed_out'.*did you mean embed_out.weight"):
        History.from_store(store, "embed_out")


def test_a_tensor_does_not_change_its_shape(store: Store) -> None:
    with pytest.raises(StoreError, match=r"float16\[7, 3\].*float32\[7, 3\]"):
        store.ensure([TensorSpec(W_U.name, "float32", (7, 3))], [1000])
    with pytest.raises(StoreError, match="the store holds"):
        store.write(W_U.name, 2000, frame(2000).astype(np.float32), {})


@pytest.mark.parametrize("count", [0, W_U.nbytes - 1, W_U.nbytes + 1])
def test_a_chunk_appears_whole_or_not_at_all(store: Store, count: int) -> None:
    def attempt() -> None:
        with store.writer(W_U.name, 2000, {}) as writer:
            writer.write(bytes(count))

    before = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    with pytest.raises(IntegrityError, match="bytes arrived"):
        attempt()
    assert {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()} == before
    assert not list(store.path.parent.glob("**/*.partial/*"))


def test_an_interrupted_overwrite_keeps_the_old_chunk(store: Store) -> None:
    def attempt() -> None:
        with store.writer(W_U.name, 1000, {}) as writer:
            writer.write(bytes(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt()
    np.testing.assert_array_equal(History.from_store(store).at(1000), frame(1000))


@pytest.mark.parametrize("shared", [True, False])
def test_threads_may_write_at_once(tmp_path: Path, shared: bool) -> None:
    path, steps = tmp_path / "s.zarr", range(40)
    common = Store.create(path, source="a/b")

    def work(step: int) -> None:
        store = common if shared else Store.create(path, source="a/b")
        store.ensure([W_U], [step])
        store.write(W_U.name, step, frame(step), {"commit": str(step)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, steps))
    store = Store.open(path)
    history = History.from_store(store)
    assert history.steps.tolist() == list(steps)
    assert store.records(W_U.name) == {step: {"commit": str(step)} for step in steps}
    for step in steps:
        np.testing.assert_array_equal(history.at(step), frame(step))
        store.check(W_U.name, step)


def test_a_flipped_bit_is_caught(store: Store) -> None:
    store.check(W_U.name, 1000)
    path = store.chunk_path(W_U.name, 1000)
    content = bytearray(path.read_bytes())
    content[11] ^= 4
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"step 1000 of embed_out.weight .* fails its checksum"):
        store.check(W_U.name, 1000)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(store.path, mode="r")[W_U.name][0]


def test_a_cut_or_lost_chunk_is_named_and_taken_for_absent(store: Store) -> None:
    path = store.chunk_path(W_U.name, 1000)
    path.write_bytes(path.read_bytes()[:-9])
    assert 1000 not in step_states(store, W_U.name).stored
    with pytest.raises(IntegrityError, match=r"suite at step 1000 are damaged .* run the fetch again"):
        History.from_store(store).frame(0)
    path.unlink()
    assert 1000 not in step_states(store, W_U.name).stored
    with pytest.raises(IntegrityError, match="damaged"):
        History.from_store(store).frame(0)


def test_foreign_and_broken_stores_are_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(StoreError, match="no weight store at"):
        Store.open(tmp_path / "absent.zarr")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="not a weight store of pythia-dyn"):
        Store.open(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="not a weight store of pythia-dyn"):
        Store.create(tmp_path / "other.zarr", source="a/b")
    (tmp_path / "stuff.zarr").mkdir()
    (tmp_path / "stuff.zarr" / "letter.txt").write_text("keep me")
    with pytest.raises(StoreError, match="not a readable Zarr"):
        Store.create(tmp_path / "stuff.zarr", source="a/b")
    assert (tmp_path / "stuff.zarr" / "letter.txt").read_text() == "keep me"
    with pytest.raises(StoreError, match="holds the weights of owner/suite, not of owner/other"):
        Store.create(store.path, source="owner/other")
    meta = store.path / W_U.name / "zarr.json"
    meta.write_text(meta.read_text()[:100])
    with pytest.raises(StoreError, match="not a readable Zarr"):
        History.from_store(Store.open(store.path))


def test_a_newer_format_is_refused(store: Store) -> None:
    meta = store.path / "zarr.json"
    content = json.loads(meta.read_text())
    content["attributes"]["pythia_dynamics"]["format"] = 2
    meta.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="newer pythia-dyn"):
        Store.open(store.path)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "step", "zarr.json", "a\\b", "/abs"])
def test_a_tensor_name_cannot_leave_the_store(name: str) -> None:
    with pytest.raises(StoreError, match="cannot be stored under the name"):
        TensorSpec(name, "float16", (2, 2))


def test_what_a_killed_writer_left_is_removed(store: Store) -> None:
    partial = store.path.with_name(f".{store.path.name}.partial")
    partial.mkdir(exist_ok=True)
    dead = partial / ".0.4194304.abcd.partial"  # above the largest process number there is
    dead.write_bytes(b"half")
    with store.writer(W_U.name, 2000, {}) as writer:
        Store.create(store.path, source="owner/suite")
        writer.write(frame(2000).tobytes())
    assert not dead.exists()
    assert 2000 in step_states(store, W_U.name).held


def test_an_empty_store_says_so(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s.zarr", source="a/b")
    assert (store.tensors, store.steps) == ({}, ())
    with pytest.raises(StoreError, match="holds no weights yet"):
        History.from_store(store)


# -- histories ------------------------------------------------------------------------------------------------


def test_a_history_opens_by_name_alias_and_path(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = store.path.parent
    assert cached(cache) == ("suite",)
    assert open_history("suite", cache=cache).name == "suite"
    assert open_history("owner/suite", cache=cache).name == "suite"
    assert open_history(store.path).name == "suite"
    assert open_history("suite", cache=cache, steps="1000,3000").steps.tolist() == [1000, 3000]
    monkeypatch.setenv("PYTHIA_DYN_CACHE", str(cache))
    assert as_history("suite").shape == (3, 7, 3)
    with pytest.raises(StoreError, match=r"70m is not in .*; there: suite; run pythia-dyn fetch --model 70m"):
        open_history("70m")
    with pytest.raises(UnknownNameError, match="no model 'siute'; did you mean suite"):
        open_history("siute")
    with pytest.raises(UnknownNameError, match="no step 1500 in suite; did you mean"):
        open_history("suite", steps="1500")


def test_lazy_weights_index_like_the_array(store: Store) -> None:
    history = History.from_store(store)
    whole = np.asarray(history.weights)
    assert whole.shape == history.shape == history.weights.shape == (3, 7, 3)
    for key in (0, -1, slice(0, 3, 2), slice(0, 0), (0, 2), (slice(None), 4, 1), ([2, 0], slice(1, 3)), ..., (..., 1)):
        np.testing.assert_array_equal(history.weights[key], whole[key])
    with pytest.raises(IndexError):
        history.weights[3]


def test_a_pickled_history_carries_paths_not_weights(tmp_path: Path) -> None:
    spec = TensorSpec("embed_out.weight", "float16", (500, 100))
    store = Store.create(tmp_path / "s.zarr", source="a/b")
    store.ensure([spec], STEPS)
    store.write(spec.name, 1000, frame(1000, spec), {})
    sent = pickle.dumps(History.from_store(store))
    assert len(sent) < 5000
    np.testing.assert_array_equal(pickle.loads(sent).at(1000), frame(1000, spec))


def test_an_array_is_a_history() -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 2))
    history = as_history(array)
    assert history.steps.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(history.weights[2], array[2])
    gaps = History.from_array(array, steps=[1, 2, 4, 8], missing={4: "lost"})
    assert gaps.frame(2) is None
    for bad in (
        {"array": array.astype(int)},
        {"array": array[0, 0]},
        {"array": array, "steps": [3, 2, 1, 0]},
        {"array": array, "steps": [1, 2]},
        {"array": array, "missing": {99: "?"}},
    ):
        with pytest.raises(PythiaDynError):
            History.from_array(**bad)


# -- a full disk ----------------------------------------------------------------------------------------------


def _no_space(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


FULL_DISKS = {"zarr": "zarr.storage._local._put", "the lock": "filelock._unix.os.open"}
WRITES: dict[str, Callable[[Store], object]] = {
    "create": lambda store: Store.create(store.path.with_name("new.zarr"), source="a/b"),
    "new steps": lambda store: store.ensure([W_U], [4000]),
    "new tensor": lambda store: store.ensure([TensorSpec("bias", "float32", (3,))], STEPS),
    "weights": lambda store: store.write(W_U.name, 2000, frame(2000), {}),
    "missing": lambda store: store.record_missing(W_U.name, {2000: "gone"}),
    "record": lambda store: store.remove_record(W_U.name, 1000),
}


@pytest.mark.parametrize("full", list(FULL_DISKS))
@pytest.mark.parametrize("write", list(WRITES))
def test_a_full_disk_is_one_error_and_leaves_the_store_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch, write: str, full: str
) -> None:
    records, missing = store.records(W_U.name), step_states(store, W_U.name).missing
    with monkeypatch.context() as patch:
        patch.setattr(FULL_DISKS[full], _no_space)
        with pytest.raises(StoreError, match=r"^cannot write \S+\.zarr: the disk is full; free some space or name"):
            WRITES[write](store)
    again = Store.open(store.path)
    assert (again.records(W_U.name), step_states(again, W_U.name).missing, again.steps) == (records, missing, STEPS)
    assert cached(store.path.parent) == ("suite",)
    WRITES[write](again)


def test_steps_that_a_full_disk_cut_short_are_written_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from zarr.storage import _local

    put = _local._put

    def metadata_only(path: Path, *arguments: Any, **options: Any) -> int:
        if "c" in path.parts[-2:]:
            _no_space()
        return put(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_local, "_put", metadata_only)
        with pytest.raises(StoreError, match="the disk is full"):
            store.ensure([W_U], [4000, 5000])
    again = Store.open(store.path)
    assert again.steps == STEPS
    again.ensure([W_U], [6000])
    again.write(W_U.name, 6000, frame(6000), {})
    assert History.from_store(again).steps.tolist() == [*STEPS, 6000]
    assert xr.open_zarr(store.path, consolidated=False)["step"].values.tolist() == [*STEPS, 6000]


@pytest.mark.parametrize("dtype", ["int8", "float8", ""])
def test_a_store_holds_floats_only(dtype: str) -> None:
    with pytest.raises(UnknownNameError, match="no dtype"):
        TensorSpec("w", dtype, (2, 2))


def test_the_demo_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^demo is not in .*: `pythia-dyn demo` makes it$"):
        open_history("demo", cache=tmp_path)
    with pytest.raises(UnknownNameError, match=r"no model 'xyz'; known: 14m, 31m, 70m, 160m, 410m, 1b, …"):
        open_history("xyz", cache=tmp_path)


def test_a_role_has_one_tensor(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run.zarr", source="here")
    store.ensure(
        [TensorSpec("value.lm_head.weight", "float32", (1, 8)), TensorSpec("wte.weight", "float32", (40, 8))], [1]
    )
    assert store.roles == {"unembedding": "value.lm_head.weight", "embedding": "wte.weight"}
    store.ensure([TensorSpec("lm_head.weight", "float32", (48, 8))], [1])
    assert store.roles == {"unembedding": "lm_head.weight", "embedding": "wte.weight"}  # the other is in a module
    store.ensure([TensorSpec("wte.weight", "float32", (40, 8), ("unembedding", "embedding"))], [1])
    assert store.roles == {"unembedding": "wte.weight", "embedding": "wte.weight"}  # recorded, not guessed
    store.ensure([TensorSpec("wte.weight", "float32", (40, 8))], [1])
    assert store.roles["unembedding"] == "wte.weight"
    store.ensure([TensorSpec("readout.weight", "float32", (40, 8), ("unembedding",))], [1])
    assert "unembedding" not in store.roles
    assert xr.open_zarr(store.path, consolidated=False).sizes["step"] == 1  # also with heads of different lengths
