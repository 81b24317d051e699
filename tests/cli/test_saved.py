"""Commands on saved results: figures, claims, report; and portrait."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.saved_results import save_results
from support.tiny_models import model, write_checkpoint

from pythia_dynamics import figures
from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.claims import scorecard as claims
from pythia_dynamics.claims.evidence import VERDICTS, Evidence
from pythia_dynamics.claims.verdict import Claim, Decision, Verdict
from pythia_dynamics.cli.app import main
from pythia_dynamics.results.folder import Results

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    environment = {"PYTHIA_DYN_CACHE": str(tmp_path / "cache"), "PYTHIA_DYN_RESULTS": str(tmp_path / "results")}

    def invoke(*arguments: object) -> Result:
        return CliRunner(env=environment).invoke(main, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What would be drawn: the drawing itself takes time and is tested elsewhere."""
    files: list[Path] = []

    def save(figure: object, path: Path) -> list[Path]:
        files.append(path)
        return [path]

    monkeypatch.setattr(figures, "save", save)
    return files


def succeeds(result: Result) -> str:
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def fails(result: Result) -> str:
    assert result.exit_code == 1, (result.stdout, result.exception)
    (line,) = result.stderr.splitlines()
    return line


def some(directory: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        save_results(directory / "results", name, seed, only=("msd", "order"))


def blog(directory: Path) -> Results:
    """What ``reproduce order-parameter`` leaves, as far as figures and claims need it."""
    results = Results("order-parameter", directory / "results")
    results.path.mkdir(parents=True)
    lines = ["model,seed,step,order_parameter,train_loss,validation_loss,dloss_db,dloss_db_backward"]
    for size, b in (("10k", 0.1), ("0.1m", 0.05)):
        for seed in (0, 1):
            lines += [
                f"{size},{seed},{step},{b + step / 1e5},{4 - step / 1e3},{4.1 - step / 1e3},-3,-2" for step in (0, 500)
            ]
    (results.path / "runs.csv").write_text("\n".join(lines) + "\n")
    claim = Claim("b-grows", "b grows.", "Fig 4", "test", "none", "A Large Language Model Order Parameter")
    evidence = Evidence("rise of b", 0.4, 0.1, "no rise", p=0.01, power=0.9, low=0.3)
    verdict = Verdict.of(claim, Decision("it does", {"first": 0.1}, evidence, p_corrected=0.03))
    claims.save(results, (verdict,))
    results.record("order-parameter", {})
    return results


def test_figures_are_drawn_anew_alone_and_together(run: Run, tmp_path: Path, drawn: list[Path]) -> None:
    some(tmp_path, "one", "two")
    (tmp_path / "results" / "one" / EMBED_OUT / "msd.png").unlink(missing_ok=True)
    facts = json.loads(succeeds(run("figures", "--json")))["figures"]
    folder = tmp_path / "results"
    alone = [f"{EMBED_OUT}/msd", f"{EMBED_OUT}/order", "perplexity-forward"]
    together = ["garden-msd", "garden-msd-time", "garden-perplexity-forward"]
    assert drawn == [
        *(folder / name / kind for name in ("one", "two") for kind in alone),
        *(folder / "figures" / kind for kind in together),
    ]
    assert set(facts) == {"one", "two", "figures"}
    drawn.clear()
    succeeds(run("figures", "--model", "two"))
    assert [path.relative_to(folder).parts[0] for path in drawn] == ["two"] * 3


def test_claims_are_judged_and_saved(run: Run, tmp_path: Path) -> None:
    some(tmp_path, "one")
    text = succeeds(run("claims", "--model", "one"))
    lines = text.splitlines()
    assert lines[0].startswith(f"one: {len(claims.CLAIMS)} claims: ")
    assert "tests with a p-value, corrected for their number (Holm)" in lines[0]
    assert any(line[:20].strip(" ✓✗?–") in VERDICTS and "perplexity-below-one" in line for line in lines)
    path = tmp_path / "results" / "one" / "claims.json"
    assert str(path) in text
    (facts,) = json.loads(succeeds(run("claims", "--json")))["claims"]
    assert facts["model"] == "one"
    saved = json.loads(path.read_text())["claims"]
    assert [one["claim"] for one in facts["claims"]] == [one["claim"] for one in saved] == [c.id for c in claims.CLAIMS]
    assert not (tmp_path / "results" / "claims-over-models.json").exists()  # of one model
    below = next(each for each in saved if each["claim"] == "perplexity-below-one")
    assert {"statistic", "effect", "least", "null", "p", "power", "low", "high", "at_most"} == set(below["evidence"])
    evidence = [each["evidence"] for each in saved if each["evidence"] is not None]
    assert all(value is None or value == value for each in evidence for value in each.values())  # NaN is null
    exact = [each for each in saved if each["evidence"] is not None and each["evidence"]["p"] is None]
    assert all(each["p_corrected"] is None for each in exact)


def test_each_test_has_a_line_of_evidence(run: Run, tmp_path: Path) -> None:
    blog(tmp_path)
    lines = succeeds(run("claims", "--model", "order-parameter")).splitlines()
    assert lines[0] == (
        "order-parameter: 1 claims: 1 tests with a p-value, corrected for their number (Holm); 0 without a p-value; "
        "0 not testable"
    )
    assert lines[1] == "✓ supported          b-grows               it does"
    assert lines[2].strip().startswith("rise of b: 0.4, at least 0.1; p 0.01, corrected 0.03; power 0.90; ")


def test_several_models_are_judged_together(run: Run, tmp_path: Path) -> None:
    some(tmp_path, "one", "two-seed1", "two-seed2")
    text = succeeds(run("claims"))
    assert "over models" in text
    assert "bifurcation-shifts-with-size" in text
    assert "two, over seeds: perplexity-below-one  0 of 2" in text
    path = tmp_path / "results" / "claims-over-models.json"
    content = json.loads(path.read_text())
    assert content["models"] == ["one", "two-seed1", "two-seed2"]
    facts = json.loads(succeeds(run("claims", "--json")))["over_models"]
    assert facts["claims"] == content["claims"]
    assert {each["model"] for each in facts["seeds"]} == {"two"}


def test_the_published_table_needs_no_results(run: Run, tmp_path: Path) -> None:
    text = succeeds(run("claims", "--published"))
    assert "16 models, 21 tests, p corrected for their number (Holm)" in text
    assert "suspect, not used: pythia-2.8b-deduped, 17 steps, 0 to 43,000" in text
    for words in ("arXiv 2404.07647", "arXiv 2602.20433", "published-small-models", "1.60   7.9", "p 0.9, corrected 1"):
        assert words in text
    assert not (tmp_path / "results").exists()
    chosen = ("--model", "70m", "--model", "160m*", "--model", "pythia-1b", "--json")
    facts = json.loads(succeeds(run("claims", "--published", *chosen)))["published"]
    names = [each["model"] for each in facts["models"]]
    assert names == ["pythia-70m-deduped", "pythia-160m", "pythia-160m-deduped", "pythia-1b-bf16"]
    assert facts["tests"] == 21  # what is chosen is corrected for all tests
    numbers = facts["models"][0]["claims"][0]["numbers"]
    assert (numbers["best_step"], numbers["last_step"]) == (43_000, 143_000)
    assert "no published model '31m'" in fails(run("claims", "--published", "--model", "31m")).replace("pythia-", "")
    nothing = run("claims", "--published", "--model", "31m")
    assert "Godey" not in nothing.stdout
    assert "suspect" not in nothing.stdout
    assert run("claims", "--published", "--tensor", "all").exit_code == 2


def test_the_report_is_one_file(run: Run, tmp_path: Path) -> None:
    some(tmp_path, "one")
    assert "report.html" in succeeds(run("report"))
    page = tmp_path / "results" / "report.html"
    facts = json.loads(succeeds(run("report", "--model", "one", "--out", tmp_path / "elsewhere.html", "--json")))
    assert facts == {"report": str(tmp_path / "elsewhere.html"), "bytes": facts["bytes"], "models": ["one"]}
    assert (tmp_path / "elsewhere.html").stat().st_size == facts["bytes"]
    assert "Training dynamics of one" in page.read_text()


def test_the_blog_s_models_come_with_their_own(run: Run, tmp_path: Path, drawn: list[Path]) -> None:
    results = blog(tmp_path)
    some(tmp_path, "one")
    before = claims.read(results)
    assert "b-grows" in succeeds(run("claims", "--model", "order-parameter"))
    assert claims.read(results) == before
    succeeds(run("figures", "--model", "order-parameter"))
    assert [path.name for path in drawn] == ["loss", "loss_against_order", "slope_against_order"]
    succeeds(run("report", "--model", "order-parameter", "--model", "one"))
    page = (tmp_path / "results" / "report.html").read_text()
    assert "Loss against the order parameter (blog, Fig 4)" in page
    assert "b grows." in page
    assert "not asked" in page  # neither is asked the other's claims
    assert "pythia-dyn reproduce order-parameter" in page


def test_help_names_the_commands(run: Run) -> None:
    text = succeeds(run("--help"))
    for name in ("figures", "claims", "report", "portrait", "reproduce"):
        assert f"  {name} " in text
    assert "  garden " in succeeds(run("reproduce", "--help"))
    for words in (["figures"], ["claims"], ["report"], ["portrait"], ["reproduce", "garden"]):
        assert "--json" in succeeds(run(*words, "--help"))


def test_what_is_not_there_is_said_in_a_line(run: Run, tmp_path: Path) -> None:
    for command in ("figures", "claims", "report"):
        assert "no results in" in fails(run(command))
        assert "run pythia-dyn msd --model 70m, or pythia-dyn demo" in fails(run(command, "--model", "nosuch"))
    some(tmp_path, "one")
    for command in ("figures", "claims", "report"):
        line = fails(run(command, "--model", "70m"))
        assert "no results of pythia-70m-deduped" in line
        assert "there: one" in line
        line = fails(run(command, "--model", "70n"))
        assert "no results of the model '70n' in" in line
        assert "known: one" in line


def test_the_other_models_go_on_after_one_that_fails(run: Run, tmp_path: Path, drawn: list[Path]) -> None:
    some(tmp_path, "one", "two", "three")
    damaged = tmp_path / "results" / "one" / EMBED_OUT / "msd.csv"
    damaged.write_text("step,msd\n1,2\n")
    for command in ("figures", "claims", "report"):
        result = run(command, "--model", "nosuch", "--model", "one", "--model", "two", "--model", "three", "--json")
        line = fails(result)
        assert "no results of the model 'nosuch'" in line
        assert f"{damaged} is damaged (no column msd_null): run pythia-dyn msd --model one" in line
        facts = json.loads(result.stdout)
        if command == "figures":
            assert list(facts["figures"]) == ["two", "three", "figures"]
        else:
            names = facts["models"] if command == "report" else [each["model"] for each in facts["claims"]]
            assert names == ["two", "three"]
    assert not (tmp_path / "results" / "one" / "claims.json").exists()
    page = (tmp_path / "results" / "report.html").read_text()
    assert "Training dynamics of two, three" in page


def test_a_portrait_is_saved_and_drawn(run: Run, tmp_path: Path, drawn: list[Path]) -> None:
    for seed, step in enumerate((10, 20)):
        write_checkpoint(tmp_path / "tiny" / f"step{step}", model(seed))
    text = succeeds(
        run(
            "portrait",
            "--model",
            tmp_path / "tiny",
            "--phrase",
            "the cat sat",
            "--text",
            "a dog ran",
            "--device",
            "cpu",
        )
    )
    results = Results("tiny", tmp_path / "results")
    assert str(results.path / "first_last.zarr") in text
    assert [path.name for path in drawn] == ["first_last", "unmasking"]
    taken = results.read_zarr("first_last")
    assert taken["step"].values.tolist() == [10, 20]
    assert taken.attrs["phrase"] == "the cat sat"
    assert np.isfinite(taken["logits"]).all()
    recorded = json.loads((results.path / "provenance.json").read_text())["first_last"]
    assert recorded["location"] == "../../tiny"  # relative to the file: it holds in a copy of the project
    assert taken.attrs["location"] == str((tmp_path / "tiny").resolve())
    assert "run pythia-dyn fetch" in fails(run("portrait"))
