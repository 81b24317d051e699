"""The figures and verdicts of a folder of results, for the command line and the report.

A folder is either of one model, or of the blog's models together (it then has a ``runs.csv``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pythia_dynamics.claims.populations import count_over_seeds, judge_over_models
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.scorecard import judge, read
from pythia_dynamics.claims.verdict import Verdict
from pythia_dynamics.figures.axis import AxisKind, along, saved_axis
from pythia_dynamics.figures.blog import blog_figures
from pythia_dynamics.figures.gallery import model_figures
from pythia_dynamics.figures.specs import FigureSpec
from pythia_dynamics.files import atomic_file
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.report.facts import tables
from pythia_dynamics.report.page import OverModels, Section, report
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.saved_comparisons import comparisons_of

__all__ = ["figure_specs", "over_models", "section", "verdicts", "write_page", "write_report"]


def verdicts(results: Results) -> tuple[Verdict, ...]:
    """The verdicts on the claims that apply to a folder.

    Parameters
    ----------
    results
        The folder. Of the blog's models together, the verdicts are those in its ``claims.json``.

    Raises
    ------
    PythiaDynError
        As `pythia_dynamics.judge` does.
    """
    return (read(results) or ()) if _is_blog_study(results) else judge(results)


def over_models(judged: Mapping[Results, Sequence[Verdict]]) -> OverModels | None:
    """The verdicts over models, and those on each claim counted over seeds; None for fewer than two models.

    Parameters
    ----------
    judged
        The verdicts by folder. The blog's models together, and tensors other than the unembedding, are left out.
    """
    models = {
        results: found
        for results, found in judged.items()
        if not _is_blog_study(results) and results.weights().is_unembedding
    }
    if len(models) < 2:
        return None
    verdicts = judge_over_models([SavedResults(results) for results in models])
    return OverModels(verdicts, count_over_seeds({results.name: found for results, found in models.items()}))


def figure_specs(results: Results) -> list[FigureSpec]:
    """The figures of a folder whose results have been computed.

    Parameters
    ----------
    results
        The folder.
    """
    return blog_figures(results) if _is_blog_study(results) else model_figures(results)


def section(results: Results, *, axis: AxisKind = "step") -> Section:
    """The section of a folder in the report.

    Parameters
    ----------
    results
        The folder.
    axis
        The x axis of its figures over steps. The figures with a slider are always over the step.

    Raises
    ------
    PythiaDynError
        For a folder without results, or with a result that is damaged; or the axis is not known.
    """
    specs = along(figure_specs(results), saved_axis(results, axis))
    return Section(results, verdicts(results), specs, tables(results))


def write_report(models: Sequence[Results], path: Path, *, progress: Progress = silent) -> Path:
    """Write the HTML page of some models and return the path. The file appears complete or not at all.

    Parameters
    ----------
    models
        The folders of the models.
    path
        The file.
    progress
        Counts models, and the figures of all models as one more.

    Raises
    ------
    PythiaDynError
        For a model without results.
    """
    return write_page([section(results) for results in models], path, progress=progress)


def write_page(sections: Sequence[Section], path: Path, *, progress: Progress = silent) -> Path:
    """Write the HTML page of some sections and return the path. The file appears complete or not at all.

    Parameters
    ----------
    sections
        One for each model.
    path
        The file.
    progress
        As for `write_report`.

    Raises
    ------
    PythiaDynError
        Without sections.
    """
    over = over_models({part.results: part.verdicts for part in sections})
    models = tuple(dict.fromkeys(part.results.name for part in sections))
    comparisons = comparisons_of(models, sections[0].results.model.path.parent) if sections else []
    page = report(sections, over=over, comparisons=comparisons, progress=progress)
    with atomic_file(path) as file:
        file.write(page.encode())
    return path


def _is_blog_study(results: Results) -> bool:
    return (results.path / "runs.csv").is_file()
