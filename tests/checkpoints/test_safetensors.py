from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from pythia_dynamics.checkpoints.formats.safetensors import HEADER_LENGTH, parse_safetensors, safetensors_header_stop
from pythia_dynamics.checkpoints.formats.slices import require_storable
from pythia_dynamics.errors import FormatError

DTYPES = ["float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool", "uint16"]
FUZZ = settings(
    deadline=None, derandomize=True, max_examples=400, suppress_health_check=[HealthCheck.too_slow], database=None
)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def sample_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(5, 3, generator=generator).mul(9).to(getattr(torch, name)) for name in DTYPES}
    tensors["float8_e4m3fn"] = torch.randn(7, generator=generator).to(torch.float8_e4m3fn)
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.empty(0, 4)
    return tensors


def parse(raw: bytes, file: str = "m.safetensors") -> dict[str, Any]:
    stop = safetensors_header_stop(raw[:HEADER_LENGTH], file=file, file_size=len(raw))
    return parse_safetensors(raw[:stop], file=file, file_size=len(raw))


def build(entries: Any, data: int = 0, *, text: bytes | None = None) -> bytes:
    header = json.dumps(entries).encode() if text is None else text
    return len(header).to_bytes(8, "little") + header + bytes(data)


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: Any = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 2] if shape is None else shape, "data_offsets": [begin, end]}


def test_slices_are_the_bytes_of_every_tensor(tmp_path):
    tensors = sample_tensors()
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    raw = path.read_bytes()
    slices = parse(raw, file=path.name)
    assert slices.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = slices[name]
        assert raw[found.start : found.stop] == raw_bytes(tensor)
        assert found.shape == tuple(tensor.shape)
        assert f"torch.{found.dtype}" == str(tensor.dtype)
        assert (found.name, found.file, found.crc32) == (name, path.name, None)
        assert found.nbytes == tensor.nbytes


def test_more_bytes_than_the_header_are_welcome():
    raw = save(sample_tensors())
    assert parse_safetensors(raw, file="f", file_size=len(raw)) == parse(raw, file="f")


def test_a_file_without_tensors_has_none():
    raw = save({})
    assert parse(raw) == {}


def test_only_what_the_store_holds_is_storable():
    slices = parse(save(sample_tensors()))
    for name in ("float16", "bfloat16", "float32", "scalar"):
        require_storable(slices[name])
    for name in ("bool", "uint8", "float64", "float8_e4m3fn"):
        with pytest.raises(FormatError, match=r"float16, bfloat16, float32"):
            require_storable(slices[name])


def test_elements_smaller_than_a_byte_are_listed_but_not_storable():
    slices = parse(build({"a": entry(0, 3, [6], "F4"), "b": entry(3, 6, [4], "F6_E2M3")}, 6))
    assert (slices["a"].dtype, slices["a"].nbytes) == ("float4_e2m1fn", 3)
    with pytest.raises(FormatError, match="float4_e2m1fn"):
        require_storable(slices["a"])
    with pytest.raises(FormatError, match="does not take"):
        parse(build({"a": entry(0, 3, [5], "F4")}, 3))


@pytest.mark.parametrize(
    ("prefix", "size", "message"),
    [
        (b"", 0, "cut short"),
        (b"\x10\0\0\0", 4, "cut short"),
        ((1 << 63).to_bytes(8, "little"), 10**9, "claims a header"),
        ((100_000_001).to_bytes(8, "little"), 10**12, "claims a header"),
        ((100).to_bytes(8, "little"), 107, "claims a header"),
        ((1).to_bytes(8, "little"), 107, "claims a header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", 130, "git lfs pull"),
        (b"<!DOCTYPE html><html>", 5000, "web page"),
    ],
)
def test_absurd_header_lengths_are_refused(prefix, size, message):
    with pytest.raises(FormatError, match=message):
        safetensors_header_stop(prefix, file="f", file_size=size)


def test_header_of_the_limit_is_accepted():
    assert safetensors_header_stop((10**8).to_bytes(8, "little"), file="f", file_size=10**9) == 10**8 + 8


HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (build({"a": entry(0, 4)}, 4)[:-5], "claims a header|cut short"),
        (build({"a": entry(0, 4)}, 3), "outside the file"),
        (build({"a": entry(0, 4)}, 5), "end at"),
        (build({"a": entry(0, 4), "b": entry(2, 6)}, 6), "overlaps"),
        (build({"a": entry(0, 4), "b": entry(6, 8)}, 8), "leaves a gap"),
        (build({"a": entry(4, 2, [1])}, 4), "outside"),
        (build({"a": entry(0, 4, [3])}, 4), "does not take"),
        (build({"a": entry(0, 4, [HUGE, HUGE, HUGE])}, 4), "does not take"),
        (build({"a": entry(0, 4, [2**100])}, 4), "no valid shape"),
        (build({"a": entry(0, 4, [-2])}, 4), "no valid shape"),
        (build({"a": entry(0, 4, [2.0])}, 4), "no valid shape"),
        (build({"a": entry(0, 2, [True])}, 2), "no valid shape"),
        (build({"a": entry(0, 4, dtype="F17")}, 4), "F17.*convert"),
        (build({"a": entry(0, 4, dtype=3)}, 4), "dtype"),
        (build({"a": [0, 4]}, 4), "not an object"),
        (build({"a": {"dtype": "F16"}}, 4), "no valid shape"),
        (build({"": entry(0, 4)}, 4), "0 characters"),
        (build({"x" * 2000: entry(0, 4)}, 4), "2000 characters"),
        (build({"\ud800": entry(0, 4)}, 4), "Unicode"),
        (build({"__metadata__": {"a": 1}}), "__metadata__"),
        (build([1, 2]), "JSON object"),
        (build(None, text=b'{"a":{},"a":{}}'), "twice"),
        (build(None, text=b'{"a":NaN}'), "NaN"),
        (build(None, text=b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
        (build(None, text=b'{"a":' * 100_000), "not valid JSON"),
        (build(None, text=b'{"\xff":1}'), "not valid JSON"),
        (build(None, text=b'{"a":[' + b"[]," * 1_500_000 + b"]}"), "more than any checkpoint"),
        (build(None, text=b"{}x"), "not valid JSON"),
    ],
)
def test_damaged_headers_are_refused_in_one_line(raw, message):
    with pytest.raises(FormatError, match=message) as caught:
        parse(raw)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_incomplete_header_is_refused():
    raw = save(sample_tensors())
    with pytest.raises(FormatError, match="of the header's"):
        parse_safetensors(raw[:50], file="f", file_size=len(raw))


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Nearly valid files: adjacent tensors, then some numbers, names or types replaced."""
    entries: dict[str, Any] = {}
    position = 0
    for _ in range(draw(st.integers(0, 4))):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        dtype, size = draw(st.sampled_from([("F16", 2), ("BF16", 2), ("F32", 4), ("BOOL", 1), ("I64", 8)]))
        stop = position + math.prod(shape) * size
        entries[draw(st.text(max_size=5))] = {"dtype": dtype, "shape": shape, "data_offsets": [position, stop]}
        position = stop
    odd = st.one_of(st.integers(-2, 9), st.sampled_from([HUGE, 2**64, 2**63]), st.none(), st.text(max_size=2))
    for _ in range(draw(st.integers(0, 1))):
        if entries:
            victim = entries[draw(st.sampled_from(sorted(entries)))]
            victim[draw(st.sampled_from(["dtype", "shape", "data_offsets", "extra"]))] = draw(
                st.one_of(odd, st.lists(odd, max_size=3))
            )
    raw = bytearray(build(entries, position + draw(st.sampled_from([0, 0, 0, 1]))))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


@FUZZ
@given(headers())
def test_what_is_accepted_is_what_the_reference_reads(raw):
    """Differential: everything we accept, the reference implementation accepts and reads the same bytes of."""
    try:
        slices = parse(raw)
    except FormatError:
        return
    reference = dict(safetensors.deserialize(raw))
    assert slices.keys() == reference.keys()
    for name, found in slices.items():
        assert raw[found.start : found.stop] == bytes(reference[name]["data"])
        assert list(found.shape) == reference[name]["shape"]


@FUZZ
@given(headers())
def test_what_the_reference_reads_is_accepted(raw):
    try:
        reference = dict(safetensors.deserialize(raw))
    except safetensors.SafetensorError:
        return
    # All we refuse beyond the reference: a tensor without a name or with a name given twice (it keeps the last),
    # white space before the first brace, an entry written as a list.
    message = ""
    try:
        assert parse(raw).keys() == reference.keys()
    except FormatError as error:
        message = str(error)
    assert re.search("^$|0 characters|twice|does not begin|not an object", message)


@FUZZ
@given(st.binary(max_size=200), st.integers(0, 2**64))
def test_arbitrary_bytes_raise_nothing_else(raw, size):
    try:
        stop = safetensors_header_stop(raw, file="f", file_size=size)
        assert stop <= size
        parse_safetensors(raw, file="f", file_size=size)
    except FormatError:
        pass


def test_every_dtype_of_the_reference_is_known():
    for code, name in {"F16": np.float16, "F32": np.float32, "U64": np.uint64, "C64": np.complex64}.items():
        size = np.dtype(name).itemsize
        raw = build({"a": entry(0, 2 * size, [2], code)}, 2 * size)
        assert parse(raw)["a"].dtype == np.dtype(name).name
        assert len(dict(safetensors.deserialize(raw))["a"]["data"]) == 2 * size
