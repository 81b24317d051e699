"""Time of a step of a suite's training, and of a plain Trainer with the same settings.

    python benchmarks/training.py --size 10k --steps 100 --context 64 --batch 32

The plain Trainer has a list of rows, the default collator and no callback. Both run in turn, twice, on one thread of
torch; the better time of each counts. The suite saves and measures its loss once, over one batch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from machine import describe_machine
from transformers import PrinterCallback, Trainer, TrainingArguments

from pythia_dynamics.training.loop import new_model, train_suite
from pythia_dynamics.training.plan import TrainingPlan, plan_of_size
from pythia_dynamics.training.suite import prepare_text
from pythia_dynamics.training.text import Text, python_reference


def plain(out: Path, text: Text, plan: TrainingPlan) -> float:
    prepared = prepare_text(text, plan)
    tokens = torch.from_numpy(prepared.training)
    starts = torch.randint(0, len(tokens) - plan.context, (plan.max_steps * plan.batch,))
    rows = [{"input_ids": tokens[s : s + plan.context], "labels": tokens[s : s + plan.context]} for s in starts]
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=plan.max_steps,
        per_device_train_batch_size=plan.batch,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        log_level="error",
    )
    trainer = Trainer(model=new_model(plan, len(prepared.tokenizer)), args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def suite(out: Path, text: Text, plan: TrainingPlan) -> float:
    times: list[float] = []
    train_suite(out, text, plan, device="cpu", threads=1, progress=lambda *_: times.append(time.perf_counter()))
    return (times[-1] - times[0]) * plan.max_steps / (plan.max_steps - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="10k")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--context", type=int)
    parser.add_argument("--batch", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = python_reference()
    plan = plan_of_size(
        options.size,
        max_steps=options.steps,
        checkpoints=1,
        eval_batches=1,
        context=options.context,
        batch=options.batch,
    )
    best = {"plain": float("inf"), "suite": float("inf")}
    for turn in range(2):
        with tempfile.TemporaryDirectory() as directory:
            best["plain"] = min(best["plain"], plain(Path(directory) / "plain", text, plan))
            best["suite"] = min(best["suite"], suite(Path(directory) / f"suite{turn}", text, plan))
    per_step = {f"{name}_ms_per_step": seconds / options.steps * 1000 for name, seconds in best.items()}
    ratio = {"suite_over_plain": best["suite"] / best["plain"]}
    print(json.dumps({"machine": describe_machine(), "size": options.size, **per_step, **ratio}, indent=1))


if __name__ == "__main__":
    main()
