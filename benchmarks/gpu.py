"""Perplexity on a GPU: right against the CPU in float64, and how fast. One command, about 8 minutes, no network.

    python benchmarks/gpu.py                         # 70m, 410m and 1b on cuda; writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --sizes 70m --out 70m.json
    python benchmarks/gpu.py --smoke                 # the same course with a tiny model, on any machine

The weights are random. For each size every mode is held against the CPU in float64 on the same tokens: the scores of
forward and last-word, and of unmasking each token, which has to be the likeliest one up to rounding. Then each mode is
timed on passages with the lengths of LAMBADA's. `share_of_matmul` is the rate of the necessary arithmetic as a share of
the rate of a large matrix product in the same run; `busy` is the share of the time in which the profile of a run has a
kernel on the GPU. `checkpoints` evaluates a suite of checkpoints from the local disk, one after the other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from machine import describe_machine
from perplexity import Clock, flops_per_token, matmul_rate, plain_unmask
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from pythia_dynamics.checkpoints.registry import SIZES
from pythia_dynamics.device import Dtype, matmul_precision, resolve_device, resolve_dtype
from pythia_dynamics.evaluation.corpus import Corpus
from pythia_dynamics.evaluation.forward import forward_scores
from pythia_dynamics.evaluation.generation import Generator
from pythia_dynamics.evaluation.last_word import Target, last_word_scores
from pythia_dynamics.evaluation.runner import evaluate
from pythia_dynamics.evaluation.settings import EvaluationSettings, Mode
from pythia_dynamics.evaluation.unmasking import Unmasker

MEAN_LENGTH, LENGTH_DEVIATION, SHORTEST, LONGEST = 86, 20, 40, 203
"""Tokens of the first 500 passages of LAMBADA with Pythia's tokenizer, about."""

KNOWN_TOKENS = 50277
"""Entries of Pythia's tokenizer."""

Speeds = dict[str, Any]


def build(size: str, *, smoke: bool) -> GPTNeoXForCausalLM:
    """A random model of a size of Pythia, in float32 on the CPU."""
    shape = SIZES[size]
    d_model, layers, heads, vocab = shape.d_model, shape.layers, shape.heads, shape.vocab
    if smoke:
        d_model, layers, heads, vocab = 32, 2, 4, 512
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=vocab, hidden_size=d_model, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * d_model, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


def passages(count: int, vocab: int) -> list[list[int]]:
    """Random tokens with lengths like those of LAMBADA."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.normal(MEAN_LENGTH, LENGTH_DEVIATION, count).round().astype(int), SHORTEST, LONGEST)
    return [random.integers(1, vocab, length).tolist() for length in lengths]


def check(model: GPTNeoXForCausalLM, device: torch.device) -> dict[str, float]:
    """The largest differences between a model on the device and the same weights on the CPU in float64."""
    vocab = min(KNOWN_TOKENS, model.config.vocab_size)
    sentences = [sentence[:24] for sentence in passages(4, vocab)]
    targets = [Target(tuple(sentence), 20) for sentence in sentences]
    exact = build_copy(model)
    model.to(device)  # type: ignore[arg-type]
    unmasker = Unmasker(model)
    differences = {
        "forward": relative(forward_scores(model, sentences).nll, forward_scores(exact, sentences).nll),
        "last_word": relative(last_word_scores(model, targets).nll, last_word_scores(exact, targets).nll),
    }
    first = unmasker.unmask(sentences)
    for _ in range(2):  # captured, and replayed
        again = unmasker.unmask(sentences)
        differences["unmask_replay_tokens_differing"] = sum(
            int((a.tokens != b.tokens).sum()) for a, b in zip(again, first, strict=True)
        )
    gap = nll = entropy = 0.0
    for result in again:
        tokens = torch.from_numpy(result.tokens)
        with torch.inference_mode():
            logs = exact(input_ids=tokens[:, :-1]).logits.log_softmax(-1)
        generated = torch.from_numpy(np.triu(np.ones(result.tokens.shape, bool), k=1)[:, 1:])
        chosen = logs.gather(2, tokens[:, 1:, None])[..., 0]
        gap = max(gap, float((logs.amax(-1) - chosen)[generated].max()))
        nll = max(nll, float((torch.from_numpy(result.nll)[:, 1:] + chosen)[generated].abs().max()))
        expected = -(logs.exp() * logs).sum(-1)
        entropy = max(entropy, float((torch.from_numpy(result.entropy)[:, 1:] - expected)[generated].abs().max()))
    return {**differences, "unmask_gap_to_likeliest": gap, "unmask_nll": nll, "unmask_entropy": entropy}


def build_copy(model: GPTNeoXForCausalLM) -> GPTNeoXForCausalLM:
    """The same weights in float64 on the CPU."""
    copy = GPTNeoXForCausalLM(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return copy.double()


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(found / exact - 1).max())


def busy(work: Callable[[], Any], device: torch.device) -> dict[str, float] | None:
    """Shares of the wall time of some work in which the GPU computes or copies, from a profile."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        wall = time.perf_counter() - start
    # Not `recorded.events()`, which makes a Python object of each of a million kernels.
    events = [
        (event.name().startswith(("Memcpy", "Memset")), event.start_ns(), event.duration_ns())
        for event in recorded.profiler.kineto_results.events()
        if event.device_type() == DeviceType.CUDA
    ]
    kernels = [times for is_copy, *times in events if not is_copy]
    return {
        "kernels": covered(kernels) / wall, "kernels_and_copies": covered([times for _, *times in events]) / wall,
        "number_of_kernels": len(kernels), "profiled_seconds": wall,
    }  # fmt: skip


def covered(intervals: list[list[int]]) -> float:
    """Seconds in which at least one of the intervals (start, duration, in ns) runs."""
    total = end = 0
    for start, duration in sorted(intervals):
        total += max(0, start + duration - max(end, start))
        end = max(end, start + duration)
    return total / 1e9


def measure(
    model: GPTNeoXForCausalLM, device: torch.device, dtype: torch.dtype, *, tf32: bool, limit: int, plain: bool
) -> Speeds:
    """Tokens a second, shares and memory of each mode in one precision."""
    clock = Clock(device)
    sentences = passages(limit, min(KNOWN_TOKENS, model.config.vocab_size))
    targets = [Target(tuple(sentence), len(sentence) - 2) for sentence in sentences]
    model.to(device, dtype)  # type: ignore[arg-type]
    head = model.config.vocab_size * model.config.hidden_size
    with matmul_precision(tf32=tf32):
        rate = matmul_rate(device, dtype, clock)
        unmasker = Unmasker(model)
        scored = sum(len(sentence) - 1 for sentence in sentences)
        mean = np.mean([len(sentence) for sentence in sentences])
        generated = sum(len(sentence) * (len(sentence) - 1) // 2 for sentence in sentences)
        per_token = flops_per_token(model, mean / 2)
        modes: dict[str, tuple[Callable[[], Any], int, float]] = {
            "forward": (lambda: forward_scores(model, sentences), scored, per_token * scored),
            "last_word": (
                lambda: last_word_scores(model, targets), scored, per_token * scored - 2 * head * (scored - 2 * limit),
            ),
            "unmask": (
                lambda: unmasker.unmask(sentences), generated, flops_per_token(model, 2 * mean / 3) * generated,
            ),
        }  # fmt: skip
        found: Speeds = {"matmul_tflops": rate / 1e12}
        for name, (work, tokens, operations) in modes.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            first, _ = clock(work, 1)
            second, _ = clock(work, 1)  # captures what came a second time
            seconds, _ = clock(work, 1)
            found[name] = {
                "seconds": seconds, "first_seconds": first, "second_seconds": second, "tokens": tokens,
                "tokens_per_second": tokens / seconds, "share_of_matmul": operations / seconds / rate,
                "busy": busy(work, device), "peak_memory_gib": clock.peak_bytes() / 2**30,
            }  # fmt: skip
        if plain:
            found["unmask"] |= against_generate(model, unmasker, sentences, found["unmask"]["seconds"], clock)
    generator = unmasker.generator
    assert generator is not None
    found["unmask"] |= describe_steps(generator)
    return found


def describe_steps(generator: Generator) -> dict[str, Any]:
    """How the steps of unmasking were run."""
    graphs = generator.graphs
    captured = {} if graphs is None else {"graphs": len(graphs), "capture_failure": graphs.failure}
    return {"rounded_shapes": generator.shapes.rounded, **captured}


def against_generate(
    model: GPTNeoXForCausalLM, unmasker: Unmasker, sentences: list[list[int]], seconds: float, clock: Clock
) -> dict[str, float]:
    """Speed-up over `generate` for each prefix: of one sentence of 64 tokens alone, and of all in a batch."""
    one, stride = [(sentences[0] * 2)[:64]], 4
    plain_unmask(model, one[0][:8], clock.device, 4)
    timed, _ = clock(lambda: plain_unmask(model, one[0], clock.device, stride), 1)
    per_token = timed / sum(64 - k for k in range(1, 64, stride))
    for _ in range(2):
        unmasker.unmask(one)
    alone, _ = clock(lambda: unmasker.unmask(one), 3)
    everything = sum(len(sentence) * (len(sentence) - 1) // 2 for sentence in sentences)
    return {
        "generate_seconds_per_token": per_token, "one_sentence_seconds": alone,
        "one_sentence_speed_up": per_token * 64 * 63 / 2 / alone, "batch_speed_up": per_token * everything / seconds,
    }  # fmt: skip


def evaluate_checkpoints(model: GPTNeoXForCausalLM, device: str, count: int, limit: int) -> Speeds:
    """A suite of checkpoints in float16 on the local disk, evaluated one after the other, with its result files."""
    known = min(KNOWN_TOKENS, model.config.vocab_size)
    random = np.random.default_rng(1)
    lengths = [len(sentence) for sentence in passages(limit, known)]
    texts = [" ".join(f"w{i}" for i in random.integers(1, known, length)) for length in lengths]
    results: Speeds = {"passages": limit}
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "suite"
        tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(known)}, unk_token="w0"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        model.to("cpu", torch.float16)  # type: ignore[arg-type]
        for step in range(1, count + 1):
            model.save_pretrained(suite / f"step{step}")
            tokenizer.save(str(suite / f"step{step}" / "tokenizer.json"))
        modes: tuple[Mode, ...] = ("forward", "unmask")
        for mode in modes:
            wanted = count if mode == "forward" else max(1, count // 3)
            settings = EvaluationSettings(
                corpus=Corpus("random", tuple(texts)), limit=limit, device=device, steps=range(1, wanted + 1)
            )
            work = partial(evaluate, suite, [mode], settings)
            start = time.perf_counter()
            work(out=Path(folder) / mode)
            seconds = time.perf_counter() - start
            shares = busy(partial(work, out=Path(folder) / "profiled" / mode), resolve_device(device))
            results[mode] = {"checkpoints": wanted, "seconds_per_checkpoint": seconds / wanted, "busy": shares}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["70m", "410m", "1b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--passages", type=int, default=500)
    parser.add_argument("--checkpoints", type=int, default=12)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, on the CPU where there is no GPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args()
    start = time.perf_counter()
    if options.smoke:
        options.sizes, options.passages, options.checkpoints = ["70m"], 3, 3
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    device = resolve_device(options.device)
    report: dict[str, Any] = {
        "machine": describe_machine(device), "transformers": transformers.__version__, "smoke": options.smoke,
        "cuda": torch.version.cuda, "passages": options.passages, "sizes": {},
    }  # fmt: skip

    def save() -> None:
        """After each part, so that a run that is cut short leaves what it has."""
        report["minutes"] = (time.perf_counter() - start) / 60
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")

    precisions: list[tuple[str, Dtype, bool]] = [
        ("float32", "float32", False), ("tf32", "float32", True), ("bfloat16", "bfloat16", False),
    ]  # fmt: skip
    for size in options.sizes:
        model = build(size, smoke=options.smoke)
        found = report["sizes"][size] = {"check": check(model, device)}
        print(size, json.dumps(found["check"]), flush=True)
        save()
        for name, dtype, tf32 in precisions:
            # Fewer for larger models: unmasking takes as long for all of them then.
            fewer = {"70m": 1, "160m": 2, "410m": 4, "1b": 10}.get(size, 20) * (1 if name == "float32" else 4)
            limit = max(2, options.passages // fewer)
            found[name] = measure(
                model, device, resolve_dtype(dtype), tf32=tf32, limit=limit, plain=name == "float32"
            )  # fmt: skip
            print(size, name, json.dumps(found[name]), flush=True)
            save()
        if size == "70m":
            model = build(size, smoke=options.smoke)
            report["suite"] = evaluate_checkpoints(model, options.device, options.checkpoints, options.passages)
            print("suite", json.dumps(report["suite"]), flush=True)
            save()
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"{report['minutes']:.1f} minutes; {options.out}")


if __name__ == "__main__":
    main()
