"""The step S of the bifurcation, at which every claim about it looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from pythia_dynamics.claims.saved import SavedResults, paper_bifurcation
from pythia_dynamics.claims.verdict import NotTestableError
from pythia_dynamics.errors import FormatError, PythiaDynError
from pythia_dynamics.measures.bifurcation import Bifurcation, bifurcation
from pythia_dynamics.measures.peak import PeakTest, peak_tests
from pythia_dynamics.measures.walks import Motion

__all__ = ["Origin", "ReferenceStep", "bifurcation_of", "motion_of", "peaks_of", "reference_step"]

Origin = Literal["detectors", "paper"]

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class ReferenceStep:
    """The step at which the claims about a bifurcation look.

    Parameters
    ----------
    step
        The step.
    origin
        Its source: ``detectors`` that agree on it (see `bifurcation`), or the ``paper``.
    detectors
        Names of the detectors; empty for the paper's step.
    """

    step: int
    origin: Origin
    detectors: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """The step and its source in words."""
        if self.origin == "detectors":
            return f"step {self.step:,} (where {', '.join(self.detectors)} agree)"
        return f"step {self.step:,} (the paper's bifurcation; these results have none of their own)"


def reference_step(saved: SavedResults) -> ReferenceStep:
    """The step S at which two detectors agree, one of them of the density (`bifurcation`); else the paper's step.

    Parameters
    ----------
    saved
        The results of one model.

    Returns
    -------
    ReferenceStep
        The step.

    Raises
    ------
    NotTestableError
        Where there is no such step and the paper gives none inside the steps of the history.
    """
    (msd,) = saved.read("msd.csv")
    found = bifurcation_of(saved)
    if found is not None and found.step is not None:
        return ReferenceStep(found.step, "detectors", found.origin)
    paper = paper_bifurcation(saved.name)
    if paper is not None and msd["step"][0] < paper < msd["step"][-1]:
        return ReferenceStep(paper, "paper")
    why = f"moments.csv is missing: run {saved.command_for('moments.csv')}" if found is None else found.reason
    raise NotTestableError(f"there is no step to look at: {why}; the paper names a step for 70M and 160M only")


def bifurcation_of(saved: SavedResults) -> Bifurcation | None:
    """The bifurcation of saved results, as in ``bifurcation.json``; None without ``msd.csv`` and ``moments.csv``.

    Parameters
    ----------
    saved
        The results of one model.
    """

    def compute() -> Bifurcation | None:
        msd, moments = saved.find("msd.csv"), saved.find("moments.csv")
        if msd is None or moments is None:
            return None
        try:
            peaks = peaks_of(saved)
        except NotTestableError:  # the detectors of a peak then say why
            peaks = None
        try:
            density = saved.find("density.zarr")
            return bifurcation(msd, moments if density is None else density, saved.find("two_time.zarr"), peaks=peaks)
        except PythiaDynError as error:
            raise NotTestableError(str(error)) from error

    return saved.once("bifurcation", compute)


def peaks_of(saved: SavedResults) -> Mapping[str, PeakTest]:
    """The tests of the peaks of the displacement, by name of the detector (`peak_tests`).

    Raises `NotTestableError` where a file is missing, or too short.
    """
    msd, pairs = saved.read("msd.csv", "two_time.zarr")
    return saved.once("peaks", lambda: _tested(lambda: peak_tests(msd, pairs)))


def motion_of(saved: SavedResults) -> Motion:
    """The motion of the weights. Raises `NotTestableError` where ``two_time.zarr`` is missing or has no motion."""
    (pairs,) = saved.read("two_time.zarr")
    return saved.once("motion", lambda: _tested(lambda: Motion.of(pairs)))


def _tested(compute: Callable[[], _Found]) -> _Found:
    """A result; an error that is no damaged file says why the data cannot decide."""
    try:
        return compute()
    except (FormatError, NotTestableError):
        raise
    except PythiaDynError as error:
        raise NotTestableError(str(error)) from error
