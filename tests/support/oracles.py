"""Slow, obvious NumPy versions of every weight statistic, written straight from the formulas.

They take all weights at once as float64 arrays of shape (T, N), or (T, V, D) where rows matter.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.optimize import linprog


def moments(w):
    """Mean, population standard deviation, skewness, excess kurtosis, Sarle's coefficient of each row."""
    n = w.shape[1]
    mean = w.mean(axis=1)
    y = w - mean[:, None]
    m2, m3, m4 = ((y**p).mean(axis=1) for p in (2, 3, 4))
    with np.errstate(all="ignore"):
        skewness, kurtosis = m3 / m2**1.5, m4 / m2**2 - 3
        sarle = (skewness**2 + 1) / (kurtosis + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))) if n > 3 else mean * np.nan
    return {"mean": mean, "std": np.sqrt(m2), "skewness": skewness, "kurtosis": kurtosis, "bimodality": sarle}


def msd(w, present=None):
    """Eq 4 and 5, by both demeanings, and the displacement; NaN at steps that are not present."""
    length, n = w.shape
    present = np.ones(length, bool) if present is None else present
    mean_over_time = w[present].mean(axis=0)
    result = {name: np.full(length, np.nan) for name in ("msd", "msd_time", "displacement")}
    integrated, integrated_time, first = np.zeros(n), np.zeros(n), None
    for t in np.flatnonzero(present):
        first = w[t] if first is None else first
        integrated = integrated + (w[t] - w[t].mean())
        integrated_time = integrated_time + (w[t] - mean_over_time)
        result["msd"][t] = np.sum(integrated**2) / (n - 1)
        result["msd_time"][t] = np.sum(integrated_time**2) / (n - 1)
        result["displacement"][t] = np.sum((w[t] - first) ** 2) / n
    return result


def nulls(w, present=None):
    """Both nulls by a loop over steps and increments."""
    length, n_weights = w.shape
    present = np.ones(length, bool) if present is None else present
    kept = w[present]
    count = len(kept)
    sizes = [0.0] + [float(np.sum((b - a) ** 2)) for a, b in pairwise(kept)]
    start = float(np.sum((kept[0] - kept[0].mean()) ** 2))
    null, null_time = np.full(length, np.nan), np.full(length, np.nan)
    for n, t in enumerate(np.flatnonzero(present), start=1):
        total, total_time = n**2 * start, 0.0
        for i in range(1, count):
            if i < n:
                total += (n - i) ** 2 * sizes[i] * (n_weights - 1) / n_weights
            total_time += (max(n - i, 0) - n / count * (count - i)) ** 2 * sizes[i]
        null[t], null_time[t] = total / (n_weights - 1), total_time / (n_weights - 1)
    return {"msd_null": null, "msd_time_null": null_time}


def gram(w):
    """K_ts = Σ_k w_tk w_sk."""
    return w @ w.T


def displacement(w):
    """Δ(t,s) = Σ_k (w_tk − w_sk)² / N, one pair at a time."""
    return np.array([[np.mean((a - b) ** 2) for b in w] for a in w])


def covariance_rank(w, batch, tolerance, convention):
    """Rank of the v×v covariance of V W_Uᵀ, formed and decomposed; w is (v, d), batch (B, d)."""
    covariance = np.cov(batch @ w.T, rowvar=False).reshape(len(w), len(w))
    level = tolerance
    if convention == "relative":
        level = tolerance * np.linalg.svd(covariance, compute_uv=False)[0]
    return np.linalg.matrix_rank(covariance, tol=level)


def spectrum(w):
    """Singular values of (v, d) by decomposition, and what follows from them."""
    sigma = np.linalg.svd(w, compute_uv=False)
    p = sigma / sigma.sum()
    p = p[p > 0]
    entropy = -np.sum(p * np.log(p))
    return {
        "singular_values": sigma,
        "entropy": entropy,
        "effective_rank": np.exp(entropy),
        "stable_rank": np.sum(w**2) / sigma[0] ** 2,
        "condition_number": sigma[0] / sigma[-1],
        "mean_row_fraction": len(w) * np.sum(w.mean(axis=0) ** 2) / np.sum(w**2),
    }


def power_law(values):
    """WeightWatcher 0.7's fit: every value but the largest as cut-off, the least Kolmogorov-Smirnov distance wins."""
    data = np.sort(values)
    best, chosen = np.inf, np.nan
    for i, cut in enumerate(data[:-1]):
        tail = data[i:]
        n = len(tail)
        alpha = 1 + n / np.sum(np.log(tail / cut))
        fitted = 1 - (tail / cut) ** (1 - alpha)
        distance = np.max(np.abs(fitted - np.arange(n) / n))
        if alpha > 1 and distance < best:
            best, chosen = distance, alpha
    return chosen


def dip(sample):
    """The dip as a linear programme: G at the values and a distance d from the steps of the sample's distribution, G
    growing, convex up to a mode between any two values and concave from there; the least d of all modes."""
    x, counts = np.unique(sample, return_counts=True)
    c = np.append(0, np.cumsum(counts)) / len(sample)
    n = len(x)
    unit = np.eye(n + 1)
    near = [(unit[i] - unit[n], c[i]) for i in range(n)] + [(-unit[i] - unit[n], -c[i + 1]) for i in range(n)]
    slopes = [(unit[i + 1] - unit[i]) / (x[i + 1] - x[i]) for i in range(n - 1)]
    growing = [(-slope, 0) for slope in slopes]
    least = 1.0
    for mode in range(n):
        bends = [(a - b if i < mode else b - a, 0) for i, (a, b) in enumerate(pairwise(slopes)) if i + 1 != mode]
        rows, limits = zip(*near, *growing, *bends, strict=True)
        least = min(least, linprog(unit[n], np.array(rows), limits, bounds=(0, 1)).fun)
    return least


def exponent(lags, table, longest, confidence=0.95):
    """The slope of log displacement over log lag with its jackknife, from the text of `fit_exponent`."""
    from scipy.stats import t as student

    waits = len(table) - 1
    blocks = [list(block) for block in np.array_split(np.arange(waits), min(10, waits))]
    shared = [
        column
        for column in range(len(lags))
        if 2 * sum(np.isfinite(table[block, column]).any() for block in blocks) >= len(blocks)
    ]
    used = [c for place, c in enumerate(shared) if place < 3 or lags[c] <= longest]

    def slope(rows):
        points = []
        for column in used:
            known = [value for value in table[rows, column] if np.isfinite(value)]
            if known and np.mean(known) > 0:
                points.append((np.log(lags[column]), np.log(np.mean(known))))
        if len(points) < 2:
            return np.nan
        x, y = np.array(points).T
        weight = np.gradient(x)
        return np.polyfit(x, y, 1, w=np.sqrt(weight))[0]

    value = slope(list(range(len(table))))
    left = [slope([row for row in range(len(table)) if row not in block]) for block in blocks]
    if len(blocks) < 3 or not np.isfinite(left).all():
        return value, np.nan, np.nan
    n = len(blocks)
    error = np.sqrt((n - 1) / n * sum((one - np.mean(left)) ** 2 for one in left))
    half = student.ppf(1 - (1 - confidence) / 2, n - 1) * error
    return value, value - half, value + half
