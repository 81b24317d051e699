"""The first and the last step of a model, from whole checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from support.hubserver import HubServer
from support.tiny_models import encode, model, write_checkpoint

from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.portrait import PHRASE as PHRASE_SHOWN
from pythia_dynamics.evaluation.portrait import TEXT as TEXT_SHOWN
from pythia_dynamics.evaluation.portrait import TOKENS, portrait
from pythia_dynamics.results.folder import Results

PHRASE, TEXT = "the cat sat on the mat", "she said that the answer was no"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("suite")
    for seed, step in enumerate((1000, 2000, 3000)):
        write_checkpoint(directory / f"step{step}", model(seed))
    return directory


def test_it_shows_what_each_checkpoint_computes(suite: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    taken = portrait(
        suite, phrase=PHRASE, text=TEXT, device="cpu", progress=lambda done, total: steps.append((done, total))
    )
    assert taken["step"].values.tolist() == [1000, 3000]
    assert steps == [(0, 2), (1, 2), (2, 2)]
    for seed, step in ((0, 1000), (2, 3000)):
        whole = model(seed, attn_implementation="eager").half().float()
        ours = taken.sel(step=step)
        head = whole.get_output_embeddings().weight
        np.testing.assert_array_equal(ours["unembedding"], head[:512].T.detach())
        with torch.inference_mode():
            attentions = whole(torch.tensor([encode(PHRASE)]), output_attentions=True).attentions
            logits = whole(torch.tensor([encode(TEXT)])).logits[0].mean(dim=0)
        np.testing.assert_allclose(ours["attention"], attentions[0][0], atol=1e-5)
        np.testing.assert_allclose(ours["attention"].sum("key"), 1, atol=1e-5)
        np.testing.assert_allclose(ours["logits"], logits, atol=1e-4)
    assert "".join(taken.attrs["words"]) == PHRASE
    lines = taken.attrs["completions"]
    assert [line["prefix"] for line in lines] == list(range(1, len(encode(PHRASE))))
    assert all(line["perplexity"] >= 1 for line in lines)
    results = Results("suite", tmp_path)
    results.write_zarr("first_last", taken)
    again = results.read_zarr("first_last")
    assert again.identical(taken)


def test_what_is_shown_by_default() -> None:
    assert PHRASE_SHOWN == "New York is the most popular"  # Fig 5
    assert TOKENS == 512
    digests = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in (PHRASE_SHOWN, TEXT_SHOWN)]
    assert digests == ["c244f8b7fa6048f1", "e14a0737a6033d9c"]


def test_a_ternary_head_is_shown_rounded(suite: Path) -> None:
    taken = portrait(suite, phrase=PHRASE, text=TEXT, device="cpu", head="ternary")
    assert [len(np.unique(taken["unembedding"].sel(step=step))) for step in (1000, 3000)] == [3, 3]
    assert taken.attrs["head"] == "ternary"
    with pytest.raises(UnknownNameError, match="no setting 'limit'"):
        portrait(suite, limit=3)


def test_two_steps_may_be_chosen(suite: Path) -> None:
    taken = portrait(suite, steps="3000,2000", phrase=PHRASE, text=TEXT, device="cpu")
    assert taken["step"].values.tolist() == [2000, 3000]
    assert [taken.attrs["commits"][str(step)] is not None for step in (2000, 3000)] == [True, True]


def test_what_cannot_be_shown_says_why(suite: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="1500"):
        portrait(suite, steps="1500,3000", device="cpu")
    for steps in ("1000", "1000,2000,3000"):
        with pytest.raises(PythiaDynError, match="two different steps"):
            portrait(suite, steps=steps, device="cpu")
    with pytest.raises(PythiaDynError, match="at least two"):
        portrait(suite, phrase="", device="cpu")
    for step in (1, 2):
        (tmp_path / "bad" / f"step{step}").mkdir(parents=True)
        (tmp_path / "bad" / f"step{step}" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        portrait(tmp_path / "bad", device="cpu")


def test_it_reads_a_hub(suite: Path, hub: HubServer) -> None:
    hub.add("org/tiny", {f"step{step}": suite / f"step{step}" for step in (1000, 3000)})
    taken = portrait("org/tiny", phrase=PHRASE, text=TEXT, device="cpu")
    np.testing.assert_array_equal(
        taken["unembedding"], portrait(suite, phrase=PHRASE, text=TEXT, device="cpu")["unembedding"]
    )
    assert taken.attrs["location"] == "org/tiny"
