"""The words that options of a training take.

This module imports nothing else, so that the command line can list the words at start-up.
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "Architecture",
    "FileDtype",
    "Initialisation",
    "RecordEvent",
    "RuleKind",
    "Schedule",
    "TokenizerKind",
    "Tracker",
]

Architecture = Literal["gpt-neox", "nanogpt"]
"""The architecture of a new model: that of Pythia, or that of the blog "A Large Language Model Order Parameter"."""

Initialisation = Literal["pytorch", "neox"]
"""How the weights of a new model are drawn: each layer's default of PyTorch (uniform on ±1/√d for the head), or
normal(0, 0.02) for all, as GPT-NeoX does."""

TokenizerKind = Literal["characters", "bpe"]
"""One token per character, or a byte-level BPE."""

Schedule = Literal["constant", "cosine"]
"""The learning rate after the warm-up."""

FileDtype = Literal["float16", "float32"]
"""The dtype of the weights in the checkpoint files."""

RecordEvent = Literal["log", "save"]
"""The event of a Trainer at which the callback records the weights."""

Tracker = Literal["wandb", "trackio"]
"""The library that gets histograms of the weights: Weights & Biases or trackio."""

RuleKind = Literal["stationary", "displacement", "msd", "either"]
"""The criterion of a stationarity rule."""
