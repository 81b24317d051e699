"""The command line ``pythia-dyn``: it composes the library and prints; nothing else prints.

Heavy imports are made inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

from pythia_dynamics.cli import analyses, demo, figures, garden, perplexity, reproduce, training, weights
from pythia_dynamics.cli.app import main

__all__ = ["analyses", "demo", "figures", "garden", "main", "perplexity", "reproduce", "training", "weights"]
