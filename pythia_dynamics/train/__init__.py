"""Suites of one's own: small GPT-NeoX models trained on any text, with checkpoints in the layout the Hub has.

A suite is a directory with a folder per step (``step10/`` … with ``config.json``, the tokenizer and
``model.safetensors``), ``losses.csv`` (`step, train_loss, validation_loss`), the held-out passages ``heldout.jsonl``
and ``suite.json``, which says how it was made. Everything downstream treats it as any other model.
"""

from __future__ import annotations

from pythia_dynamics.train.loop import new_model, train_suite
from pythia_dynamics.train.plan import SIZES, TrainingPlan, plan_of_size
from pythia_dynamics.train.sample import sample_text
from pythia_dynamics.train.suite import HELD_OUT, LOSSES, SUITE, Loss, Suite
from pythia_dynamics.train.text import SHAKESPEARE, Text, python_reference, read_text, tiny_shakespeare

__all__ = [
    "HELD_OUT",
    "LOSSES",
    "SHAKESPEARE",
    "SIZES",
    "SUITE",
    "Loss",
    "Suite",
    "Text",
    "TrainingPlan",
    "new_model",
    "plan_of_size",
    "python_reference",
    "read_text",
    "sample_text",
    "tiny_shakespeare",
    "train_suite",
]
