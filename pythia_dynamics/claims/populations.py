"""Claims over several models: how the bifurcation shifts with size and data; and verdicts counted over seeds.

S is each model's own, of two detectors that agree; the step that the paper gives for 70M and 160M is not used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.claims.evidence import LEVEL, Evidence
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.verdict import Claim, Decision, NotTestableError, Verdict, corrected, decision_of
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.peak import SAME_STEP
from pythia_dynamics.results.folder import Results
from pythia_dynamics.tables import write_json

__all__ = [
    "FILE",
    "OVER_MODELS",
    "Population",
    "SeedCounts",
    "count_over_seeds",
    "judge_over_models",
    "own_steps",
    "save_over_models",
    "shifts_with_data",
    "shifts_with_size",
]

FILE = "claims-over-models.json"
"""File in the directory of all results."""

MIN_MODELS = 4
"""Fewest models with a bifurcation of their own: of three there are 6 orders, so p cannot fall below 1/6."""

MIN_PAIRS = 2
"""Fewest pairs of models: one difference has no spread. Six have 64 signs, so that p can be 2/64."""

LEAST_SHIFT = SAME_STEP
"""Least shift of S that counts, relative to the length of training: within 10 % two steps are the same step."""

_MAX_EXACT = 8
"""Most models whose orders are all compared: 8! = 40,320."""

_DRAWS = 9999
"""Random orders of more models. The seed is fixed, so verdicts are reproducible."""

_SEED = re.compile(r"-(?:(?:data|weight)-)?seed\d+(?=-|$)")
"""The part of a model's name that is its seed."""


@dataclass(frozen=True)
class Population:
    """The bifurcations of several models.

    Parameters
    ----------
    names
        The models that have a bifurcation of their own.
    sizes
        Number of parameters of each model, shape (n,); of the measured matrix, where not all of the models are in the
        registry.
    shift
        S relative to the last step of training, float64, shape (n,).
    without
        The models without, and why.
    """

    names: tuple[str, ...]
    sizes: NDArray[np.float64]
    shift: NDArray[np.float64]
    without: Mapping[str, str]

    @property
    def told(self) -> str:
        """The end of a reason: which models have no bifurcation of their own; empty without such a model."""
        return f"; none of its own in {', '.join(self.without)}" if self.without else ""


@dataclass(frozen=True)
class SeedCounts:
    """The verdicts on a claim over the runs of one model that differ in the seed.

    Parameters
    ----------
    model
        Name of the model, without the seed.
    claim
        Id of the claim.
    supported
        Number of runs that support it.
    decided
        Number of runs that support or refute it.
    undecided
        Number of runs in which the test decides neither.
    untestable
        Number of runs without the data.
    mean, error
        Mean effect of the runs in which there is one, and its standard error; NaN where not known.
    """

    model: str
    claim: str
    supported: int
    decided: int
    undecided: int
    untestable: int
    mean: float
    error: float

    @property
    def text(self) -> str:
        """The counts in words: ``7 of 9; 1 undecided; mean effect 0.31 ± 0.02``."""
        parts = [f"{self.supported} of {self.decided}"] if self.decided else ["none decided"]
        parts += [f"{self.undecided} undecided"] if self.undecided else []
        parts += [f"{self.untestable} not testable"] if self.untestable else []
        if math.isfinite(self.error):
            parts.append(f"mean effect {self.mean:.3g} ± {self.error:.2g}")
        return "; ".join(parts)


def own_steps(models: Sequence[SavedResults]) -> Population:
    """The bifurcation of each model from its own weights.

    Parameters
    ----------
    models
        The results of each model.
    """
    from pythia_dynamics.claims.bifurcation_step import reference_step

    found: dict[str, list[tuple[SavedResults, float]]] = {}
    without: dict[str, str] = {}
    for saved in models:
        try:
            reference = reference_step(saved)
            if reference.origin == "paper":
                raise NotTestableError("its detectors do not agree on a step")
            (msd, _) = saved.read("msd.csv", "order.csv")
        except NotTestableError as error:
            without[saved.name] = str(error)
            continue
        found.setdefault(_without_seed(saved.name), []).append((saved, reference.step / float(msd["step"][-1])))
    sizes = {name: _parameters_of(name) for name in found}
    if None in sizes.values():
        shapes = {name: runs[0][0].shape for name, runs in found.items()}
        sizes = {name: shape.rows * shape.width for name, shape in shapes.items()}
    shift = [np.mean([shift for _, shift in runs]) for runs in found.values()]
    return Population(tuple(found), np.array([*sizes.values()], float), np.array(shift, float), without)


def _parameters_of(name: str) -> int | None:
    """The number of weights of a published Pythia model by its name in the results, None for another model."""
    try:
        architecture = resolve(f"EleutherAI/{name}").architecture
    except PythiaDynError:
        return None
    return None if architecture is None else architecture.parameters


def _without_seed(name: str) -> str:
    """The name of a model without the part that is its seed: ``pythia-160m-seed3`` becomes ``pythia-160m``."""
    return _SEED.sub("", name)


def shifts_with_size(population: Population) -> Decision:
    """Whether S is later in larger models.

    Parameters
    ----------
    population
        The models.

    Raises
    ------
    NotTestableError
        For fewer than `MIN_MODELS` models with a bifurcation of their own, or all of one size.
    """
    from scipy.stats import kendalltau, theilslopes

    count, sizes = len(population.names), np.log(population.sizes)
    numbers: dict[str, Any] = {"models": count, "without": len(population.without)}
    if count < MIN_MODELS:
        some = f"{count} models" if count else "no model"
        have = "has" if count < 2 else "have"
        raise NotTestableError(f"{some} {have} a bifurcation of its own; needs {MIN_MODELS}{population.told}", numbers)
    if np.ptp(sizes) == 0:
        raise NotTestableError("all models have one size", numbers)
    orders = _orders(count)
    kendall = float(np.nan_to_num(kendalltau(sizes, population.shift).statistic))  # undefined where no S differs
    p = _p(_concordance(sizes, population.shift[orders]), _concordance(sizes, population.shift))
    slope = theilslopes(population.shift, sizes, alpha=0.95)
    span = float(np.ptp(sizes))
    # What is left of S after the slope is the noise; a shift by the least that counts is planted on it.
    noise = population.shift - slope.slope * sizes
    planted = LEAST_SHIFT * (sizes - sizes.min()) / span
    disordered = _concordance(sizes, noise[orders])
    seen = [
        _p(disordered, _concordance(sizes, noise[order] + planted)) <= LEVEL
        and theilslopes(noise[order] + planted, sizes).slope * span >= LEAST_SHIFT
        for order in _spread(orders)
    ]
    evidence = Evidence(
        "shift of S from the smallest to the largest model, relative to the length of training",
        float(slope.slope) * span,
        LEAST_SHIFT,
        null="S does not depend on the size: all orders of the models are equally likely",
        p=p,
        power=float(np.mean(seen)),
        low=float(slope.low_slope) * span,
        high=float(slope.high_slope) * span,
    )
    reason = f"S shifts by {evidence.effect:+.0%} of training over {count} models, Kendall's τ {kendall:.2f}"
    return Decision(reason.replace("-", "−") + population.told, {**numbers, "kendall_tau": kendall}, evidence)


def shifts_with_data(population: Population) -> Decision:
    """Whether S differs between the two models of a size, on the Pile and on the deduplicated Pile.

    Parameters
    ----------
    population
        The models.

    Raises
    ------
    NotTestableError
        For fewer than `MIN_PAIRS` sizes with both models.
    """
    from scipy.stats import permutation_test, t

    shift = dict(zip(population.names, population.shift, strict=True))
    pairs = {name: f"{name}-deduped" for name in shift if f"{name}-deduped" in shift}
    numbers: dict[str, Any] = {"pairs": len(pairs), "models": len(shift)}
    if len(pairs) < MIN_PAIRS:
        raise NotTestableError(
            f"{len(pairs)} sizes with a bifurcation in both of their models; {MIN_PAIRS} are needed{population.told}",
            numbers,
        )
    differences = np.array([shift[deduped] - shift[name] for name, deduped in pairs.items()])
    mean, count = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    found = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    quantile = float(t.isf(LEVEL / 2, count - 1))
    low, high = mean - quantile * error, mean + quantile * error
    power = 0.0  # where even the least p-value that these signs can have, 2/2^n, is too large
    if 2 / 2**count <= LEVEL:
        power = float(t.sf(max(quantile - LEAST_SHIFT / error, 0.0), count - 1)) if error else 1.0
    evidence = Evidence(
        "difference of S between the two models of a size, relative to the length of training",
        abs(mean),
        LEAST_SHIFT,
        null="the sign of each difference is random",
        p=float(found.pvalue),
        power=power,
        low=max(low, -high, 0.0),
        high=max(abs(low), abs(high)),
    )
    reason = f"S differs by {mean:+.0%} of training (deduplicated less standard) over {len(pairs)} pairs"
    return Decision(reason.replace("-", "−"), {**numbers, "mean_difference": mean}, evidence)


def _concordance(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Concordant less discordant pairs of x, shape (n,), and y, shape (…, n): the numerator of Kendall's τ."""
    first, second = np.triu_indices(len(x), 1)
    signs = np.sign(x[second] - x[first]) * np.sign(y[..., second] - y[..., first])
    return np.asarray(signs.sum(axis=-1).astype(np.int64))


def _orders(count: int) -> NDArray[np.intp]:
    """All orders of `count` models, the given one first; random ones for more than `_MAX_EXACT` models."""
    if count <= _MAX_EXACT:
        return np.array(list(permutations(range(count))))
    generator = np.random.default_rng(0)
    return np.array([generator.permutation(count) for _ in range(_DRAWS)])


def _p(disordered: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """The share of orders as concordant. The given order is one of all orders; to random ones it is added."""
    added = disordered.size == _DRAWS
    return float((np.count_nonzero(disordered >= found) + added) / (disordered.size + added))


def _spread(orders: NDArray[np.intp]) -> NDArray[np.intp]:
    """200 of the orders, evenly spaced: the power needs no more than its second digit."""
    return np.asarray(orders[np.linspace(0, len(orders) - 1, min(200, len(orders))).astype(int)])


OVER_MODELS: Mapping[Claim, Callable[[Population], Decision]] = {
    Claim(
        "bifurcation-shifts-with-size",
        "Larger models bifurcate later.",
        "Fig 3",
        "Kendall's rank correlation of S with the number of parameters, against all orders of the models; S of two "
        "detectors of each model that agree, relative to the length of training. The effect is the shift from the "
        "smallest to the largest model by the slope of Theil and Sen.",
        f"{LEAST_SHIFT:.0%} of training; at least {MIN_MODELS} models with a bifurcation of their own",
        "The Garden of Forking Paths",
        bifurcation=True,
        remark="The paper draws this from two sizes.",
    ): shifts_with_size,
    Claim(
        "bifurcation-shifts-with-data",
        "S differs between models that were trained on the Pile and on the deduplicated Pile.",
        "Fig 3",
        "Mean difference of S between the two models of a size, relative to the length of training, against all signs "
        "of the differences.",
        f"{LEAST_SHIFT:.0%} of training; at least {MIN_PAIRS} pairs",
        "The Garden of Forking Paths",
        bifurcation=True,
    ): shifts_with_data,
}
"""The claims over models."""


def judge_over_models(models: Sequence[SavedResults]) -> tuple[Verdict, ...]:
    """Test the claims over models; p-values are corrected for their number.

    Parameters
    ----------
    models
        The results of each model. Runs that differ in the seed count as one model, with their mean S.
    """
    population = own_steps(models)
    decisions = corrected([decision_of(test, population) for test in OVER_MODELS.values()])
    return tuple(Verdict.of(claim, decision) for claim, decision in zip(OVER_MODELS, decisions, strict=True))


def count_over_seeds(verdicts: Mapping[str, Sequence[Verdict]]) -> tuple[SeedCounts, ...]:
    """Verdicts counted over the runs of a model that differ in the seed, for models with at least two runs.

    Parameters
    ----------
    verdicts
        The verdicts by name of the run. The run without a seed in its name, the first published, is one of them.

    Returns
    -------
    tuple of SeedCounts
        One for each model and claim, in the order of `verdicts`.
    """
    runs: dict[str, list[Sequence[Verdict]]] = {}
    for name, found in verdicts.items():
        runs.setdefault(_without_seed(name), []).append(found)
    return tuple(
        _counted(model, claim, [verdict for run in found for verdict in run if verdict.claim == claim])
        for model, found in runs.items()
        if len(found) > 1
        for claim in dict.fromkeys(verdict.claim for run in found for verdict in run)
    )


def _counted(model: str, claim: str, verdicts: Sequence[Verdict]) -> SeedCounts:
    words = [verdict.verdict for verdict in verdicts]
    effects = np.array([verdict.evidence["effect"] for verdict in verdicts if verdict.evidence is not None], float)
    effects = effects[np.isfinite(effects)]
    several = len(effects) > 1
    return SeedCounts(
        model,
        claim,
        supported=words.count("supported"),
        decided=words.count("supported") + words.count("not supported"),
        undecided=words.count("undecided"),
        untestable=words.count("not testable here"),
        mean=float(effects.mean()) if several else math.nan,
        error=float(effects.std(ddof=1) / math.sqrt(len(effects))) if several else math.nan,
    )


def save_over_models(
    path: Path, models: Sequence[Results], verdicts: Sequence[Verdict], seeds: Sequence[SeedCounts]
) -> Path:
    """Write the verdicts over models as JSON, and return the path; numbers that are not finite become null.

    Parameters
    ----------
    path
        The file.
    models
        The models that were compared.
    verdicts
        The verdicts.
    seeds
        The counts over seeds.
    """
    content = {
        "models": [results.name for results in models],
        "claims": [asdict(verdict) for verdict in verdicts],
        "seeds": [asdict(counted) for counted in seeds],
    }
    return write_json(path, content)
