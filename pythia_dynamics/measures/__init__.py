"""Statistics of weights, one file each: a measure is a value that holds everything known of it.

`MEASURES` is the list of them. `pythia_dynamics.measures.catalogue` has the values, and those that other packages
register through the entry-point group ``pythia_dynamics.measures``.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["MEASURES"]

MEASURES: Mapping[str, str] = {
    "density": "Weight density over training: exact counts, moments, number of modes (Garden, Fig 2).",
    "msd": "Mean squared displacement by both demeanings, each beside its null (Fig 3); every two steps compared.",
    "two_time": "Every two steps compared: displacement, ageing, cosine, trajectory.",
    "order": "Order parameter b = ‖W‖_F / d_model, and the loss against it where one is known.",
    "rank": "Covariance rank of random projections, for batch sizes and tolerances (Fig 7).",
    "spectrum": "Singular values: entropy, effective and stable rank, condition number, power law.",
}
"""What each measure answers, by name, in the order in which results are shown. It is apart from the values, so that
``pythia-dyn --help`` imports none of them."""
