"""The attention heads of a model, which its store remembers, and the tensors and parts of a store that names mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import zarr

from pythia_dynamics.checkpoints.formats.slices import select
from pythia_dynamics.checkpoints.modules import part_name, split_part
from pythia_dynamics.checkpoints.parts import Attention, head_parts, kind_parts, may_have_parts
from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.checkpoints.roles import ALL, ROLES
from pythia_dynamics.checkpoints.source import Revision, Source
from pythia_dynamics.checkpoints.tensors import MAX_CONFIG_BYTES
from pythia_dynamics.errors import PythiaDynError, StoreError
from pythia_dynamics.history.nodes import open_node
from pythia_dynamics.history.store import Store

__all__ = [
    "divided",
    "known_attention",
    "read_attention",
    "record_attention",
    "registered_attention",
    "select_parts",
    "undivided",
]

_ATTRIBUTE = "attention"
"""The key of the group's attributes with the fields of `Attention`."""

_CONFIG = "config.json"


def known_attention(store: Store, heads: int | None = None) -> Attention | None:
    """The attention heads of the model of a store; None where they are not known.

    Parameters
    ----------
    store
        The store. A ``config.json`` was read at the fetch; the registry knows the models of Pythia.
    heads
        The number of heads, in place of what is known.

    Raises
    ------
    StoreError
        What the store says of it is damaged.
    PythiaDynError
        `heads` is no number of heads.
    """
    found = open_node(store.path, zarr.open_group).attrs.get(_ATTRIBUTE)
    known: Attention | None = None
    if found is not None:
        try:
            known = Attention(**found)
        except (TypeError, PythiaDynError):
            raise StoreError(f"{store.path} has attention heads that cannot be read; fetch again") from None
    else:
        known = registered_attention(store.source)
    if heads is None or (known is not None and known.heads == heads):
        return known
    return replace(known, heads=heads, head_size=None) if known else Attention(heads)


def registered_attention(source: str) -> Attention | None:
    """The attention heads of a model of the registry; None of another.

    Parameters
    ----------
    source
        Where its checkpoints are.
    """
    with suppress(PythiaDynError):  # a directory that no longer exists
        shape = resolve(source).architecture
        return Attention(shape.heads, shape.d_model // shape.heads, "gpt_neox") if shape is not None else None
    return None


def record_attention(store: Store, attention: Attention | None) -> None:
    """Let a store remember the attention heads of its model.

    Parameters
    ----------
    store
        The store.
    attention
        The heads; None changes nothing.

    Raises
    ------
    StoreError
        The store cannot be written.
    """
    with store.writing():
        group = open_node(store.path, zarr.open_group, "r+")
        if attention is not None and group.attrs.get(_ATTRIBUTE) != asdict(attention):
            group.attrs[_ATTRIBUTE] = asdict(attention)


def read_attention(source: Source, revisions: Iterable[Revision], tensors: Iterable[str]) -> Attention | None:
    """The attention heads as the ``config.json`` of the checkpoints says. None where nothing needs or says them.

    Parameters
    ----------
    source
        The source. The config that its suite names goes before those of its checkpoints.
    revisions
        Checkpoints; the first is asked.
    tensors
        Names of the tensors that are stored.
    """
    if not any(map(may_have_parts, tensors)):
        return None
    named = source.suite.config
    first = next(iter(revisions), None)
    content = b""
    with suppress(PythiaDynError, OSError):  # weights without a config can be stored and measured all the same
        if named is not None and Path(named).is_dir():
            content = (Path(named) / _CONFIG).read_bytes()
        elif first is not None:
            with source.read(first, _CONFIG, 0, MAX_CONFIG_BYTES) as stream:
                content = stream.read(MAX_CONFIG_BYTES)
    with suppress(ValueError, RecursionError):  # damaged
        config = json.loads(content)
        return Attention.from_config(config) if isinstance(config, dict) else None
    return None


def select_parts(store: Store, patterns: Sequence[str], attention: Attention | None) -> tuple[str, ...]:
    """The tensors of a store, and the parts of them, that patterns mean.

    ``all`` stands for each weight once: of a fused tensor for its parts, as far as it can be divided.

    Parameters
    ----------
    store
        The store.
    patterns
        Names of tensors and of parts, roles, ``all`` and globs. A glob means tensors; the parts of all heads if it
        matches no tensor; single heads if it matches none of these either. Without any: as `Store.select`.
    attention
        The heads of the model, where they are known.

    Raises
    ------
    PythiaDynError
        As `Store.select`; or a pattern names parts that a tensor does not have, or for which the number of heads would
        have to be known.
    """
    specs = store.tensors
    chosen: dict[str, None] = {}
    for pattern in patterns or (None,):
        if pattern is None or pattern in specs or pattern in ROLES:
            chosen |= dict.fromkeys(store.select(() if pattern is None else (pattern,)))
        elif pattern == ALL:
            for name in store.select((ALL,)):
                chosen |= dict.fromkeys(divided(name, specs[name].shape, attention))
        elif split_part(pattern)[0] in specs:  # whether it has the part, `History.part` says
            chosen[pattern] = None
        else:
            chosen |= dict.fromkeys(_matching(store, pattern, attention))
    return tuple(chosen)


def undivided(store: Store, attention: Attention | None) -> dict[str, str]:
    """The tensors that are fused, but cannot be divided, with the reason of each.

    Parameters
    ----------
    store, attention
        As for `select_parts`.
    """
    found = {}
    for name, spec in store.tensors.items():
        try:
            kind_parts(name, spec.shape, attention)
        except PythiaDynError as error:
            found[name] = str(error)
    return found


def divided(name: str, shape: tuple[int, ...], attention: Attention | None) -> list[str]:
    """The names of the parts of a tensor; its own where it is not fused, or cannot be divided.

    Parameters
    ----------
    name, shape
        The tensor.
    attention
        The heads of the model, where they are known.
    """
    with suppress(PythiaDynError):
        return [part_name(name, part.kind, None) for part in kind_parts(name, shape, attention)] or [name]
    return [name]


def _matching(store: Store, pattern: str, attention: Attention | None) -> tuple[str, ...]:
    """The tensors, the parts or the heads that a glob matches."""
    try:
        return store.select((pattern,))
    except PythiaDynError as error:
        unknown, reasons = error, list[PythiaDynError]()
    for parts_of in (kind_parts, head_parts):
        names: list[str] = []
        for name, spec in store.tensors.items():
            try:
                names += [part_name(name, part.kind, part.head) for part in parts_of(name, spec.shape, attention)]
            except PythiaDynError as error:
                reasons.append(error)
        with suppress(PythiaDynError):
            return tuple(select(names, (pattern,), where=str(store.path)))
    asks_for_part = any(word in pattern for word in (".query", ".key", ".value", ".gate", ".up", ".head"))
    raise reasons[0] if reasons and asks_for_part else unknown
