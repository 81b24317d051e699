"""What the figures, the claims and the report have to show of a folder of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pythia_dynamics.claims.scorecard import judge, read
from pythia_dynamics.claims.verdict import Verdict
from pythia_dynamics.figures import blog
from pythia_dynamics.figures.gallery import of_model
from pythia_dynamics.figures.plates import Plate
from pythia_dynamics.files import atomic_file
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.report.page import Section, report
from pythia_dynamics.results.folder import Results

__all__ = ["plates", "section", "verdicts", "write_report"]


def verdicts(results: Results) -> tuple[Verdict, ...]:
    """The verdict on every claim that is asked of a model; of the blog's models together, those saved with them."""
    return (read(results) or ()) if _holds_the_blog_s_models(results) else judge(results)


def plates(results: Results) -> list[Plate]:
    """Every figure that the results allow."""
    return blog.plates(results) if _holds_the_blog_s_models(results) else of_model(results)


def section(results: Results) -> Section:
    """The section of the report."""
    return Section(results, verdicts(results), plates(results))


def write_report(models: Sequence[Results], path: Path, *, progress: Progress = silent) -> Path:
    """Write the HTML page of these models to a file, whole or not at all.

    `progress` counts models. Raises `PythiaDynError` for a model without results.
    """
    page = report([section(results) for results in models], progress=progress)
    with atomic_file(path) as file:
        file.write(page.encode())
    return path


def _holds_the_blog_s_models(results: Results) -> bool:
    return (results.path / "runs.csv").is_file()
