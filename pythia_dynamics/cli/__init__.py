"""The command line ``pythia-dyn``: it composes the library and prints; nothing else prints.

Heavy imports are made inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

from pythia_dynamics.cli import demo, garden, measures, perplexity, reproduce, saved, stores, timeline, training
from pythia_dynamics.cli.app import main

__all__ = ["demo", "garden", "main", "measures", "perplexity", "reproduce", "saved", "stores", "timeline", "training"]
