"""Curves of known truth: losses over b, perplexities and ranks over steps, for the calibration of their claims.

The noise has the size of real curves: 0.003 to 0.03 nats for a loss, 3 % for a perplexity over a few hundred sentences,
2 % for a rank over several draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.motions import BIFURCATION, Array, grid_steps
from pythia_dynamics.claims.truths import SMALL

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["CURVE_TRUTHS", "CurveTruth", "Noise", "noise"]

NoiseKind = Literal["white", "ar6", "ar9", "walk"]

_LOSS_CLAIMS = frozenset({"slope-changes", "loss-falls-with-b"})
_DROPS = frozenset({"perplexity-drops", "unmasking-drops"})
_RANK = frozenset({"rank-shrinks"})
_SHARPER = frozenset({"sharper-at-the-end"})

_FIRST_LOSS, _LAST_LOSS = 4.2, 1.6
"""Losses of a character-level model, in nats: about those of the blog at the first and the last step."""

_FIRST_B, _LAST_B = 0.05, 0.3
"""Range of the order parameter, about that of the blog's models."""

_LOSS_WIDTH, _LOSS_SIZE = 64, 8192
"""d and N of the head that has this b."""

_PERPLEXITY_NOISE, _RANK_NOISE = 0.03, 0.02


@dataclass(frozen=True)
class Noise:
    """Noise of a curve.

    Parameters
    ----------
    kind
        ``white``; ``ar6`` and ``ar9``, with autocorrelation 0.6 and 0.9 between neighbouring records; or ``walk``, a
        random walk.
    size
        Standard deviation. Of a walk, that of one step times √10, so that it moves by `size` in ten records.
    """

    kind: NoiseKind
    size: float

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Values of shape (count,)."""
        values: Array = noise(rng, count, self.kind) * self.size
        return values


def noise(rng: np.random.Generator, count: int, kind: NoiseKind) -> Array:
    """Noise of unit size and of a `kind` of `Noise`, shape (count,)."""
    from scipy.signal import lfilter

    white = rng.standard_normal(count)
    if kind == "white":
        return white
    if kind == "walk":
        return np.cumsum(white) / math.sqrt(10)
    memory = {"ar6": 0.6, "ar9": 0.9}[kind]
    white[1:] *= math.sqrt(1 - memory**2)
    process: Array = lfilter([1], [1, -memory], white)
    return process


@dataclass(frozen=True)
class CurveTruth:
    """A kind of curve, and what is true of it.

    Parameters
    ----------
    name
        Short name.
    description
        The curve in words.
    draw
        Draws the tables by file name, from a generator and the steps (T,).
    about
        Ids of the claims that read this curve. Other claims are not judged on it.
    effects
        Those that are true of it.
    open
        Those that are neither asserted to be true nor to be false. The others of `about` are false.
    model
        Name of the model as which the curve is judged.
    extra
        Whether it is a further truth, which tests use and which is not part of the table of the calibration.
    """

    name: str
    description: str
    draw: Callable[[np.random.Generator, NDArray[np.int64]], Mapping[str, xr.Dataset]]
    about: frozenset[str]
    effects: frozenset[str] = frozenset()
    open: frozenset[str] = frozenset()
    model: str = SMALL
    extra: bool = False

    def tables(self, seed: int, records: int = 143) -> Mapping[str, xr.Dataset]:
        """Draw one curve.

        Parameters
        ----------
        seed
            Seed of the generator. The same seed gives the same curve.
        records
            T, the number of steps from 1,000 to 143,000.

        Returns
        -------
        mapping of str to xarray.Dataset
            What `SavedResults.in_memory` takes: a table by its file name.
        """
        return self.draw(np.random.default_rng(seed), grid_steps(records))


# -- losses over b --------------------------------------------------------------------------------------------


def _order_table(steps: NDArray[np.int64], shape: Callable[[Array], Array], errors: Array) -> Mapping[str, xr.Dataset]:
    """``order.csv`` with a loss that is a function of b. `shape` maps 0 … 1, the place of b in its range, to 1 … 0."""
    import xarray as xr

    time = (steps - steps[0]) / float(steps[-1] - steps[0])
    place = (1 - np.exp(-3 * time)) / (1 - math.exp(-3))  # b grows fast first, as in the blog
    b = _FIRST_B + (_LAST_B - _FIRST_B) * place
    loss = _LAST_LOSS + (_FIRST_LOSS - _LAST_LOSS) * shape(place) + errors
    norm = b * _LOSS_WIDTH
    columns = {"frobenius_norm": norm, "order_parameter": b, "rms": norm / math.sqrt(_LOSS_SIZE), "loss": loss}
    return {"order.csv": xr.Dataset({name: ("step", column) for name, column in columns.items()}, {"step": steps})}


def _exponential(u: Array) -> Array:
    return (np.exp(-4 * u) - math.exp(-4)) / (1 - math.exp(-4))


def _power(u: Array) -> Array:
    """1/b over its range, from 1 to 0."""
    b = _FIRST_B + (_LAST_B - _FIRST_B) * u
    return (1 / b - 1 / _LAST_B) / (1 / _FIRST_B - 1 / _LAST_B)


def _quadratic(u: Array) -> Array:
    curve: Array = (1 - u) ** 2
    return curve


def _logistic(u: Array) -> Array:
    """The convex half of a logistic curve."""
    curve: Array = (1 / (1 + np.exp(6 * u)) - 1 / (1 + math.exp(6))) / (0.5 - 1 / (1 + math.exp(6)))
    return curve


_SMOOTH: Mapping[str, Callable[[Array], Array]] = {
    "exponential": _exponential,
    "power": _power,
    "quadratic": _quadratic,
    "logistic": _logistic,
}


def _kink(factor: float) -> Callable[[Array], Array]:
    """Two straight lines that meet in the middle of b; the second is `factor` times as steep as the first."""
    first = 1 / (0.5 + 0.5 * factor)

    def shape(u: Array) -> Array:
        return 1 - first * (np.minimum(u, 0.5) + factor * np.maximum(u - 0.5, 0))

    return shape


def _rising(share: float) -> Callable[[Array], Array]:
    """A smooth fall, and a rise by `share` of the range over the last third of b."""

    def shape(u: Array) -> Array:
        return _exponential(np.minimum(1.5 * u, 1)) + share * np.maximum(3 * u - 2, 0)

    return shape


def _loss_truth(
    name: str,
    description: str,
    shape: Callable[[Array], Array],
    errors: Noise,
    effects: frozenset[str],
    unclear: frozenset[str] = frozenset(),
    extra: bool = False,
) -> CurveTruth:
    def draw(rng: np.random.Generator, steps: NDArray[np.int64]) -> Mapping[str, xr.Dataset]:
        return _order_table(steps, shape, errors.draw(rng, len(steps)))

    return CurveTruth(name, description, draw, _LOSS_CLAIMS, effects, unclear, extra=extra)


_NOISE_NAMES: Mapping[NoiseKind, str] = {
    "white": "independent noise",
    "ar6": "noise with autocorrelation 0.6",
    "ar9": "noise with autocorrelation 0.9",
    "walk": "a random walk as noise",
}


def _losses() -> Sequence[CurveTruth]:
    falls = frozenset({"loss-falls-with-b"})
    found = []
    kinds: tuple[NoiseKind, ...] = ("white", "ar6")
    for label, shape in _SMOOTH.items():
        for kind in kinds:
            for size in (0.003, 0.03):
                text = f"loss over b: {label}, no kink; {_NOISE_NAMES[kind]} of {size} nats"
                found.append(_loss_truth(f"loss-{label}-{kind}-{size}", text, shape, Noise(kind, size), falls))
    for factor in (2, 4, 10, 0.5, 0.25, 0.1):
        for kind in kinds:
            turn = f"{factor:g} times as steep" if factor > 1 else f"{1 / factor:g} times less steep"
            text = f"loss over b: two lines, the second {turn}; {_NOISE_NAMES[kind]} of 0.01 nats"
            name = f"loss-{'steeper' if factor > 1 else 'flatter'}-{max(factor, 1 / factor):g}-{kind}"
            effects = falls | {"slope-changes"}
            found.append(_loss_truth(name, text, _kink(factor), Noise(kind, 0.01), effects))
    for percent in (10, 20):
        text = f"loss over b: falls, then rises by {percent} % of its range; independent noise of 0.01 nats"
        rising = _rising(percent / 100)
        unclear = frozenset({"slope-changes"})
        found.append(_loss_truth(f"loss-rises-{percent}", text, rising, Noise("white", 0.01), frozenset(), unclear))
    return found


# -- perplexities and ranks over steps ------------------------------------------------------------------------


def _drop(steps: NDArray[np.int64], share: float, width: int) -> Array:
    """A factor that goes from 1 to 1 − `share` in a straight line over `width` records, about the bifurcation."""
    record = (steps[-1] - steps[0]) / 142  # a record is one of 143, whatever the number of steps
    done = (steps - BIFURCATION) / (width * record) + 0.5 if width > 1 else steps >= BIFURCATION
    factor: Array = 1 - share * np.clip(np.asarray(done, dtype=np.float64), 0, 1)
    return factor


def _smooth_decay(steps: NDArray[np.int64]) -> Array:
    """The mean NLL of a model: a power law of the step, from 5 nats towards 3."""
    return 2.6 + 2.4 * (steps / float(steps[0])) ** -0.35


def _perplexity_tables(
    rng: np.random.Generator, steps: NDArray[np.int64], kind: NoiseKind, factor: Array
) -> Mapping[str, xr.Dataset]:
    """Forward and unmasking perplexities with independent noise and the same drop."""
    import xarray as xr

    tables = {}
    for mode in ("forward", "unmask"):
        nll = _smooth_decay(steps) + np.log(factor) + noise(rng, len(steps), kind) * _PERPLEXITY_NOISE
        columns = dict.fromkeys(("ppl_mean", "ppl_median", "ppl_corpus"), np.exp(nll))
        columns |= {"nll_mean": nll, "sentences": np.full(len(steps), 500.0)}
        columns |= dict.fromkeys(("nonfinite", "overflow"), np.zeros(len(steps)))
        tables[f"perplexity-{mode}.csv"] = xr.Dataset({k: ("step", v) for k, v in columns.items()}, {"step": steps})
    return tables


_BATCH, _TOLERANCES, _HIGHEST_RANK = 64, (0.1, 0.4, 0.7, 1.0), 40.0


def _rank_table(
    rng: np.random.Generator, steps: NDArray[np.int64], kind: NoiseKind, factor: Array
) -> Mapping[str, xr.Dataset]:
    """``rank.csv``: a rank that grows smoothly, less at larger tolerances, far below its ceiling B − 1."""
    import xarray as xr

    time = (steps - steps[0]) / float(steps[-1] - steps[0])
    grown = _HIGHEST_RANK * (1 - 0.3 * np.exp(-5 * time)) * factor * (1 + _RANK_NOISE * noise(rng, len(steps), kind))
    scale = 1.1 - 0.2 * np.asarray(_TOLERANCES)
    rank = np.round(grown[:, None, None, None] * scale[:, None] * np.ones(2), 2)
    dims = ("step", "batch_size", "tolerance", "convention")
    change = np.concatenate([np.full((1, *rank.shape[1:]), np.nan), np.diff(rank, axis=0)])
    error = np.full(rank.shape, _RANK_NOISE * _HIGHEST_RANK)
    coords = {"step": steps, "batch_size": [_BATCH], "tolerance": list(_TOLERANCES)}
    table = xr.Dataset(
        {"rank": (dims, rank), "rank_se": (dims, error), "rank_difference": (dims, change)},
        {**coords, "convention": ["absolute", "relative"]},
    )
    return {"rank.csv": table}


_PREFIXES = 24
"""Prefix lengths of the table of unmasking: about the number of tokens of a short sentence."""


def _prefix_table(
    rng: np.random.Generator, steps: NDArray[np.int64], kind: NoiseKind, factor: Array
) -> Mapping[str, xr.Dataset]:
    """``perplexity-unmask-prefix.csv``: smooth losses by prefix length, with `factor` on those of the longer half."""
    import xarray as xr

    length = np.arange(1, _PREFIXES + 1)
    extra = np.where(length > _PREFIXES / 2, 1.0, 0.0) * np.log(factor)[:, None]
    errors = np.stack([noise(rng, len(steps), kind) for _ in length], axis=1) * _PERPLEXITY_NOISE
    nll = _smooth_decay(steps)[:, None] - 0.02 * length + extra + errors
    columns = {"nll_mean": nll, "entropy": nll, "sentences": np.full(nll.shape, 500.0)}
    table = xr.Dataset({k: (("step", "prefix"), v) for k, v in columns.items()}, {"step": steps, "prefix": length})
    return {"perplexity-unmask-prefix.csv": table}


def _settled(rng: np.random.Generator, steps: NDArray[np.int64]) -> Mapping[str, xr.Dataset]:
    """Perplexities that do not fall after the bifurcation."""
    still = np.exp(_smooth_decay(np.minimum(steps, BIFURCATION)) - _smooth_decay(steps))
    return _perplexity_tables(rng, steps, "ar6", still)


def _step_truth(
    tables: Callable[..., Mapping[str, xr.Dataset]],
    label: str,
    about: frozenset[str],
    kind: NoiseKind,
    share: float = 0.0,
    width: int = 1,
    extra: bool = False,
) -> CurveTruth:
    def draw(rng: np.random.Generator, steps: NDArray[np.int64]) -> Mapping[str, xr.Dataset]:
        return tables(rng, steps, kind, _drop(steps, share, width))

    if not share:
        text = f"{label} over steps: smooth, no drop; {_NOISE_NAMES[kind]}"
        return CurveTruth(f"{label}-smooth-{kind}", text, draw, about, extra=extra)
    percent = round(100 * share)
    records = "record" if width == 1 else "records"
    text = f"{label} over steps: a drop by {percent} % over {width} {records} about step 80,000; {_NOISE_NAMES[kind]}"
    return CurveTruth(f"{label}-drop-{percent}-over-{width}-{kind}", text, draw, about, about, extra=extra)


def _over_steps() -> Sequence[CurveTruth]:
    found = []
    kinds: tuple[NoiseKind, ...] = ("white", "ar6", "ar9", "walk")
    drops = [(share, width) for share in (0.2, 0.4) for width in (1, 5, 20, 40)]
    for tables, label, about in ((_perplexity_tables, "perplexity", _DROPS), (_rank_table, "rank", _RANK)):
        found += [_step_truth(tables, label, about, kind) for kind in kinds]
        found += [_step_truth(tables, label, about, "ar6", *drop) for drop in drops]
    found += [_step_truth(_prefix_table, "unmask-prefix", _SHARPER, kind) for kind in kinds]
    found += [_step_truth(_prefix_table, "unmask-prefix", _SHARPER, "ar6", *drop) for drop in ((0.2, 1), (0.4, 20))]
    text = "perplexity over steps: smooth until step 80,000, constant after it; noise with autocorrelation 0.6"
    found.append(CurveTruth("perplexity-settled-ar6", text, _settled, _DROPS))
    # Drops on other noise: the sharp and the gradual one that are easiest and hardest to see.
    others = [(kind, drop) for kind in kinds if kind != "ar6" for drop in ((0.4, 1), (0.2, 20))]
    return found + [_step_truth(_perplexity_tables, "perplexity", _DROPS, kind, *drop) for kind, drop in others]


CURVE_TRUTHS: Mapping[str, CurveTruth] = {each.name: each for each in (*_losses(), *_over_steps())}
"""All kinds of curves by name."""
