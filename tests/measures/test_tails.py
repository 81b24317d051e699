"""The fits to a tail against SciPy's optimiser and quadrature, known laws, and their error rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from support.walks import walk

from pythia_dynamics.history.history import History
from pythia_dynamics.measures.spectrum import fit_power_law, spectrum
from pythia_dynamics.measures.tails import fit_tail, tails
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning

LAWS = {
    "pareto": lambda rng, n: (1 - rng.uniform(size=n)) ** (-1 / 1.5),
    "lognormal": lambda rng, n: rng.lognormal(size=n),
    "wide lognormal": lambda rng, n: rng.lognormal(0, 3, size=n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "uniform": lambda rng, n: rng.uniform(1, 2, size=n),
}


def densities(tail, cutoff, found):
    """Log densities of ln(λ/x) of the three laws, from the parameters, by SciPy."""
    y = np.log(tail / cutoff)
    power = stats.expon.logpdf(y, scale=1 / (found.alpha - 1))
    normal = power
    if np.isfinite(found.lognormal_sigma):
        low = (np.log(cutoff) - found.lognormal_mu) / found.lognormal_sigma
        normal = stats.norm.logpdf(np.log(tail), found.lognormal_mu, found.lognormal_sigma) - stats.norm.logsf(low)
    a, c = found.truncated_alpha - 1, found.truncated_rate * cutoff
    peak = -c

    def density(z):
        return np.exp(-a * z - c * np.exp(z) - peak)

    total = integrate.quad(density, 0, 60, points=[0.01, 0.1, 1, 4], limit=500)[0]
    return power, normal, -a * y - c * np.exp(y) - peak - np.log(total)


@settings(max_examples=25, deadline=None)
@given(law=st.sampled_from(list(LAWS)), count=st.integers(30, 300), seed=st.integers(0, 99))
def test_the_ratios_are_those_of_the_densities(law, count, seed):
    values = LAWS[law](np.random.default_rng(seed), count)
    found, cut = fit_tail(values), fit_power_law(values)
    assert (found.alpha, found.cutoff, found.distance) == (cut.alpha, cut.cutoff, cut.distance)
    tail = values[values >= cut.cutoff]
    assert found.tail == len(tail)
    if len(tail) < 10:
        assert np.isnan(found.lognormal_ratio)
        return
    power, *others = densities(tail, cut.cutoff, found)
    for name, log_density in zip(("lognormal", "truncated"), others, strict=True):
        difference = power - log_density
        if difference.sum() > -1e-6:
            continue  # the same law, but for rounding
        ratio = difference.sum() / np.sqrt(len(tail)) / difference.std()
        assert getattr(found, f"{name}_ratio") == pytest.approx(ratio, rel=1e-4, abs=1e-4)
        vuong, nested = 2 * stats.norm.sf(-ratio), stats.chi2.sf(-2 * difference.sum(), 1) / 2
        assert getattr(found, f"{name}_p") == pytest.approx(vuong if name == "lognormal" else nested, abs=1e-4)


@pytest.mark.parametrize("law", list(LAWS))
def test_no_parameters_have_a_higher_likelihood(law):
    for seed in range(3):
        values = LAWS[law](np.random.default_rng(seed), 200)
        found = fit_tail(values)
        y = np.log(np.sort(values[values >= found.cutoff]) / found.cutoff)
        if len(y) < 10:
            continue
        _, normal, truncated = densities(np.exp(y) * found.cutoff, found.cutoff, found)

        def of_normal(p, y=y):
            mean, sigma = p[0], np.exp(p[1])
            return -(stats.norm.logpdf(y, mean, sigma) - stats.norm.logsf(0, mean, sigma)).sum()

        def of_truncated(p, y=y):
            def log_density(z):
                return -p[0] * z - np.exp(p[1]) * np.expm1(z)

            total = integrate.quad(lambda z: np.exp(log_density(z)), 0, 60, points=[0.01, 0.1, 1, 4], limit=500)[0]
            return np.log(total) * len(y) - log_density(y).sum() if total > 0 else np.inf

        with np.errstate(all="ignore"):
            best = optimize.minimize(of_normal, [y.mean(), np.log(y.std())], method="Nelder-Mead")
            assert normal.sum() > -best.fun - 1e-4
            best = optimize.minimize(of_truncated, [0.5, -2.0], method="Nelder-Mead")
            assert truncated.sum() > -best.fun - 1e-4


def test_a_known_lognormal_is_found():
    # All eigenvalues of the tail above a cut-off far below the mode: its parameters are those of the sample.
    values = np.random.default_rng(0).lognormal(2, 0.25, size=4000)
    found = fit_tail(values)
    assert found.alpha > 3  # a power law is fitted to the end of the tail only
    rejected = [fit_tail(np.random.default_rng(seed).lognormal(0, 1, size=2000)).truncated_p for seed in range(20)]
    assert np.mean(np.array(rejected) <= 0.05) > 0.3


def test_a_power_law_is_rarely_rejected():
    p = [fit_tail(LAWS["pareto"](np.random.default_rng(seed), 100)) for seed in range(150)]
    assert np.mean([each.truncated_p <= 0.05 for each in p]) < 0.11  # 0.05 ± 0.018
    assert np.mean([each.lognormal_p <= 0.05 for each in p]) < 0.05
    assert np.median([each.alpha for each in p]) == pytest.approx(2.5, abs=0.1)


def test_a_power_law_with_a_cut_off_has_its_parameters():
    # λ^−1.5 exp(−λ/10) above 1, by rejection from the power law
    rng = np.random.default_rng(0)
    values = (1 - rng.uniform(size=200_000)) ** -2.0
    values = values[rng.uniform(size=len(values)) < np.exp(-(values - 1) / 10)][:3000]
    found = fit_tail(np.concatenate([values, np.full(1, 1e-9)]))
    assert found.truncated_rate == pytest.approx(0.1, abs=0.04)
    assert found.truncated_alpha == pytest.approx(1.5, abs=0.35)
    assert found.truncated_p < 1e-3
    assert found.truncated_ratio < -3


@pytest.mark.parametrize("seed", range(8))
def test_shapes_that_are_hard_to_fit(seed):
    rng = np.random.default_rng(seed)
    count = 30
    samples = (
        np.append(rng.uniform(0, 1e-3, count), 5.0),
        5 + 1e-3 * rng.standard_normal(count),
        1e-6 * rng.exponential(size=count),
        20 * rng.uniform(size=count),
        np.append(np.zeros(count), 1.0),
        10 - 0.1 * rng.exponential(size=count),
        300 * rng.uniform(size=count),
    )
    for sample in samples:
        found = fit_tail(np.exp(sample))
        if np.isfinite(found.lognormal_p):
            assert 0 <= found.truncated_p <= 1
            assert 0 <= found.lognormal_p <= 1
            assert found.lognormal_ratio <= 0
            assert found.truncated_ratio <= 0
            assert np.isfinite(found.truncated_alpha)


def test_the_unit_of_the_weights_does_not_matter():
    values = LAWS["lognormal"](np.random.default_rng(0), 100)
    one, other = fit_tail(values), fit_tail(1e-8 * values)
    for name in ("alpha", "tail", "lognormal_sigma", "lognormal_ratio", "truncated_alpha", "truncated_p"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-6)
    assert other.cutoff == pytest.approx(1e-8 * one.cutoff)
    assert other.truncated_rate == pytest.approx(1e8 * one.truncated_rate, rel=1e-6)
    assert other.lognormal_mu == pytest.approx(one.lognormal_mu + np.log(1e-8), rel=1e-6)


def test_few_equal_and_zero_eigenvalues_have_no_fit():
    for values in (np.zeros(20), np.ones(20), np.arange(1.0, 9), np.empty(0)):
        assert np.isnan(fit_tail(values).alpha)
    short = np.concatenate([np.full(8, 1e-3), [1.0, 1.5, 1.7, 2.5]])
    found = fit_tail(short)
    assert found.tail < 10
    assert np.isfinite(found.alpha)
    assert np.isnan(found.lognormal_p)


def test_the_history_of_a_walk():
    w = walk(6, 80, 40, np.float32)
    w[1, 2, 3], w[4] = np.nan, 0
    history = History.from_array(w, missing={2: "lost"})
    with pytest.warns(MissingStepsWarning, match="step 2"), pytest.warns(NonFiniteWarning, match="step 1"):
        result = tails(history)
    assert np.isnan(result["alpha"].to_numpy()).tolist() == [False, True, True, False, True, False]
    with pytest.warns(MissingStepsWarning, match="step 2"), pytest.warns(NonFiniteWarning, match="step 1"):
        np.testing.assert_array_equal(result["alpha"], spectrum(history)["alpha"])
    sigma = np.linalg.svd(w[3].astype(np.float64), compute_uv=False)
    expected = fit_tail(sigma**2)
    assert float(result["cutoff"][3]) == pytest.approx(expected.cutoff, rel=1e-4)
    assert float(result["tail"][3]) == expected.tail
    assert result["cutoff"].attrs["units"] == "weight^2"
    assert np.isnan(tails(walk(2, 50, 3, np.float32))["alpha"]).all()


@pytest.mark.parametrize(
    ("seed", "count", "alpha", "below_three"),
    # powerlaw 2.0.0: Fit(sample).alpha for its default range of α, 0 to 3. With parameter_ranges={"alpha": [1, 100]},
    # and in powerlaw 1.5, it is the first number.
    [(1, 80, 3.5211, 2.7517), (5, 80, 3.3357, 2.2719), (8, 300, 4.2364, 2.3090), (6, 80, 2.4115, 2.4115)],
)
def test_powerlaw_differs_because_its_exponents_end_at_three(seed, count, alpha, below_three):
    values = np.sort(np.random.default_rng(seed).lognormal(size=count))
    assert fit_power_law(values).alpha == pytest.approx(alpha, abs=1e-4)
    best = (np.inf, np.nan)
    for i, cut in enumerate(values[:-1]):
        tail, n = values[i:], count - i
        exponent = 1 + n / np.log(tail / cut).sum()
        distance = np.abs(1 - (tail / cut) ** (1 - exponent) - np.arange(n) / n).max()
        if 1 < exponent <= 3:
            best = min(best, (distance, exponent))
    assert best[1] == pytest.approx(below_three, abs=1e-4)
