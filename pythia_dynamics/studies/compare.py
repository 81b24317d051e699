"""Two runs, two checkpoints or two tensors compared, beside independent weights and beside the noise floor of seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.registry import parse_steps
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import cached, open_history
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.comparison import (
    BETWEEN,
    LEADING,
    STATISTICS,
    WITHIN,
    FrameSummary,
    compare_summaries,
    independent,
    summarise_frame,
)
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.studies.subjects import NO_FLOOR, Side, floor_names, open_side
from pythia_dynamics.sweep.frames import warn_nonfinite

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["QUANTILES", "compare"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of the angles of rows: the median, the middle half, and all but a tenth."""

_DEGREES = 180
"""Bins of the angles of rows: one a degree."""

_BINS = 160
"""Bins of a density: as many as a panel shows apart."""

_TAIL = 1e-4
"""Share of the weights that may lie beyond either end of the bins, so that one large weight does not put all others
into one bin."""

_REFERENCES = ("angle", "angle_sd", "row_angle", "row_angle_sd", "displacement", "relative_displacement", "overlap")
"""What `independent` gives, as variables ``<name>_independent``."""


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two runs whose difference is part of the floor: the first at the step of A, the second at that of B."""

    kind: str
    first: History
    second: History

    @property
    def label(self) -> str:
        """The two runs, or the one run."""
        one, other = self.first.name, self.second.name
        return one if one == other else f"{one} - {other}"


class _Reader:
    """Reads each frame of a step once, and collects the frames that are not finite."""

    def __init__(self, leading: int) -> None:
        self._leading = leading
        self._known: dict[tuple[int, int], FrameSummary | None] = {}
        self._nonfinite: dict[int, tuple[History, set[int]]] = {}

    def read(self, history: History, step: int) -> FrameSummary | None:
        """The frame of a step; None where it is missing or not finite."""
        key = id(history), step
        if key not in self._known:
            self._known[key] = None
            found = np.flatnonzero((history.steps == step) & history.present)
            if len(found):
                self._known[key] = summarise_frame(history, int(found[0]), leading=self._leading)
                if self._known[key] is None:
                    self._nonfinite.setdefault(key[0], (history, set()))[1].add(step)
        return self._known[key]

    def forget(self) -> None:
        """Let go of the frames of a step."""
        self._known.clear()

    def warn(self) -> None:
        """Issue a `NonFiniteWarning` for each run with weights that are not finite."""
        for history, steps in self._nonfinite.values():
            warn_nonfinite(history, sorted(steps))


def compare(
    a: Any,
    b: Any,
    *,
    floor: str | Sequence[str] = (),
    steps: str | None = None,
    leading: int = LEADING,
    cache: Path | str | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """Compare two runs, two checkpoints or two tensors of models in the cache.

    ``compare("160m-seed1@143000", "160m-seed2@143000")``, ``compare("70m@1000", "70m@143000:embedding")``

    Parameters
    ----------
    a, b
        ``MODEL[@STEP][:TENSOR]``, see `pythia_dynamics.studies.subjects.parse_subject`; a `History`, which is a
        checkpoint if it has one step; or an array (T, …). Both have a step or neither: two runs are compared at every
        common step.
    floor
        Globs of stored runs between which the noise floor is taken, such as ``"160m-seed*"``; ``"none"`` for no floor.
        Default: the other stored seeds of the same suite, by the names of the models. A and B are never part of it.
    steps
        The steps at which two runs are compared, as on the command line. Default: all common ones.
    leading
        Number k of leading right singular vectors, at least 1.
    cache
        Directory of the stores.
    progress
        Called with the number of steps that are done and their total.

    Returns
    -------
    xarray.Dataset
        Over `step` (of A) with the coordinate `step_b`, float64:

        * the `STATISTICS` (angle, displacement, ks …), NaN where a step is missing, not finite, or where two shapes
          have no such statistic (``attrs["not_compared"]`` says it);
        * ``<name>_independent``: what independent directions of the same norms give, see `independent`;
        * ``<name>_floor`` over `pair` as well: the same statistic between seeds. The coordinate `kind` is ``between
          seeds``; where A and B are two steps of one run, also ``other seeds, same steps``;
        * ``norm`` over `side` (``a``, ``b``), ``row_angle_quantile`` over `quantile`.

        Of the last step at which both are finite (``attrs["profile_step"]``): ``density`` over `side` and `weight`,
        ``singular_value`` over `side` and `index`, ``row_angle_count`` over `degree`.

        ``attrs["floor"]`` says which pairs the floor has, or why there is none; ``attrs["missing"]`` the reasons of
        missing steps.

    Warns
    -----
    NonFiniteWarning
        In one line for each run with weights that are not finite; they give NaN.

    Raises
    ------
    UnknownNameError
        There is no such model, tensor, step or pattern.
    PythiaDynError
        One of the two has a step and the other has none, two runs have no common step, or `leading` is below 1.
    """
    if leading < 1:
        raise PythiaDynError(f"leading must be at least 1 singular vector, not {leading}")
    first, second = open_side(a, cache), open_side(b, cache)
    at = _steps(first, second, steps)
    patterns = (floor,) if isinstance(floor, str) else tuple(floor)
    pairs, floor_text = _floor(first, second, patterns, cache)
    reader = _Reader(leading)
    shape = len(at)
    found = {name: np.full(shape, np.nan) for name in STATISTICS}
    reference = {name: np.full(shape, np.nan) for name in _REFERENCES}
    norms, quantiles = np.full((shape, 2), np.nan), np.full((shape, len(QUANTILES)), np.nan)
    of_floor = {name: np.full((len(pairs), shape), np.nan) for name in STATISTICS}
    profile: tuple[int, FrameSummary, FrameSummary, NDArray[np.float64]] | None = None
    progress(0, shape)
    for index, (step, other) in enumerate(at):
        one, two = reader.read(first.history, step), reader.read(second.history, other)
        for side, summary in enumerate((one, two)):
            norms[index, side] = np.nan if summary is None else summary.frobenius_norm
        if one is not None and two is not None:
            comparison = compare_summaries(one, two)
            for name, value in comparison.statistics.items():
                found[name][index] = value
            for name, value in independent(one, two).items():
                reference[name][index] = value
            known = comparison.row_angles[np.isfinite(comparison.row_angles)]
            quantiles[index] = np.quantile(known, QUANTILES) if len(known) else np.nan
            profile = (index, one, two, known)
        for row, pair in enumerate(pairs):
            one, two = reader.read(pair.first, step), reader.read(pair.second, other)
            if one is not None and two is not None:
                for name, value in compare_summaries(one, two).statistics.items():
                    of_floor[name][row, index] = value
        reader.forget()
        progress(index + 1, shape)
    reader.warn()
    data: dict[str, Any] = {}
    for name, statistic in STATISTICS.items():
        told = {"long_name": statistic.title, "units": statistic.units}
        data[name] = ("step", found[name], told)
        if pairs:
            data[f"{name}_floor"] = (("pair", "step"), of_floor[name], told)
        for key in (name, f"{name}_sd"):
            if key in reference:
                data[f"{key}_independent"] = ("step", reference[key], told)
    data["norm"] = (("step", "side"), norms, {"long_name": "norm", "units": "weight"})
    data["row_angle_quantile"] = (
        ("step", "quantile"),
        quantiles,
        {"long_name": "angle of corresponding rows", "units": "degree"},
    )
    data |= _profile(profile)
    return _dataset(data, first, second, at, pairs).assign_attrs(
        floor=floor_text,
        leading=leading,
        **({} if profile is None else {"profile_step": at[profile[0]][0], "profile_step_b": at[profile[0]][1]}),
    )


def _steps(first: Side, second: Side, steps: str | None) -> list[tuple[int, int]]:
    """The step of A and the step of B of each comparison."""
    if (first.step is None) != (second.step is None):
        run, checkpoint = (first, second) if first.step is None else (second, first)
        raise PythiaDynError(
            f"{checkpoint.label} is a checkpoint and {run.label} a run: give {run.label} a step "
            f"({run.history.name}@{checkpoint.step}), or neither"
        )
    if first.step is not None and second.step is not None:
        if steps is not None:
            raise PythiaDynError("steps are of two runs; leave them out where both have a step of their own")
        return [(first.step, second.step)]
    common = np.intersect1d(first.history.steps, second.history.steps)
    chosen = None if steps is None else parse_steps(steps)
    if chosen is not None:
        first.history.select(chosen)  # a step that is not there is named
        second.history.select(chosen)
        common = np.array(chosen)
    if not len(common):
        raise PythiaDynError(f"{first.label} and {second.label} have no common step; give both a step: MODEL@STEP")
    return [(step, step) for step in common.tolist()]


def _floor(first: Side, second: Side, patterns: Sequence[str], cache: Path | str | None) -> tuple[list[_Pair], str]:
    """The pairs of runs of the floor, and in words what they are."""
    if NO_FLOOR in patterns:
        return [], "no floor asked for"
    names = floor_names(first.history.name, second.history.name, cached(cache), patterns)
    opened: dict[str, tuple[History, History, str]] = {}
    left_out: list[str] = []
    for name, family in names:
        try:
            one = _like(first.history, name, cache)
            same = second.history.tensor == first.history.tensor
            opened[name] = one, one if same else _like(second.history, name, cache), family
        except PythiaDynError as error:
            left_out.append(f"{name} ({error})")
    is_ordered = first.step != second.step or first.history.tensor != second.history.tensor
    pairs = [
        _Pair(BETWEEN, opened[one][0], opened[other][1])
        for one, other in (itertools.permutations if is_ordered else itertools.combinations)(opened, 2)
        if opened[one][2] == opened[other][2]
    ]
    is_one_run = first.history.name == second.history.name
    if is_one_run and is_ordered:
        pairs += [_Pair(WITHIN, one, other) for one, other, _ in opened.values()]
    left = f"; left out: {'; '.join(left_out)}" if left_out else ""
    if not pairs:
        few = f"only {next(iter(opened))} beside the compared runs: no floor" if opened else ""
        return [], (few or "no seeds in the cache: no floor") + left
    count = f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'}"
    return pairs, f"{len(opened)} runs ({', '.join(opened)}), {count}{left}"


def _like(history: History, name: str, cache: Path | str | None) -> History:
    """The tensor of another run that corresponds to that of a history. Raises `PythiaDynError` for another shape."""
    roles = history.provenance.get("roles") or [history.tensor]
    found = open_history(name, str(roles[0]), cache=cache)
    if found.frame_shape != history.frame_shape:
        raise PythiaDynError(f"{found.tensor} has shape {found.frame_shape}, not {history.frame_shape}")
    return found


def _profile(found: tuple[int, FrameSummary, FrameSummary, NDArray[np.float64]] | None) -> dict[str, Any]:
    """Densities, singular values and angles of rows of the last step."""
    if found is None:
        return {}
    _, one, two, angles = found
    data: dict[str, Any] = {}
    values = np.full((2, max(len(one.singular_values), len(two.singular_values))), np.nan)
    for row, each in zip(values, (one, two), strict=True):
        row[: len(each.singular_values)] = each.singular_values
    data["singular_value"] = (("side", "index"), values, {"long_name": "singular value", "units": "weight"})
    if len(one.values) and len(two.values):
        low = min(each.values[np.searchsorted(each.cumulative, _TAIL)] for each in (one, two))
        high = max(each.values[np.searchsorted(each.cumulative, 1 - _TAIL)] for each in (one, two))
        if low == high:
            low, high = low - (abs(low) or 1), high + (abs(high) or 1)
        borders = np.linspace(low, high, _BINS + 1)
        density = [
            np.histogram(each.values, borders, weights=np.diff(each.cumulative, prepend=0))[0] / np.diff(borders)
            for each in (one, two)
        ]
        data["density"] = (("side", "weight"), np.array(density), {"long_name": "density", "units": "1/weight"})
        data["weight"] = ("weight", (borders[1:] + borders[:-1]) / 2, {"units": "weight"})
    if len(angles):
        counts = np.histogram(angles, _DEGREES, (0, 180))[0]
        data["row_angle_count"] = ("degree", counts, {"long_name": "rows", "units": "1"})
        data["degree"] = ("degree", np.arange(_DEGREES) + 0.5, {"units": "degree"})
    return data


def _dataset(
    data: Mapping[str, Any], first: Side, second: Side, at: Sequence[tuple[int, int]], pairs: Sequence[_Pair]
) -> xr.Dataset:
    """The dataset with its coordinates, and with what is known of the two sides."""
    import xarray as xr

    step, other = (np.array(each, np.int64) for each in zip(*at, strict=True))
    coords: dict[str, Any] = {"step": step, "step_b": ("step", other), "side": ["a", "b"], "quantile": [*QUANTILES]}
    coords |= {name: data[name] for name in ("weight", "degree") if name in data}
    if pairs:
        coords["pair"] = [pair.label for pair in pairs]
        coords["kind"] = ("pair", [pair.kind for pair in pairs])
    attrs: dict[str, Any] = {"a": first.label, "b": second.label}
    attrs["compared"] = "runs" if first.step is None else "checkpoints"
    sides = {"a": (first.history, step), "b": (second.history, other)}
    for side, (history, steps) in sides.items():
        attrs[f"source_{side}"] = str(history.provenance.get("source", ""))
        attrs[f"tensor_{side}"], attrs[f"shape_{side}"] = history.tensor, list(history.frame_shape)
        commits = history.provenance.get("commits", {})
        attrs[f"commits_{side}"] = {str(each): commits.get(str(each)) for each in steps.tolist()} if commits else {}
        missing = {str(each): history.missing[each] for each in steps.tolist() if each in history.missing}
        attrs[f"missing_{side}"] = missing
    shapes = [history.frame_shape for history, _ in sides.values()]
    attrs["not_compared"] = "" if shapes[0] == shapes[1] else _not_compared(*shapes)
    return xr.Dataset({name: each for name, each in data.items() if name not in coords}, coords, attrs)


def _not_compared(first: tuple[int, ...], second: tuple[int, ...]) -> str:
    """What two shapes do not allow, in words."""
    found = f"shapes {first} and {second}: no angles, displacement or distance of singular values"
    return found if first[-1] == second[-1] else f"{found}, and no overlap of directions of different lengths"
