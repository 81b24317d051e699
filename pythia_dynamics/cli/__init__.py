"""The command line ``pythia-dyn``. It calls the library and prints the results; no other module prints.

Commands import large libraries inside their functions, so that ``--help`` takes less than half a second.
"""

from __future__ import annotations

from pythia_dynamics.cli import (
    alignment,
    calibrate,
    compare,
    demo,
    garden,
    gather,
    measures,
    perplexity,
    representation,
    reproduce,
    saved,
    shards,
    stores,
    timeline,
    training,
    verify,
)
from pythia_dynamics.cli.app import main

__all__ = [
    "alignment",
    "calibrate",
    "compare",
    "demo",
    "garden",
    "gather",
    "main",
    "measures",
    "perplexity",
    "representation",
    "reproduce",
    "saved",
    "shards",
    "stores",
    "timeline",
    "training",
    "verify",
]
