"""Claims about the density of the weights (Garden of Forking Paths, Fig 2): a second mode, and its symmetry."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.evidence import Evidence
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.verdict import Claim, Decision, NotTestableError, Number
from pythia_dynamics.measures.levels import ALL_DRAWS, FEW_EXTREME, FIRST_DRAWS, ONE_SIDED, TWO_SIDED, normal
from pythia_dynamics.measures.modes import (
    LASTING,
    LEAST_PROMINENCE,
    Estimate,
    Modes,
    estimate_at,
    find_modes,
    modes_at,
    modes_of,
    onset_of_modes,
)
from pythia_dynamics.measures.peak import SAME_STEP

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "DENSITY_BIMODAL",
    "SYMMETRIC_MODES",
    "density_bimodal",
    "known_density",
    "symmetric_modes",
]

_garden = partial(Claim, work="The Garden of Forking Paths")

_MIN_STEPS = 10
"""Fewest steps for an onset that lasts: three of them must follow it, and some must come before."""

_SPLIT_NOISE = 0.3
"""The split that the power is for, the least that counts: all weights move to ±a, with noise of 30 % of a. A split of a
part of the weights, beside the density of the others, is a smaller effect. Where noise can hide the second mode of one,
the claim is left open instead."""

_MAX_ASYMMETRY = 1 / 9
"""Largest asymmetry of two modes that are symmetric: an asymmetry a is a ratio of (1 + a)/(1 − a), so heights, and
distances from zero, are within a factor 1.25."""

_CHUNK = 100
"""Draws that are smoothed at once: they need at most 26 MB."""

DENSITY_BIMODAL: Claim = _garden(
    "density-bimodal",
    "The density of the weights turns bimodal at the step of the bifurcation.",
    "Fig 2",
    "Prominence of the second mode of a kernel density estimate of the exact counts, at the last step, against the "
    "noise of an estimate from as many independent weights as there are rows (at least 2,000 or all): p with "
    "Bonferroni's correction for the places of a mode, the greatest of the last tenth of the steps. Two modes must "
    "begin after the first step, at S, and last to the end. It is open where noise can hide a second mode: the density "
    "has another local maximum, and 5 % are within the 95 % interval of its prominence.",
    "5 % of the highest mode; S within 10 % of training; power for all weights at ±a with noise of 30 % of a",
    bifurcation=True,
    remark="Eq 4 integrates the weights themselves, so weights that settle at ±a make the MSD grow: a fork cannot give "
    "the fall of Fig 3.",
)
SYMMETRIC_MODES: Claim = _garden(
    "symmetric-modes",
    "The outer modes of the density lie symmetrically about zero and are equally high.",
    "Fig 2",
    "Asymmetry of the outer two modes at the last step, the larger of |m₊ + m₋| / (m₊ − m₋) of their positions and "
    "|h₊ − h₋| / (h₊ + h₋) of their heights; multinomial bootstrap of the counts of as many weights as are "
    "independent: p is the share of draws with more than the least.",
    "at most 1/9: heights, and distances from zero, within a factor 1.25",
    bifurcation=True,
)


def density_bimodal(saved: SavedResults) -> Decision:
    """The density has a second mode from some step to the end, and that step is that of the bifurcation.

    Parameters
    ----------
    saved
        The results of a model.

    Raises
    ------
    NotTestableError
        The density is not known at ten steps.
    """
    density = known_density(saved)
    steps = density["step"].to_numpy().astype(np.int64)
    if len(steps) < _MIN_STEPS:
        raise NotTestableError(f"{len(steps)} steps are too few to tell a change from an end")
    count = max(math.ceil(LASTING * len(steps)), 3)
    lasting = [modes_at(density, index) for index in range(len(steps) - count, len(steps))]
    last, since = lasting[-1], onset_of_modes(density)
    bimodal = int(np.count_nonzero(density["modes"].to_numpy() >= 2))
    numbers: dict[str, Number] = {"bimodal_since": since, "steps_with_two_modes": bimodal, "steps": len(steps)}
    numbers |= {"modes_last": last.count, "least_beyond_noise": last.least}
    numbers |= {name: float(density[name][-1]) for name in ("bimodality", "dip_p") if name in density}
    reach = TWO_SIDED * last.deviation
    margin = reach if last.count > 1 else math.nan  # a second mode that does not count may be hidden
    evidence = Evidence(
        statistic="prominence of the second mode at the end, as a share of the highest",
        effect=last.prominence,
        least=LEAST_PROMINENCE,
        null="one mode, and the noise of an estimate from the independent weights",
        p=max(modes.p for modes in lasting),
        power=_power_of_a_split(int(density.attrs["independent_weights"])),
        low=float(np.maximum(last.prominence - margin, 0.0)),
        high=last.prominence + margin,
    )
    decision = partial(Decision, numbers=numbers, evidence=evidence)
    if since is None:
        finding = (
            f"the density has {_times(last.count)} at the end; the second would have to stand out by "
            f"{last.least:.0%} of the highest, and stands out by {last.prominence:.0%}"
        )
        if bimodal:
            finding += f"; it has two modes at {bimodal} of {len(steps)} steps, but not at the last tenth of them"
        if last.may_hide_another:
            finding += "; noise of so few independent weights can hide a second mode there"
        return decision(finding, open=last.count > 1 or last.may_hide_another)
    finding = f"the density is bimodal from step {since:,} on"
    if since == steps[0]:
        return decision(f"{finding}, the first: it does not turn bimodal", refuted=True)
    same, what, known = _agreement(saved, since, float(steps[-1] - steps[0]))
    numbers |= known
    return decision(f"{finding}; {what}", refuted=same is False, open=same is None)


def _agreement(saved: SavedResults, since: int, span: float) -> tuple[bool | None, str, dict[str, Number]]:
    """Whether the onset is at S, None where S is not known; why; and the numbers.

    Where no peak of the displacement goes with it, S is the step on which detectors of the density agree.
    """
    from pythia_dynamics.claims.bifurcation_step import reference_step

    try:
        reference = reference_step(saved)
    except NotTestableError as error:
        return None, str(error), {}
    same = abs(since - reference.step) <= SAME_STEP * span
    numbers: dict[str, Number] = {"bifurcation_step": reference.step, "bifurcation_from": reference.origin}
    return same, f"compared with {reference.description}", numbers


def symmetric_modes(saved: SavedResults) -> Decision:
    """The outer two modes of the last density are symmetric in position and height.

    Parameters
    ----------
    saved
        The results of a model.

    Raises
    ------
    NotTestableError
        The density has no two modes at the end.
    """
    density = known_density(saved)
    estimate = estimate_at(density, density.sizes["step"] - 1)
    modes = None if estimate is None else modes_of(estimate)
    if estimate is None or modes is None or modes.count < 2:
        raise NotTestableError("the density has one mode at the end", {"modes_last": 1})
    drawn = _bootstrap(estimate, modes, np.random.default_rng(int(density["step"][-1])))
    signed = _asymmetries(estimate, modes, estimate.smooth[None])[0]
    position, height = (float(part) for part in signed)
    effects = np.abs(drawn).max(axis=1)
    # The interval is that of the larger asymmetry with its sign, so that it can hold 0; towards the larger mode.
    larger = int(np.argmax(np.abs(signed)))
    towards = drawn[:, larger] * (1.0 if signed[larger] >= 0 else -1.0)
    evidence = Evidence(
        statistic="asymmetry of the outer two modes at the end: the larger of position and height",
        effect=float(np.abs(signed).max()),
        least=_MAX_ASYMMETRY,
        null="an asymmetry of more than that",
        p=float((1 + np.count_nonzero(effects > _MAX_ASYMMETRY)) / (1 + len(effects))),
        power=_power_if_symmetric(drawn),
        low=float(np.quantile(towards, 0.025)),
        high=float(np.quantile(towards, 0.975)),
        at_most=True,
    )
    low, high = (float(modes.positions[index]) for index in (0, -1))
    numbers: dict[str, Number] = {"modes_last": modes.count, "lower_mode": low, "upper_mode": high}
    numbers |= {"position_asymmetry": abs(position), "height_asymmetry": abs(height), "draws": len(drawn)}
    finding = (
        f"the density has {_times(modes.count)} at the end, the outer ones at {low:.3g} and {high:.3g}, with heights "
        f"in the ratio {(1 + height) / (1 - height):.2f}"
    )
    return Decision(finding, numbers, evidence)


def _asymmetries(estimate: Estimate, modes: Modes, smooth: NDArray[np.float64]) -> NDArray[np.float64]:
    """The signed asymmetries of position and height, shape (n, 2), of densities `smooth` of shape (n, c).

    The outer modes are the highest values below the first and above the last of the low points between modes.
    """
    grid = estimate.grid
    lower, upper = smooth[:, grid < modes.basins[0]], smooth[:, grid > modes.basins[-1]]
    first = grid[lower.argmax(axis=1)]
    last = grid[grid > modes.basins[-1]][upper.argmax(axis=1)]
    left, right = lower.max(axis=1), upper.max(axis=1)
    return np.stack([(first + last) / (last - first), (right - left) / (right + left)], axis=1)


def _bootstrap(estimate: Estimate, modes: Modes, rng: np.random.Generator) -> NDArray[np.float64]:
    """The asymmetries of densities of as many weights as are independent, drawn from the counts, shape (n, 2)."""
    from scipy.ndimage import gaussian_filter1d

    share = estimate.share / estimate.share.sum()
    drawn: list[NDArray[np.float64]] = []
    found = 0
    while found < (FIRST_DRAWS if _contradicting(drawn) > FEW_EXTREME else ALL_DRAWS):
        count = min(_CHUNK, FIRST_DRAWS - found if found < FIRST_DRAWS else ALL_DRAWS - found)
        numbers = rng.multinomial(estimate.independent, share, count) / estimate.independent
        smooth = gaussian_filter1d(numbers, estimate.width, axis=1, mode="constant", truncate=6)
        drawn.append(_asymmetries(estimate, modes, smooth))
        found += count
    return np.concatenate(drawn)


def _contradicting(drawn: list[NDArray[np.float64]]) -> int:
    """How many of the first draws are not symmetric."""
    first = np.concatenate(drawn)[:FIRST_DRAWS] if drawn else np.empty((0, 2))
    return int(np.count_nonzero(np.abs(first).max(axis=1, initial=0) > _MAX_ASYMMETRY))


def _power_if_symmetric(drawn: NDArray[np.float64]) -> float:
    """The probability that modes that are symmetric support the claim.

    The draws, moved to be symmetric on average, are what would be found; p ≤ 0.05 asks for a distance of 1.645 standard
    deviations from the largest asymmetry that counts.
    """
    noise = drawn - drawn.mean(axis=0)
    return float(np.mean(np.all(np.abs(noise) <= _MAX_ASYMMETRY - ONE_SIDED * noise.std(axis=0), axis=1)))


def known_density(saved: SavedResults) -> xr.Dataset:
    """The steps of ``density.zarr`` of a model that have a number of modes, with the dip test.

    Parameters
    ----------
    saved
        The results of the model.

    Raises
    ------
    NotTestableError
        There are none, or the file is missing or older than `independent_weights`.
    """
    from pythia_dynamics.measures.dip import dip_test

    (density,) = saved.read("density.zarr")
    if "independent_weights" not in density.attrs:
        raise NotTestableError(
            f"density.zarr does not say how many weights are independent: run {saved.command_for('density.zarr')}"
        )
    if "dip_p" not in density:
        density = density.assign(dip_test(density))
    known = np.flatnonzero(np.isfinite(density["modes"].to_numpy()))
    if not len(known):
        raise NotTestableError("density.zarr has no step with finite weights")
    return density.isel(step=known)


def _power_of_a_split(independent: int) -> float:
    """The probability that a split of all weights to ±a, with noise of 30 % of a, is seen in so many weights.

    The modes of the expected density, and the noise of an estimate, are those of `find_modes`.
    """
    from scipy.special import ndtri

    fork = 1 + _SPLIT_NOISE * ndtri((np.arange(1024) + 0.5) / 1024)
    split = np.sort(np.concatenate([fork, -fork]))
    expected = find_modes(split, np.ones(len(split)), independent)
    return normal((expected.prominence - expected.least) / expected.deviation)


def _times(count: int) -> str:
    return "one mode" if count == 1 else f"{count} modes"
