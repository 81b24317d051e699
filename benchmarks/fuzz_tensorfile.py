"""Fuzz the parsers of checkpoint files: damaged and hostile inputs, by the tens of thousands.

    python benchmarks/fuzz_tensorfile.py --examples 50000

Whatever comes in, only the parsers' own errors may come out, soon and in little memory. Prints the counts, the time
and the peak memory (of Python's allocations for any one input, and resident of the process) and exits with 1 on
anything else.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import random
import resource
import sys
import time
import traceback
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable

from pythia_dynamics.checkpoints.formats.pickles import MAX_PICKLE_BYTES
from pythia_dynamics.checkpoints.formats.safetensors import parse_safetensors, safetensors_header_stop
from pythia_dynamics.checkpoints.formats.slices import NeedBytes, parse_index, select
from pythia_dynamics.checkpoints.formats.statedict import locate, parse_state_dict
from pythia_dynamics.checkpoints.formats.torchzip import member_data_start, parse_zip_directory
from pythia_dynamics.errors import CheckpointError, FormatError, UnknownNameError

EXPECTED = (FormatError, NeedBytes, UnknownNameError, CheckpointError)
NUMBERS = [0, 1, 2, 7, 8, 63, 64, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def corpus() -> dict[str, list[bytes]]:
    """Valid inputs of each kind, as the real writers make them."""
    import torch
    from safetensors.torch import save

    base = torch.arange(24.0)
    state = {
        "embed_out.weight": torch.ones(6, 4).half(),
        "view": base.view(4, 6)[1:3],
        "parameter": torch.nn.Parameter(base.bfloat16()),
        "mask": torch.ones(4, dtype=torch.bool),
        "eight": torch.ones(4).to(torch.float8_e4m3fn),
    }
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
    archives = []
    for saved, protocol in ((state, 2), (module, 2), (state, 4)):
        buffer = io.BytesIO()
        torch.save(saved, buffer, pickle_protocol=protocol)
        archives.append(buffer.getvalue())
    rezipped = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archives[0])) as old, zipfile.ZipFile(rezipped, "w") as new:
        for name in old.namelist():
            with new.open(name, "w", force_zip64=True) as member:
                member.write(old.read(name))
    archives.append(rezipped.getvalue())
    pickles = []
    for archive in archives[:3]:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            pickles.append(opened.read("archive/data.pkl"))
    pickles.append(pickle.dumps({"a": [1, (2, 3)], "b": {"c": b"x"}}, 5))
    index = {"metadata": {"total_size": 9}, "weight_map": dict.fromkeys(state, "model-00001-of-00002.safetensors")}
    return {
        "safetensors": [save({k: v.detach().contiguous() for k, v in state.items()}), save({})],
        "index": [json.dumps(index).encode()],
        "archive": archives,
        "pickle": pickles,
    }


def mutate(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        at = rng.randrange(len(data))
        if rng.random() < 0.5:  # most of the structure is at the ends
            at = (
                min(rng.randrange(512), len(data) - 1)
                if rng.random() < 0.3
                else max(0, len(data) - rng.randrange(1, 900))
            )
        width = rng.choice((1, 2, 4, 8))
        piece = (rng.choice(NUMBERS) & (256**width - 1)).to_bytes(width, rng.choice(("little", "big")))
        kind = rng.randrange(10)
        if kind < 4:
            data[at : at + width] = piece
        elif kind < 6:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 6:
            data[at:at] = piece
        elif kind == 7:
            del data[at : at + width]
        elif kind == 8:
            source = rng.randrange(len(data))
            data[at:at] = data[source : source + rng.choice((4, 46, 200))]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


PIECES = [
    *(bytes([code]) for code in b"()]}Ntuase.RbQ0\x81\x85\x86\x87\x88\x89\x94\x93"),
    *(b"K" + bytes([n]) for n in (0, 1, 3, 255)),
    *(b"q" + bytes([n]) + b"h" + bytes([n]) for n in (0, 1)),
    *(b"h" + bytes([n]) for n in (0, 1)),
    *(b"X" + length.to_bytes(4, "little") + b"storage" for length in (1, 7, 2**31, 2**32 - 1)),
    *(code + b"\xff\xff\xff\xff" for code in (b"r", b"j", b"J", b"B", b"\x8b", b"T")),
    *(code + b"\xff" * 8 for code in (b"\x8e", b"\x8d", b"\x96", b"\x95")),
    *(
        b"c" + name.replace(".", "\n", 1).encode() + b"\n"
        for name in ("torch.HalfStorage", "collections.OrderedDict", "os.system", "builtins.eval", "torch.uint16")
    ),
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"(X\x07\x00\x00\x00storagectorch\nHalfStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ",
    b"\x8a\xff" + b"\x7f" * 255,
]


def random_pickle(rng: random.Random) -> bytes:
    return b"\x80\x02" + b"".join(rng.choices(PIECES, k=rng.randrange(60))) + b"."


def bombs() -> dict[str, list[bytes]]:
    """Inputs which a less careful reader answers with gigabytes, a dead stack or an endless loop."""
    nest = b"\x80\x02})" + b"\x85" * 900_000 + b"K\x01s."
    laughs = b"\x80\x02})" + b"q\x01h\x01\x86" * 100_000 + b"K\x01s."
    lists = b"\x80\x02" + b"]" * (MAX_PICKLE_BYTES - 2)
    dicts = b"\x80\x02]" + b"(" + b"}K\x01Ns" * 190_000 + b"e."
    strings = (
        b"\x80\x02X" + (MAX_PICKLE_BYTES - 10).to_bytes(4, "little") + b"\xc3\xa9" * (MAX_PICKLE_BYTES // 2 - 5) + b"."
    )
    memo = b"\x80\x02}" + b"r\xff\xff\xff\x7f" * 100_000 + b"."
    texts = [b'{"a":' * 10**6, b'{"a":[' + b"[]," * 900_000 + b"1]}", b'{"a":' + b"9" * 10**6 + b"}", b"{" * 10**6]
    texts.append(b'{"weight_map":{' + b",".join(b'"%d":"x"' % i for i in range(500_000)) + b"}}")
    entries = b",".join(b'"%d":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}' % i for i in range(200_000))
    files = [len(text).to_bytes(8, "little") + text for text in (*texts, b"{" + entries + b"}")]
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as archive:
        for i in range(65_000):
            archive.writestr(f"a/data/{i}", b"")
        archive.writestr("a/data.pkl", b"\x80\x02}.")
    return {
        "pickle": [nest, laughs, lists, dicts, strings, memo],
        "index": texts,
        "safetensors": files,
        "archive": [empty.getvalue()],
    }


def run_safetensors(raw: bytes, rng: random.Random) -> None:
    size = len(raw) if rng.random() < 0.8 else rng.choice(NUMBERS)
    stop = safetensors_header_stop(raw[:8], file="f", file_size=size)
    slices = parse_safetensors(raw[:stop], file="f", file_size=size)
    assert all(stop <= found.start <= found.stop <= size for found in slices.values())
    select(slices, [rng.choice(["embed_out.weight", "*e*", "lm_head.weight"])], where="f")


def run_index(raw: bytes, rng: random.Random) -> None:
    shards = parse_index(raw, file="f")
    assert not any(set(shard) & set("/\\\0") or shard in (".", "..") for shard in shards.values())
    select(shards, [rng.choice(["embed_out.weight", "lm_head.weight", "nothing"])], where="f")


def run_pickle(raw: bytes, rng: random.Random) -> None:
    assert parse_state_dict(raw, file="f")


def run_archive(raw: bytes, rng: random.Random) -> None:
    """As a caller reads one: a short tail, more of it when asked, the pickle, then every tensor."""
    size = len(raw) if rng.random() < 0.9 else rng.choice(NUMBERS)
    begin = max(0, len(raw) - rng.choice((0, 22, 64, 400, 10**5)))
    for _ in range(4):
        try:
            directory = parse_zip_directory(raw[begin:], file="f", file_size=size)
            break
        except NeedBytes as need:
            if size != len(raw):
                raise
            missing = need
        assert 0 <= missing.start < missing.stop == begin
        begin = missing.start
    else:
        raise AssertionError("asked for more again and again")
    for member in directory.members.values():
        start, stop = member.bounding_range()
        assert 0 <= start < stop <= size
    start, stop = directory.pickle.bounding_range()
    data = member_data_start(raw[start:stop], directory.pickle)
    for name, tensor in parse_state_dict(raw[data : data + directory.pickle.size], file="f").items():
        member = directory.storage(tensor.storage.key)
        start, stop = member.bounding_range()
        found = locate(name, tensor, directory, member_data_start(raw[start:stop], member))
        assert start < found.start <= found.stop <= stop


RUNS: dict[str, Callable[[bytes, random.Random], None]] = {
    "safetensors": run_safetensors,
    "index": run_index,
    "archive": run_archive,
    "pickle": run_pickle,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--examples", type=int, default=50_000, help="mutated inputs in all (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    bases, kinds = corpus(), list(RUNS)
    outcomes: Counter[tuple[str, str]] = Counter()
    slowest: dict[str, float] = dict.fromkeys(("mutated", "bombs"), 0.0)
    peak = dict.fromkeys(slowest, 0)
    failures = 0

    def attempt(kind: str, raw: bytes, group: str) -> None:
        nonlocal failures
        held = 0
        if tracemalloc.is_tracing():
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
        begin = time.perf_counter()
        try:
            RUNS[kind](raw, rng)
            outcome = "accepted"
        except EXPECTED as error:
            outcome = type(error).__name__
        except Exception:
            outcome = "FAILED"
            failures += 1
            print(f"{kind}: {raw[:400]!r}", file=sys.stderr)
            traceback.print_exc()
        elapsed = time.perf_counter() - begin
        outcomes[kind, outcome] += 1
        if tracemalloc.is_tracing():
            peak[group] = max(peak[group], tracemalloc.get_traced_memory()[1] - held)
        else:
            slowest[group] = max(slowest[group], elapsed)

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, elapsed = time.perf_counter(), 0.0
    for number in range(options.examples):
        if number == options.examples // 2:  # the first half is timed, the second has its memory traced
            elapsed = time.perf_counter() - begin
            tracemalloc.start()
        kind = kinds[number % len(kinds)]
        if kind == "pickle" and rng.random() < 0.4:
            attempt(kind, random_pickle(rng), "mutated")
        elif rng.random() < 0.02:
            attempt(kind, rng.randbytes(rng.randrange(400)), "mutated")
        else:
            attempt(kind, mutate(rng.choice(bases[kind]), rng), "mutated")
    tracemalloc.stop()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    hostile = [(kind, raw) for kind, inputs in bombs().items() for raw in inputs]
    for kind, raw in hostile:
        attempt(kind, raw, "bombs")
    tracemalloc.start()
    for kind, raw in hostile:
        attempt(kind, raw, "bombs")
    tracemalloc.stop()

    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{kind:12} {outcome:18} {number:8,}")
    rate = options.examples // 2 / max(elapsed, 1e-9)
    print(f"{options.examples:,} mutated inputs, {rate:,.0f} a second; slowest {slowest['mutated'] * 1e3:.1f} ms")
    print(f"{len(hostile)} bombs of up to {max(len(raw) for _, raw in hostile) / 2**20:.0f} MiB, twice; ", end="")
    print(f"slowest {slowest['bombs']:.1f} s")
    for group, most in peak.items():
        print(f"peak memory for one input, {group}: {most / 2**20:.1f} MiB")
    unit = 1 if sys.platform == "darwin" else 1024
    print(f"resident memory grew by {grown * unit / 2**20:.0f} MiB over the mutated inputs")
    print(f"unexpected: {failures}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
