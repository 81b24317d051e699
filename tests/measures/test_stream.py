"""Streamed tensors against a store: the same numbers to the last bit, within the scratch space, with every gap."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from filelock import FileLock
from support.checkpoints import HEAD, checkpoint, suite, torch_file
from support.hubserver import Fault, HubServer

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.retry import RetryPolicy
from pythia_dynamics.errors import CheckpointError, PythiaDynError, StoreError, UnknownNameError
from pythia_dynamics.history.chunk import ChunkWriter
from pythia_dynamics.history.fetch import download
from pythia_dynamics.history.request import FetchRequest
from pythia_dynamics.history.stream import open_stream
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import slabs

REPO = "org/tiny"
ALL = ("density", "msd", "two_time", "angles", "order", "rank", "spectrum", "tails", "rows")
SHAPE = (700, 48)
SIZE = 700 * 48
STEPS = (1, 2, 3, 5, 8, 13, 21)
SLAB = slabs(SIZE)[0][1]


def walk(steps: tuple[int, ...] = STEPS, dtype: torch.dtype = torch.float16) -> dict[int, dict[str, torch.Tensor]]:
    """A random walk of two matrices and a vector, by step."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"gpt_neox.embed_in.weight": (40, 48), "gpt_neox.final_layer_norm.weight": (48,), HEAD: SHAPE}
    now = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found = {}
    for step in steps:
        now = {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in now.items()}
        found[step] = {name: w.to(dtype) for name, w in now.items()}
    return found


def branches(states: Mapping[int, dict[str, torch.Tensor]], layout: str = "safetensors") -> dict[str, Any]:
    return {f"step{step}": checkpoint(state, layout) for step, state in states.items()}


def impatient() -> HubSource:
    return HubSource(REPO, policy=RetryPolicy(first_wait=0.001, max_wait=0.01))


def room(steps: int, slabs_at_once: int, itemsize: int) -> int:
    """Scratch space for so many slabs of W_U at so many steps, which all of it does not fit."""
    return steps * (slabs_at_once * SLAB * itemsize + 4)


def from_store(cache: Path, tensors: tuple[str, ...], **options: Any) -> dict[str, dict[str, xr.Dataset]]:
    """The oracle: everything is fetched, then measured."""
    report = download(REPO, cache=cache, tensors=tensors, steps="all", source=impatient(), **options)
    return {name: analyse(history, ALL) for name, history in report.histories().items()}


def streamed(cache: Path, tensors: tuple[str, ...], scratch: int, **options: Any) -> dict[str, dict[str, xr.Dataset]]:
    options = {"source": impatient(), "steps": "all", **options}
    return pyd.stream(REPO, ALL, cache=cache, tensors=tensors, scratch=scratch, **options)


def require_identical(found: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]]) -> None:
    """The same values to the bit, and the same provenance but for the word that says it was streamed."""
    assert set(found) == set(expected)
    for tensor, datasets in expected.items():
        assert list(found[tensor]) == list(datasets)
        for name, dataset in datasets.items():
            other = found[tensor][name]
            assert other.attrs.pop("streamed") is True
            xr.testing.assert_identical(other, dataset)  # values, coordinates and attributes; NaN equals NaN


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -- the same numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["safetensors", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_measure_as_from_a_store(hub: HubServer, tmp_path: Path, dtype: torch.dtype, layout: str) -> None:
    states = walk(dtype=dtype)
    states[3][HEAD][5, 5] = torch.nan
    files = branches(states, layout)
    files["step8"] = {"config.json": b"{}"}  # a revision without weights
    hub.add(REPO, files)
    expected = from_store(tmp_path / "a", ("all",))
    for slabs_at_once in (1, 3):
        scratch = room(len(STEPS), slabs_at_once, dtype.itemsize)
        with open_stream(FetchRequest(REPO, "all", "all", impatient(), tmp_path / "b"), scratch=scratch) as stream:
            plan = stream.plan()
        assert [spec.name for spec in plan.parted] == [HEAD]
        assert len(plan.groups) == 1
        require_identical(streamed(tmp_path / "b", ("all",), scratch), expected)
    require_identical(streamed(tmp_path / "b", ("all",), 10**9), expected)  # all of it has room
    assert not list((tmp_path / "b").glob("*.zarr"))
    assert not [path for path in (tmp_path / "b").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_rounding_that_asks_for_another_pass(hub: HubServer, tmp_path: Path) -> None:
    """Norms that differ a hundredfold make the two-time Gram matrix pass once more, in float64."""
    states = walk()
    for name in states[1]:
        states[1][name] /= 1000
    hub.add(REPO, branches(states))
    expected = from_store(tmp_path / "a", (HEAD,))
    require_identical(streamed(tmp_path / "b", (HEAD,), room(len(STEPS), 2, 2)), expected)


def test_one_step_and_a_vector(hub: HubServer, tmp_path: Path) -> None:
    states = {step: {"w": state[HEAD].reshape(-1)} for step, state in walk((7,)).items()}
    hub.add(REPO, branches(states))
    expected = from_store(tmp_path / "a", ("w",))
    # A Gram matrix needs the whole vector, a slab less: one step has room, and only in parts with its records.
    require_identical(streamed(tmp_path / "b", ("w",), SIZE * 2 + 8), expected)


def test_a_directory_and_processes(tmp_path: Path) -> None:
    for step, state in walk().items():
        folder = tmp_path / "tiny" / f"step{step}"
        folder.mkdir(parents=True)
        for name, content in checkpoint(state).items():
            (folder / name).write_bytes(content)
    (history,) = download(tmp_path / "tiny", cache=tmp_path / "a").histories().values()
    expected = {HEAD: analyse(history, ALL)}
    options: dict[str, Any] = {"cache": tmp_path / "b", "scratch": room(len(STEPS), 2, 2)}
    require_identical(pyd.stream(tmp_path / "tiny", ALL, **options), expected)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        compute = Compute(threads=2, executor=pool)
        found = pyd.stream(tmp_path / "tiny", ["msd", "density"], compute=compute, **options)
    require_identical(found, {HEAD: {name: expected[HEAD][name] for name in ("msd", "density")}})


def test_fewer_rows_are_read(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, branches(walk(), "torch"))
    report = download(REPO, cache=tmp_path / "a", steps="all")
    (history,) = report.histories().values()
    expected = analyse(history, ["msd", "density"], compute=Compute(rows=300))
    options: dict[str, Any] = {"cache": tmp_path / "b", "steps": "all", "scratch": room(7, 1, 2)}
    sent = []
    for rows in (None, 300):
        hub.reset()
        found = pyd.stream(REPO, ["msd", "density"], compute=Compute(rows=rows), **options)
        sent.append(hub.sent)
    for name, dataset in found[HEAD].items():
        assert set(dataset.attrs.pop("checks").values()) == {"transferred"}  # the rest of the tensor was not read
        assert set(expected[name].attrs.pop("checks").values()) == {"crc32"}
    require_identical(found, {HEAD: expected})
    assert sent[0] - sent[1] > 0.9 * 400 * 48 * 2 * len(STEPS)


# -- what goes wrong ------------------------------------------------------------------------------------------


def damaged(step: int, where: str) -> dict[str, bytes]:
    """A torch checkpoint with a flipped bit in the last weights of W_U."""
    content = bytearray(torch_file(walk()[step]))
    weights = walk()[step][HEAD].numpy().tobytes()
    content[content.index(weights) + len(weights) - 2] ^= 1
    return {where: bytes(content)}


def test_a_tensor_that_fails_its_checksum_is_missing(hub: HubServer, tmp_path: Path) -> None:
    """The CRC-32 is of the whole tensor: the parts before the last one are in the sums when it is compared."""
    files = branches(walk(), "torch")
    files["step5"] |= damaged(5, "pytorch_model.bin")
    hub.add(REPO, files)
    expected = from_store(tmp_path / "a", (HEAD,))
    assert "checksum" in expected[HEAD]["msd"].attrs["missing"]["5"]
    require_identical(streamed(tmp_path / "b", (HEAD,), room(len(STEPS), 2, 2)), expected)


def test_damage_in_transit_is_read_again(hub: HubServer, tmp_path: Path) -> None:
    """The last part of one step arrives damaged, once: its checksum is of all parts, so all are read again."""
    files = branches(walk(), "torch")
    content, path = files["step5"]["pytorch_model.bin"], tmp_path / "step5.bin"
    path.write_bytes(content)
    files["step5"]["pytorch_model.bin"] = path
    hub.add(REPO, files)
    expected = from_store(tmp_path / "a", (HEAD,))
    weights = walk()[5][HEAD].numpy().tobytes()
    first, last = content.index(weights), content.index(weights) + len(weights)
    seen: list[str] = []

    def spoil(request: Any) -> None:
        """Damage the file while the last part of step 5, the fourth step, is sent for the first time."""
        if request.kind == "cdn" and request.range.endswith(f"-{last - 1}") and f"={first}-" not in request.range:
            seen.append(request.range)
        path.write_bytes(damaged(5, "x")["x"] if len(seen) == 4 else content)

    hub.faults.append(spoil)
    require_identical(streamed(tmp_path / "b", (HEAD,), room(len(STEPS), 2, 2), workers=1), expected)
    assert len(seen) >= 2 * len(STEPS)


def test_a_step_that_ends_in_the_middle_is_missing(hub: HubServer, tmp_path: Path) -> None:
    """Its first parts arrive, a later one never does: what was summed is summed again without it."""
    hub.add(REPO, branches(walk()))
    hub.link_uses = 1  # so that each range is asked of the repository, by commit
    commit = hub.repositories[REPO].branches["step13"]

    def late(request: Any) -> Fault | None:
        if request.kind == "resolve" and request.revision == commit and request.range:
            start = int(request.range.removeprefix("bytes=").partition("-")[0])
            return Fault("status", 403) if start > SIZE else None
        return None

    hub.faults.append(late)
    found = streamed(tmp_path / "b", (HEAD,), room(len(STEPS), 1, 2))
    hub.faults.clear()
    report = download(REPO, cache=tmp_path / "a", tensors=(HEAD,), steps="all")
    (history,) = report.histories().values()
    left = history.select([step for step in STEPS if step != 13])
    expected = analyse(left, ["msd", "spectrum"])
    for name, dataset in expected.items():
        other = found[HEAD][name]
        assert list(other.attrs["missing"]) == ["13"]
        kept = other.sel(step=[step for step in STEPS if step != 13])
        for variable in ("msd", "displacement") if name == "msd" else ("effective_rank",):
            np.testing.assert_array_equal(kept[variable], dataset[variable])
            assert np.isnan(other[variable].sel(step=13))


def test_none_of_the_steps(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, {"step1": {"config.json": b"{}"}, "step2": {"config.json": b"{}"}})
    with pytest.raises(CheckpointError):
        streamed(tmp_path, (HEAD,), 1000)
    with pytest.raises(UnknownNameError, match="step"):
        streamed(tmp_path, (HEAD,), 1000, steps="77")
    with pytest.raises(PythiaDynError, match="whole files"):
        streamed(tmp_path, (HEAD,), 1000, verify_whole=True)
    with pytest.raises(PythiaDynError, match="above 0"):
        streamed(tmp_path, (HEAD,), 0)


def test_too_little_scratch_space_says_how_much_is_needed(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, branches(walk()))
    least = room(len(STEPS), 1, 2)
    with pytest.raises(StoreError, match=r"8,192 weights of 7 steps .* more than the scratch space"):
        streamed(tmp_path, (HEAD,), least - 1)
    frame = SIZE * 2 + 4
    with pytest.raises(StoreError, match=r"one step of embed_out\.weight take"):
        pyd.stream(REPO, ["spectrum"], cache=tmp_path, steps="all", scratch=frame - 1)
    assert pyd.stream(REPO, ["spectrum"], cache=tmp_path, steps="all", scratch=frame)


# -- the scratch folder ---------------------------------------------------------------------------------------


def test_bytes_on_the_disk_stay_below_the_bound(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every chunk and part that is written, with all the metadata."""
    hub.add(REPO, branches(walk()))
    seen: list[int] = []
    finish = ChunkWriter.finish

    def on_disk(self: ChunkWriter) -> None:
        finish(self)
        self.file.flush()
        total = 0
        for place, _, names in os.walk(tmp_path / "b"):
            for name in names:
                with suppress(OSError):  # it was renamed just now
                    total += (Path(place) / name).stat().st_size
        seen.append(total)

    monkeypatch.setattr(ChunkWriter, "finish", on_disk)
    scratch = room(len(STEPS), 2, 2)
    streamed(tmp_path / "b", ("all",), scratch)
    one_chunk = SIZE * 2  # more than the metadata of a store
    assert 0.8 * scratch < max(seen) <= scratch + one_chunk


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the maps of a process are not listed here")
def test_deleted_parts_are_not_kept_by_their_maps(hub: HubServer, tmp_path: Path) -> None:
    """A file that is deleted while it is mapped keeps its space on the disk."""
    hub.add(REPO, branches(walk()))
    scratch, kept = room(len(STEPS), 1, 2), []

    def look(done: int, total: int) -> None:
        maps = [line.split()[-2] for line in Path("/proc/self/maps").read_text().splitlines() if "(deleted)" in line]
        kept.append(sum("part-" in name for name in maps))

    pyd.stream(
        REPO,
        ["msd", "two_time", "spectrum"],
        cache=tmp_path,
        steps="all",
        scratch=scratch,
        compute=Compute(progress=look),
    )
    assert len(kept) > 10
    assert max(kept) == 0


def interrupted(request: FetchRequest) -> None:
    """A stream that ends while its first tensor is measured."""

    def measure_all() -> None:
        with open_stream(request) as stream:
            for _ in stream.histories(stream.plan()):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_all()


def test_a_kill_leaves_what_the_next_stream_uses(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, branches(walk()))
    names = ("gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.weight")
    request = FetchRequest(REPO, names, "all", impatient(), tmp_path)
    interrupted(request)
    (left,) = tmp_path.glob(".tiny.stream/0/*")
    assert len(list(left.rglob("c/*/*"))) >= 2 * len(STEPS)
    hub.reset()
    found = streamed(tmp_path, names, 10**9)
    assert set(found) == set(names)
    assert hub.file_requests().total() <= 3  # headers: every chunk was there
    assert not list(tmp_path.glob(".tiny.stream/0"))
    interrupted(request)
    streamed(tmp_path, (HEAD,), 10**9)  # of another tensor: what was left is removed
    assert not list(tmp_path.glob(".tiny.stream/0"))


def test_two_streams_of_one_model_have_folders_of_their_own(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, branches(walk()))
    expected = from_store(tmp_path / "a", (HEAD,))
    of_another = tmp_path / ".tiny.stream" / "0" / "of another"
    of_another.mkdir(parents=True)
    with FileLock(tmp_path / ".tiny.stream" / "0.lock"):
        require_identical(streamed(tmp_path, (HEAD,), room(7, 1, 2)), expected)
    assert of_another.exists()
    streamed(tmp_path, (HEAD,), room(7, 1, 2))
    assert not of_another.exists()
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(streamed(tmp_path, (HEAD,), room(7, 1, 2)))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for one in found:
        require_identical(one, expected)


def test_requests_are_as_few_as_the_parts_need(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, branches(walk()))
    windows = -(-len(slabs(SIZE)) // 2)
    streamed(tmp_path, (HEAD,), room(len(STEPS), 2, 2))
    # the survey, a header a step, samples for the mean (four ranges, of which near ones are one), parts, whole steps
    assert hub.file_requests().total() <= 3 + len(STEPS) * (1 + 4 + windows + 1)
    assert hub.count("api") == 1


def test_progress_goes_forward_to_the_end(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, branches(walk()))
    seen: list[tuple[int, int]] = []
    compute = Compute(progress=lambda *done: seen.append(done))
    streamed(tmp_path, ("all",), room(len(STEPS), 2, 2), compute=compute)
    done = [at for at, _ in seen]
    assert done == sorted(done)
    assert seen[-1] == (1000, 1000)
    assert len(set(done)) > 10  # of 18: two steps that arrive at once are one report


def test_tokens_and_learning_rate_of_a_suite(tmp_path: Path) -> None:
    """What a store would remember of a suite is there as well: tokens and the learning rate."""
    folder = tmp_path / "tiny"
    for step, files in suite([1000, 2000, 3000]).items():
        for name, content in files.items():
            (folder / step).mkdir(parents=True, exist_ok=True)
            (folder / step / name).write_bytes(content)
    (folder / "step3000" / "trainer_state.json").write_text(
        '{"log_history": [{"step": 1000, "learning_rate": 0.1}, {"step": 3000, "learning_rate": 0.01}]}'
    )
    (history,) = download(folder, cache=tmp_path / "a").histories().values()
    expected = analyse(history, ["msd"])
    assert "learning_rate" in expected["msd"].coords
    require_identical(
        pyd.stream(folder, ["msd"], cache=tmp_path / "b", scratch=3 * (96 * 16 * 2 + 4)), {HEAD: expected}
    )
