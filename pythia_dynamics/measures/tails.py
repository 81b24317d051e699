"""What the tail of the eigenvalues of WᵀW is: a power law, a lognormal, or a power law with an exponential cut-off.

Clauset, Shalizi & Newman 2009, "Power-law distributions in empirical data", arXiv 0706.1062.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.history.history import History
from pythia_dynamics.measures.measure import Measure, Table
from pythia_dynamics.measures.spectrum import fit_power_law
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.dataset import Variable, ends, format_ends, step_dataset
from pythia_dynamics.sweep.frame_gram import FrameGram

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Tail", "fit_tail", "tails"]

_MIN_TAIL = 10
"""Fewest eigenvalues above the cut-off. Each alternative has two parameters, and Vuong's test is asymptotic: with fewer
points its normal distribution is not a useful approximation."""

_NODES = 400
"""Nodes of the quadrature. A smooth density that falls by e^−45 over its range is integrated to 1e-12."""

_FALL = 45.0
"""The integral ends where the log density has fallen by so much: e^−45 = 3e-20 is below the resolution of float64."""

_ITERATIONS = 200
"""Most steps of a fit. Ten are usual; flat likelihoods need up to a hundred."""

_TOLERANCE = 1e-9
"""The fit ends where the expected gain of the next step, in nats per eigenvalue, is below this."""


def tails(history: Any, *, steps: Sequence[int] | None = None, compute: Compute | None = None) -> xr.Dataset:
    """Three fits to the tail of the eigenvalues λ of WᵀW at every step, and how they compare.

    The tail is that of `spectrum`: the eigenvalues above the cut-off x for which a power law has the least
    Kolmogorov-Smirnov distance. With y = ln(λ/x) ≥ 0, each fit is the maximum of the likelihood over all densities

    * power law: λ^−α, an exponential density of y with the rate α − 1;
    * lognormal above x: exp(−a y − b y²) in y, b ≥ 0, with μ = ln x − a/2b and σ² = 1/2b;
    * truncated power law above x: λ^−α exp(−rate λ), rate ≥ 0.

    Both alternatives contain the power law, as the limit b → 0 and at rate 0, so neither has a lower likelihood. With
    ℓ_i the difference of log densities of eigenvalue i, power law minus alternative, R = Σ ℓ_i ≤ 0. It is given as
    R / √(n var ℓ), Vuong's normalised ratio: below −2, say, the alternative is better. It is 0 where the best
    alternative is the power law itself.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …, d).
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
    compute : Compute, optional
        How to compute; the precision is as in `spectrum`.

    Returns
    -------
    xarray.Dataset
        Over `step`: `alpha`, `cutoff` x in weight², `tail` (the number n of eigenvalues ≥ x) and `distance` of the
        power law; `lognormal_mu`, `lognormal_sigma` (of ln λ; NaN where b = 0), `lognormal_ratio`, and `lognormal_p`,
        Vuong's two-sided p-value for two laws that are equally near to the truth; `truncated_alpha`, `truncated_rate`
        in 1/weight², `truncated_ratio`, and `truncated_p`, the likelihood-ratio p-value ½ P(χ²₁ > −2R) for a parameter
        at the end of its range. NaN at missing steps, at steps with weights that are not finite, without a power law,
        and, for the alternatives, where the tail has fewer than ten eigenvalues.

    Raises
    ------
    PythiaDynError
        The squares of the weights are not finite.
    """
    return TAILS(history, steps=steps, compute=compute)


@dataclass(frozen=True)
class Tail:
    """The fits to one tail. The fields are the variables of the dataset of `tails`."""

    alpha: float
    cutoff: float = np.nan
    tail: float = np.nan
    distance: float = np.nan
    lognormal_mu: float = np.nan
    lognormal_sigma: float = np.nan
    lognormal_ratio: float = np.nan
    lognormal_p: float = np.nan
    truncated_alpha: float = np.nan
    truncated_rate: float = np.nan
    truncated_ratio: float = np.nan
    truncated_p: float = np.nan


_LABELS = {
    "alpha": ("power-law exponent of the eigenvalue density", "1"),
    "cutoff": ("least eigenvalue of the tail", "weight^2"),
    "tail": ("eigenvalues in the tail", "1"),
    "distance": ("Kolmogorov-Smirnov distance of the power law", "1"),
    "lognormal_mu": ("μ of the lognormal, of ln(λ / weight²)", "1"),
    "lognormal_sigma": ("σ of the lognormal", "1"),
    "lognormal_ratio": ("normalised log-likelihood ratio, power law against lognormal", "1"),
    "lognormal_p": ("p-value of Vuong's test, power law against lognormal", "1"),
    "truncated_alpha": ("exponent of the truncated power law", "1"),
    "truncated_rate": ("rate of the exponential cut-off", "weight^-2"),
    "truncated_ratio": ("normalised log-likelihood ratio, power law against truncated power law", "1"),
    "truncated_p": ("p-value of the likelihood ratio, power law against truncated power law", "1"),
}


def fit_tail(eigenvalues: NDArray[np.float64]) -> Tail:
    """Fit the three laws to the tail of a set of eigenvalues.

    Parameters
    ----------
    eigenvalues
        Shape (n,), in any order; those that are not positive are left out.

    Returns
    -------
    Tail
    """
    from scipy.special import erfc

    law = fit_power_law(eigenvalues)
    if not np.isfinite(law.alpha):
        return Tail(np.nan)
    tail = np.sort(eigenvalues[eigenvalues >= law.cutoff])
    count, y = len(tail), np.log(tail / law.cutoff)
    known = {"alpha": law.alpha, "cutoff": law.cutoff, "tail": float(count), "distance": law.distance}
    if count < _MIN_TAIL:
        return Tail(**known)
    exponential = np.log(law.alpha - 1) - (law.alpha - 1) * y
    a, b, normal = _fit(y, np.square, beyond=2 / (law.alpha - 1) ** 2)
    known |= {
        "lognormal_mu": np.log(law.cutoff) - a / (2 * b) if b > 0 else np.nan,
        "lognormal_sigma": (2 * b) ** -0.5 if b > 0 else np.nan,
    }
    beyond = 1 / ((law.alpha - 1) * (law.alpha - 2)) if law.alpha > 2 else np.inf
    shape, rate, truncated = _fit(y, _exponential_rest, beyond=beyond)  # rate λ = rate (1 + y + rest)
    known |= {"truncated_alpha": 1 + shape - rate, "truncated_rate": rate / law.cutoff}
    for name, second, log_density in (("lognormal", b, normal), ("truncated", rate, truncated)):
        difference = exponential - log_density
        ratio, spread = float(difference.sum()), float(difference.std())
        is_equal = second == 0 or ratio >= 0 or spread == 0  # the alternative is the power law, but for rounding
        normalised = 0.0 if is_equal else ratio / (np.sqrt(count) * spread)
        by_vuong, by_ratio = float(erfc(-normalised / np.sqrt(2))), 0.5 * float(erfc(np.sqrt(max(-ratio, 0))))
        known[f"{name}_ratio"] = normalised
        known[f"{name}_p"] = 1.0 if is_equal else by_vuong if name == "lognormal" else by_ratio
    return Tail(**known)


def _exponential_rest(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^y − 1 − y. Beside y it is a better second statistic than e^y, which is almost linear where y is small."""
    return np.where(y < 1e-4, y * y * (0.5 + y / 6), np.expm1(y) - y)


def _fit(
    y: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], *, beyond: float
) -> tuple[float, float, NDArray[np.float64]]:
    """The maximum of the likelihood of exp(−a y − c T(y)) over y ≥ 0, for a of either sign and c ≥ 0.

    An exponential family, whose negative log likelihood is convex in (a, c): there is one maximum. It is at c = 0, an
    exponential density, if and only if the mean of T is not below its expectation there, `beyond`. Otherwise Fisher
    scoring finds it, in a and ln c; at the maximum the Fisher information is the Hessian, so that it converges fast.

    Parameters
    ----------
    y
        The sample, shape (n,), not negative and not all zero.
    statistic
        T, convex and increasing on y ≥ 0.
    beyond
        The expectation of T for the exponential density with the mean of the sample.

    Returns
    -------
    tuple
        a, c, and the log density at each y, shape (n,).
    """
    first, second = float(y.mean()), float(statistic(y).mean())
    if second >= beyond:
        return 1 / first, 0.0, -np.log(first) - y / first

    def normalise(a: float, log_c: float) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """ln Z, the expectations of y and T, and their covariance."""
        grid, weights = _grid(lambda x: -a * x - np.exp(log_c) * statistic(x), float(y[-1]))
        log_density = -a * grid - np.exp(log_c) * statistic(grid)
        peak = float(log_density.max())
        mass = weights * np.exp(log_density - peak)
        total = float(mass.sum())
        stacked = np.array([grid, statistic(grid)])
        mean = stacked @ mass / total
        centred = stacked - mean[:, None]
        return peak + np.log(total), mean, (centred * mass) @ centred.T / total

    def cost(a: float, log_c: float) -> float:
        return normalise(a, log_c)[0] + a * first + float(np.exp(log_c)) * second

    # From the exponential density, with a weak second term.
    a, log_c = 1 / first, float(np.log(0.1 / second))
    for _ in range(_ITERATIONS):
        log_z, mean, covariance = normalise(a, log_c)
        c = float(np.exp(log_c))
        here = log_z + a * first + c * second
        deviations = np.sqrt(np.diag(covariance))
        correlation = covariance / np.outer(deviations, deviations)
        correlation[np.diag_indices(2)] += 1e-10  # y and T can be almost proportional
        score = (np.array([first, second]) - mean) / deviations
        units = deviations * np.array([1, c])
        step = -np.linalg.solve(correlation, score)
        # ln c changes by 2 at most; a is then the best for that c, in the same quadratic model.
        step[1] = np.clip(step[1], -2 * units[1], 2 * units[1])
        step[0] = -(score[0] + correlation[0, 1] * step[1]) / correlation[0, 0]
        move, gradient = step / units, score * units
        if -gradient @ move < _TOLERANCE:
            break
        size = 1.0
        while size > 1e-6 and cost(a + size * move[0], log_c + size * move[1]) > here + 1e-4 * size * gradient @ move:
            size /= 2
        a, log_c = a + size * move[0], log_c + size * move[1]
    log_z = normalise(a, log_c)[0]
    return a, float(np.exp(log_c)), -a * y - np.exp(log_c) * statistic(y) - log_z


def _grid(
    log_density: Callable[[NDArray[np.float64]], NDArray[np.float64]], length: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights of an integral over y ≥ 0 of a log-concave density, where it is not negligible."""
    nodes, weights = _LEGENDRE
    with np.errstate(over="ignore"):
        points = np.append(0.0, length * 2.0 ** np.arange(-30, 40))
        values = log_density(points)
        peak = float(np.nanmax(values))
        above = np.flatnonzero(values > peak - _FALL)
        low, high = points[max(above[0] - 1, 0)], points[min(above[-1] + 1, len(points) - 1)]
    for _ in range(12):  # bisect the upper end, so that the nodes are where the density is
        middle = (points[above[-1]] + high) / 2
        if log_density(np.array([middle]))[0] > peak - _FALL:
            break
        high = middle
    return low + (high - low) * nodes, (high - low) * weights


_LEGENDRE = tuple(
    (part + shift) / 2 for part, shift in zip(np.polynomial.legendre.leggauss(_NODES), (1, 0), strict=True)
)


def _frame_tail(frame: FrameGram) -> Tail:
    """The fits of one step, to the eigenvalues that are resolved."""
    eigenvalues = frame.eigenvalues
    return fit_tail(eigenvalues[eigenvalues > frame.resolution * max(eigenvalues[0], 0)])


def _finish(history: History, rows: Sequence[Tail | None]) -> xr.Dataset:
    at = np.array([i for i, row in enumerate(rows) if row is not None], dtype=np.intp)
    found = [row for row in rows if row is not None]
    variables = {}
    for field in fields(Tail):
        label, units = _LABELS[field.name]
        variables[field.name] = Variable([getattr(row, field.name) for row in found], label, units)
    return step_dataset(history, variables, at=at)


def _summarise(dataset: xr.Dataset) -> tuple[str, dict[str, Any]]:
    facts: dict[str, Any] = {"alpha": ends(dataset["alpha"]), "tail": ends(dataset["tail"])}
    sentence = f"power law α {format_ends(facts['alpha'])}"
    for name, words in (("lognormal", "a lognormal"), ("truncated", "a truncated power law")):
        p = dataset[f"{name}_p"].to_numpy()
        compared = int(np.isfinite(p).sum())
        better = int((p[np.isfinite(p)] <= 0.05).sum())
        facts[f"{name}_better"], facts[f"{name}_compared"] = better, compared
        sentence += f"; {words} fits better at {better:,} of {compared:,} steps (p ≤ 0.05)"
    return sentence, facts


TAILS = Measure(
    name="tails",
    title="Tail of the spectrum",
    source="Clauset, Shalizi & Newman 2009; Vuong 1989",
    function=tails,
    per_step=lambda: _frame_tail,
    finish=_finish,
    tables={"tails": Table(("step", *_LABELS))},  # too wide for a printed page of the report
    summarise=_summarise,
)
