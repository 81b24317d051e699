"""The cache, a directory of weight stores: which models are in it, and the history of one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.learning_rate import RateLike, as_learning_rate
from pythia_dynamics.checkpoints.modules import split_part
from pythia_dynamics.checkpoints.registry import Model, parse_steps, resolve
from pythia_dynamics.checkpoints.suite import GENERIC
from pythia_dynamics.errors import PythiaDynError, StoreError, UnknownNameError
from pythia_dynamics.history.attention import known_attention, select_parts
from pythia_dynamics.history.history import History
from pythia_dynamics.history.store import Store
from pythia_dynamics.objects import ObjectPath, Place, as_place, is_web

__all__ = [
    "DEMO",
    "as_history",
    "cache_directory",
    "cached",
    "choose_model",
    "find_model",
    "local_directory",
    "model_with_suite",
    "open_histories",
    "open_history",
    "store_path",
]

DEMO = "demo"
"""Name of the suite, the store and the results that ``pythia-dyn demo`` makes."""


def cache_directory(cache: Place | str | None = None) -> Place:
    """The place of the stores.

    Parameters
    ----------
    cache
        A directory, or the URL of objects: ``s3://bucket/cache``, ``gs://…``, ``az://…``; or of a web server, which can
        only be read: ``https://…``. Default: the environment's ``PYTHIA_DYN_CACHE``, else ``cache``.
    """
    return as_place(cache or os.environ.get("PYTHIA_DYN_CACHE") or "cache")


def local_directory(cache: Place | str | None = None) -> Path:
    """The directory of the stores, for what is written beside them. Raises `PythiaDynError` where it is none."""
    directory = cache_directory(cache)
    if isinstance(directory, ObjectPath):
        raise PythiaDynError(f"{directory} is no directory, which training needs; name one with --cache")
    return directory


def cached(cache: Place | str | None = None) -> tuple[str, ...]:
    """Names of the stores in the cache, sorted. `cache` as for `cache_directory`."""
    directory = cache_directory(cache)
    if isinstance(directory, ObjectPath):
        names = [] if is_web(directory) else directory.folders()
        paths: list[Place] = [directory / name for name in names if name.endswith(".zarr") and name[0] != "."]
    else:
        paths = list(directory.glob("[!.]*.zarr"))
    return tuple(sorted(path.name.removesuffix(".zarr") for path in paths if Store.exists(path)))


def find_model(model: str | Path, cache: Place | str | None = None) -> Model:
    """The model that a name means.

    Parameters
    ----------
    model
        The name of a store in the cache, or what `pythia_dynamics.resolve` takes: an alias, a repository id, or a
        directory of checkpoints.
    cache
        As for `cache_directory`.

    Raises
    ------
    UnknownNameError
        It is none of these; the message names the nearest stores and aliases.
    StoreError
        The demo is meant and was not run, or the store of that name is damaged.
    """
    names = cached(cache)
    if str(model) in names:
        store = Store.open(store_path(str(model), cache))
        return replace(resolve(store.source), name=store.name, suite=store.suite)
    try:
        return _remembered(resolve(model, known=names), cache)
    except UnknownNameError:
        if str(model) != DEMO:
            raise
        raise StoreError(f"{DEMO} is not in {cache_directory(cache)}/: `pythia-dyn demo` makes it") from None


def _remembered(model: Model, cache: Place | str | None) -> Model:
    """A model with the suite that its store remembers, if it has one of the same source, stage, generation and seed."""
    path = store_path(model.name, cache)
    try:
        store = Store.open(path) if Store.exists(path) else None
    except StoreError:  # whoever needs the store says what is wrong with it
        return model
    if store is None or store.suite == GENERIC or store.source != model.location:
        return model
    return replace(model, suite=store.suite) if store.suite.part == model.suite.part else model


def model_with_suite(
    model: str | Path, cache: Place | str | None = None, suite: Mapping[str, Any] | str | Path | None = None
) -> Model:
    """The model that a name means, with other values of its suite.

    Parameters
    ----------
    model, cache
        As for `find_model`.
    suite
        As for `pythia_dynamics.history.request.FetchRequest`.

    Raises
    ------
    PythiaDynError
        As `find_model` and `Model.changed`.
    """
    found = find_model(model, cache)
    changed = found.changed(suite)  # of another stage, whose store may remember more
    return changed if changed.name == found.name else _remembered(changed, cache).changed(suite)


def choose_model(
    model: str | Path, cache: Place | str | None = None, suite: Mapping[str, Any] | str | Path | None = None
) -> Model:
    """`model_with_suite`, whose suite a store of the model remembers from now on.

    Parameters
    ----------
    model, cache, suite
        As for `model_with_suite`.

    Raises
    ------
    PythiaDynError
        As `model_with_suite`; or the store cannot be written.
    """
    found = model_with_suite(model, cache, suite)
    path = store_path(found.name, cache)
    if suite and Store.exists(path):
        Store.create(path, source=found.location, suite=found.suite)
    return found


def store_path(name: str, cache: Place | str | None = None) -> Place:
    """The path of the store of a model, existing or not.

    Parameters
    ----------
    name
        `Model.name`.
    cache
        As for `cache_directory`.
    """
    return cache_directory(cache) / f"{name}.zarr"


def open_histories(
    model: str | Place,
    tensors: Sequence[str] = (),
    *,
    cache: Place | str | None = None,
    steps: str | None = None,
    learning_rate: RateLike | None = None,
    heads: int | None = None,
) -> list[History]:
    """The histories of some tensors of a model that is in the cache. Nothing is fetched and no weights are read yet.

    Parameters
    ----------
    model
        An alias, a repository id, the name of a store, or the path of one (``….zarr``).
    tensors
        Names of tensors and of parts of them (``….query_key_value.weight.query.head5``), roles (``unembedding``,
        ``embedding``), ``all`` and globs; see `pythia_dynamics.history.attention.select_parts`. ``all`` stands for the
        parts of a fused tensor in its place. Default: as for `History.from_store`.
    cache
        As for `cache_directory`.
    steps
        The steps to keep, as on the command line: ``paper``, ``all``, ``1000,2000``, ``1000:9000:1000``. Default: all.
    learning_rate
        The learning rate, as for `History.with_learning_rate`. Default: as the store knows it.
    heads
        Attention heads of a block, where the store does not know them.

    Raises
    ------
    StoreError
        The model is not in the cache, or its store is empty or damaged.
    UnknownNameError
        There is no model, tensor or step of that name.
    CheckpointError
        The store has several tensors, and none is known to have the role.
    PythiaDynError
        As `History.with_learning_rate`.
    """
    rate = None if learning_rate is None else as_learning_rate(learning_rate)
    store = _open_store(model, cache)
    names = select_parts(store, tensors, known_attention(store, heads))
    wholes: dict[str, History] = {}
    histories = []
    for name in names:
        tensor, kind, head = (name, None, None) if name in store.tensors else split_part(name)
        if tensor not in wholes:  # read once for all of its parts
            wholes[tensor] = History.from_store(store, tensor, heads=heads).with_learning_rate(rate)
        whole = wholes[tensor]
        histories.append(whole if name == tensor else whole.part(kind, head=head))
    chosen = parse_steps(steps) if steps is not None else None
    return histories if chosen is None else [history.select(chosen) for history in histories]


def open_history(
    model: str | Place,
    tensor: str | None = None,
    *,
    cache: Place | str | None = None,
    steps: str | None = None,
    learning_rate: RateLike | None = None,
    heads: int | None = None,
) -> History:
    """The history of one tensor of a model that is in the cache. Nothing is fetched and no weights are read yet.

    Parameters
    ----------
    model, cache, steps, learning_rate, heads
        As for `open_histories`.
    tensor
        Name of a tensor in the store, or of a part of one, or a role. Default: as for `History.from_store`.

    Raises
    ------
    PythiaDynError
        As `open_histories` and `History.from_store`.
    """
    history = History.from_store(_open_store(model, cache), tensor, heads=heads).with_learning_rate(learning_rate)
    chosen = parse_steps(steps) if steps is not None else None
    return history if chosen is None else history.select(chosen)


def _open_store(model: str | Place, cache: Place | str | None) -> Store:
    """The store of a model that is in the cache."""
    path = as_place(model)
    if path.suffix != ".zarr":
        names = cached(cache)
        known = str(model) in names or (is_web(cache_directory(cache)) and Store.exists(store_path(str(model), cache)))
        path = store_path(str(model) if known else find_model(str(model), cache).name, cache)
        if not Store.exists(path):
            stores = f"; there: {', '.join(names)}" if names else ""
            raise StoreError(f"{model} is not in {path.parent}{stores}; run pythia-dyn fetch --model {model}")
    return Store.open(path)


def as_history(source: Any, steps: Sequence[int] | None = None) -> History:
    """What a measure was given, as a history.

    Parameters
    ----------
    source
        A `History`; the name or path of a model that is in the cache, as for `open_history`; or an array of shape
        (T, V, D), as for `History.from_array`.
    steps
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.

    Raises
    ------
    PythiaDynError
        As `open_history` and `History.from_array`.
    """
    if isinstance(source, (str, Path, ObjectPath)):
        source = open_history(source)
    if isinstance(source, History):
        return source if steps is None else source.select([int(step) for step in steps])
    if hasattr(source, "data_vars"):
        raise PythiaDynError(
            "weights are a History, the name of a fetched model or an array (T, …), not a Dataset "
            f"of {', '.join(map(str, source.data_vars)) or 'nothing'}"
        )
    return History.from_array(source, steps)
