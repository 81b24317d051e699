"""Speed of the three perplexity modes against plain loops over the same model and sentences, in one run.

    OMP_NUM_THREADS=2 python benchmarks/perplexity.py --size 70m
    python benchmarks/perplexity.py --size 410m --device cuda --sentences 64

forward is compared with a Hugging Face call per sentence, last-word with the same and a log-softmax of the target,
unmask with `generate` per prefix; the results are compared as well. Weights are random, so no completion follows its
sentence and unmasking generates all t²/2 tokens. `share_of_matmul` is the rate of the necessary arithmetic, as a share
of the rate of a large matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from machine import describe_machine
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from pythia_dynamics.checkpoints.registry import SIZES
from pythia_dynamics.device import DTYPES, matmul_precision, resolve_device, resolve_dtype
from pythia_dynamics.evaluation.forward import forward_scores
from pythia_dynamics.evaluation.last_word import Target, last_word_scores
from pythia_dynamics.evaluation.unmasking import unmask


class Clock:
    """Times calls on a device, peak memory included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, work: Callable[[], Any], repeat: int) -> tuple[float, Any]:
        """Best wall time of `repeat` calls, and what the last one returned."""
        best = float("inf")
        for _ in range(repeat):
            self.wait()
            start = time.perf_counter()
            result = work()
            self.wait()
            best = min(best, time.perf_counter() - start)
        return best, result

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def random_model(size: str) -> GPTNeoXForCausalLM:
    """A model of a size of Pythia with the same random weights each time, in float32 on torch's default device."""
    shape = SIZES[size]
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=shape.vocab, hidden_size=shape.d_model, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=4 * shape.d_model, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


def matmul_rate(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """Operations per second of a large square matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds, _ = clock(lambda: a @ b, 5)
    return 2 * n**3 / seconds


def flops_per_token(model: GPTNeoXForCausalLM, context: float) -> float:
    """Operations of one token: two for each weight, and attention over `context` positions."""
    config = model.config
    weights = sum(p.numel() for name, p in model.named_parameters() if "embed_in" not in name)
    return 2 * weights + 4 * context * config.hidden_size * config.num_hidden_layers


def plain_forward(model: GPTNeoXForCausalLM, sentences: list[list[int]], device: torch.device) -> list[float]:
    out = []
    with torch.inference_mode():
        for sentence in sentences:
            ids = torch.tensor([sentence], device=device)
            out.append(float(model(input_ids=ids, labels=ids).loss))
    return out


def plain_last_word(model: GPTNeoXForCausalLM, targets: list[Target], device: torch.device) -> list[float]:
    out = []
    with torch.inference_mode():
        for target in targets:
            ids = torch.tensor([target.tokens], device=device)
            logs = model(input_ids=ids[:, :-1]).logits.float().log_softmax(-1)[0, target.start - 1 :]
            out.append(-float(logs.gather(1, ids[0, target.start :, None]).sum()))
    return out


def plain_unmask(model: Any, sentence: list[int], device: torch.device, stride: int) -> list[list[int]]:
    """Completions of every `stride`-th prefix."""
    rows = []
    for k in range(1, len(sentence), stride):
        ids = torch.tensor([sentence[:k]], device=device)
        row = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=len(sentence) - k,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        rows.append(row[0].tolist())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="70m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--tokens", type=int, default=64, help="tokens a sentence")
    parser.add_argument("--sentences", type=int, default=8, help="sentences of the batched measurements")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--stride", type=int, default=1, help="run `generate` for every n-th prefix only, and scale by tokens"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device, dtype = resolve_device(options.device), resolve_dtype(options.dtype)
    clock = Clock(device)
    shape = SIZES[options.size]
    with torch.device(device):
        model = random_model(options.size)
    model.to(dtype)  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    sentences = random.integers(0, 50277, (options.sentences, options.tokens)).tolist()
    targets = [Target(tuple(sentence), options.tokens - 2) for sentence in sentences]
    with matmul_precision(tf32=False):
        results = measure(model, sentences, targets, device, clock, options.repeat, options.stride)
        rate = matmul_rate(device, dtype, clock)
    t = options.tokens
    for name, context in (("forward", t / 2), ("last_word", t / 2), ("unmask", 2 * t / 3), ("unmask_batch", 2 * t / 3)):
        entry = results[name]
        needed = flops_per_token(model, context) * entry["tokens"]
        if name == "last_word":  # logits are computed for the target only
            needed -= 2 * shape.unembedding_parameters * (entry["tokens"] - entry["scored"])
        entry["tokens_per_second"] = entry["tokens"] / entry["seconds"]
        entry["share_of_matmul"] = needed / entry["seconds"] / rate
    report = {
        "machine": describe_machine(device), "size": options.size, "dtype": options.dtype, "device": str(device),
        "tokens_per_sentence": t, "sentences": options.sentences, "matmul_gflops": rate / 1e9,
        "peak_memory_gib": clock.peak_bytes() / 2**30, "transformers": transformers.__version__, **results,
    }  # fmt: skip
    name = f"perplexity-{options.size}-{device.type}-{options.dtype}.json"
    out = options.out or Path(__file__).parent / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def measure(
    model: GPTNeoXForCausalLM,
    sentences: list[list[int]],
    targets: list[Target],
    device: torch.device,
    clock: Clock,
    repeat: int,
    stride: int,
) -> dict[str, dict[str, float]]:
    """Time each mode and its plain loop in turn, and compare their results."""
    t = len(sentences[0])
    unmask(model, [sentences[0][:8]])  # initialises what is initialised at first use
    scored = len(sentences) * (t - 1)
    ours_time, ours = clock(lambda: forward_scores(model, sentences), repeat)
    plain_time, plain = clock(lambda: plain_forward(model, sentences, device), repeat)
    forward = {
        "seconds": ours_time, "plain_seconds": plain_time, "speed_up": plain_time / ours_time, "tokens": scored,
        "largest_relative_difference": float(np.abs(ours.nll / ours.tokens / np.array(plain) - 1).max()),
    }  # fmt: skip
    ours_time, ours = clock(lambda: last_word_scores(model, targets), repeat)
    plain_time, plain = clock(lambda: plain_last_word(model, targets, device), repeat)
    last_word = {
        "seconds": ours_time, "plain_seconds": plain_time, "speed_up": plain_time / ours_time, "tokens": scored,
        "scored": int(ours.tokens.sum()),
        "largest_relative_difference": float(np.abs(ours.nll / np.array(plain) - 1).max()),
    }  # fmt: skip
    first_time, one = clock(lambda: unmask(model, sentences[:1]), repeat)
    timed_time, plain = clock(lambda: plain_unmask(model, sentences[0], device, stride), 1)
    again_time, one = clock(lambda: unmask(model, sentences[:1]), repeat)
    generated, timed = t * (t - 1) // 2, sum(t - k for k in range(1, t, stride))
    plain_time = timed_time * generated / timed
    seconds = min(first_time, again_time)
    single = {
        "seconds": seconds, "generate_seconds": plain_time, "speed_up": plain_time / seconds, "tokens": generated,
        "generate_tokens_timed": timed, "tokens_differing": int((one[0].tokens[::stride] != np.array(plain)).sum()),
    }  # fmt: skip
    batch_time, _ = clock(lambda: unmask(model, sentences), max(1, repeat - 1))
    batch = {
        "seconds": batch_time, "tokens": generated * len(sentences),
        "speed_up_per_sentence": plain_time * len(sentences) / batch_time,
    }  # fmt: skip
    return {"forward": forward, "last_word": last_word, "unmask": single, "unmask_batch": batch}


if __name__ == "__main__":
    main()
