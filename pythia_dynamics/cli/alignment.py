"""The command ``alignment``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pythia_dynamics.cli import app
from pythia_dynamics.cli.shards import own_items, with_shard

if TYPE_CHECKING:
    from pythia_dynamics.shard import Shard

__all__ = ["alignment"]


@app.main.command()
@app.with_models(required=False)
@app.with_steps
@click.option("--rows", type=click.IntRange(1), help="Use the first rows of both, without padding.  [default: all]")
@with_shard
@app.with_cache
@app.with_width
@app.with_results
@app.with_json
def alignment(
    models: tuple[str, ...], steps: str | None, rows: int | None, shard: Shard | None, cache: Path, results: Path
) -> None:
    """Cosine and CKA of the rows that embedding and unembedding have for each token.

    Both tensors must be in the cache: pythia-dyn fetch --tensor embedding --tensor unembedding. Beside each stands what
    permuted tokens would give.
    """
    from pythia_dynamics.checkpoints.roles import EMBEDDING, UNEMBEDDING
    from pythia_dynamics.history.cache import open_history
    from pythia_dynamics.measures.alignment import alignment as align
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.alignment import write_alignment

    answer = app.Answer("alignment")
    for name in own_items(shard, app.model_names(models, cache, answer), "models"):
        with answer.collect():
            heads, inputs = (open_history(name, role, cache=cache, steps=steps) for role in (UNEMBEDDING, EMBEDDING))
            app.echo(f"{heads.name}: {inputs.tensor} and {heads.tensor}, {len(heads.steps)} steps")
            with app.echo_warnings(), app.bar(f"{heads.name} alignment", "step") as progress:
                found = align(heads, inputs, rows=rows, progress=progress)
                outcome = write_alignment(Results(heads.name, results), found, rows)
            app.echo_outcome(outcome)
            answer.facts.append({"model": heads.name, "files": list(outcome.files), **outcome.facts})
    answer.finish()
