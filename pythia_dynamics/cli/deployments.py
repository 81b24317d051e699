"""What a work would take on one machine, as an array and on a cluster, as `plan` says it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pythia_dynamics.cli import app

if TYPE_CHECKING:
    from pythia_dynamics.history.scaling import Deployment
    from pythia_dynamics.history.workload import Resources, Work

__all__ = ["told_deployments"]

_NAMES = {"machine": "one machine", "array": "an array", "cluster": "a cluster"}

_CAUSES = {
    "requests": "for the rate limit",
    "latency": "for answers",
    "bytes": "for the line",
    "cpu": "for cores",
    "disk": "for the disk",
    "gpu": "for GPUs",
}
"""What one waits for, in words."""


def told_deployments(
    work: Work, machine: Resources, shards: int, addresses: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a work would take, as facts and in lines.

    Parameters
    ----------
    work
        What is to be done.
    machine
        One machine.
    shards
        Jobs of the array, each on such a machine.
    addresses
        Addresses of array and cluster.
    """
    from pythia_dynamics.history.scaling import deployments, fetch_seconds, worth_having

    found = deployments(work, machine, jobs=shards, addresses=addresses)
    worth = worth_having(lambda workers: fetch_seconds(work, replace(machine, workers=workers)))
    facts = {each.name: _facts(each) for each in found}
    lines = [line for each in found for line in _lines(each)]
    lines.append(
        f"worth having for the fetch on one machine: {worth.efficient} workers, by an efficiency of 50 %; from "
        f"{worth.useful} on, twice as many save less than 5 %"
    )
    return facts | {"workers_worth_having": asdict(worth)}, tuple(lines)


def _allowed(has: Resources) -> tuple[int, int]:
    """File and API requests that the Hub allows in a window."""
    return int(has.limits.requests * has.addresses), int(has.limits.api * has.addresses)


def _facts(found: Deployment) -> dict[str, Any]:
    has, cost = found.resources, found.cost
    files, api = _allowed(has)
    return {
        **{name: getattr(has, name) for name in ("workers", "cores", "machines", "addresses")},
        **asdict(cost),
        "seconds": cost.seconds,
        "limited_by": cost.limited_by,
        "cpu_hours": cost.cpu_hours,
        "requests_allowed": files,
        "api_requests_allowed": api,
        "window_seconds": has.limits.seconds,
    }


def _lines(found: Deployment) -> tuple[str, str]:
    has, cost = found.resources, found.cost
    files, api = _allowed(has)
    name = _NAMES[found.name] + (f" of {has.machines} jobs" if found.name == "array" else "")
    limit = "" if cost.limited_by is None else f"; {cost.shares[cost.limited_by]:.0%} of it {_CAUSES[cost.limited_by]}"
    return (
        f"{name}, {has.workers} workers, {has.cores} cores: fetch {app.duration(cost.fetch_seconds)}, "
        f"MSD and density {app.duration(cost.pass_seconds)}{limit}",
        f"  {cost.requests:,} file requests, {cost.api_requests:,} to the API ({files:,} and {api:,} allowed in "
        f"{app.duration(has.limits.seconds)}); disk {app.size(cost.disk_bytes)}, memory of a process "
        f"{app.size(cost.memory_bytes)}, {cost.cpu_hours:.2g} CPU hours",
    )
