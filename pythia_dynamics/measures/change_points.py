"""Change points: abrupt steps of a signal, beyond a smooth trend and noise that may be correlated.

The library `ruptures` 1.1.10 fits constants, lines or autoregressions between change points: smooth trends become
chains of changes, and its penalty assumes independent noise. What is needed here is one linear filter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError

__all__ = ["STRENGTH", "change_points", "window_of"]

STRENGTH = 7.0
"""Least size of a change, in robust standard deviations of the same statistic at the other records. For 142 values of
noise the largest one exceeds 5 in 1 % of signals, for first-order autoregressions with coefficients from 0 to 0.97
alike, and 6 for Student's t with 3 degrees of freedom; for 20 to 40 values it exceeds 7 in 1 to 2 %."""

_LEAST_SHARE = 0.05
"""Least change as a share of the range of its signal, so that a smooth curve without noise has none."""

_MOST_WINDOW, _LEAST_WINDOW = 12, 5
"""Records on each side of a window; an eighth of the signal between these. Shorter ones leave no freedom beside the
five parameters of the fit, longer ones hold more of a trend than a cubic can follow."""

_LEAST_INNER = 3
"""Fewest records on each side of the inner window: six values for five parameters."""


def window_of(count: int) -> int:
    """Records on each side of a window in a signal of so many values."""
    return min(max(count // 8, _LEAST_WINDOW), _MOST_WINDOW)


def change_points(steps: Any, signal: Any, *, strength: float = STRENGTH, least: float = 0.0) -> tuple[int, ...]:
    """The first step after every abrupt change of a signal.

    A running median of three removes single outliers. Around each place a cubic and a step are fitted by least squares
    to a window. In one of half its length the height of a step is the same, that of a steep trend less than half. A
    change is a step of the greatest absolute height within a window that exceeds `strength` robust standard deviations
    (1.48 times the median of the absolute heights, of all and of those within four windows), `least`, and 5 % of the
    range of the signal. Smooth curves have no heights beyond their fifth derivative; correlated noise makes all heights
    larger alike. Changes within a window of a larger one, or of either end, are not found.

    Parameters
    ----------
    steps
        Step numbers, shape (T,), increasing.
    signal
        Values, shape (T,). NaN is skipped.
    strength
        Least height in robust standard deviations, above 0.
    least
        Least absolute height, in the unit of the signal.

    Raises
    ------
    PythiaDynError
        `strength` is not above 0.
    """
    from scipy.ndimage import median_filter

    if strength <= 0:
        raise PythiaDynError(f"the strength of a change must be above 0; got {strength:g}")
    numbers, values = np.asarray(steps), np.asarray(signal, dtype=np.float64)
    finite = np.isfinite(values)
    numbers, values = numbers[finite], values[finite]
    side = window_of(len(values))
    if len(values) < 4 * side or np.ptp(values) == 0:
        return ()
    values = values - np.median(values)
    level = values.copy()
    level[1:-1] = np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
    wide, narrow = (_heights(level, width) for width in (side, max(side // 2, _LEAST_INNER)))
    inner = narrow[(len(narrow) - len(wide)) // 2 :][: len(wide)]
    heights = np.abs(wide)
    abrupt = (wide * inner > 0) & (np.abs(inner) > heights / 2)
    least = max(least, _LEAST_SHARE * float(np.ptp(level)))
    found: list[int] = []
    left = np.ones(len(heights), dtype=bool)
    while left.any():
        # Noise may grow during the training: heights are compared with those near them too. Those of the changes that
        # are found already say nothing of the noise.
        usual = float(np.median(heights[left]))
        near = median_filter(np.where(left, heights, usual), 8 * side + 1, mode="reflect")
        needed = np.maximum(strength * np.maximum(usual, near) / 0.6745, least)
        possible = np.where(left & abrupt & (heights > needed), heights, 0)
        top = int(np.argmax(possible))
        if not possible[top]:
            break
        found.append(int(numbers[top + side]))
        left[max(top - side, 0) : top + side + 1] = False
    return tuple(sorted(found))


def _heights(level: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Heights of the steps that are fitted with cubics to all windows of 2 · side values, shape (n − 2 · side + 1,)."""
    place = (np.arange(-side, side) + 0.5) / side
    step_of_fit = np.linalg.pinv(np.column_stack([np.vander(place, 4), place > 0]))[-1]
    return np.correlate(level, step_of_fit, "valid")
