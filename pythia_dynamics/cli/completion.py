"""What a shell completes: models and tensors. Options and commands are completed by click."""

from __future__ import annotations

from contextlib import suppress

import click

__all__ = ["complete_models", "complete_tensors"]


def complete_models(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """The models in the cache and the short names of others that begin as typed."""
    from pythia_dynamics.checkpoints.registry import aliases
    from pythia_dynamics.history.cache import cached

    names = dict.fromkeys((*cached(context.params.get("cache")), *aliases()))
    return [name for name in names if name.startswith(typed)]


def complete_tensors(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """The roles, and the tensors in the cache of the models that were named, that begin as typed."""
    from pythia_dynamics.checkpoints.roles import ALL, ROLES
    from pythia_dynamics.errors import PythiaDynError
    from pythia_dynamics.history.attention import known_attention, select_parts
    from pythia_dynamics.history.cache import cached, find_model, store_path
    from pythia_dynamics.history.store import Store

    cache, names = context.params.get("cache"), dict.fromkeys((*ROLES, ALL))
    stored = cached(cache)
    for model in context.params.get("models") or stored:
        with suppress(PythiaDynError, OSError):  # nothing that is typed so far has to be right
            name = model if model in stored else find_model(model, cache).name
            store = Store.open(store_path(name, cache))
            names |= dict.fromkeys((*store.tensors, *select_parts(store, (ALL,), known_attention(store))))
    return [name for name in names if name.startswith(typed)]
