"""The figure of the last hidden states: which curves its panels have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.saved_results import GONE, STEPS, representation_table

from pythia_dynamics import figures
from pythia_dynamics.errors import FormatError, PythiaDynError
from pythia_dynamics.figures.representation import representation_figure
from pythia_dynamics.results.folder import Results

TABLE = representation_table()


def curves(draw: Callable[..., None]) -> dict[str, np.ndarray]:
    """The lines of a panel by their labels."""
    with figures.sheet() as (_, ax):
        draw(ax, TABLE)
        assert ax.get_legend() is not None
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        return {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.lines}


def test_each_panel_has_its_curves_and_their_null() -> None:
    found = curves(figures.anisotropy)
    np.testing.assert_array_equal(found["measured"], TABLE["anisotropy"])
    assert set(found["isotropic Gaussian"]) == {0}
    found = curves(figures.representation_rank)
    np.testing.assert_array_equal(found["RankMe"], TABLE["rankme"])
    np.testing.assert_array_equal(found["effective rank"], TABLE["effective_rank"])
    dashed = [values for label, values in found.items() if label.startswith("_")]
    np.testing.assert_array_equal(dashed, [TABLE["rankme_null"], TABLE["effective_rank_null"]])
    found = curves(figures.decay_exponent)
    np.testing.assert_array_equal(found["measured"], TABLE["alpha"])
    np.testing.assert_array_equal(found["isotropic Gaussian"], TABLE["alpha_null"])
    found = curves(figures.ngram_divergence)
    np.testing.assert_array_equal(found["unigram"], TABLE["kl_unigram"])
    np.testing.assert_array_equal(found["bigram"], TABLE["kl_bigram"])


def test_another_result_is_refused_in_one_line() -> None:
    with figures.sheet() as (_, ax), pytest.raises(PythiaDynError, match=r"figures\.anisotropy draws: the result of"):
        figures.anisotropy(ax, TABLE.drop_vars("anisotropy"))


def test_the_figure_is_of_the_saved_table(tmp_path: Path) -> None:
    results = Results("walk", tmp_path)
    with pytest.raises(PythiaDynError, match="run pythia-dyn representation --model walk"):
        representation_figure(results)
    results.path.mkdir()
    file = results.path / "representation.csv"
    file.write_text(TABLE.to_dataframe().to_csv())
    spec = representation_figure(results)
    first, last = float(TABLE["rankme"][0]), float(TABLE["rankme"][-1])
    assert f"RankMe from {first:.3g} to {last:.3g}" in spec.caption
    with spec.sheet() as (_, axes):
        spec.draw(axes)
        assert all(ax.has_data() for ax in axes.flat)
        gap = np.isnan(np.asarray(axes[0, 0].lines[0].get_ydata()))
        assert gap.tolist() == (STEPS == GONE).tolist()
    file.write_text(TABLE.drop_vars("kl_bigram").to_dataframe().to_csv())
    with pytest.raises(FormatError, match="no column kl_bigram"):
        representation_figure(results)
