"""Write docs/scaling.md from the model, the measured runs and the simulation.

python scripts/scaling_page.py
"""

# The lines of the page are in the code as they are on the page:
# ruff: noqa: E501

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks")]

from scaling_simulation import ADDRESSES, simulate, worth  # noqa: E402
from scaling_works import LINE, POLY, evaluation, total, unembedding, whole  # noqa: E402

from pythia_dynamics.checkpoints.registry import ALL_STEPS, SIZES  # noqa: E402
from pythia_dynamics.history import workload  # noqa: E402
from pythia_dynamics.history.scaling import Cost, cost  # noqa: E402
from pythia_dynamics.history.workload import Resources, Work  # noqa: E402

PAGE = ROOT / "docs" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results"

HOME = Resources(cores=2)
"""A line of 25 MB/s with 100 ms to the Hub and to its storage: the defaults of `pythia-dyn plan`."""

HEAD = f"""# What it takes for all of Pythia

What a fetch, a pass over the weights and an evaluation take on a machine, an array of jobs or a cluster, by a model
that `pythia-dyn plan` uses as well, and how many workers are worth having. This page is written by
`scripts/scaling_page.py`; no run of this size has been made.

```text
pythia-dyn plan --model 70m --shards 8 --addresses 4 --workers 16
```

## The model

A revision waits for answers (of the Hub for each file request, then of its storage), is transferred, and is stored.
Those that are transferred share the line and the core of their process; those that are stored share the disk. The
throughput of n workers is that of a closed network of queues, which has a closed form (Buzen 1973). A fetch takes the
list of branches and three headers, the first revision of each worker, the others at that throughput, and never less
than any of the bounds: each worker's own work, and each shared place that is always busy. The Hub allows so many
requests in a fixed window: all windows but the last are used up, and where the rest is slower than that, the limit
does not count. A pass takes the time of its weights on all cores, or of reading them, and that of what follows for each
step of each tensor on one core. Checkpoints are evaluated on GPUs while others are downloaded: the longer of both counts.

Works are in `pythia_dynamics.history.workload`, the model is `pythia_dynamics.history.scaling.cost`. The jobs of an
array share line and limit of their address equally; each asks for the list of branches itself.

| constant | value | source |
|---|---|---|
| file requests of an address in 5 minutes | 3,000 | [the Hub's documentation](https://huggingface.co/docs/hub/rate-limits), without a token; a free account 5,000 |
| requests to the API | 500 | the same; with a free account 1,000 |
| fetching a byte, CPU | {workload.FETCH_NANOSECONDS} ns | `benchmarks/scaling.py` |
| fetching a revision, CPU | {workload.REQUEST_SECONDS * 1e3:g} ms | `benchmarks/scaling.py` |
| storing | {workload.DISK_RATE / 1e9:g} GB/s | `benchmarks/scaling.py` |
| reading | {workload.READ_RATE / 1e9:g} GB/s | `benchmarks/sweep.py --shape 1b` |
| MSD and counts of a weight, CPU | {workload.PASS_NANOSECONDS} ns | `benchmarks/one_core.py` |
| what follows for a step of a tensor, CPU | {workload.FRAME_SECONDS * 1e3:g} ms | 1.7 to 3.6 ms: `benchmarks/whole_model.py` |
| memory of a worker of a fetch | {workload.WORKER_BYTES >> 20} MiB | bound; 18 to 35 MB for 8 to 16: `benchmarks/fetch_loopback.py` |
| memory of a pass | {workload.PASS_BYTES >> 20} MiB | `benchmarks/sweep.py` |
| operations of a GPU | {workload.GPU_RATE / 1e12:g}e12 a second | data sheet of an NVIDIA A100, float32 without TF32; **not measured** |
| share of them that is reached | {workload.EFFICIENCY:g} | `benchmarks/perplexity.py`, on a CPU |

Not in it: opening connections with TLS, retries, the start of processes and of jobs, the revisions that are missing.
"""


def written() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_measured(), *_costs(), *_evaluations(), *_simulated()])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _measured() -> list[str]:
    found = json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))
    fetches, passes = found["fetch_rows"], found["pass_rows"]
    own = found["fetch"]
    second = found["second_fetch_rows"]
    near = [sum(abs(row["ratio"] - 1) <= 0.2 for row in rows) for rows in (fetches, passes, second)]
    rows = [
        (row["what"], row["with"], f"{row['measured']:.3g} s", f"{row['predicted']:.3g} s", f"{row['ratio']:.2f}")
        for row in (*fetches, *passes)
    ]
    return [
        "## Measured at small scale",
        "",
        f"On {found['machine']['cores']} cores of an {found['machine']['cpu'].replace('(R)', '')} "
        "(`benchmarks/scaling.py`). Fetches are from a loopback Hub whose",
        "latencies vary by half of their mean, with the limits that are named; `40/100 MB/s` is a connection and all of",
        "them. Fetches are timed by the clock; of passes the CPU time of all threads counts,",
        "so that the division among cores is not held against a clock here (`benchmarks/sweep.py --scaling` does).",
        "",
        "The constants of the machine are from one configuration: one worker without latency and limits, for a large",
        f"and a small tensor ({own['fetch_nanoseconds']:.2f} ns a byte, {own['request_seconds'] * 1e3:.1f} ms a revision, "
        f"{own['disk'] / 1e9:.2g} GB/s in that run), and one thread over 24 steps of (50304, 128). All rows are",
        "predictions.",
        "",
        f"**{near[0]} of {len(fetches)} fetches and {near[1]} of {len(passes)} passes are within 20 %.**",
        "",
        f"In a second run of the fetches, in which other processes kept both cores busy all the time, {near[2]} of "
        f"{len(second)} were, and the",
        f"ratios went from {min(row['ratio'] for row in second):.2f} to {max(row['ratio'] for row in second):.2f}.",
        "",
        *_table(("run", "with", "measured", "predicted", "ratio"), rows),
        "Where the limit binds, the client waits whole seconds, which counts in windows of 5 seconds and not in those of 300.",
        "The worst predicted run has 16 workers for 24 revisions: all wait for one core at the same times.",
        "",
    ]


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:.0f} B"


CAUSES: Mapping[Any, str] = {
    "requests": "rate limit",
    "latency": "latency",
    "bytes": "line",
    "cpu": "CPU",
    "disk": "disk",
    "gpu": "GPU",
}


LINES = {
    "plain": HOME,
    "good": replace(LINE, workers=16),
    "many": replace(LINE, workers=256, addresses=16, cores=256, machines=256),
}


def _row(name: str, work: Work) -> tuple[str, ...]:
    found = {line: cost(work, resources) for line, resources in LINES.items()}
    return (
        name,
        f"{found['plain'].requests:,}",
        _bytes(found["plain"].disk_bytes),
        *(_said(each) for each in found.values()),
        f"{found['plain'].cpu_hours:.2g} h",
        _bytes(found["plain"].memory_bytes),
    )


def _said(found: Cost) -> str:
    return f"{_duration(found.seconds)} ({CAUSES[found.limited_by]})"


def _costs() -> list[str]:
    sizes = [name for name in SIZES if name not in ("14m", "31m")]
    works = {f"W_U of {name}": [unembedding(name)] for name in SIZES}
    works[f"**W_U of all {len(SIZES)}**"] = [unembedding(name) for name in SIZES]
    works |= {f"all tensors of {name}": [whole(name)] for name in sizes}
    works[f"**all tensors of these {len(sizes)}**"] = [whole(name) for name in sizes]
    works[f"W_U of the {len(POLY)} PolyPythias"] = [unembedding(name) for name in POLY]
    works[f"all tensors of the {len(POLY)} PolyPythias"] = [whole(name) for name in POLY]
    apart = [
        abs(cost(total(each), line).seconds / simulate(each, line).seconds - 1)
        for each in works.values()
        for line in LINES.values()
    ]
    return [
        "## What weights take",
        "",
        f"All {len(ALL_STEPS)} steps, fetched, and one pass of MSD and density; in brackets what most of the time is for.",
        "PolyPythias: nine seeds of five sizes, and three seeds of the data and three of the weights of 160m. *Plain*: one",
        "machine of two cores, 16 workers, 25 MB/s, 100 ms. *Good*: the same with 250 MB/s, 40 MB/s a connection, 80 ms to",
        "the Hub and 30 ms to its storage. *Many*: 256 workers with a core and a disk each behind 16 such addresses. Files of",
        "more than 10 GB are taken to be in shards, with an index. CPU time and the memory of a process are of *plain*.",
        "",
        *_table(
            ("what", "file requests", "disk", *LINES, "CPU", "memory"),
            (_row(name, total(each)) for name, each in works.items()),
        ),
        f"The simulation below differs from these {len(apart)} durations by {max(apart):.1%} at most.",
        "",
    ]


def _evaluations() -> list[str]:
    rows = []
    sizes = list(SIZES)
    for name, work in (
        *((name, evaluation(name)) for name in sizes),
        ("**all**", total([evaluation(name) for name in sizes])),
        (f"**the {len(POLY)} PolyPythias**", total([evaluation(name) for name in POLY])),
    ):
        own = [cost(work, replace(LINE, workers=16, gpus=gpus)) for gpus in (1, 8, 64)]
        rows.append((name, _bytes(work.checkpoint_bytes), f"{own[0].gpu_hours:,.1f}", *(_said(each) for each in own)))
    return [
        "## What perplexities take",
        "",
        "Forward, causal-unmasking and last-word perplexity of 500 passages of 80 tokens at all steps, in float32, with 1, 8",
        "and 64 GPUs behind one *good* address. A download is as long with 64 GPUs as with one: whole checkpoints are needed.",
        "",
        *_table(("model", "download", "GPU hours", "1 GPU", "8 GPUs", "64 GPUs"), rows),
        "No evaluation has been run on a GPU; of small models the time on one is that of the calls, not of the arithmetic.",
        "",
    ]


def _simulated() -> list[str]:
    with (RESULTS / "scaling-simulation.csv").open() as file:
        saved = list(csv.DictReader(file))
    draws = json.loads((RESULTS / "scaling-draws.json").read_text())
    works = list(dict.fromkeys(row["work"] for row in saved))
    lines = [
        "## 1 to 256 workers, simulated",
        "",
        "`benchmarks/scaling_simulation.py` simulates each request: the window of its address, its latency, the line that it",
        "shares with others, the core, the disk; then the pass. Each worker has a core; each address has 3,000 requests in 5",
        "minutes and a *good* line. All revisions are in one queue, as of jobs that run side by side. A layer norm is a small",
        "tensor: 1 to 2 kB a step. It uses nothing of the formulas of the model, which differs from it by "
        f"{max(abs(float(row['model']) / float(row['seconds']) - 1) for row in saved):.1%} at most.",
        "",
        f"Of {draws['draws']:,} fetches with resources drawn at random, with four revisions or more for each worker, the model",
        f"differs by more than {draws['bound']:.0%} (and more than a few latencies, or a window of the limit near its edge) in "
        f"{draws['outside']}: by",
        f"{', '.join(f'{each:+.0%}' for each in draws['differences'])}. Workers that begin together may stay in step, at a line or at the windows of the limit, and wait",
        "for each other longer than in queues.",
        "",
        "![Duration against workers, and where the time of the workers goes](scaling.png)",
        "",
    ]
    for name in works:
        for addresses in ADDRESSES:
            own = [row for row in saved if row["work"] == name and int(row["addresses"]) == addresses]
            found = worth(own)
            where = "1 address" if addresses == 1 else f"{addresses} addresses"
            lines += [
                f"**{name}, {where}.** Worth having: {found.efficient} workers by an efficiency of 50 %; "
                + (
                    f"from {found.useful} on, twice as many save less than 5 %."
                    if found.useful < int(own[-1]["workers"])
                    else "each doubling up to the last saves 5 % or more."
                ),
                "",
                *_table(
                    ("workers", "seconds", "model", "speed-up", "efficiency", *_SPENT.values()),
                    (
                        (
                            row["workers"],
                            f"{float(row['seconds']):,.1f}",
                            f"{float(row['model']):,.1f}",
                            f"{float(row['speed_up']):.1f}",
                            f"{float(row['efficiency']):.0%}",
                            *(f"{float(row[cause]):.0%}" for cause in _SPENT),
                        )
                        for row in own
                    ),
                ),
            ]
    return [
        *lines,
        "So large tensors are bounded by the line: more workers than fill it, here 8 for each address, gain nothing. Small",
        "tensors are bounded by the rate limit: from 2 workers on, one address waits for it more than for answers, and only",
        "more addresses, or a token with a higher limit, help; with many, what remains is the end of the pass on one core. Fetch all tensors of a revision at once: they cost one",
        "request together.",
        "",
    ]


_SPENT = {
    "requests": "rate limit",
    "latency": "latency",
    "bytes": "line",
    "cpu": "CPU",
    "disk": "disk",
    "idle": "idle",
}


def main() -> None:
    PAGE.write_text(written(), encoding="utf-8")


if __name__ == "__main__":
    main()
