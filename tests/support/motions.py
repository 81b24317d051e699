"""Results of histories of known truth, in memory."""

from __future__ import annotations

from pythia_dynamics.claims.calibration import measured
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.truths import truth


def results_of(name: str, seed: int = 0, records: int = 60, weights: int = 1024) -> SavedResults:
    """The measured results of one history of a truth, for the functions that test claims."""
    kind = truth(name)
    return SavedResults.in_memory(kind.model, measured(kind.history(seed, records, weights)))
