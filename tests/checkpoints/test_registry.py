from pathlib import Path

import pytest

from pythia_dynamics.checkpoints import registry as suites
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError


@pytest.mark.parametrize(
    ("alias", "repository"),
    [
        ("14m", "EleutherAI/pythia-14m"),
        ("31m", "EleutherAI/pythia-31m"),
        ("70m", "EleutherAI/pythia-70m-deduped"),
        ("70M", "EleutherAI/pythia-70m-deduped"),
        ("1.4b", "EleutherAI/pythia-1.4b-deduped"),
        ("70m-standard", "EleutherAI/pythia-70m"),
        ("70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("160m-seed3", "EleutherAI/pythia-160m-seed3"),
        ("410m-v0", "EleutherAI/pythia-410m-v0"),
        ("410m-deduped-v0", "EleutherAI/pythia-410m-deduped-v0"),
        ("pythia-70m", "EleutherAI/pythia-70m"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("allenai/OLMo-1B-hf", "allenai/OLMo-1B-hf"),
    ],
)
def test_a_name_resolves_to_its_repository(alias: str, repository: str) -> None:
    model = suites.resolve(alias)
    assert model.location == repository
    assert model.name == repository.split("/")[1]
    assert not model.is_local


def test_every_alias_resolves_to_a_repository_of_its_own() -> None:
    locations = [suites.resolve(alias).location for alias in suites.aliases()]
    assert len(set(locations)) == len(locations) > 70
    assert all(suites.resolve(location).location == location for location in locations)


@pytest.mark.parametrize("name", ["70mm", "71m", "12b-seed3", "70m-seed0", "nonsense", "", "../etc", "a/../b", "a/b/c"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises((UnknownNameError, CheckpointError)):
        suites.resolve(name)


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no model '70n'; did you mean 70m"):
        suites.resolve("70n")
    with pytest.raises(UnknownNameError, match="did you mean my-suite"):
        suites.resolve("my-sute", known=["my-suite"])


def test_a_directory_is_a_model(tmp_path: Path) -> None:
    model = suites.resolve(tmp_path)
    assert (model.location, model.name, model.is_local) == (str(tmp_path.resolve()), tmp_path.name, True)
    with pytest.raises(CheckpointError, match="no directory"):
        suites.resolve(str(tmp_path / "absent"))


def test_the_step_grids_have_the_published_sizes() -> None:
    assert len(suites.PAPER_STEPS) == 143
    assert len(suites.ALL_STEPS) == 154
    assert list(suites.ALL_STEPS) == sorted(set(suites.ALL_STEPS))


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("70m", 70_426_624), ("160m", 162_322_944), ("410m", 405_334_016), ("1b", 1_011_781_632), ("12b", 11_846_072_320)],
)
def test_the_shapes_give_the_published_numbers_of_parameters(size: str, parameters: int) -> None:
    assert suites.SIZES[size].parameters == parameters


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        ("1000,2000", (1000, 2000)),
        ("2000, 1000,1000", (1000, 2000)),
        ("0:10:5", (0, 5, 10)),
        ("3:5", (3, 4, 5)),
        ("1,10:30:10", (1, 10, 20, 30)),
        ("all", None),
        ("paper", suites.PAPER_STEPS),
    ],
)
def test_steps_are_read(spec: str, steps: tuple[int, ...] | None) -> None:
    assert suites.parse_steps(spec) == steps


@pytest.mark.parametrize("spec", ["", "x", "1-5", "5:1", "1:5:0", "1:2:3:4", "-3", "1.5", "0:99999999999"])
def test_other_steps_are_refused(spec: str) -> None:
    with pytest.raises(PythiaDynError, match="steps"):
        suites.parse_steps(spec)


def test_directories_given_from_python_are_those_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path)
    changed = suites.resolve("14m").changed({"config": "conf", "tokenizer": Path("conf")}).suite
    assert (changed.config, changed.tokenizer) == (str(tmp_path / "conf"),) * 2
    assert suites.resolve("14m").changed({"tokenizer": "owner/conf"}).suite.tokenizer == "owner/conf"
    with pytest.raises(PythiaDynError, match="the suite's config cannot be"):
        suites.resolve("14m").changed({"config": 3})
    with pytest.raises(PythiaDynError, match=r"no/such"):
        suites.resolve("14m").changed({"config": Path("no/such")})
