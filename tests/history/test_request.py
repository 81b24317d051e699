"""A request is checked when it is made; calls with keywords make the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import HEAD, checkpoint, state, suite
from support.hubserver import HubServer

from pythia_dynamics.checkpoints.open import REGISTRY
from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.fetch import download, fetch
from pythia_dynamics.history.request import FetchRequest

REPO = "org/tiny"


def test_a_request_resolves_what_the_user_named(tmp_path: Path) -> None:
    request = FetchRequest("70m", "embed_in.weight", steps=iter([7, 5, 7]), cache=tmp_path)
    assert request.resolved == resolve("70m")
    assert request.patterns == ("embed_in.weight",)
    assert request.wanted == (5, 7)
    assert request.path == tmp_path / "pythia-70m-deduped.zarr"
    assert request.open_source().location == "EleutherAI/pythia-70m-deduped"
    assert FetchRequest(resolve("70m"), cache=tmp_path).path == request.path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensors": []}, "no tensor is named"),
        ({"tensors": [["w"]]}, "a tensor is given by its name or a glob"),
        ({"steps": []}, "no step is named"),
        ({"steps": "1-5"}, "cannot read steps"),
        ({"model": "70n"}, "no model '70n'; did you mean 70m"),
    ],
)
def test_a_wrong_request_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PythiaDynError, match=message):
        FetchRequest(**{"model": "70m", **options})


def test_keywords_are_the_fields_of_a_request() -> None:
    request = FetchRequest.of("70m", {"steps": "5,7"})
    assert request == FetchRequest("70m", steps="5,7")
    assert FetchRequest.of(request, {"source": REGISTRY}) == FetchRequest("70m", steps="5,7", source="registry")
    with pytest.raises(UnknownNameError, match="no option 'step'; did you mean steps"):
        download("70m", step="5")
    with pytest.raises(UnknownNameError, match="no option 'worker'; did you mean workers"):
        fetch("70m", worker=3)
    with pytest.raises(UnknownNameError, match="no option 'tensors' in fetch; did you mean tensor"):
        fetch("70m", tensors="*")
    with pytest.raises(PythiaDynError, match="the registry has no weights"):
        download("70m", source=REGISTRY)


def test_one_tensor_gives_one_history(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1, 2]))
    assert fetch(REPO, tensor="embed_o*", cache=tmp_path / "a").tensor == HEAD
    assert fetch(REPO, tensor="gpt_neox.embed_in.weight", cache=tmp_path / "a").tensor == "gpt_neox.embed_in.weight"
    message = r"'\*embed\*' matches 2 tensors \(.*embed_in.weight.*\); fetch takes one, download takes several"
    with pytest.raises(PythiaDynError, match=message):
        fetch(REPO, tensor="*embed*", cache=tmp_path / "b")
    assert not list((tmp_path / "b").glob("*"))
    assert len(download(REPO, tensors="*embed*", cache=tmp_path / "b").histories()) == 2


def test_a_store_in_the_cache_names_its_source(tmp_path: Path) -> None:
    folder = tmp_path / "walk" / "step1"
    folder.mkdir(parents=True)
    for name, content in checkpoint(state(1)).items():
        (folder / name).write_bytes(content)
    fetch(tmp_path / "walk", cache=tmp_path / "cache")
    assert download("walk", cache=tmp_path / "cache").present == (1,)
