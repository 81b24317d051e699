"""The first paper again, end to end, on tiny models of a Hub on the loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.hubserver import HubServer
from support.tiny_models import TEXTS, model, write_checkpoint

from pythia_dynamics import figures
from pythia_dynamics.checkpoints.open import REGISTRY
from pythia_dynamics.checkpoints.registry import EMBED_OUT, SIZES
from pythia_dynamics.claims import scorecard as claims
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import CheckpointError, PythiaDynError
from pythia_dynamics.evaluation.runner import perplexity
from pythia_dynamics.evaluation.settings import EvaluationSettings
from pythia_dynamics.history.estimate import preview
from pythia_dynamics.progress import silent
from pythia_dynamics.report import facts
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies import garden

STEPS = (1000, 2000, 3000, 4000)
MADE = ("density", "msd", "two_time", "angles", "order", "rank", "spectrum", "tails", "rows")
MODES = ("forward", "unmask", "last-word")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("one", "two")):
        for number, step in enumerate(STEPS):
            write_checkpoint(directory / name / f"step{step}", model(10 * seed + number))
    return directory


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:4]))
    return path


@pytest.fixture
def tiny_hub(hub: HubServer, checkpoints: Path) -> HubServer:
    for name in ("one", "two"):
        hub.add(f"org/{name}", {f"step{step}": checkpoints / name / f"step{step}" for step in STEPS})
    return hub


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures and the report have tests of their own and take most of the time; here it is enough that they come."""

    def save(figure: object, path: Path) -> list[Path]:
        files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.write_bytes(b"drawn")
        return files

    def write_report(models: list[Results], path: Path, **_: object) -> Path:
        path.write_text("\n".join(f"{results.name}: {facts.gaps(results)}" for results in models))
        return path

    monkeypatch.setattr(figures, "save", save)
    monkeypatch.setattr(garden, "write_report", write_report)


class Stages:
    """The labels of the stages that were begun; at the one with `stop` in its label somebody presses Ctrl-C."""

    def __init__(self, stop: str = "\0") -> None:
        self.labels: list[str] = []
        self.stop = stop

    @contextmanager
    def __call__(self, label: str, unit: str) -> Iterator[Any]:
        self.labels.append(label)
        if self.stop in label:
            raise KeyboardInterrupt
        yield silent


def weights_moved(hub: HubServer) -> int:
    return sum(request.kind == "cdn" for request in hub.log)


def options(tmp_path: Path, corpus: Path) -> dict[str, Any]:
    here = {"cache": tmp_path / "cache", "results": tmp_path / "results"}
    return {**here, "corpus": corpus, "limit": 3, "device": "cpu"}


def test_everything_is_made_once_and_taken_up_where_it_ended(tiny_hub: HubServer, tmp_path: Path, corpus: Path) -> None:
    given, names = options(tmp_path, corpus), ("org/one", "org/two", "org/one")
    # Ctrl-C in the middle of the second model …
    broken = Stages(stop="two: ternary")
    with pytest.raises(KeyboardInterrupt):
        garden.run(names, stage=broken, **given)
    moved = weights_moved(tiny_hub)
    # … and the same call again does the rest, and nothing twice.
    stages = Stages()
    done = garden.run(names, stage=stages, **given)
    assert not any("measure" in label and "one" in label for label in stages.labels)
    assert "two: measure" in stages.labels  # the order parameter, which has a loss now
    assert weights_moved(tiny_hub) - moved <= 3  # the last step for the ternary head, both ends for the portrait
    assert done.failed == {}
    assert done.missing == {}
    out = tmp_path / "results"
    for name in ("one", "two"):
        made = {path.name for path in (out / name).iterdir()}
        of_weights = {path.name for path in (out / name / EMBED_OUT).iterdir()}
        drawn = (*(f"perplexity-{mode}" for mode in MODES), "first_last", "unmasking")
        assert {f"{kind}{suffix}" for kind in drawn for suffix in (".png", ".svg")} <= made
        assert {f"{kind}{suffix}" for kind in MADE for suffix in (".png", ".svg")} <= of_weights
        assert {"claims.json", "verify.json", "provenance.json", "ternary", EMBED_OUT} <= made
        assert {"provenance.json", "density.zarr", "two_time.zarr"} <= of_weights
        results = Results(name, out)
        assert "loss" in results.weights().read_table("order")
        by_id = {verdict.claim: verdict for verdict in done.verdicts[name]}
        assert claims.read(results) == done.verdicts[name]
        assert by_id["ternary-function"].verdict != "not testable here"
        settings = json.loads((out / name / "ternary" / "perplexity-forward.json").read_text())["settings"]
        assert settings["head"] == "ternary"
    assert {path.name for path in (out / "figures").glob("*.png")} == {
        *("garden-msd.png", "garden-msd-time.png", "garden-perplexity-forward.png", "garden-perplexity-unmask.png"),
        *("garden-perplexity-last-word.png", "garden-rank.png"),
    }
    assert (out / garden.PAGE).read_text() == "one: []\ntwo: []"
    assert all(path.exists() for path in done.files)
    assert out / garden.PAGE in done.files

    # A third time: nothing is fetched, measured or evaluated.
    stamps = {path: path.stat().st_mtime_ns for path in (out / "one").rglob("*.csv")}
    before, stages = weights_moved(tiny_hub), Stages()
    again = garden.run(names, stage=stages, **given)
    assert weights_moved(tiny_hub) == before
    assert not any("measure" in label or "first and last" in label or "verify" in label for label in stages.labels)
    assert {path: path.stat().st_mtime_ns for path in (out / "one").rglob("*.csv")} == stamps
    assert again.verdicts == done.verdicts


def test_values_are_those_of_the_single_commands(tiny_hub: HubServer, tmp_path: Path, corpus: Path) -> None:
    garden.run(["org/one"], stage=Stages(), **options(tmp_path, corpus))
    table = Results("one", tmp_path / "results").read_table("perplexity-forward")
    direct = perplexity("org/one", corpus=corpus, limit=3, device="cpu")
    assert table["ppl_corpus"].values.tolist() == direct["ppl_corpus"].values.tolist()
    assert not (tmp_path / "results" / "figures").exists()  # one model needs no axes to share


def test_without_perplexities_only_heads_are_moved(tiny_hub: HubServer, tmp_path: Path, corpus: Path) -> None:
    stages = Stages()
    done = garden.run(["org/one"], stage=stages, skip_perplexity=True, **options(tmp_path, corpus))
    assert not any("perplex" in label or "ternary" in label for label in stages.labels)
    assert weights_moved(tiny_hub) <= len(STEPS) + 3  # one range each, and the headers of first, middle and last
    assert sum(request.sent for request in tiny_hub.log if request.kind == "cdn") < 4 * 304 * 32 * 2 + 5 * 25_000
    found = {verdict.claim: verdict.verdict for verdict in done.verdicts["one"]}
    assert found["perplexity-drops"] == "not testable here"
    assert (tmp_path / "results" / "one" / EMBED_OUT / "msd.png").is_file()


def test_a_gap_is_a_gap_and_a_model_that_fails_keeps_nobody(
    hub: HubServer, checkpoints: Path, tmp_path: Path, corpus: Path
) -> None:
    revisions: dict[str, Any] = {f"step{step}": checkpoints / "one" / f"step{step}" for step in STEPS}
    hub.add("org/one", {**revisions, "step2000": {"README.md": b"nothing"}})
    with pytest.warns(UserWarning, match="lacks step 2000"):
        done = garden.run(["org/none", "org/one"], stage=Stages(), **options(tmp_path, corpus))
    assert list(done.failed) == ["org/none"]
    assert list(done.missing["one"]) == [2000]
    assert "2,000" in (tmp_path / "results" / garden.PAGE).read_text()
    with pytest.raises(PythiaDynError, match="no model could be reproduced: org/none: "):
        garden.run(["org/none"], stage=Stages(), **options(tmp_path, corpus))


def test_what_was_replaced_at_the_source_is_said(
    hub: HubServer, checkpoints: Path, tmp_path: Path, corpus: Path
) -> None:
    hub.add("org/one", {f"step{step}": checkpoints / "one" / f"step{step}" for step in STEPS})
    garden.run(["org/one"], stage=Stages(), skip_perplexity=True, **options(tmp_path, corpus))
    hub.commit("org/one", "step2000", checkpoints / "one" / "step3000")
    with pytest.warns(UserWarning, match="one: step 2000 replaced at the source since the fetch; pythia-dyn fetch"):
        garden.run(["org/one"], stage=Stages(), skip_perplexity=True, **options(tmp_path, corpus))


def test_the_plan_says_what_is_left(tiny_hub: HubServer, tmp_path: Path, corpus: Path) -> None:
    given: dict[str, Any] = {"cache": tmp_path / "cache", "results": tmp_path / "results"}
    (first,) = garden.plan(["org/one"], **given)
    size = first.fetch.full_bytes // 4
    assert size >= 2 * sum(weight.numel() for weight in model().parameters())
    assert (first.checkpoints, first.checkpoint_bytes) == (4, size)
    assert first.bytes == first.fetch.bytes + 4 * size
    assert first.disk_bytes == first.fetch.disk_bytes + 4 * size
    downloads = first.checkpoints * first.checkpoint_bytes / 1e6  # beside which an evaluation of a second takes 4
    assert first.seconds(1e6, 0.0) == pytest.approx(first.fetch.seconds(1e6) + downloads)
    assert first.seconds(1e12, 1.0) == pytest.approx(first.fetch.seconds(1e12) + 4)
    (light,) = garden.plan(["org/one"], skip_perplexity=True, **given)
    assert (light.checkpoints, light.bytes) == (0, light.fetch.bytes)


def test_the_plan_measures_this_machine(
    checkpoints: Path, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"cache": tmp_path / "cache", "results": tmp_path / "results", "corpus": corpus, "limit": 2}
    settings = EvaluationSettings(device="cpu", corpus=corpus, limit=2)
    (small,) = garden.plan([checkpoints / "one"], **given)
    asked: list[Any] = []
    monkeypatch.setattr(garden, "evaluate", lambda _, modes, how: asked.append((tuple(modes), how.limit, how.steps)))
    assert 0 <= garden.checkpoint_seconds(small, settings) < 1
    assert asked == [(MODES, 1, [max(STEPS)]), (MODES, 2, [max(STEPS)])]  # the first one loads libraries
    large = replace(small, operations=1e18)
    by_products = garden.checkpoint_seconds(large, settings)
    assert len(asked) == 2
    assert garden.checkpoint_seconds(replace(large, operations=2e18), settings) == pytest.approx(2 * by_products)
    assert garden.checkpoint_seconds(replace(small, checkpoints=0), settings) == 0

    def without_tokenizer(*_: object) -> None:
        raise CheckpointError("has no tokenizer")

    monkeypatch.setattr(garden, "evaluate", without_tokenizer)  # is said when it is run, not instead of a plan
    assert 0 < garden.checkpoint_seconds(small, settings) < 1
    (longer,) = garden.plan([checkpoints / "one"], **{**given, "limit": 1})
    assert 0 < longer.operations < small.operations


def test_the_plan_of_the_paper_s_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(garden, "preview", partial(preview, source=REGISTRY))  # what it falls back to without a network
    plans = garden.plan(cache=tmp_path / "cache", results=tmp_path / "results")
    assert [found.model.name for found in plans] == [
        *("pythia-14m", "pythia-31m"),
        *(f"pythia-{size}-deduped" for size in ("70m", "160m", "410m", "1b")),
    ]
    for size, found in zip(garden.MODELS, plans, strict=True):
        assert found.fetch.steps == found.checkpoints == 143
        assert found.checkpoint_bytes == SIZES[size].checkpoint_bytes
    assert [a.operations < b.operations for a, b in pairwise(plans)] == [True] * 5


# -- the command ----------------------------------------------------------------------------------------------


def invoke(tmp_path: Path, *arguments: object, stdin: str | None = None) -> Any:
    environment = {"PYTHIA_DYN_CACHE": str(tmp_path / "cache"), "PYTHIA_DYN_RESULTS": str(tmp_path / "results")}
    words = ["reproduce", "garden", *map(str, arguments)]
    return CliRunner(env=environment).invoke(main, words, input=stdin)


def test_the_command_prints_a_plan_and_asks_first(tiny_hub: HubServer, tmp_path: Path, corpus: Path) -> None:
    common = ("--model", "org/one", "--model", "org/two", "--corpus", corpus, "--limit", 2, "--device", "cpu")
    planned = invoke(tmp_path, *common, "--plan")
    assert planned.exit_code == 0
    assert "to move" in planned.stdout
    assert "\nall " in planned.stdout
    assert not (tmp_path / "cache").exists()
    refused = invoke(tmp_path, *common, stdin="n\n")
    assert refused.exit_code == 1
    assert "Begin?" in refused.stderr
    assert not (tmp_path / "cache").exists()


def test_the_command_does_it_all(tiny_hub: HubServer, tmp_path: Path, corpus: Path) -> None:
    models = ("--model", "org/one", "--model", "org/none")
    common = (*models, "--corpus", corpus, "--limit", 2, "--device", "cpu", "--skip-perplexity")
    # A name that is wrong is told before anything is begun.
    wrong = invoke(tmp_path, *common, "--yes")
    assert wrong.exit_code == 1
    assert "org/none" in wrong.stderr
    assert not (tmp_path / "cache").exists()
    done = invoke(tmp_path, *common[4:], "--model", "org/one", "--yes", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)["garden"]
    assert told["plan"][0]["checkpoints"] == 0
    assert told["failed"] == {}
    assert len(told["claims"]["one"]) == len(claims.CLAIMS)
    assert str(tmp_path / "results" / garden.PAGE) in told["files"]
    assert invoke(tmp_path, "--model", "nothing-*").exit_code == 1
