"""The examples of the README and of docs/ run as they are printed.

A page in docs/ that has no test of its own here runs whole, block by block, in an empty directory (`run_page`). Blocks
of `text`, `sh` and `py` are not run: they need the network, a GPU or an hour. Cells (`{code-cell}`) are run by Sphinx.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from click.testing import CliRunner
from support.checkpoints import suite

from pythia_dynamics.checkpoints.registry import SIZES
from pythia_dynamics.claims.scorecard import CLAIMS
from pythia_dynamics.cli.app import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w[\w./-]*\.\w+)\n")

TOC = re.compile(r"^```\{toctree\}\n(?:[:\w ]+\n)*\n(.*?)^```", re.MULTILINE | re.DOTALL)

OWN_TEST = {"own_measure.md", "train_your_own.md"}
"""Pages with a test of their own, since a command takes too long or needs an installed package."""


def all_blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in all_blocks(page) if found == language]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory: Python and commands run in it import what lies there; figures open no window."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(tmp_path)
    mpl.use("agg")
    commands = tmp_path / ".bin"
    commands.mkdir()
    for name, module in (("python", ""), ("pythia-dyn", "-m pythia_dynamics")):
        command = commands / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    loaded = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - loaded:  # the page's own modules
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def run_page(page: Path, directory: Path) -> dict[str, Any]:
    """Run the blocks of a page in order; return the names that its Python defined.

    A block whose first line is a comment that names a file (``# ringing.py``) is written to that file. Other Python
    runs here, with one set of names for the page, and bash in a shell that stops at the first command that fails.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, code in all_blocks(page):
        named = FILE.match(code)
        if named:
            (directory / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (directory / named[1]).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile(code, page.name, "exec"), names)
        elif language == "bash":
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return names


def test_every_other_page_runs(directory: Path) -> None:
    for page in sorted(DOCS.glob("*.md")):
        if page.name not in OWN_TEST:
            run_page(page, directory)


def test_the_notebook_runs_as_it_stands(directory: Path) -> None:
    cells = json.loads((DOCS / "first_look.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        assert not cell.get("outputs"), "a notebook is committed without outputs"
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["history"].steps.tolist() == list(range(20, 601, 20))
    assert set(names["found"]) == {"msd", "density", "spectrum"}
    assert names["axes"].has_data()


def test_every_page_of_the_documentation_is_in_a_table_of_contents() -> None:
    listed = set(re.findall(r"^(?:.*<)?(\w+)>?$", "\n".join(TOC.findall("".join(map(read, DOCS.glob("*.md"))))), re.M))
    assert listed == {path.stem for path in DOCS.iterdir() if path.suffix in (".md", ".ipynb")} - {"index"}


def test_run_page_writes_files_and_runs_both_languages(directory: Path) -> None:
    page = directory / "page.md"
    page.write_text(
        "```python\n# twice.py\ndef twice(x):\n    return 2 * x\n```\n"
        "```python\nfrom twice import twice\n\nfour = twice(2)\n```\n"
        "```bash\npython -c 'import twice; print(twice.twice(4))' > eight\npythia-dyn --version\n```\n"
        "```text\nnot run\n```\n```python\nfrom pathlib import Path\n\nfour += int(Path('eight').read_text())\n```\n"
    )
    assert run_page(page, directory)["four"] == 12
    page.write_text("```bash\nfalse\ntrue\n```\n")
    with pytest.raises(AssertionError, match="false"):
        run_page(page, directory)


def test_the_python_of_the_readme(directory: Path) -> None:
    for branch, files in suite(range(1000, 6000, 1000)).items():
        (directory / "demo" / branch).mkdir(parents=True)
        for name, content in files.items():
            (directory / "demo" / branch / name).write_bytes(content)
    assert CliRunner().invoke(main, ["fetch", "--model", "demo"]).exit_code == 0
    readme = ROOT / "README.md"
    (code,) = blocks(readme, "python")
    names: dict[str, Any] = {"my_array": np.random.default_rng(0).standard_normal((4, 20, 8), dtype=np.float32)}
    exec(compile(code, "README.md", "exec"), names)
    assert names["history"].steps.tolist() == list(range(1000, 6000, 1000))
    assert names["result"]["msd"].dims == ("step",)
    (opened,) = re.findall(r"`(xarray\.open_zarr\(.*?\))`", readme.read_text(encoding="utf-8"))
    exec(f"import xarray\nstore = {opened}", names)
    assert names["store"].sizes["step"] == 5


def test_the_commands_of_the_readme_are_commands() -> None:
    lines = "\n".join(blocks(ROOT / "README.md", "bash"))
    found = re.findall(r"pythia-dyn((?: (?!&&|#)\S+)+)", lines)
    assert len(found) > 8
    for words in map(str.split, found):
        check_options([word for word in words if word != "&&"])


def test_the_numbers_of_the_readme_are_those_of_the_package() -> None:
    text = read(ROOT / "README.md")
    rows = re.findall(r"^\| (\d+\w+) \| ([\d.]+) GB \| ([\d.]+ [GT]B) \| ([\d.]+) min \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for name, tensors, checkpoints, minutes in rows:
        shape = SIZES[name]
        count = 2 * 143 * shape.unembedding_parameters
        assert float(tensors) == pytest.approx(count / 1e9, abs=0.1)
        whole, unit = checkpoints.split()
        assert float(whole) == pytest.approx(143 * shape.checkpoint_bytes / {"GB": 1e9, "TB": 1e12}[unit], rel=0.01)
        assert float(minutes) == pytest.approx(count / 25e6 / 60, abs=0.1)
    families = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)["suites"]
    assert f"Pythia and {len(families)} other families" in text
    assert f"tested, with error rates | {len(CLAIMS)} |" in text


def check_options(words: list[str]) -> None:
    """The command, or the command of a group, exists and has these options."""
    path = words[: 2 if words[0] == "reproduce" else 1]
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0, words
    for option in (word for word in words if word.startswith("--")):
        assert f"{option} " in result.output, f"{' '.join(path)} {option}"


def test_training_your_own(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watched, loop = blocks(DOCS / "train_your_own.md", "python")
    assert len(watched.splitlines()) <= 60
    names: dict[str, Any] = {}
    exec(compile(watched, "train_your_own.md", "exec"), names)
    assert names["history"].steps.tolist() == list(range(0, 121, 5))
    assert (directory / "runs" / "counting.png").stat().st_size > 10_000
    exec(compile(loop, "train_your_own.md", "exec"), {})
    (said,) = re.findall(r"stationary at step (\d+), loss (\S+)", capsys.readouterr().out)
    assert 500 < int(said[0]) < 20_000
    result = CliRunner().invoke(main, ["msd", "--model", "counting"])
    assert result.exit_code == 0, result.output
    assert (directory / "results" / "counting" / "lm_head.weight" / "msd.csv").is_file()


def test_the_commands_of_training_your_own_are_commands() -> None:
    (commands,) = blocks(DOCS / "train_your_own.md", "bash")
    named = [line.partition(" #")[0].split()[1:] for line in commands.splitlines()]
    assert [words[0] for words in named] == ["train", "fetch", "order", "perplexity"]
    for words in named:
        check_options(words)
