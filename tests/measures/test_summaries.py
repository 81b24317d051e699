"""The sentence and the facts of each measure, word for word, for datasets that are written here."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from pythia_dynamics.measures.catalogue import BUILT_IN

STEPS = np.array([0, 10, 20, 40, 80])


def curves(**columns: Any) -> xr.Dataset:
    """A dataset over five steps; a pair is a curve and its attributes."""
    variables = {
        name: ("step", np.array(column[0] if isinstance(column, tuple) else column, dtype=float), attrs)
        for name, column in columns.items()
        for attrs in [column[1] if isinstance(column, tuple) else {}]
    }
    return xr.Dataset(variables, {"step": STEPS})


def test_density() -> None:
    nan = np.nan
    found = curves(std=[nan, 0.123456, 1, 2, 0.5], modes=[1, 1, 1, 2, 2], nonfinite=[3, 0, nan, 4, 0])
    sentence, facts = BUILT_IN["density"].summarise(found)
    assert sentence == "standard deviation 0.1235 → 0.5; modes 1 → 2"
    assert facts == {"std": (0.123456, 0.5), "modes": (1, 2), "nonfinite": 7}


def test_rank() -> None:
    sizes, tolerances = [4, 8, 16], [0.1, 0.45, 0.7, 1.0]
    values = np.arange(5 * 3 * 4 * 2.0).reshape(5, 3, 4, 2) + 0.123456789
    dims = ("step", "batch_size", "tolerance", "convention")
    coords = {"step": STEPS, "batch_size": sizes, "tolerance": tolerances, "convention": ["absolute", "relative"]}
    dataset = xr.Dataset({"rank": (dims, values)}, coords)
    sentence, facts = BUILT_IN["rank"].summarise(dataset.assign_coords(tolerance=[0.1, 0.5, 0.6, 1.0]))
    absolute, relative = values[[0, -1], -1, 1, 0], values[[0, -1], -1, 0, 1]
    assert facts == {"batch_size": 16, "absolute": tuple(absolute), "relative": tuple(relative)}
    assert sentence == (
        "batch 16, absolute tolerance 0.5: rank 18.1235 → 114.123; relative tolerance 0.1: rank 17.1235 → 113.123"
    )
    assert BUILT_IN["rank"].summarise(dataset)[1]["absolute"] == tuple(absolute)  # the nearest there is


def test_spectrum() -> None:
    columns = {"entropy": 1.5, "effective_rank": 4.4816, "stable_rank": 2.0, "mean_row_fraction": 0.25}
    found = curves(**{name: value * np.array([1, 1, 1, 1, 2]) for name, value in columns.items()})
    sentence, facts = BUILT_IN["spectrum"].summarise(found)
    assert sentence == "entropy 1.5 → 3, effective rank 4.482 → 8.963, stable rank 2 → 4, mean row fraction 0.25 → 0.5"
    assert facts == {name: (value, 2 * value) for name, value in columns.items()}


def test_angles() -> None:
    columns = {"norm": np.linspace(1, 2, 5), "angle": [np.nan, 4, 3, 2, 1.23456], "relative_update": 0.1 * np.ones(5)}
    sentence, facts = BUILT_IN["angles"].summarise(curves(**columns))
    assert sentence == "norm 1 → 2, angle between neighbouring steps 4 → 1.235°"
    assert facts == {"norm": (1, 2), "angle": (4, 1.23456), "relative_update": (0.1, 0.1)}
    columns |= {"equilibrium_angle": 5 * np.ones(5), "equilibrium_norm": np.linspace(4, 3, 5)}
    sentence, facts = BUILT_IN["angles"].summarise(curves(**columns, equilibrium_update=np.ones(5)))
    assert sentence.endswith("1.235°; in AdamW's equilibrium the angle would be 5 → 5°, the norm 4 → 3")
    assert facts["equilibrium_norm"] == (4, 3)
    unknown = {name: np.full(5, np.nan) for name in ("norm", "angle", "relative_update")}
    assert BUILT_IN["angles"].summarise(curves(**unknown))[0].endswith("between neighbouring steps not known")


def test_tails() -> None:
    nan = np.nan
    columns = {"alpha": [2.5, 3, nan, 4, 5.1234], "tail": [20, 21, nan, 5, 40]}
    p = {"lognormal_p": [0.5, 0.05, nan, nan, 0.01], "truncated_p": [0.2, 0.3, nan, nan, 0.04]}
    sentence, facts = BUILT_IN["tails"].summarise(curves(**columns, **p))
    assert sentence == (
        "power law α 2.5 → 5.123; a lognormal fits better at 2 of 3 steps (p ≤ 0.05); a truncated power law fits "
        "better at 1 of 3 steps (p ≤ 0.05)"
    )
    assert facts["lognormal_better"] == 2
    assert facts["tail"] == (20, 40)


def test_rows() -> None:
    columns = {"norm": np.linspace(1, 2, 5), "drift": np.linspace(0, 3, 5), "update": [np.nan, 1, 1, 1, 1]}
    sentence, facts = BUILT_IN["rows"].summarise(curves(**columns))
    assert sentence == "mean norm of a row 1 → 2, mean drift 0 → 3"
    assert facts["update"] == (1, 1)
    named = {"spearman_norm": 0.1234 * np.ones(5), "spearman_drift": [np.nan, 0, 0.1, 0.2, 0.3]}
    named |= {"unigram_r2": np.linspace(0.01, 0.9, 5), "unigram_r2_null": 0.01 * np.ones(5)}
    sentence, facts = BUILT_IN["rows"].summarise(curves(**columns, **named))
    assert sentence == (
        "mean norm of a row 1 → 2, mean drift 0 → 3; rank correlation of norm and frequency 0.123 → 0.123; the unigram "
        "direction explains 0.01 → 0.9 of log frequency, in random order 0.01 → 0.01"
    )
    assert facts["spearman_drift"] == (0, 0.3)


def test_order() -> None:
    b, loss = [0.01, 0.02, 0.03, 0.04, 0.0512345678], [10, 8, 6, 5.5, 5.25]
    measure = BUILT_IN["order"]
    assert measure.summarise(curves(order_parameter=b)) == (
        "order parameter b 0.01 → 0.0512346",
        {"first": 0.01, "last": 0.0512345678},
    )
    sentence, facts = measure.summarise(curves(order_parameter=b, loss=loss))
    assert sentence == "order parameter b 0.01 → 0.0512346, loss 10 → 5.25"
    assert facts["loss"] == (10, 5.25)
    assert facts["fit"] == {}
    fit = {"kink_b": 0.0301234, "slope_before": -200.04, "slope_after": -25.0, "kink_p": 0.00123}
    sentence, facts = measure.summarise(curves(order_parameter=b, loss=(loss, fit)))
    assert sentence == (
        "order parameter b 0.01 → 0.0512346, loss 10 → 5.25; the best kink is at b = 0.03012, where dL/db "
        "goes from -200 to -25 (p = 0.0012 for a smooth curve)"
    )
    assert facts["fit"] == fit
    unknown = measure.summarise(curves(order_parameter=np.full(5, np.nan)))[0]
    assert unknown == "order parameter b not known"


def two_time(cosine: Any, explained: list[float], null: list[float], **fit: float) -> xr.Dataset:
    steps = STEPS[: len(cosine)]
    return xr.Dataset(
        {
            "cosine": (("step", "other_step"), np.array(cosine, dtype=float).reshape(len(steps), len(steps))),
            "explained": ("component", explained),
            "explained_null": ("component", null),
            "displacement_by_lag": ("lag", np.ones(3), {**fit, "other": 1.0}),
        },
        {"step": steps, "other_step": steps},
    )


def test_two_time() -> None:
    measure, nan = BUILT_IN["two_time"], np.nan
    cosine = [[1, 0.9, 0.71236], [0.9, 1, 0.8], [0.71236, 0.8, 1]]
    fit = {"exponent": 1.2345, "exponent_low": 1.1, "exponent_high": 1.4}
    sentence, facts = measure.summarise(two_time(cosine, [0.5678, 0.1], [0.6081, 0.15], **fit))
    assert sentence == (
        "displacement ∝ lag^1.23 (95 %: 1.1 to 1.4), cosine of the last weights with the first 0.7124; first principal "
        "component 56.8% of the variance, of a random walk's 60.8%"
    )
    assert facts == {**fit, "cosine_of_ends": 0.71236, "explained": [0.5678], "explained_null": [0.6081]}
    gaps = [[nan] * 4, [nan, *cosine[0]], [nan, *cosine[1]], [nan, *cosine[2]]]
    sentence, _ = measure.summarise(two_time(gaps, [nan, nan], [nan, nan], exponent=0.5))
    assert sentence == "displacement ∝ lag^0.5, cosine of the last weights with the first 0.7124"
    sentence, facts = measure.summarise(two_time([[nan]], [nan], [nan]))
    assert sentence == "no step is known"
    assert np.isnan(facts["cosine_of_ends"])


RISING, FALLING, PEAK = [1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [1, 2, 5, 3, 1]
UP, DOWN = "rises to the last step", "falls from the first step on"


def moving(msd: Any, msd_null: Any, msd_time: Any, msd_time_null: Any, moved: Any = (np.nan, 0, 0, 0, 2)) -> xr.Dataset:
    curve_of = {"msd": msd, "msd_null": msd_null, "msd_time": msd_time, "msd_time_null": msd_time_null}
    return curves(**curve_of, displacement=list(moved))


def test_msd() -> None:
    summarise = BUILT_IN["msd"].summarise
    sentence, facts = summarise(moving(FALLING, FALLING, RISING, RISING))
    assert sentence == (
        f"MSD (Eq. 4) {DOWN}, as a random walk's does; demeaned over time it {UP}, as that of a random walk does"
    )
    nothing = {"peak_step": None, "peak_over_null_step": None, "null_peak_step": None}
    assert facts == {"msd": nothing, "msd_time": nothing}
    top = {"peak_step": 20, "peak_over_null_step": 1040}
    sentence, facts = summarise(moving(RISING, FALLING, (PEAK, top), PEAK))
    assert sentence == (
        f"MSD (Eq. 4) {UP}; that of a random walk {DOWN}; demeaned over time it peaks at step 20, the walk at 20; its "
        "ratio to the walk's is greatest at step 1,040"
    )
    assert facts == {"msd": nothing, "msd_time": {**top, "null_peak_step": 20}}
    sentence, _ = summarise(moving((PEAK, {"peak_step": 1020}), FALLING, RISING, PEAK))
    assert sentence == (
        f"MSD (Eq. 4) peaks at step 1,020; that of a random walk {DOWN}; demeaned over time it {UP}; that of a random "
        "walk peaks at step 20"
    )
    sentence, _ = summarise(moving([1, 1, 1, 1, 1], RISING, [1, 0, 0, 0, 1], [1, 2, 2, 2, 1]))
    assert sentence == (
        f"MSD (Eq. 4) does not change; that of a random walk {UP}; demeaned over time it does not change; that of a "
        "random walk peaks at step 10"
    )


def test_msd_without_motion() -> None:
    summarise, nan = BUILT_IN["msd"].summarise, np.nan
    shapes = (FALLING, FALLING, RISING, RISING)
    assert summarise(moving(*shapes, moved=[nan, 0, 0, 0, 0]))[0] == "the weights do not move"
    assert summarise(moving(*shapes, moved=[nan, nan, nan, 0, 1]))[0].startswith("MSD (Eq. 4)")
    assert summarise(moving(*shapes, moved=[nan, nan, nan, nan, 0]))[0] == "only one step is known"
    assert summarise(moving(*shapes, moved=[nan] * 5))[0] == "no step is known"
    unknown = moving([nan] * 5, RISING, RISING, RISING)
    assert "MSD (Eq. 4) does not change" in summarise(unknown)[0]
