"""The page of a population: what it says of which runs, from their files, and how large it is."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result
from support.saved_populations import LEAVES, STEPS, TENSORS, save_gathered, save_runs

from pythia_dynamics import figures
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import FormatError, PythiaDynError
from pythia_dynamics.measures.catalogue import known_measures
from pythia_dynamics.report.population import Gathered, PopulationPage, population_page
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.overview import place_coordinates
from pythia_dynamics.results.populations import gather
from pythia_dynamics.studies.population_page import page_of_population, write_population_page
from pythia_dynamics.studies.population_tensors import study_tensors, tensors_figure


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("population")
    save_runs(directory)
    save_gathered(directory)
    return directory


@pytest.fixture
def own(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "results"))


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def text_of(page: str) -> str:
    body = re.sub(r"<(script|style|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_it_says_what_the_tables_of_the_runs_say(saved: Path) -> None:
    page = page_of_population(["walk-seed*"], saved)
    assert [one.name for one in page.runs] == [f"walk-seed{seed}" for seed in range(1, 7)]
    assert [one.title for one in page.gathered] == ["order: order parameter", "order: rms, all tensors"]
    ends = [float(Results(one.name, saved).weights().read_table("order")["order_parameter"][-1]) for one in page.runs]
    row = page.gathered[0].table.rows[0]
    assert row[0] == "walk"
    assert row[1] == "6"
    assert row[2] == f"{STEPS[-1]:,}"
    for shown, wanted in zip(row[3:6], np.quantile(ends, [0.5, 0.1, 0.9]), strict=True):
        assert float(shown) == pytest.approx(wanted, rel=1e-3)
    assert [line[0] for line in page.gathered[1].table.rows] == list(
        gather("walk-seed*", measure="order", tensor="all", results=saved)["tensor"].to_numpy()
    )
    assert f"{LEAVES} from 1," in row[-1]
    assert page.problems == ()
    text = text_of(population_page(page))
    assert "Training dynamics of 6 runs: walk-seed*" in text
    assert "6 runs of walk (seeds 1, 2, 3, 4, 5, 6)" in text
    for one in page.gathered:
        assert one.found in text
        assert one.command in text
    assert not re.search(r"\. [a-z]\w* leaves", text.replace(LEAVES, ""))


def test_the_page_needs_nothing_else(saved: Path) -> None:
    page = population_page(page_of_population(["walk-seed*"], saved))
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "@import" not in page
    assert not re.search(r"url\((?!['\"]?(?:#|data:))", page)
    assert page.count("<h1") == 1
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_the_command_writes_it_beside_what_was_gathered(saved: Path) -> None:
    result = run("report", "--runs", "walk-seed*", "--results", saved)
    assert result.exit_code == 0, result.output
    path = saved / "runs" / "walk-seed+" / "report.html"
    assert result.output.splitlines()[0].startswith(f"{path}  ")
    assert "6 runs, 2 gathered measures" in result.output
    assert path.read_text().startswith("<!doctype html>")
    told = json.loads(run("report", "--runs", "walk-seed*", "--results", saved, "--json").stdout)
    assert told["bytes"] == path.stat().st_size
    assert told["runs"] == [f"walk-seed{seed}" for seed in range(1, 7)]
    other = saved / "elsewhere.html"
    assert run("report", "--runs", "walk-seed*", "--results", saved, "--out", other).exit_code == 0
    assert other.is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runs", "walk-seed*", "--model", "walk-seed1"], "--runs has a page of its own"),
        (["--runs", "walk-seed*", "--axis", "log-step"], "leave out --model, --tensor and --axis"),
        (["--runs", "other*"], "there: walk-seed+; run pythia-dyn gather --model 'other*' --measure order"),
    ],
)
def test_what_cannot_be_asked_for(saved: Path, words: list[str], said: str) -> None:
    result = run("report", *words, "--results", saved)
    assert result.exit_code != 0
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_run_that_is_gone_and_one_without_the_result_are_said(own: Path) -> None:
    shutil.rmtree(own / "walk-seed6")
    for tensor in TENSORS:
        (Results("walk-seed5", own).of(tensor).path / "order.csv").unlink()
    page = page_of_population(["walk-seed*"], own)
    assert [one.name for one in page.runs] == [f"walk-seed{seed}" for seed in range(1, 5)]
    assert any("walk-seed5 is not in order" in problem for problem in page.problems)
    assert "walk-seed5 is not in order" in text_of(population_page(page))
    write_population_page(page, own)
    said = run("report", "--runs", "walk-seed*", "--results", own).output
    assert "note: walk-seed5 is not in order" in said


def test_all_runs_are_gone(own: Path) -> None:
    for seed in range(1, 7):
        shutil.rmtree(own / f"walk-seed{seed}")
    with pytest.raises(PythiaDynError, match="order"):
        page_of_population(["walk-seed*"], own)


def test_a_damaged_table_is_an_error_that_names_it(own: Path) -> None:
    table = Results("walk-seed2", own).weights().path / "order.csv"
    table.write_text(table.read_text()[:200])
    with pytest.raises(FormatError, match=re.escape(str(table))):
        page_of_population(["walk-seed*"], own)


def test_one_run_alone(tmp_path: Path) -> None:
    save_runs(tmp_path, seeds=1)
    save_gathered(tmp_path, "walk-seed1")
    text = text_of(population_page(page_of_population(["walk-seed1"], tmp_path)))
    assert "Training dynamics of 1 run: walk-seed1" in text
    assert "undecided" in text


def test_names_that_are_html(tmp_path: Path) -> None:
    save_runs(tmp_path, seeds=3)
    for seed in range(1, 4):
        (tmp_path / f"walk-seed{seed}").rename(tmp_path / f"<b>a&b-seed{seed}")
    save_gathered(tmp_path, "<b>*")
    page = population_page(page_of_population(["<b>*"], tmp_path))
    assert "<b>a&b" not in page
    assert "<b>a&b-seed2" in text_of(page)
    assert "pythia-dyn gather --model '<b>*'" in text_of(page)


def test_the_commands_end_with_the_page(saved: Path) -> None:
    page = population_page(page_of_population(["walk-seed*"], saved))
    (block,) = re.findall(r'aria-label="Commands that reproduce[^>]*><code>(.*?)</code>', page, re.DOTALL)
    lines = html.unescape(block).splitlines()
    assert lines[-1] == "pythia-dyn report --runs 'walk-seed*'"
    assert [shlex.split(line)[1] for line in lines[-3:]] == ["gather", "gather", "report"]
    assert len(lines) == len(set(lines))


MODULES = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "input_layernorm")


def synthetic(runs: int, tensors: int, steps: int, columns: int = 0) -> dict[str, xr.Dataset]:
    """Every table with one row per step that a measure writes, of noise, which cannot be compressed."""
    rng, found = np.random.default_rng(0), {}
    modules = [f"{name}.{end}" for name in MODULES for end in ("weight", "bias")]
    names = [f"gpt_neox.layers.{i // len(modules)}.{modules[i % len(modules)]}" for i in range(tensors)]
    for measure in known_measures().values():
        for name, table in measure.tables.items():
            if table.keys != ("step",) or name.startswith("perplexity"):
                continue
            data = {
                column: (("tensor", "run", "step"), rng.normal(size=(tensors, runs, steps)))
                for column in table.columns
                if column != "step"
            }
            coords = {"tensor": names, "run": [f"run-seed{i}" for i in range(runs)], "step": np.arange(steps) * 1000}
            found[name] = xr.Dataset(data, coords)
    return found


def test_ten_runs_of_forty_tensors_stay_below_five_megabytes(saved: Path) -> None:
    tables = synthetic(10, 40, 143)
    assert sum(len(table.data_vars) for table in tables.values()) > 35
    coordinates = {
        "family": ("run", ["run"] * 10),
        "seed": ("run", np.arange(10.0)),
        "seed_kind": ("run", ["seed"] * 10),
        "parameters": ("run", np.full(10, np.nan)),
        **place_coordinates(tables["order"]["tensor"].to_numpy().tolist()),
    }
    one = page_of_population(["walk-seed*"], saved)
    parts = []
    for variable in ("frobenius_norm", "order_parameter", "rms"):
        dataset = (tables["order"].cumsum("step") / 50).map(np.exp).assign_coords(coordinates).assign_attrs(left_out={})
        found = study_tensors(dataset, variable)
        spec = tensors_figure(found, ["run-seed*"], saved)
        rows = one.gathered[0].table
        parts.append(Gathered(variable, "found", spec, rows, "all", str(saved), "pythia-dyn gather"))
    page = population_page(PopulationPage(("run-seed*",), one.runs, tuple(parts), tables, (), (), ()))
    assert 3_000_000 < len(page.encode()) < 5_000_000
    (content,) = (json.loads(each) for each in re.findall(r'json">(\{"key":"tensors-map".*?)</script>', page))
    assert len(content["tensors"]) == 40
    assert len(content["runs"]) == 10
    assert sum(len(table["columns"]) for table in content["tables"]) > 35
    steps = content["tables"][0]["steps"]
    assert steps[-1] == 142_000
    assert len(steps) > 40


def test_figures_of_a_page_are_those_of_gather(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    inline = figures.inline

    def note(figure: Any, key: str, **more: Any) -> Any:
        drawn.append(key)
        return inline(figure, key, **more)

    monkeypatch.setattr(figures, "inline", note)
    seen: list[tuple[int, int]] = []
    population_page(page_of_population(["walk-seed*"], saved), progress=lambda *at: seen.append(at))
    assert drawn == ["g1-figure", "g2-figure"]
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
