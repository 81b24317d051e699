"""Cost of recording the weights: its share of the training time at the Trainer's default logging interval.

    python benchmarks/callback.py --size demo --size 14m
    python benchmarks/callback.py --size 70m --device cuda --out benchmarks/results

A Trainer without the callback gives the time of a step. A Trainer with it, and a log after every step, gives the time
of each record (copy, store with fsync, statistics, two-time Gram row, logs). The Gram row grows with the records.
`share` is the mean time of a record relative to `interval` steps (500, the default of `TrainingArguments`);
`share_of_last` is that of the last five records, the most expensive ones. `histogram_to_record` is the mean time of a
histogram for Weights & Biases or trackio relative to that of a record, both without the first, which compiles.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pythia_dynamics.checkpoints.registry import SIZES
from pythia_dynamics.training.callback import WeightDynamicsCallback

INTERVAL: Any = TrainingArguments.__dataclass_fields__["logging_steps"].default
SHAPES = {
    "demo": {"vocab": 1024, "d_model": 64, "layers": 3, "heads": 4, "batch": 8, "context": 64},
    **{
        name: {
            "vocab": size.vocab,
            "d_model": size.d_model,
            "layers": size.layers,
            "heads": size.heads,
            "batch": 4,
            "context": 256,
        }
        for name, size in SIZES.items()
    },
}


class Clock(TrainerCallback):
    """Records the time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def train(shape: dict[str, int], steps: int, out: Path, callbacks: list[TrainerCallback], device: str) -> None:
    config = GPTNeoXConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["d_model"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=4 * shape["d_model"],
        max_position_embeddings=shape["context"],
    )
    rows = torch.randint(0, shape["vocab"], (shape["batch"] * steps, shape["context"]))
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=shape["batch"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        log_level="error",
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model=GPTNeoXForCausalLM(config), args=arguments, train_dataset=data, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def measure(name: str, records: int, steps: int, device: str) -> dict[str, Any]:
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as directory:
        plain, place = Clock(), Path(directory)
        train(shape, steps, place / "plain", [plain], device)
        step = float(np.median(np.diff(plain.times)))
        # a model with one layer logs as often and records the same head, in a fraction of the time
        recorder = WeightDynamicsCallback(place / "store", histograms="all")
        costs: list[float] = []
        drawn: list[float] = []

        class Cost(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                costs.append(recorder.monitor.seconds)
                began = time.perf_counter()
                recorder.histograms()
                drawn.append(time.perf_counter() - began)

        small = {**shape, "layers": 1, "batch": 1, "context": 8}
        train(small, records, place / "recorded", [recorder, Cost()], device)
        shutil.rmtree(place / "store.zarr")
    each = np.diff([0.0, *costs[:records]])
    return {
        "model": name,
        "weights": shape["vocab"] * shape["d_model"],
        "records": records,
        "interval": INTERVAL,
        "step_seconds": step,
        "record_seconds": {"first": float(each[0]), "mean": float(each.mean()), "last": float(each[-5:].mean())},
        "histogram_to_record": float(np.mean(drawn[1:records]) / each[1:].mean()),
        "share": float(each.mean()) / (INTERVAL * step),
        "share_of_last": float(each[-5:].mean()) / (INTERVAL * step),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", dest="sizes", action="append", choices=sorted(SHAPES))
    parser.add_argument("--records", type=int, default=143)
    parser.add_argument("--steps", type=int, default=30, help="of the Trainer without the callback")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = [measure(name, options.records, options.steps, options.device) for name in options.sizes or ["demo"]]
    result = {"machine": describe_machine(options.device), "callback": found}
    print(json.dumps(result, indent=1))
    if options.out:
        (options.out / f"callback-{options.device}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
