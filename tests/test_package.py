"""The package as it is installed: its dependencies, and what a command says where an extra is missing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.saved_results import save_results

from pythia_dynamics import __version__
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import PythiaDynError, optional_import
from pythia_dynamics.training.loop import train_suite
from pythia_dynamics.training.plan import TrainingPlan
from pythia_dynamics.training.text import Text

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def test_every_dependency_has_a_lower_bound_that_can_be_tested(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    for line in chain(project["dependencies"], *(extras[name] for name in set(extras) - {"dev"})):
        assert re.fullmatch(r"[\w.-]+>=[\d.]+|pythia-dynamics\[[\w,]+\]", line), line


def test_the_extra_all_is_what_the_commands_need(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    (line,) = extras["all"]
    named = set(line.partition("[")[2].rstrip("]").split(","))
    assert named == set(extras) - {"all", "trackers", "test", "docs", "dev", "mutation"}
    source = "".join(path.read_text() for path in (ROOT / "pythia_dynamics").rglob("*.py"))
    assert set(re.findall(r'optional_import\("[^"]+", "(\w+)"\)', source)) == named


def test_a_missing_library_is_one_line_that_names_the_extra() -> None:
    with pytest.raises(PythiaDynError) as raised, optional_import("pythia-dyn dance", "dance"):
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401
    assert str(raised.value) == "pythia-dyn dance needs no_such_library: pip install 'pythia-dynamics[dance]'"
    with pytest.raises(ValueError, match="else"), optional_import("pythia-dyn dance", "dance"):
        raise ValueError("something else")


def test_report_without_jinja2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_results(tmp_path, "walk", only=("msd", "order"))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = CliRunner().invoke(main, ["report", "--model", "walk", "--results", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr == "pythia-dyn: pythia-dyn report needs jinja2: pip install 'pythia-dynamics[report]'\n"


def test_training_without_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Text.of("lines", tuple(f"line {k} of numbers 12 34 {k}" for k in range(2000)))
    plan = TrainingPlan(d_model=8, layers=1, heads=1, context=16, vocab=270, max_steps=2, checkpoints=1)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(PythiaDynError, match=r"^training a suite needs accelerate: .*\[train\]'$"):
        train_suite(tmp_path / "suite", text, plan, device="cpu")


def test_a_cluster_without_dask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    result = CliRunner().invoke(main, ["rank", "--model", "walk", "--cache", str(tmp_path), "--dask", "local"])
    assert result.exit_code == 1
    assert result.stderr == "pythia-dyn: a Dask cluster needs distributed: pip install 'pythia-dynamics[dask]'\n"


def test_the_version_and_the_works_to_cite_are_the_same_everywhere() -> None:
    structured, bibtex = ((ROOT / f"CITATION.{kind}").read_text(encoding="utf-8") for kind in ("cff", "bib"))
    assert f"version: {__version__}\n" in structured
    assert f"version = {{{__version__}}}" in bibtex
    titles = re.findall(r'^(?:  - type: \w+\n)?    title: "?(.+?)"?$', structured, re.MULTILINE)
    assert titles == re.findall(r"title\s+= \{(.+)\}", bibtex)[1:]
    assert re.findall(r"arXiv:([\d.]+)", structured) == re.findall(r"eprint\s+= \{(.+)\}", bibtex)
    families = re.findall(r'family-names: "?(.+?)"?,', structured)
    assert all(family in bibtex for family in families)
    assert len(families) == sum(
        line.count(" and ") + 1 for line in bibtex.splitlines() if re.match(r"  author\s+= \{\w", line)
    )


def test_measures_work_where_machine_code_cannot_be_kept(tmp_path: Path) -> None:
    """A read-only installation, and a user without a home: Numba finds no directory for its cache."""
    code = (
        "import numpy as np\n"
        "from numba.core.caching import CacheImpl\n"
        "CacheImpl._locator_classes = []\n"
        "import pythia_dynamics as pyd\n"
        "print(float(pyd.msd(np.arange(24, dtype=np.float32).reshape(3, 4, 2) ** 2)['displacement'][-1]))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    values = np.arange(24.0).reshape(3, 8) ** 2
    assert float(run.stdout or "nan") == pytest.approx(((values[2] - values[0]) ** 2).mean()), run.stderr
