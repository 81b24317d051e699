"""Memory of unmasking one long text, beyond the weights of the model.

    OMP_NUM_THREADS=2 python benchmarks/long_text.py --size 70m
    python benchmarks/long_text.py --size 1b --tokens 2048 --prefixes 8

The weights are random, those of the unembedding zero, so that the model always writes token 0. The text consists of
this token, and of other ones at its last `--prefixes` positions: only these prefixes are completed, with caches of
nearly the whole length. So the peak of memory is that of a text in which every prefix is completed, in a small part of
its time.
The peak is that of the process on Linux (``VmHWM``, reset before), so this runs on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from machine import describe_machine
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from pythia_dynamics.checkpoints.registry import SIZES
from pythia_dynamics.evaluation.unmasking import default_cached_positions, unmask

GIBIBYTE = 1 << 30


def memory(name: str) -> int:
    """An entry of the status of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="70m")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--prefixes", type=int, default=60, help="prefixes that are completed")
    parser.add_argument("--batch-tokens", type=int, default=None)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    shape = SIZES[options.size]
    config = GPTNeoXConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.d_model,
        max_position_embeddings=options.tokens,
    )
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(config).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    text = [0] * (options.tokens - options.prefixes) + [7] * options.prefixes
    weights = sum(parameter.nbytes for parameter in model.parameters())
    budget = options.batch_tokens or default_cached_positions(model)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    (result,) = unmask(model, [text], batch_tokens=options.batch_tokens)
    seconds = time.perf_counter() - start
    assert (result.tokens[-options.prefixes :, -1] == 0).all()
    found = {
        "size": options.size,
        "tokens": options.tokens,
        "prefixes": options.prefixes,
        "batch_tokens": budget,
        "rows_at_once": max(1, budget // options.tokens - 1),
        "weights_GiB": weights / GIBIBYTE,
        "peak_beyond_weights_GiB": (memory("VmHWM") - before) / GIBIBYTE,
        "all_prefixes_at_once_GiB": 2 * shape.layers * shape.d_model * 4 * options.tokens**2 / GIBIBYTE,
        "seconds": seconds,
    }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps({"machine": describe_machine(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
