"""Suites of one's own: small GPT-NeoX models trained on any text, with checkpoints in the layout the Hub has.

A suite is a directory with a folder per step (``step10/`` … with ``config.json``, the tokenizer and
``model.safetensors``), ``losses.csv`` (`step, train_loss, validation_loss`), the held-out passages ``heldout.jsonl``
and ``suite.json``, which says how it was made. Everything downstream treats it as any other model.
"""

from __future__ import annotations

__all__: list[str] = []
