"""Products of few rows with packed and with plain weights, for the matrices of a model, on this processor.

    OMP_NUM_THREADS=2 python benchmarks/products.py --size 70m
    ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/products.py --size 70m --name avx2

The second holds both libraries to the instructions of a processor without AVX-512. `share_of_roof` compares the packed
product with the time that reading the weights, or the arithmetic at the rate of a large product, would take, both
measured in the same run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from machine import describe_machine

from pythia_dynamics.checkpoints.registry import SIZES
from pythia_dynamics.device import DTYPES, resolve_dtype
from pythia_dynamics.evaluation.products import fastest, pack_weight, packed_is_faster, packed_product

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="70m")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--name", default="default", help="of the instructions in use, for the name of the file")
    options = parser.parse_args()
    shape, dtype = SIZES[options.size], resolve_dtype(options.dtype)
    d = shape.d_model
    matrices = {"unembedding": (shape.vocab, d), "query_key_value": (3 * d, d), "dense": (d, d), "mlp_in": (4 * d, d),
                "mlp_out": (d, 4 * d)}  # fmt: skip
    torch.manual_seed(0)
    with torch.inference_mode():
        square, long = torch.randn(2048, 2048).to(dtype), torch.ones(1 << 26)
        rate = 2 * 2048**3 / fastest(lambda: square @ square)
        read = long.nbytes / fastest(long.sum)
        report = {
            "machine": describe_machine(), "size": options.size, "dtype": options.dtype, "instructions": options.name,
            "matmul_gflops": rate / 1e9, "read_gb_s": read / 1e9, "packed_is_used": packed_is_faster(dtype),
            "matrices": {name: measure(size, dtype, rate, read) for name, size in matrices.items()},
        }  # fmt: skip
    out = Path(__file__).parent / "results" / f"products-{options.size}-{options.dtype}-{options.name}.json"
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def measure(size: tuple[int, int], dtype: torch.dtype, rate: float, read: float) -> dict[str, object]:
    """Milliseconds of both products by number of rows, and of packing."""
    weight = torch.randn(size).to(dtype)
    packed = pack_weight(weight)
    rows: dict[str, dict[str, float]] = {}
    for count in ROWS:
        states = torch.randn(count, size[1]).to(dtype)
        plain = fastest(lambda: torch.nn.functional.linear(states, weight))  # noqa: B023  # called at once
        ours = fastest(lambda: packed_product(states, packed, None))  # noqa: B023
        roof = max(weight.nbytes / read, 2 * count * weight.numel() / rate)
        rows[str(count)] = {"plain_ms": round(1e3 * plain, 3), "packed_ms": round(1e3 * ours, 3),
                            "gain": round(plain / ours, 2), "share_of_roof": round(roof / ours, 2)}  # fmt: skip
    return {"shape": size, "pack_ms": round(1e3 * fastest(lambda: pack_weight(weight)), 2), "rows": rows}


if __name__ == "__main__":
    main()
