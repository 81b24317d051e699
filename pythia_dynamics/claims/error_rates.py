"""How often a claim or a detector is wrong, and how often it sees what is there: the table of a calibration.

`pythia_dynamics.claims.calibration` makes such a table. That of 143 records belongs to the data of the package
(`load_calibration`); without it, verdicts say that their error rates are not calibrated. Intervals of a share are
Wilson's, at 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pythia_dynamics.claims.evidence import VERDICTS, VerdictWord
from pythia_dynamics.errors import FormatError, PythiaDynError, UnknownNameError
from pythia_dynamics.tables import read_json, write_json

__all__ = [
    "COMMITTED",
    "LEAST_RUNS",
    "LEAST_SHARE_SEEN",
    "MAX_SHARE_WRONG",
    "MAX_UPPER_END",
    "CalibrationSettings",
    "CalibrationTable",
    "ErrorRates",
    "Rate",
    "TruthCounts",
    "error_rates",
    "error_rates_of",
    "load_calibration",
    "read_table",
    "write_table",
]

MAX_SHARE_WRONG, MAX_UPPER_END, LEAST_SHARE_SEEN = 0.05, 0.08, 0.8
"""What is promised: at most 5 % of the histories without an effect support it, the upper end of the interval is at most
8 %, and at least 80 % of those with it support it."""

LEAST_RUNS = 200
"""Histories of a truth that are needed to show it: 8 of 200 have an interval up to 7.7 %, 1 of 20 one up to 23.6 %."""

COMMITTED = (143,)
"""Numbers of records of the tables in the package."""


@dataclass(frozen=True)
class CalibrationSettings:
    """The settings of a calibration.

    Parameters
    ----------
    runs
        Histories of each truth.
    records
        Steps of a history.
    weights
        Weights at each step.
    seed
        Seed of the first history; those of the others follow.

    Raises
    ------
    PythiaDynError
        A number is too small.
    """

    runs: int = 200
    records: int = 143
    weights: int = 8192
    seed: int = 2_000_000

    def __post_init__(self) -> None:
        if self.runs < 1 or self.records < 3 or self.weights < 2 or self.seed < 0:
            raise PythiaDynError("a calibration needs runs ≥ 1, records ≥ 3, weights ≥ 2 and a seed that is ≥ 0")


@dataclass(frozen=True)
class TruthCounts:
    """What was said of the histories of one truth.

    Parameters
    ----------
    name, description, model
        As of the truth.
    runs
        Number of histories.
    effects, open
        The claims and detectors that are true of it, and those that are neither asserted to be true nor to be false.
    counts
        How often each word was said, by claim or detector. A detector that found its effect said ``supported``.
    """

    name: str
    description: str
    model: str
    runs: int
    effects: tuple[str, ...]
    open: tuple[str, ...]
    counts: Mapping[str, Mapping[VerdictWord, int]]


@dataclass(frozen=True)
class CalibrationTable:
    """The result of a calibration.

    Parameters
    ----------
    settings
        Its settings.
    version
        Version of this package, and a digest of the code that judges (`calibration.code_version`).
    truths
        What was said of each truth.
    """

    settings: CalibrationSettings
    version: str
    truths: tuple[TruthCounts, ...] = ()

    @property
    def judged(self) -> tuple[str, ...]:
        """The claims and detectors that were judged, in the order of the first truth that has them."""
        return tuple(dict.fromkeys(judged for each in self.truths for judged in each.counts))


@dataclass(frozen=True)
class Rate:
    """How often a claim or detector was supported in the histories of one truth in which it was testable.

    Parameters
    ----------
    truth
        Name of the truth.
    supported, refuted, undecided
        How often each was said.
    untestable
        In how many further histories the claim was not testable; they are not counted.
    """

    truth: str
    supported: int
    refuted: int
    undecided: int
    untestable: int = 0

    @property
    def runs(self) -> int:
        """Number of histories in which the claim was testable."""
        return self.supported + self.refuted + self.undecided

    @property
    def share(self) -> float:
        """Share of them that supported it; NaN without any."""
        return self.supported / self.runs if self.runs else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share; NaN without any history."""
        from scipy.stats import binomtest

        if not self.runs:
            return float("nan"), float("nan")
        found = binomtest(self.supported, self.runs).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class ErrorRates:
    """The error rates of one claim or detector.

    Parameters
    ----------
    judged
        Id of the claim, or name of the detector.
    settings
        Settings of the calibration.
    false
        The rates of the truths without the effect, the worst first.
    true
        The rates of the truths with it, the least seen first.
    untestable
        Truths, open ones left out, in none of whose histories the claim was testable.
    """

    judged: str
    settings: CalibrationSettings
    false: tuple[Rate, ...] = ()
    true: tuple[Rate, ...] = ()
    untestable: tuple[str, ...] = field(default=())

    @property
    def worst(self) -> Rate | None:
        """The truth without the effect that supported the claim most often."""
        return self.false[0] if self.false else None

    @property
    def weakest(self) -> Rate | None:
        """The truth with the effect that supported the claim least often."""
        return self.true[0] if self.true else None

    @property
    def undecided(self) -> float:
        """Share of all counted histories of which the claim was undecided; NaN without any."""
        rates = (*self.false, *self.true)
        runs = sum(rate.runs for rate in rates)
        return sum(rate.undecided for rate in rates) / runs if runs else float("nan")

    @property
    def broken(self) -> tuple[str, ...]:
        """The promises that these rates do not keep, a sentence each.

        A truth with the effect may be seen in fewer than 80 % of histories where most of the others are undecided. Of
        fewer than 200 histories only what is certain is listed: where the whole interval lies beyond the promise.
        """
        found, many = [], self.settings.runs >= LEAST_RUNS
        for rate in self.false:
            low, high = rate.interval
            # No error in so few histories that the interval is wide breaks no promise: it shows that little is known.
            wrong = rate.share > MAX_SHARE_WRONG or (rate.supported and high > MAX_UPPER_END)
            if wrong if many else low > MAX_SHARE_WRONG:
                found.append(f"{self.judged}: wrong on {rate.truth} in {_of(rate)}, up to {high:.1%}")
        unseen = (
            rate
            for rate in self.true
            if (rate.share if many else rate.interval[1]) < LEAST_SHARE_SEEN and rate.refuted >= rate.undecided
        )
        found += [
            f"{self.judged}: seen on {rate.truth} in {_of(rate)} only, denied in {rate.refuted}" for rate in unseen
        ]
        return tuple(found)

    @property
    def text(self) -> str:
        """The rates in one line, as it stands beside a verdict."""
        parts = []
        if (worst := self.worst) is not None:
            where = f" (most often on {worst.truth})" if worst.supported else f" of each of {len(self.false)} kinds"
            parts.append(f"wrong in {_of(worst)}{where}")
        if (weakest := self.weakest) is not None:
            also = f", undecided in {weakest.undecided}" if weakest.undecided else ""
            parts.append(f"sees its effect in {_of(weakest)} (least often on {weakest.truth}{also})")
        if not parts:
            return "not calibrated: no history of known truth tests it"
        return f"{'; '.join(parts)}; histories of {self.settings.records} steps and {self.settings.weights:,} weights"


def _of(rate: Rate) -> str:
    return f"{rate.supported} of {rate.runs}"


def error_rates(table: CalibrationTable) -> Mapping[str, ErrorRates]:
    """The error rates of every claim and detector of a table.

    Parameters
    ----------
    table
        The result of a calibration.

    Returns
    -------
    mapping of str to ErrorRates
        By id of the claim or name of the detector. Truths that are open for it, and histories in which it was not
        testable, are not counted.
    """
    return {judged: _rates(table, judged) for judged in table.judged}


def _rates(table: CalibrationTable, judged: str) -> ErrorRates:
    false: list[Rate] = []
    true: list[Rate] = []
    untestable: list[str] = []
    for truth in table.truths:
        if judged not in truth.counts or judged in truth.open:
            continue
        rate = Rate(truth.name, *(truth.counts[judged].get(word, 0) for word in VERDICTS))
        if not rate.runs:
            untestable.append(truth.name)
        else:
            (true if judged in truth.effects else false).append(rate)
    false.sort(key=lambda rate: -rate.share)
    true.sort(key=lambda rate: rate.share)
    return ErrorRates(judged, table.settings, tuple(false), tuple(true), tuple(untestable))


# -- files ----------------------------------------------------------------------------------------------------


def write_table(path: Path, table: CalibrationTable) -> Path:
    """Write a table as JSON, which appears whole or not at all, and return the path. Raises `StoreError`."""
    return write_json(path, asdict(table))


def read_table(path: Path) -> CalibrationTable:
    """The table in a JSON file.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FormatError
        The file is damaged, or something else.
    PythiaDynError
        There is no such file.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise PythiaDynError(f"{path} is missing: run pythia-dyn calibrate --out {path}") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is damaged ({error})") from None
    try:
        return _table(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{path} is no table of a calibration ({error!r})") from None


def _table(content: Any) -> CalibrationTable:
    truths = []
    for each in content["truths"]:
        for words in each["counts"].values():
            if set(words) - set(VERDICTS) or not all(type(count) is int and count >= 0 for count in words.values()):
                raise ValueError(f"counts {words}")
            if sum(words.values()) != each["runs"]:
                raise ValueError(f"{sum(words.values())} words for {each['runs']} runs of {each['name']}")
        lists = {name: tuple(each[name]) for name in ("effects", "open")}
        truths.append(TruthCounts(**{**each, **lists}))
    return CalibrationTable(CalibrationSettings(**content["settings"]), str(content["version"]), tuple(truths))


@cache
def load_calibration(records: int = 143) -> CalibrationTable:
    """A table of the package.

    Parameters
    ----------
    records
        One of `COMMITTED`.

    Raises
    ------
    UnknownNameError
        There is no table with this number of records.
    PythiaDynError
        The file of the package is missing or damaged.
    """
    if records not in COMMITTED:
        raise UnknownNameError("number of records of a calibration", str(records), list(map(str, COMMITTED)))
    with resources.as_file(resources.files("pythia_dynamics") / "data" / f"calibration-{records}.json") as path:
        return read_table(path)


def error_rates_of(judged: str, records: int, tables: Sequence[CalibrationTable] | None = None) -> ErrorRates | None:
    """The error rates of a claim or detector, from the table with the nearest number of records.

    Parameters
    ----------
    judged
        Id of the claim, or name of the detector.
    records
        Number of steps of the history that was judged.
    tables
        The tables to choose from. Default: those of the package.

    Returns
    -------
    ErrorRates or None
        None where no table has rates for it: the claim reads something that no history of known truth has, or the
        package holds no table.
    """
    known = _committed() if tables is None else tables
    rated = [rates for table in known if (rates := error_rates(table).get(judged)) and (rates.false or rates.true)]
    return min(rated, key=lambda rates: abs(rates.settings.records - records), default=None)


@cache
def _committed() -> tuple[CalibrationTable, ...]:
    """The tables that the package holds."""
    data = resources.files("pythia_dynamics") / "data"
    return tuple(load_calibration(each) for each in COMMITTED if (data / f"calibration-{each}.json").is_file())
