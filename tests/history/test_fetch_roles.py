"""Revisions of one model that have the unembedding under different names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import checkpoint
from support.hubserver import HubServer

from pythia_dynamics.history.fetch import download
from pythia_dynamics.history.store import Store

REPO = "org/tied"


def tied(step: int, *, with_head: bool) -> dict[str, torch.Tensor]:
    """A tied model: torch files of transformers have the matrix under both names, safetensors files under one."""
    matrix = torch.randn((12, 4), generator=torch.Generator().manual_seed(step))
    head = {"lm_head.weight": matrix.clone()} if with_head else {}
    return {"model.embed_tokens.weight": matrix, "model.norm.weight": torch.ones(4), **head}


@pytest.mark.parametrize("heads", [(True, False, True), (False, True, False)])
def test_a_tied_matrix_is_found_under_either_name(hub: HubServer, tmp_path: Path, heads: tuple[bool, ...]) -> None:
    files = [
        checkpoint(
            tied(step, with_head=head), "torch" if head else "safetensors", model_type="llama", tie_word_embeddings=True
        )
        for step, head in enumerate(heads)
    ]
    hub.add(REPO, {f"step{step}": content for step, content in enumerate(files)})
    report = download(REPO, cache=tmp_path)
    assert report.complete
    ((name, history),) = report.histories().items()
    assert name == ("lm_head.weight" if heads[0] else "model.embed_tokens.weight")
    for step in range(3):
        expected = tied(step, with_head=False)["model.embed_tokens.weight"].numpy()
        assert np.array_equal(history.at(step), expected)
    sources = {step: record["tensor"] for step, record in Store.open(report.path).records(name).items()}
    assert sources == {
        step: "lm_head.weight" if head else "model.embed_tokens.weight" for step, head in enumerate(heads)
    }
    assert download(REPO, cache=tmp_path).fetched == ()


def test_a_name_that_was_asked_for_is_taken_literally(hub: HubServer, tmp_path: Path) -> None:
    files = {
        f"step{step}": checkpoint(tied(step, with_head=step > 0), model_type="llama", tie_word_embeddings=True)
        for step in range(2)
    }
    hub.add(REPO, files)
    report = download(REPO, cache=tmp_path, tensors=["lm_head.weight"])
    assert report.fetched == (1,)
    assert "its unembedding is model.embed_tokens.weight" in report.missing[0]


def test_two_roles_of_one_matrix_keep_their_own_tensors(hub: HubServer, tmp_path: Path) -> None:
    files = {}
    for step in range(2):
        tensors = tied(step, with_head=True)
        tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
        files[f"step{step}"] = checkpoint(tensors, model_type="llama")
    hub.add(REPO, files)
    report = download(REPO, cache=tmp_path, tensors=["unembedding", "embedding"])
    assert report.complete
    histories = report.histories()
    difference = histories["lm_head.weight"].at(1) - histories["model.embed_tokens.weight"].at(1)
    assert np.allclose(difference, 1, atol=1e-6)
