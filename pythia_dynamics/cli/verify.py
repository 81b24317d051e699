"""The command verify: what was fetched, and with --remote what the Hub states of whole suites."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app

if TYPE_CHECKING:
    from pythia_dynamics.checkpoints.findings import Finding, Verification
    from pythia_dynamics.checkpoints.listings import Listing
    from pythia_dynamics.checkpoints.registry import Model
    from pythia_dynamics.history.store import Store

__all__ = ["verify"]


@app.main.command()
@app.with_models(required=False)
@click.option(
    "--remote",
    is_flag=True,
    help="Check what the Hub reports about the files of every revision, within and across repositories; no download. "
    "What the publisher should repair goes to results/<model>/filing.md.",
)
@click.option(
    "--weights",
    is_flag=True,
    help="With --remote: read 64 KiB of the first steps, to see whether a run continues its own step 0.",
)
@app.with_steps
@app.with_suite
@app.with_cache
@app.with_results
@app.with_json
@app.resumable
def verify(
    models: tuple[str, ...],
    remote: bool,
    weights: bool,
    suite: dict[str, Any],
    steps: str | None,
    cache: Path,
    results: Path,
) -> None:
    """Find damaged chunks, equal content of different steps, swapped checkpoints and mixed shards."""
    if remote:
        _verify_remote(models, steps, cache, results, weights=weights, suite=suite)
        return
    of_suite = ((f"--{'revision-pattern' if key == 'pattern' else key}", value) for key, value in suite.items())
    for option, value in (("--steps", steps), ("--weights", weights), *of_suite):
        if value:
            raise click.UsageError(f"{option} is for --remote; without it all steps in the cache are checked")
    from pythia_dynamics.history.provenance import checks_in_words, weakest_checks
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.pipeline import save_findings

    answer, count = app.Answer("verify"), 0
    for name in app.model_names(models, cache, answer):
        with answer.collect():
            store = app.open_store(name, cache)
            for found in _verify_stored(store):
                count += len(found.faults)
                _echo_findings(found)
                checks = weakest_checks([store.records(found.subject)], found.checked)
                for line in checks_in_words(checks):
                    app.echo(f"  when they were fetched: {line}")
                save_findings(Results(found.model, results), found)
                answer.facts.append(asdict(found) | {"checks": checks})
    if count:
        answer.fail(f"{count} {'fault' if count == 1 else 'faults'} found; fetch replaces damaged chunks")
    answer.finish()


def _verify_stored(store: Store) -> Iterator[Verification]:
    from pythia_dynamics.sweep.compute import Compute
    from pythia_dynamics.sweep.verify import verify_store

    for tensor in store.tensors:
        with app.bar(f"{store.name} {tensor}") as progress:
            found = verify_store(store, tensor, Compute(progress=progress))
        yield found


def _verify_remote(
    models: tuple[str, ...], steps: str | None, cache: Path, results: Path, *, weights: bool, suite: dict[str, Any]
) -> None:
    """List every repository, compare all of them, print the table and write the reports."""
    from pythia_dynamics.checkpoints.continuity import check_continuity, read_samples
    from pythia_dynamics.checkpoints.defects import verify_repositories
    from pythia_dynamics.checkpoints.hub import HubSource
    from pythia_dynamics.checkpoints.listings import list_repository
    from pythia_dynamics.checkpoints.registry import parse_steps
    from pythia_dynamics.errors import PythiaDynError
    from pythia_dynamics.results.filing import filing_text, reported, save_filing
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.pipeline import save_findings

    answer = app.Answer("verify")
    chosen = parse_steps(steps) if steps is not None else None
    listings: dict[str, Listing] = {}
    failed: dict[str, str] = {}
    samples = []
    for model in _repositories(models, cache, suite, answer):
        try:
            source = HubSource(model.location, name=model.name, suite=model.suite)
            with app.bar(model.name, "revision") as progress:
                listing = list_repository(source, chosen, cache=cache, progress=progress)
            app.echo(f"{model.location}: {len(listing.revisions)} revisions, {listing.requests} listed now")
            listings[model.location] = listing
            if weights:
                with app.bar(f"{model.name}, first weights", "step") as progress:
                    samples.append(read_samples(source, progress=progress))
        except PythiaDynError as error:
            failed[model.location] = str(error)
            answer.fail(str(error))
    compared = verify_repositories(list(listings.values()), check_continuity(samples))
    verified = [_with_superseded(found, listings[found.location], cache) for found in compared]
    faults, filings = 0, []
    for found in verified:
        _echo_findings(found)
        facts = asdict(found) | {"filing": None}
        faults += len(found.faults)
        answer.facts.append(facts)
        with answer.collect():
            out = Results(found.model, results)
            save_findings(out, found)
            text = filing_text(found, listings) if reported(found) else None
            # A check of some steps only says nothing of the others, so it removes no earlier report.
            if text is not None or chosen is None:
                facts["filing"] = path = save_filing(out.path, found.location, text)
                filings += [path] if path else []
    _echo_table(verified, failed)
    for path in filings:
        app.echo(f"for the publisher: {path}")
    if faults:
        count = sum(bool(found.faults) for found in verified)
        what, where = "fault" if faults == 1 else "faults", "repository" if count == 1 else "repositories"
        answer.fail(f"{faults} {what} found in {count} {where}")
    answer.finish(failed=failed)


def _with_superseded(found: Verification, listing: Listing, cache: Path) -> Verification:
    """The verification of a repository, with the steps of its store that have been replaced since they were fetched."""
    from pythia_dynamics.checkpoints.findings import Finding
    from pythia_dynamics.history.cache import store_path
    from pythia_dynamics.history.states import compare_with_source
    from pythia_dynamics.history.store import Store

    path = store_path(found.model, cache)
    store = Store.open(path) if Store.exists(path) else None
    if store is None or store.source != listing.location:
        return found
    replaced = compare_with_source(
        store,
        listing.location,
        listing.revisions,
        lambda revision: listing.files.get(revision.step, {}),
        tensors=store.tensors,
        steps=listing.asked,
    )
    new = [
        Finding("superseded", (step,), f"step {step} in {path.name}: {why}; fetch --refresh fetches it again")
        for step, why in replaced.items()
    ]
    return replace(found, findings=(*found.findings, *new))


def _repositories(models: tuple[str, ...], cache: Path, suite: dict[str, Any], answer: app.Answer) -> list[Model]:
    """The repositories that names and globs mean, each once. A name that means none is a failure."""
    from pythia_dynamics.checkpoints.registry import aliases
    from pythia_dynamics.errors import PythiaDynError
    from pythia_dynamics.history.cache import cached, choose_model

    names = app.expanded(models, (*aliases(), *cached(cache)), answer)
    found: dict[str, Model] = {}
    for name in names if models else app.model_names((), cache, answer):
        with answer.collect():
            model = choose_model(name, cache, suite)
            if model.is_local:
                raise PythiaDynError(f"{model.location} is a directory; --remote checks the Hub, so name a repository")
            other = found.setdefault(model.location, model)
            if other.suite.part != model.suite.part:  # findings name steps, which begin again in each of them
                both = f"{other.name} and {model.name} are parts of {model.location}"
                raise PythiaDynError(f"{both}; verify one stage, generation or seed at a time")
    return list(found.values())


def _echo_findings(found: Verification) -> None:
    findings = len(found.findings)
    what = f"{findings} {'finding' if findings == 1 else 'findings'}" if findings else "nothing found"
    app.echo(f"{found.model}  {found.subject}: {len(found.checked)} steps checked, {what}")
    for finding in found.findings:
        app.echo(f"  {finding.kind}: {finding.message}{'' if finding.fault else ' (harmless)'}")


def _echo_table(verified: list[Verification], failed: Mapping[str, str]) -> None:
    """Print a table with one row for each repository and kind, and for each repository that failed, if any."""
    rows = [row for found in verified for row in _rows(found)]
    if not rows and not failed:
        return
    width = max(len(location) for location in (*(row[0] for row in rows), *failed))
    app.echo(f"\n{'repository':{width}}  {'kind':26} {'findings':>8} {'steps':>6}  which")
    for location, kind, findings, steps, which in rows:
        app.echo(f"{location:{width}}  {kind:26} {findings:8} {steps:6}  {which}")
    for location, reason in failed.items():
        app.echo(f"{location:{width}}  {'failed':26} {'-':>8} {'-':>6}  {reason}")


def _rows(found: Verification) -> list[tuple[str, str, int, int, str]]:
    """(repository, kind, findings, steps, which steps) for each kind; harmless findings have rows of their own."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in found.findings:
        groups[f"{finding.kind}{'' if finding.fault else ' (harmless)'}"].append(finding)
    rows = []
    for kind, findings in groups.items():
        steps = sorted({step for finding in findings for step in finding.steps})
        rows.append((found.location, kind, len(findings), len(steps), _short(steps)))
    return rows


def _short(steps: list[int]) -> str:
    """Steps as text: all of them up to eight, else the first four and the last one."""
    shown = map(str, steps if len(steps) <= 8 else steps[:4])
    return " ".join(shown) + (f" … {steps[-1]}" if len(steps) > 8 else "")
