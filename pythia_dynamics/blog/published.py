"""The blog's own numbers, and what b is before any training."""

from __future__ import annotations

import csv
import math
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.errors import UnknownNameError
from pythia_dynamics.order import derivative
from pythia_dynamics.train.plan import SIZES, Initialisation

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["INITIALISATIONS", "SOURCE", "expected_b", "published"]

SOURCE = "rohitium/LLM-order-param, results/: b, training and validation loss of four models at 20 steps"

INITIALISATIONS: tuple[Initialisation, ...] = ("pytorch", "neox")
"""Conventions for the untrained head."""


def published(size: str) -> xr.Dataset:
    """The blog's own numbers for a size (``10k`` …) over `step`, every 1,000 steps to 19,000.

    `order_parameter`, `train_loss`, `validation_loss` (nats per character) and `dloss_db` of the training loss.
    Raises `UnknownNameError` for a size that it does not have.
    """
    import xarray as xr

    rows = {int(row["step"]): row for row in _table("blog_train_loss_vs_order_parameter.csv", size)}
    others = {int(row["step"]): row for row in _table("blog_order_parameter.csv", size)}
    if not rows:
        raise UnknownNameError("published size", size, SIZES)
    steps = np.array(sorted(rows), dtype=np.int64)
    b = np.array([float(rows[step]["order_param_b"]) for step in steps.tolist()])
    training = np.array([float(rows[step]["train_loss"]) for step in steps.tolist()])
    validation = np.array([float(others[step]["validation_loss"]) for step in steps.tolist()])
    data = {
        "order_parameter": b,
        "train_loss": training,
        "validation_loss": validation,
        "dloss_db": derivative(steps, b, training),
    }
    return xr.Dataset(
        {name: ("step", values) for name, values in data.items()}, {"step": steps}, {"model": size, "source": SOURCE}
    )


def _table(name: str, size: str) -> list[dict[str, str]]:
    with (resources.files("pythia_dynamics") / "data" / name).open(encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if row["model"].lower() == size.lower()]


def expected_b(initialisation: str, vocab: int, d_model: int) -> tuple[float, float]:
    """b of an untrained head (vocab, d_model) and its standard deviation, to first order in 1/N.

    ``pytorch``: uniform on ±1/√d, b = √(v/3)/d. ``neox``: normal(0, 0.02), b = 0.02 √(v/d).
    """
    size = vocab * d_model
    if initialisation == "pytorch":
        b, kurtosis = math.sqrt(vocab / 3) / d_model, 1.8
    elif initialisation == "neox":
        b, kurtosis = 0.02 * math.sqrt(vocab / d_model), 3.0
    else:
        raise UnknownNameError("initialisation", initialisation, INITIALISATIONS)
    return b, b * math.sqrt((kurtosis - 1) / size) / 2
