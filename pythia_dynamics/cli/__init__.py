"""The command line ``pythia-dyn``: it composes the library and prints; nothing else prints.

Heavy imports are made inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

from pythia_dynamics.cli import analyses, demo, garden, perplexity, reproduce, saved, stores, training
from pythia_dynamics.cli.app import main

__all__ = ["analyses", "demo", "garden", "main", "perplexity", "reproduce", "saved", "stores", "training"]
