"""The directory of weight stores: which models are in it, and the history of one of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.registry import Model, parse_steps, resolve
from pythia_dynamics.errors import StoreError
from pythia_dynamics.history.history import History
from pythia_dynamics.history.store import Store

__all__ = ["as_history", "cache_directory", "cached", "find_model", "open_history", "store_path"]


def cache_directory(cache: Path | str | None = None) -> Path:
    """Where stores are kept: the argument, else the environment's ``PYTHIA_DYN_CACHE``, else ``cache``."""
    return Path(cache or os.environ.get("PYTHIA_DYN_CACHE") or "cache")


def cached(cache: Path | str | None = None) -> tuple[str, ...]:
    """Names of the stores in the cache, sorted."""
    return tuple(sorted(path.name.removesuffix(".zarr") for path in cache_directory(cache).glob("[!.]*.zarr")))


def find_model(model: str | Path, cache: Path | str | None = None) -> Model:
    """The model a name stands for: that of a store in the cache, else as `pythia_dynamics.resolve`."""
    here = cached(cache)
    if str(model) in here:
        return resolve(Store.open(store_path(str(model), cache)).source)
    return resolve(model, known=here)


def store_path(name: str, cache: Path | str | None = None) -> Path:
    """Where the store of a model of that name is, or would be."""
    return cache_directory(cache) / f"{name}.zarr"


def open_history(
    model: str | Path, tensor: str | None = None, *, cache: Path | str | None = None, steps: str | None = None
) -> History:
    """The history of a model that has been fetched: an alias, a repository id, the name of a store or its path.

    `steps` as on the command line (``paper``, ``all``, ``1000,2000``, ``1000:9000:1000``) leaves out the others.
    """
    path = Path(model)
    if path.suffix != ".zarr":
        here = cached(cache)
        path = store_path(str(model) if str(model) in here else resolve(model, known=here).name, cache)
        if not path.exists():
            stores = f"; there: {', '.join(here)}" if here else ""
            raise StoreError(f"{model} is not in {path.parent}{stores}; run pythia-dyn fetch --model {model}")
    history = History.from_store(Store.open(path), tensor)
    chosen = parse_steps(steps) if steps is not None else None
    return history if chosen is None else history.select(chosen)


def as_history(source: Any) -> History:
    """What analyses take as a history: one already, the name or path of a fetched model, or an array (T, V, D)."""
    if isinstance(source, History):
        return source
    if isinstance(source, (str, Path)):
        return open_history(source)
    return History.from_array(source)
