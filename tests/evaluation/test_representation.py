"""The representation over the checkpoints of a suite: files, resuming, gaps, and what is said of few positions."""

from __future__ import annotations

import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from support.tiny_models import TEXTS, encode, model, tokenizer, write_checkpoint

import pythia_dynamics as pyd
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.corpus import Corpus
from pythia_dynamics.evaluation.evaluator import Evaluator
from pythia_dynamics.evaluation.hidden_states import hidden_states
from pythia_dynamics.evaluation.ngrams import count_ngrams
from pythia_dynamics.evaluation.representation import representation
from pythia_dynamics.evaluation.rows import COLUMNS, FIELDS
from pythia_dynamics.evaluation.runner import evaluate
from pythia_dynamics.evaluation.settings import EvaluationSettings
from pythia_dynamics.results.folder import Results

CORPUS = Corpus("texts", TEXTS)
OPTIONS: dict[str, Any] = {"corpus": CORPUS, "device": "cpu", "max_tokens": 20}
SENTENCES = [encode(text)[:20] for text in TEXTS]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("suites") / "tiny"
    for step in (1, 2, 10):
        write_checkpoint(root / f"step{step}", model(step))
    return root


@pytest.fixture
def suite(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "tiny"))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes that are evaluated, as it happens."""
    seen: list[str] = []
    row = Evaluator.row

    def note(self: Evaluator, mode: Any) -> Any:
        seen.append(mode)
        return row(self, mode)

    monkeypatch.setattr(Evaluator, "row", note)
    return seen


def test_every_checkpoint_has_the_row_of_its_model(suite: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "results" / "tiny"
    found = pyd.representation(suite, out=out, progress=lambda done, total: seen.append((done, total)), **OPTIONS)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert found["step"].values.tolist() == [1, 2, 10]
    for i, step in enumerate((1, 2, 10)):
        weights = model(step).half().float()
        expected = hidden_states(weights, SENTENCES, count_ngrams(SENTENCES, 304)).values()
        for name in COLUMNS["representation"]:
            np.testing.assert_allclose(found[name][i], expected[name], rtol=1e-6, err_msg=name)
    assert set(found.data_vars) == {*COLUMNS["representation"], *FIELDS["representation"]}
    assert found.sizes == {"step": 3, "component": 32, "sentence": len(TEXTS)}
    assert found["kl_unigram"].attrs == {"units": "nat", "long_name": "KL(unigram ‖ model) per token"}
    assert "not finite" in found["nonfinite"].attrs["long_name"]
    assert found.attrs["mode"] == "representation"
    assert sorted(path.name for path in out.glob("[!.]*")) == [
        f"representation.{end}" for end in ("csv", "json", "zarr")
    ]
    header, *lines = (out / "representation.csv").read_text().splitlines()
    assert header.split(",") == ["step", *COLUMNS["representation"]]
    assert [line.split(",")[0] for line in lines] == ["1", "2", "10"]
    read = Results("tiny", tmp_path / "results").read_table("representation")
    for name in COLUMNS["representation"]:
        np.testing.assert_array_equal(read[name], found[name])
    with xr.open_zarr(out / "representation.zarr", consolidated=False) as archive:
        assert archive["covariance_eigenvalues"].dims == ("step", "component")
        np.testing.assert_array_equal(archive["covariance_eigenvalues"], found["covariance_eigenvalues"])


def test_a_second_run_takes_up_what_is_there(suite: Path, tmp_path: Path, evaluated: list[str]) -> None:
    out = tmp_path / "results"
    first = representation(suite, steps=[1, 10], out=out, **OPTIONS)
    evaluated.clear()
    second = representation(suite, out=out, **OPTIONS)
    assert evaluated == ["representation"]
    assert second.sel(step=[1, 10]).equals(first)
    evaluated.clear()
    assert representation(suite, out=out, **OPTIONS).identical(second)
    assert evaluated == []
    assert representation(suite, **OPTIONS).equals(second)
    with pytest.raises(
        PythiaDynError, match=r"representation\.csv has 3 rows of other settings \(dtype: .*--overwrite"
    ):
        representation(suite, out=out, **OPTIONS, dtype="bfloat16")


def test_beside_a_perplexity_each_checkpoint_is_loaded_once(suite: Path, evaluated: list[str]) -> None:
    settings = EvaluationSettings(**OPTIONS)
    found = evaluate(suite, ["forward", "representation"], settings)
    assert evaluated == ["forward", "representation"] * 3
    assert found["representation"].equals(representation(suite, **OPTIONS))
    np.testing.assert_array_equal(found["forward"]["tokens"], found["representation"]["positions"])


def test_shares_of_an_executor_give_the_rows_of_one_run(suite: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        shared = representation(suite, out=tmp_path / "results", executor=executor, workers=2, **OPTIONS)
    assert shared.equals(representation(suite, **OPTIONS))


def test_it_is_no_mode_of_perplexity(suite: Path) -> None:
    with pytest.raises(UnknownNameError, match="no mode 'representation'"):
        pyd.perplexity(suite, mode="representation", **OPTIONS)


def test_gaps_are_nan_with_a_reason(suite: Path, tmp_path: Path) -> None:
    (suite / "step2" / "model.safetensors").write_bytes(b"not weights")
    found = representation(suite, steps=[1, 2, 7], out=tmp_path / "results", **OPTIONS)
    assert np.isfinite(found["rankme"].values).tolist() == [True, False, False]
    assert np.isfinite(found["positions"].values).tolist() == [True, False, False]
    assert set(found.attrs["missing"]) == {"2", "7"}
    assert found.attrs["missing"]["7"] == "there is no such revision"
    with pytest.raises(CheckpointError, match=r"none of 1 revisions of .* gave a representation"):
        representation(suite, steps=[2], **OPTIONS)


def test_a_step_that_is_not_finite_is_nan_and_counted(suite: Path, tmp_path: Path) -> None:
    file = suite / "step2" / "model.safetensors"
    tensors = load_file(file)
    tensors["gpt_neox.final_layer_norm.bias"] = torch.full_like(tensors["gpt_neox.final_layer_norm.bias"], torch.inf)
    save_file(tensors, file, metadata={"format": "pt"})
    for _ in range(2):  # the second reads the row of the first
        found = representation(suite, out=tmp_path / "results", **OPTIONS)
        assert found.attrs["missing"] == {}
        assert np.isfinite(found["alpha_se"]).sum() == 0  # 32 dimensions are too few
        for name in ("anisotropy", "rankme", "effective_rank", "kl_unigram", "kl_bigram", "rankme_null"):
            assert np.isfinite(found[name].values).tolist() == [True, False, True], name
        assert found["nonfinite"].values.tolist() == [0, found["positions"].values[0], 0]
    line = (tmp_path / "results" / "representation.csv").read_text().splitlines()[2]
    assert line.startswith("2,,,,,,,")


def test_few_positions_are_said(suite: Path) -> None:
    with pytest.warns(UserWarning, match=r"tiny: 7 positions in 32 dimensions: no rank can be more than 7"):
        found = representation(suite, steps=[1], **{**OPTIONS, "limit": 1, "max_tokens": 8})
    assert found["rankme"] < 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        representation(suite, steps=[1], **OPTIONS)


def test_a_tokenizer_of_its_own_has_n_grams_of_its_own(suite: Path) -> None:
    file = suite / "step10" / "tokenizer.json"
    content = json.loads(tokenizer().to_str())
    content["model"]["merges"] = content["model"]["merges"][:5]
    known = {token for token, number in content["model"]["vocab"].items() if number < 262}
    content["model"]["vocab"] = {token: n for token, n in content["model"]["vocab"].items() if token in known}
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="another tokenizer"):
        found = representation(suite, **{**OPTIONS, "max_tokens": None})
    assert found["positions"].values[0] == found["positions"].values[1] < found["positions"].values[2]
    assert np.isfinite(found["kl_bigram"]).all()


def test_seeds_are_gathered(suite: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    for seed in (1, 2):
        dataset = representation(suite, out=root / f"pythia-14m-seed{seed}", **OPTIONS)
        Results(f"pythia-14m-seed{seed}", root).record("representation", dataset.attrs)
    gathered = pyd.gather("pythia-14m-seed*", measure="representation", results=root)
    assert gathered["effective_rank"].dims == ("run", "step")
    np.testing.assert_array_equal(gathered["effective_rank"][0], dataset["effective_rank"])
