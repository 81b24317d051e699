"""The blog's own numbers, and what b is before any training."""

from __future__ import annotations

import csv
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.errors import UnknownNameError
from pythia_dynamics.measures.order import derivative
from pythia_dynamics.training.plan import SIZES

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SOURCE", "published_blog"]

SOURCE = "rohitium/LLM-order-param, results/: b, training and validation loss of four models at 20 steps"


def published_blog(size: str) -> xr.Dataset:
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
