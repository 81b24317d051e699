"""Training suites: small models trained on a text, with checkpoints laid out as Pythia's repositories.

A suite is a directory with a folder per step (``step10/`` … with ``config.json``, the tokenizer and
``model.safetensors``), ``losses.csv`` (`step, train_loss, validation_loss`), the held-out passages ``heldout.jsonl``
and ``suite.json``, the plan and the text it was made from. All other commands read it like any other model.

The callback and the monitor record the weights of any training, and the stopping rule reads what they measure.
"""

from __future__ import annotations

__all__: list[str] = []
