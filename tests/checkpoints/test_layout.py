"""Tensors are found in memory: the right bytes, no more requests than promised, every guess checked."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import HEAD, LAYOUTS, checkpoint, raw, state, torch_file

from pythia_dynamics.checkpoints.layout import LAYOUTS as USUAL
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.source import FileMissingError
from pythia_dynamics.checkpoints.tensors import TensorRequest, find_tensors
from pythia_dynamics.errors import CheckpointError, FormatError, PythiaDynError, UnknownNameError


class Range(NamedTuple):
    """A range that was read."""

    file: str
    start: int
    stop: int | None
    prefetch_stop: int


@dataclass
class Run:
    """The obvious files of a revision, all in memory; what was read of them, and what was found."""

    files: Mapping[str, bytes]
    ranges: list[Range] = field(default_factory=list)
    headers: int = 0
    takes: list[TensorRequest] = field(default_factory=list)

    def read_range(self, file: str, start: int, stop: int | None, prefetch_stop: int = 0) -> tuple[bytes, int]:
        self.ranges.append(Range(file, start, stop, prefetch_stop))
        if file not in self.files:
            raise FileMissingError("not there", file)
        content = self.files[file]
        self.headers += len(content[start:stop])
        return content[start:stop], len(content)

    def list_files(self) -> Mapping[str, int]:
        return {name: len(content) for name, content in self.files.items()}

    @property
    def taken(self) -> dict[str, bytes]:
        tensors = [take.tensor for take in self.takes]
        return {tensor.name: self.files[tensor.file][tensor.start : tensor.stop] for tensor in tensors}


def drive(
    files: Mapping[str, bytes], patterns: list[str], cache: LayoutCache | None = None, *, listing: bool = True
) -> Run:
    """Find the tensors, and read each before the next."""
    run, cache = Run(files), cache if cache is not None else LayoutCache()
    if not listing:
        cache.tickets = iter(())
    for take in find_tensors(run, patterns, cache, where="here"):
        assert take.prefetch_stop >= take.tensor.stop
        run.takes.append(take)
    return run


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("listing", [True, False])
def test_every_layout_is_found(layout: str, listing: bool) -> None:
    tensors = state(3, layers=3)
    files = checkpoint(tensors, layout, shards=3)
    run = drive(files, ["embed_out.weight", "*query_key_value.weight"], listing=listing)
    assert set(run.taken) == {HEAD, *(f"gpt_neox.layers.{k}.attention.query_key_value.weight" for k in range(3))}
    for name, content in run.taken.items():
        assert content == raw(tensors[name])


@settings(max_examples=40, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    shards=st.integers(1, 4),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    shapes=st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=3), min_size=4, max_size=9),
    chosen=st.sets(st.integers(0, 8), min_size=1),
    seed=st.integers(0, 2**16),
)
def test_any_state_dict_any_choice(
    layout: str, shards: int, dtype: torch.dtype, shapes: list[list[int]], chosen: set[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"t.{k}": torch.randn(shape, generator=generator).to(dtype) for k, shape in enumerate(shapes)}
    wanted = [f"t.{k}" for k in chosen if k < len(shapes)] or ["t.0"]
    cache = LayoutCache()
    files = checkpoint(tensors, layout, shards=shards)
    for _ in range(2):  # the second time by guessing
        assert drive(files, wanted, cache).taken == {name: raw(tensors[name]) for name in wanted}


def test_header_and_slice_are_one_request_the_second_time() -> None:
    cache = LayoutCache()
    drive(checkpoint(state(1, vocab=3000)), [HEAD], cache)
    run = drive(checkpoint(state(2, vocab=3000)), [HEAD], cache)
    assert len(run.ranges) == 1
    take = run.takes[-1]
    assert run.ranges[0].prefetch_stop == take.tensor.stop == take.prefetch_stop
    assert run.ranges[0].stop == take.tensor.start
    assert run.headers == take.tensor.start


def test_torch_pickle_is_read_once_for_all_that_share_it() -> None:
    cache = LayoutCache()
    files = checkpoint(state(1), "torch")
    assert len(drive(files, [HEAD], cache).ranges) == 4  # no safetensors, tail, pickle, local header
    later = drive(checkpoint(state(2), "torch"), [HEAD], cache)
    assert len(later.ranges) == 2
    assert later.ranges[0].start == -cache.tails["pytorch_model.bin"]
    assert later.headers < 4096


def test_a_header_of_another_length_is_read_to_its_end() -> None:
    cache = LayoutCache()
    drive(checkpoint(state(1)), [HEAD], cache)
    tensors = {f"{k}.more": torch.ones(3) for k in range(50)} | state(2)
    run = drive(checkpoint(tensors), [HEAD], cache)
    assert run.taken == {HEAD: raw(tensors[HEAD])}
    assert run.ranges[1].start == run.ranges[0].stop


def test_near_tensors_are_one_run_far_ones_are_not() -> None:
    tensors = {
        "a": torch.ones(100),
        "b": torch.ones(10),
        "c": torch.ones(100),
        "d": torch.ones(90_000),
        "e": torch.ones(9),
    }
    run = drive(checkpoint(tensors), ["a", "c", "e"])
    takes = {take.tensor.name: take for take in run.takes}
    assert takes["a"].prefetch_stop == takes["c"].tensor.stop == takes["c"].prefetch_stop
    assert takes["e"].prefetch_stop == takes["e"].tensor.stop


def test_small_pieces_do_not_add_up_to_much_waste() -> None:
    tensors = {f"{k:03}": torch.ones(500 if k % 2 else 3) for k in range(200)}
    run = drive(checkpoint(tensors), [f"{k:03}" for k in range(0, 200, 2)])
    takes = run.takes
    spans = {take.prefetch_stop: take.tensor.start for take in reversed(takes)}
    assert sum(end - start for end, start in spans.items()) <= 100 * 12 + 16 * 1024


def test_stale_shards_are_not_read() -> None:
    files = checkpoint(state(1), "safetensors shards")
    stale = checkpoint(state(9), "safetensors shards", shards=3)
    run = drive({**stale, **files}, [HEAD])
    assert run.taken[HEAD] == raw(state(1)[HEAD])


def test_revisions_without_weights() -> None:
    with pytest.raises(CheckpointError, match=r"here holds no weights that can be read \(found: a, config\.json\)"):
        drive({"config.json": b"{}", "a": b""}, [HEAD])
    with pytest.raises(CheckpointError, match=r"here holds no weights: it has none of model\.safetensors"):
        drive({}, [HEAD], listing=False)
    shards = checkpoint(state(1), "torch shards")
    del shards["pytorch_model-00002-of-00002.bin"]
    with pytest.raises(CheckpointError, match="incomplete: its index names pytorch_model-00002"):
        drive(shards, [HEAD])


def test_what_cannot_be_stored_is_refused() -> None:
    tensors = state(1) | {"mask": torch.ones(4, dtype=torch.uint8), "wide": torch.ones(4, dtype=torch.float64)}
    for layout in ("safetensors", "torch"):
        for name in ("mask", "wide"):
            with pytest.raises(FormatError, match="can be stored"):
                drive(checkpoint(tensors, layout), [HEAD, name])
    with pytest.raises(UnknownNameError, match=r"did you mean embed_out\.weight"):
        drive(checkpoint(tensors), ["embed_out.wight"])


def test_absurd_numbers_are_not_believed() -> None:
    body = checkpoint(state(1))["model.safetensors"]
    length = struct.unpack("<Q", body[:8])[0]
    header = json.loads(body[8 : 8 + length])
    for start, stop in [(0, 2**62), (-5, 10), (2**63, 2**63 + 3072), (10, 5)]:
        header[HEAD]["data_offsets"] = [start, stop]
        text = json.dumps(header).encode()
        with pytest.raises(FormatError):
            drive({"model.safetensors": struct.pack("<Q", len(text)) + text + body[8 + length :]}, [HEAD])
    for claimed in (0, 1, 2**63, 2**64 - 1, 10**8, len(body)):
        with pytest.raises(FormatError, match=r"claims a header|not valid JSON|not begin with"):
            drive({"model.safetensors": struct.pack("<Q", claimed) + body[8:]}, [HEAD])
    with pytest.raises(FormatError, match="legacy"):
        drive({"pytorch_model.bin": torch_file(state(1), _use_new_zipfile_serialization=False)}, [HEAD])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_damaged_files_end_in_our_errors(data: st.DataObject, layout: str) -> None:
    files = checkpoint(state(1, vocab=8, d_model=4), layout)
    name = data.draw(st.sampled_from([file for file in files if file != "config.json"]))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(content), data.draw(st.integers(1, len(content)))]))
    taken, message = {}, ""
    try:
        taken = drive({**files, name: bytes(content[:cut])}, [HEAD, "*.weight"]).taken
    except PythiaDynError as error:
        message = str(error)
    assert taken or message
    assert "\n" not in message
    assert sum(map(len, taken.values())) <= sum(map(len, files.values()))


def test_entry_files_are_those_transformers_writes() -> None:
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    assert {layout.entry_file for layout in USUAL} == {
        SAFE_WEIGHTS_INDEX_NAME,
        SAFE_WEIGHTS_NAME,
        WEIGHTS_INDEX_NAME,
        WEIGHTS_NAME,
    }


def test_the_lists_that_may_be_requested_are_shared_by_threads_and_copied_to_processes() -> None:
    cache = LayoutCache(tickets=iter(range(100)))
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: cache.may_list(), range(90))) == 90
    for each in (cache, pickle.loads(pickle.dumps(cache))):
        assert [each.may_list() for _ in range(12)] == [True] * 10 + [False] * 2
