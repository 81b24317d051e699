from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pythia_dynamics.checkpoints.formats.pickles import MAX_OPCODES, MAX_PICKLE_BYTES
from pythia_dynamics.checkpoints.formats.slices import NeedBytes, TensorSlice
from pythia_dynamics.checkpoints.formats.statedict import locate, parse_state_dict
from pythia_dynamics.checkpoints.formats.torchzip import ZipDirectory, member_data_start, parse_zip_directory
from pythia_dynamics.errors import FormatError

FUZZ = settings(
    deadline=None, derandomize=True, max_examples=400, suppress_health_check=[HealthCheck.too_slow], database=None
)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def saved(state: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


def attempt(function: Any, *arguments: Any, **options: Any) -> Any:
    """What the function returns, or the error a caller is prepared for."""
    try:
        return function(*arguments, **options)
    except (FormatError, NeedBytes) as error:
        return error


def directory_of(raw: bytes, tail: int = 64) -> ZipDirectory:
    """As a caller does it: a short tail, then whatever it is told to fetch."""
    begin = max(0, len(raw) - tail)
    for _ in range(4):
        outcome = attempt(parse_zip_directory, raw[begin:], file="m.bin", file_size=len(raw))
        if isinstance(outcome, ZipDirectory):
            return outcome
        if isinstance(outcome, FormatError):
            raise outcome
        assert 0 <= outcome.start < outcome.stop == begin
        begin = outcome.start
    raise AssertionError("asked for more again and again")


def content(raw: bytes, directory: ZipDirectory, name: str) -> bytes:
    member = directory.members[name]
    start, stop = member.bounding_range()
    data = member_data_start(raw[start:stop], member)
    assert start <= data
    assert data + member.size <= stop
    return raw[data : data + member.size]


def slices_of(raw: bytes) -> dict[str, TensorSlice]:
    directory = directory_of(raw)
    views = parse_state_dict(content(raw, directory, directory.pickle.name), file="m.bin")
    found = {}
    for name, view in views.items():
        member = directory.storage(view.storage.key)
        start, stop = member.bounding_range()
        found[name] = locate(name, view, directory, member_data_start(raw[start:stop], member))
    return found


def assert_same_as_torch(raw: bytes) -> dict[str, TensorSlice]:
    expected = torch.load(io.BytesIO(raw), weights_only=True)
    slices = slices_of(raw)
    assert list(slices) == [name for name, value in expected.items() if isinstance(value, torch.Tensor)]
    for name, found in slices.items():
        tensor = expected[name]
        data = raw[found.start : found.stop]
        assert data == raw_bytes(tensor), name
        assert found.shape == tuple(tensor.shape)
        assert f"torch.{found.dtype}" == str(tensor.dtype)
        assert found.crc32 in (None, zlib.crc32(data))
    return slices


def rezip(members: dict[str, bytes], *, zip64: bool = False, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            with archive.open(name, "w", force_zip64=zip64) as member:
                member.write(data)
    return buffer.getvalue()


def members_of(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def plain_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "half": torch.randn(6, 4, generator=generator).half(),
        "brain": torch.randn(3, 5, generator=generator).bfloat16(),
        "single": torch.randn(2, 3, 4, generator=generator),
        "double": torch.randn(3, generator=generator).double(),
        "mask": torch.ones(4, 4, dtype=torch.bool).tril(),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "long": torch.arange(3),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "eight": torch.arange(5).to(torch.float8_e4m3fn),
        "unsigned": torch.arange(5).to(torch.uint16),
    }


def test_every_dtype_byte_for_byte_as_torch():
    slices = assert_same_as_torch(saved(plain_state()))
    assert all(found.crc32 is not None for name, found in slices.items() if name != "empty")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(protocol):
    raw = saved(OrderedDict(plain_state()), pickle_protocol=protocol)
    expected = {name: raw_bytes(tensor) for name, tensor in plain_state().items()}
    assert {name: raw[s.start : s.stop] for name, s in slices_of(raw).items()} == expected


def test_a_module_with_parameters_metadata_and_buffers():
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    state = module.state_dict()
    assert hasattr(state, "_metadata")
    state["parameter"] = torch.nn.Parameter(torch.randn(2, 2))
    tagged = torch.nn.Parameter(torch.randn(2))
    tagged.tag = "kept by torch as the parameter's state"  # type: ignore[attr-defined]
    state["tagged"] = tagged
    assert_same_as_torch(saved(state))


def test_a_gpt_neox_checkpoint():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    state = GPTNeoXForCausalLM(config).half().state_dict()
    slices = assert_same_as_torch(saved(state))
    head = next(found for name, found in slices.items() if name in ("lm_head.weight", "embed_out.weight"))
    assert (head.shape, head.dtype) == ((96, 16), "float16")


def test_views_with_an_offset_and_shared_storages():
    base = torch.arange(60, dtype=torch.float32)
    state = {
        "whole": base,
        "rows": base.view(6, 10)[2:4],
        "same": base.view(6, 10),
        "one": base[7:8].view(1, 1, 1),
        "none": base[5:5],
        "column": base.view(60, 1)[10:20],
    }
    slices = assert_same_as_torch(saved(state))
    assert slices["rows"].start - slices["whole"].start == 80
    assert slices["rows"].crc32 is None
    assert slices["whole"].crc32 == slices["same"].crc32 is not None


@pytest.mark.parametrize(
    "view",
    [
        torch.arange(12.0).view(3, 4).T,
        torch.arange(12.0).view(3, 4)[:, :2],
        torch.arange(12.0)[::2],
        torch.arange(3.0).expand(4, 3),
        torch.arange(24.0).view(2, 3, 4).permute(1, 0, 2),
    ],
)
def test_views_without_one_range_are_refused_by_name(view):
    with pytest.raises(FormatError, match=r"tensor 'W'.*strided view.*contiguous\(\)"):
        slices_of(saved({"fine": torch.ones(2), "W": view}))


def test_a_strided_neighbour_does_no_harm():
    raw = saved({"strided": torch.arange(12.0).view(3, 4).T, "W": torch.arange(3.0)})
    directory = directory_of(raw)
    view = parse_state_dict(content(raw, directory, directory.pickle.name), file="m")["W"]
    member = directory.storage(view.storage.key)
    start, stop = member.bounding_range()
    found = locate("W", view, directory, member_data_start(raw[start:stop], member))
    assert raw[found.start : found.stop] == raw_bytes(torch.arange(3.0))


def test_larger_alignment_than_64_bytes():
    from torch.utils.serialization import config

    with config.patch({"save.storage_alignment": 4096}):  # type: ignore[attr-defined]
        raw = saved(plain_state())
    slices = assert_same_as_torch(raw)
    assert all(found.start % 4096 == 0 for found in slices.values() if found.nbytes)


def test_checksums_that_torch_was_told_to_leave_out_are_not_stated():
    torch.serialization.set_crc32_options(False)
    try:
        raw = saved(plain_state())
    finally:
        torch.serialization.set_crc32_options(True)
    assert all(found.crc32 is None for found in slices_of(raw).values())


def test_a_directory_and_an_archive_name_of_any_length(tmp_path):
    state = {f"layers.{i}.weight": torch.full((3,), float(i)) for i in range(400)}
    path = tmp_path / ("pytorch_model-00001-of-00002" + "x" * 80 + ".bin")
    torch.save(state, path)
    assert_same_as_torch(path.read_bytes())


@pytest.mark.parametrize("tail", [0, 1, 21, 22, 41, 42, 60, 97, 98, 99, 500, 10**6])
def test_any_length_of_tail_ends_in_the_same_directory(tail):
    raw = saved(plain_state())
    assert directory_of(raw, tail) == directory_of(raw, len(raw))


def test_a_tail_within_the_directory_asks_for_exactly_the_rest():
    raw = saved(plain_state())
    start = struct.unpack_from("<L", raw, len(raw) - 6)[0]
    with pytest.raises(NeedBytes) as caught:
        parse_zip_directory(raw[-200:], file="m", file_size=len(raw))
    assert (caught.value.start, caught.value.stop) == (start, len(raw) - 200)


def test_a_local_header_cut_short_asks_for_the_rest():
    raw = saved(plain_state())
    member = directory_of(raw).pickle
    for given_bytes in (0, 10, 30, 30 + len(member.name) - 1):
        with pytest.raises(NeedBytes) as caught:
            member_data_start(raw[member.header_offset :][:given_bytes], member)
        assert caught.value.start == member.header_offset + given_bytes
        assert caught.value.stop == member.header_offset + 30 + len(member.name)


@pytest.mark.parametrize("zip64", [False, True])
def test_archives_of_other_writers(zip64):
    raw = rezip(members_of(saved(plain_state())), zip64=zip64)
    assert_same_as_torch(raw)


def big_archive(size: int, offset: int) -> tuple[bytes, int, int]:
    """Tail of an archive whose storage of `size` bytes begins at `offset`, both beyond 32 bits."""
    pickled = members_of(saved({"a": torch.ones(1)}))["archive/data.pkl"]
    entries = b""
    for name, at, length in ((b"archive/data.pkl", 0, len(pickled)), (b"archive/data/0", offset, size)):
        big = length >= 2**32 - 1
        far = at >= 2**32 - 1
        values = [length, length] * big + [at] * far
        extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
        shown, where = (0xFFFFFFFF if big else length), (0xFFFFFFFF if far else at)
        entries += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 45, 45, 0x808, 0, 0, 0, 7, shown, shown, len(name), len(extra), 0, 0, 0, 0, where
        )
        entries += name + extra
    start = offset + 30 + 14 + 18 + size
    end64 = start + len(entries)
    tail = entries
    tail += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(entries), start)
    tail += struct.pack("<4sLQL", b"PK\6\7", 0, end64, 1)
    tail += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, len(entries), 0xFFFFFFFF, 0)
    return tail, start + len(tail), start


@pytest.mark.parametrize(("size", "offset"), [(5 * 2**30, 4096), (4096, 6 * 2**30), (5 * 2**30, 6 * 2**30)])
def test_archives_beyond_four_gigabytes(size, offset):
    tail, file_size, start = big_archive(size, offset)
    directory = parse_zip_directory(tail, file="m", file_size=file_size)
    member = directory.storage("0")
    assert (member.header_offset, member.size, member.crc32, member.limit) == (offset, size, 7, start)
    assert member.bounding_range()[0] == offset
    local = (
        struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0x808, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 14, 18) + b"archive/data/0"
    )
    assert member_data_start(local, member) == offset + 30 + 14 + 18


def test_the_order_of_bytes_is_known_without_reading_it():
    members = members_of(saved(plain_state()))
    assert directory_of(rezip(members)).members["archive/byteorder"].size == 6
    with pytest.raises(FormatError, match="big-endian"):
        directory_of(rezip(members | {"archive/byteorder": b"big"}))
    with pytest.raises(FormatError, match="big-endian"):
        directory_of(rezip(members | {"archive/byteorder": b"middle"}))


def test_legacy_files_are_refused_with_advice():
    raw = saved(plain_state(), _use_new_zipfile_serialization=False)
    for tail in (raw, raw[-100:]):
        with pytest.raises(FormatError, match=r"legacy format.*_use_new_zipfile_serialization=True.*safetensors"):
            parse_zip_directory(tail, file="m.bin", file_size=len(raw))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (bytes(5000), "cut short"),
        (rezip({}), "torch.save did not write it"),
        (rezip({"a.txt": b"x"}), "torch.save did not write it"),
        (rezip({"a/data.pkl": b"x", "b/data.pkl": b"y"}), "torch.save did not write it"),
        (rezip({"a/data.pkl": b"x", "a/code/m.py": b"y"}), "TorchScript"),
        (rezip({"a/data.pkl": b"x", "a/constants.pkl": b"y"}), "TorchScript"),
        (rezip({"a/data.pkl": bytes(1000)}, method=zipfile.ZIP_DEFLATED), "compressed"),
    ],
)
def test_what_is_no_checkpoint_is_refused(raw, message):
    with pytest.raises(FormatError, match=message):
        directory_of(raw)


def patched(raw: bytes, signature: bytes, offset: int, value: bytes, *, last: bool = True) -> bytes:
    at = (raw.rfind if last else raw.find)(signature) + offset
    return raw[:at] + value + raw[at + len(value) :]


@pytest.mark.parametrize(
    ("signature", "offset", "value", "message"),
    [
        (b"PK\1\2", 8, b"\x01\x08", "encrypted"),
        (b"PK\1\2", 10, b"\x08\x00", "compressed"),
        (b"PK\1\2", 34, b"\x05\x00", "split"),
        (b"PK\1\2", 20, b"\xff\xff\xff\x00", "compressed"),
        (b"PK\1\2", 28, b"\xff\xff", "damaged"),
        (b"PK\1\2", 42, b"\xff\xff\xff\xff", "overlaps"),
        (b"PK\1\2", 42, b"\x00\x00\x00\x00", "overlaps"),
        (b"PK\1\2", 46, b"\xff\xfe", "not valid UTF-8"),
        (b"PK\5\6", 20, b"\x07\x00", "does not end as a zip"),
        (b"PK\6\6", 24, b"\xff\xff\xff\xff\xff\xff\xff\x00", "split"),
        (b"PK\6\6", 40, b"\xff\xff\xff\xff\xff\xff\xff\x00", "does not end where"),
        (b"PK\6\6", 48, b"\x00\x00\x00\x00\x00\x00\x00\x80", "does not end where"),
        (b"PK\6\6", 16, b"\x02\x00\x00\x00", "split"),
        (b"PK\6\6", 4, b"\xff", "end record is damaged"),
        (b"PK\6\7", 8, b"\xff\xff\xff\xff\xff", "out of place"),
        (b"PK\6\7", 16, b"\x09\x00\x00\x00", "split"),
    ],
)
def test_damaged_directories_are_refused_in_one_line(signature, offset, value, message):
    raw = patched(saved(plain_state()), signature, offset, value)
    with pytest.raises(FormatError, match=message) as caught:
        directory_of(raw)
    assert "\n" not in str(caught.value)


def test_counts_beyond_the_directory_are_refused_before_anything_is_read():
    raw = saved(plain_state())
    raw = patched(raw, b"PK\6\6", 24, struct.pack("<QQ", 2**40, 2**40))
    with pytest.raises(FormatError, match="cannot be that of a checkpoint"):
        directory_of(raw)


def test_a_directory_too_large_to_hold_is_refused_before_it_is_asked_for():
    size = 2**34
    tail = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, size, 100)
    tail += struct.pack("<4sLQL", b"PK\6\7", 0, 100 + size, 1) + b"PK\5\6" + b"\xff" * 16 + bytes(2)
    with pytest.raises(FormatError, match="cannot be that of a checkpoint"):
        parse_zip_directory(tail, file="m", file_size=100 + size + len(tail))


def test_an_entry_that_is_longer_than_the_directory_is_refused():
    raw = rezip({"a/data.pkl": b"\x80\x02}."})
    entry, end = raw.rfind(b"PK\1\2"), raw.rfind(b"PK\5\6")
    for extra in (1, 20, 45, 46, 47, 68, 92, 2000):  # into what `zipfile` is given behind the directory, and beyond
        longer = patched(raw, b"PK\1\2", 32, struct.pack("<H", extra))
        with pytest.raises(FormatError, match=r"damaged|does not hold"):
            directory_of(longer)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 10, 0)
    comment = record + struct.pack("<4sLQL", b"PK\6\7", 0, entry, 1)  # what looks like a zip64 end record, but is none
    hidden = patched(raw[:end], b"PK\1\2", 32, struct.pack("<H", len(comment))) + comment
    size, start = end - entry + len(comment), entry
    hidden += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, size, start, 0)
    with pytest.raises(FormatError, match="zip64 end record"):  # the parser of the end records looks there first
        directory_of(hidden)


def test_a_signature_within_a_comment_does_not_mislead():
    buffer = io.BytesIO(saved(plain_state()))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"PK\5\6 is how it begins, PK\5\6" + bytes(30)
    raw = buffer.getvalue()
    assert parse_zip_directory(raw, file="m", file_size=len(raw)).pickle.name == "archive/data.pkl"


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"XX", "not where"),
        (6, b"\x01", "encrypted"),
        (8, b"\x08", "encrypted or compressed"),
        (18, b"\x01\x00\x00\x00", "another size"),
        (26, b"\x03\x00", "another name"),
        (30, b"z", "another name"),
        (28, b"\xff\xff", "next member"),
    ],
)
def test_local_headers_that_contradict_the_directory_are_refused(offset, value, message):
    raw = saved(plain_state())
    member = directory_of(raw).storage("3")
    local = bytearray(raw[slice(*member.bounding_range())])
    local[offset : offset + len(value)] = value
    with pytest.raises(FormatError, match=message):
        member_data_start(bytes(local), member)


def test_a_storage_that_is_not_there_is_named():
    members = members_of(saved(plain_state()))
    del members["archive/data/2"]
    with pytest.raises(FormatError, match="lacks the storage '2'"):
        slices_of(rezip(members))


def test_views_are_checked_against_the_storage():
    raw = saved({"a": torch.arange(12.0).view(3, 4)})
    directory = directory_of(raw)
    view = parse_state_dict(content(raw, directory, directory.pickle.name), file="m")["a"]
    start = member_data_start(raw[slice(*directory.storage("0").bounding_range())], directory.storage("0"))
    assert locate("a", view, directory, start).nbytes == 48
    with pytest.raises(FormatError, match="of which the file holds 48 bytes"):
        locate("a", replace(view, storage=replace(view.storage, numel=13)), directory, start)
    with pytest.raises(FormatError, match="reaches beyond"):
        locate("a", replace(view, offset=1), directory, start)
    with pytest.raises(FormatError, match="reaches beyond"):
        locate("a", replace(view, shape=(2**62, 4)), directory, start)
    with pytest.raises(FormatError, match="reaches beyond"):
        locate("a", replace(view, shape=(2**62, 2**62, 2**62), stride=(2**124, 2**62, 1)), directory, start)


# Pickles


class Reduce:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch owned",), r"(posix|nt)\.system"),
        (eval, ("open('owned', 'w')",), r"builtins\.eval"),
        (exec, ("open('owned', 'w')",), r"builtins\.exec"),
        (getattr, (1, "real"), r"builtins\.getattr"),
        (builtins.__import__, ("os",), r"builtins\.__import__"),
        (subprocess.Popen, (["touch", "owned"],), r"subprocess\.Popen"),
        (pickle.loads, (b"",), r"_pickle\.loads"),
        (torch.load, ("owned",), r"torch\.serialization\.load"),
        (torch.storage._load_from_bytes, (b"",), r"torch\.storage\._load_from_bytes"),
        (torch.hub.load, ("a/b", "c"), r"torch\.hub\.load"),
        (io.open, ("owned", "w"), r"(_io|io)\.open"),
        (bytearray, (2**40,), r"builtins\.bytearray"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_hostile_pickles_are_refused_by_name_and_call_nothing(
    function, arguments, name, protocol, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    hostile = pickle.dumps({"weight": Reduce(function, *arguments)}, protocol, fix_imports=False)
    with pytest.raises(FormatError, match=name):
        parse_state_dict(hostile, file="m.bin")
    assert list(tmp_path.iterdir()) == []


def test_calling_what_is_only_a_name_is_refused():
    for code in (
        b"\x80\x02ctorch\nfloat16\n)R.",
        b"\x80\x02ctorch\nHalfStorage\n)R.",
        b"\x80\x02ctorch.storage\nUntypedStorage\nK\x05\x85R.",
        b"\x80\x02X\x02\x00\x00\x00os)R.",
        b"\x80\x02ccollections\nOrderedDict\n](K\x01K\x02ea\x85R.",
    ):
        with pytest.raises(FormatError):
            parse_state_dict(code, file="m")


@pytest.mark.parametrize(
    "opcode", [b"\x92", b"i", b"o", b"\x82", b"\x84", b"P", b"B", b"\x8e", b"I", b"V", b"2", b"\x97", b"\x8b"]
)
def test_opcodes_without_use_are_refused(opcode):
    with pytest.raises(FormatError, match=f"0x{opcode.hex()}"):
        parse_state_dict(b"\x80\x02}" + opcode + b"\xff\xff\xff\x7fxx\n.", file="m")


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b".",
        b"\x80",
        b"0",
        b"\x80\x02X\xff\xff\xff\xffabc",
        b"\x80\x02}r\xff\xff\xff\xff",
        b"\x80\x02j\xff\xff\xff\xff.",
        b"\x80\x02\x8a\xff\x00",
        b"\x80\x02(((t.",
        b"\x80\x02t.",
        b"\x80\x02a.",
        b"\x80\x02(a.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02}K\x01K\x02e.",
        b"\x80\x02})K\x02s.",
        b"\x80\x02}]K\x02s.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02ctorch\n" + b"x" * 10_000,
        b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
        b"\x80\x02\x93.",
        b"\x80\x02K\x01K\x02\x93.",
        b"\x80\x02b.",
        b"\x80\x02K\x01Nb.",
        b"\x80\x02R.",
    ],
)
def test_damaged_pickles_are_refused(code):
    with pytest.raises(FormatError):
        parse_state_dict(code, file="m")


def test_bombs_are_refused_quickly():
    nest = b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s."  # a key whose hash would overflow the C stack
    laughs = b"\x80\x02})" + b"".join(b"q\x01h\x01\x86" for _ in range(60)) + b"K\x01s."  # 2^60 hashes
    endless = b"\x80\x02" + b"]" * (MAX_OPCODES + 1) + b"."
    rank = b"\x80\x02}ctorch._utils\n_rebuild_tensor_v2\nq\x00(" + b"K\x01" * 1000 + b"tq\x01."
    for code in (nest, laughs, endless, rank, bytes(MAX_PICKLE_BYTES + 1)):
        with pytest.raises(FormatError):
            parse_state_dict(code, file="m")


def test_one_huge_dict_under_many_names_takes_no_quadratic_time():
    big = b"}q\x00(" + b"".join(b"J" + i.to_bytes(4, "little") + b"N" for i in range(200_000)) + b"u"
    names = b"".join(b"J" + i.to_bytes(4, "little") + b"h\x00" for i in range(200_000))
    with pytest.raises(FormatError, match="no tensor lies at its top level"):
        parse_state_dict(b"\x80\x02}q\x01" + b"(" + b"K\x07" + big + names + b"u.", file="m")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"one": {"a": torch.ones(2)}, "two": {"a": torch.ones(2)}, "step": 3},
            r"lie under 'two', 'one' \(found 'one': dict, 'two': dict, 'step': int\); re-save that part",
        ),
        ({"step": 3, "ema": OrderedDict(a=torch.ones(2)), "b": torch.ones(1)}, "lie under 'ema'"),
        ({}, "found nothing"),
        ({"a": 1, "b": None, "c": [torch.ones(2)]}, "no tensor lies at its top level .*'c': list"),
        (torch.ones(3), "holds a tensor"),
        ([torch.ones(3)], "holds a list"),
        ({3: torch.ones(3)}, "not a string"),
        ({"": torch.ones(3)}, "0 characters"),
    ],
)
def test_what_is_no_plain_state_dict_is_described(state, message):
    with pytest.raises(FormatError, match=message):
        slices_of(saved(state))


def test_entries_that_are_no_tensors_are_left_out():
    raw = saved(
        {"a": torch.ones(2), "step": 3, "lr": 0.1, "note": "x", "big": 2**70, "none": None, "betas": (0.9, 0.95)}
    )
    assert list(assert_same_as_torch(raw)) == ["a"]


def test_whole_modules_and_sparse_tensors_are_refused_by_their_global():
    with pytest.raises(FormatError, match=r"torch\.nn\.modules\.linear\.Linear"):
        slices_of(saved(torch.nn.Linear(2, 2)))
    with pytest.raises(FormatError, match="_rebuild_sparse_tensor"):
        slices_of(saved({"a": torch.eye(3).to_sparse()}))


def test_lazily_negated_tensors_are_refused():
    with pytest.raises(FormatError, match="lazy conjugation"):
        slices_of(saved({"a": torch.ones(2, dtype=torch.complex64).conj()}))


def test_the_package_imports_no_torch():
    loaded = "sorted({'torch', 'numpy', 'pickle'} & set(sys.modules))"
    code = f"import sys, pythia_dynamics.checkpoints.layout; print({loaded})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# Fuzz: whatever is done to a valid file, only our own errors come out, and what is accepted agrees with torch

INTERESTING = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff",
    b"\xff\xff\xff\xff",
    b"\0" * 4,
    b"\xff" * 8,
    b"\0\0\0\x80",
]
STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.nn.Parameter(torch.ones(3).half()), "c": torch.arange(9)[3:5]}
BASES = [
    saved(STATE),
    saved(OrderedDict(STATE), pickle_protocol=4),
    rezip(members_of(saved(STATE))),
    rezip(members_of(saved(STATE)), zip64=True),
]
PICKLES = [members_of(raw)["archive/data.pkl"] for raw in BASES[:2]]
# fmt: off
ATOMS = [
    b"\x80\x02", b"(", b")", b"]", b"}", b"N", b"\x88", b"K\x00", b"K\x03", b"M\xff\xff", b"J\xff\xff\xff\x7f",
    b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"\x85", b"\x86", b"\x87", b"t", b"u", b"s", b"a", b"e", b"R", b"b",
    b"Q", b"\x94", b".", b"X\x07\x00\x00\x00storage", b"X\x01\x00\x00\x000", b"\x8c\x01w",
    b"ctorch\nHalfStorage\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"\x93", b"\x8a\x09\0\0\0\0\0\0\0\0\x01",
    b"(X\x07\x00\x00\x00storagectorch\nHalfStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ",
    b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch.storage\nUntypedStorage\n", b"ctorch\nuint16\n",
]
# fmt: on


@st.composite
def mutated(draw: st.DrawFn, bases: list[bytes]) -> bytes:
    raw = bytearray(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        piece = draw(st.one_of(st.sampled_from(INTERESTING), st.binary(min_size=1, max_size=4)))
        kind = draw(st.sampled_from(["overwrite", "overwrite", "overwrite", "insert", "delete", "cut"]))
        if kind == "overwrite":
            raw[at : at + len(piece)] = piece
        elif kind == "insert":
            raw[at:at] = piece
        elif kind == "delete":
            del raw[at : at + len(piece)]
        else:
            del raw[at:]
    return bytes(raw)


@FUZZ
@given(mutated([raw[-1200:] for raw in BASES]), st.integers(0, 2**64), st.booleans())
def test_damaged_tails_raise_nothing_else(tail, size, exact):
    size = len(tail) if exact else size
    outcome = attempt(parse_zip_directory, tail, file="m", file_size=size)
    if isinstance(outcome, NeedBytes):
        assert 0 <= outcome.start < outcome.stop == size - len(tail)
        assert outcome.stop - outcome.start <= 2**25
    elif isinstance(outcome, FormatError):
        assert "\n" not in str(outcome)
    else:
        for member in outcome.members.values():
            start, stop = member.bounding_range()
            assert 0 <= start < stop <= size


@FUZZ
@given(st.one_of(mutated(PICKLES), st.lists(st.sampled_from(ATOMS), max_size=40).map(b"".join)))
def test_damaged_pickles_raise_nothing_else(data):
    outcome = attempt(parse_state_dict, data, file="m")
    if isinstance(outcome, FormatError):
        assert "\n" not in str(outcome)
        assert len(str(outcome)) < 2000
    else:
        assert outcome
        assert all(isinstance(name, str) for name in outcome)


@FUZZ
@given(mutated(BASES))
def test_damaged_files_agree_with_torch_where_both_read_them(raw):
    try:
        slices = slices_of(raw)
    except FormatError:
        return
    for found in slices.values():
        assert 0 <= found.start <= found.stop <= len(raw)
    try:
        expected = torch.load(io.BytesIO(raw), weights_only=True)
    except Exception:
        return  # torch keeps a few rules of no consequence here, such as that of its version record
    for name, found in slices.items():
        assert raw[found.start : found.stop] == raw_bytes(expected[name])
