from __future__ import annotations

import numpy as np
import pytest

from pythia_dynamics.errors import UnknownNameError
from pythia_dynamics.results.published_lambada import published_lambada, published_models


def test_the_table_is_whole() -> None:
    models = published_models()
    assert len(models) == 16
    for name in models:
        result = published_lambada(name)
        assert result.sizes == {"step": 27}
        assert result["step"].values.tolist() == sorted(result["step"].values.tolist())
        assert np.isfinite(result["ppl"]).all()
        assert (result["ppl"] > 1).all()
        assert ((result["accuracy"] >= 0) & (result["accuracy"] <= 1)).all()


def test_known_values() -> None:
    result = published_lambada("EleutherAI/pythia-70m-deduped")
    assert float(result["ppl"].sel(step=43_000)) == pytest.approx(86.3, abs=0.05)
    assert float(result["ppl"].sel(step=133_000)) == pytest.approx(176, abs=0.5)
    assert not result["suspect"].any()


def test_the_rows_that_repeat_another_model_are_suspect() -> None:
    twin, original = published_lambada("pythia-2.8b-deduped"), published_lambada("pythia-2.8b")
    suspect = twin["suspect"].values
    assert twin["step"].values[suspect].max() == 43_000
    relative = abs(twin["ppl"] / original["ppl"] - 1).values
    assert relative[suspect].max() < 1e-3
    assert relative[~suspect].min() > 1e-3
    assert not original["suspect"].any()


def test_unknown_models_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="pythia-70m-deduped"):
        published_lambada("pythia-70m-dedupd")
