"""Several analyses of one history from one reading of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.measures.density import from_counts as _density
from pythia_dynamics.measures.displacement import Integral
from pythia_dynamics.measures.displacement import from_integral as _msd
from pythia_dynamics.measures.order import from_counts as _order
from pythia_dynamics.measures.rank import Projection
from pythia_dynamics.measures.rank import from_ranks as _rank
from pythia_dynamics.measures.spectrum import from_measures as _spectrum
from pythia_dynamics.measures.spectrum import measure
from pythia_dynamics.measures.two_time import from_gram as _two_time
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.frame_gram import FrameGram, Precision, over_grams
from pythia_dynamics.sweep.frames import warn_missing
from pythia_dynamics.sweep.gram import Gram
from pythia_dynamics.sweep.sweep import Accumulator, sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr

__all__ = ["ANALYSES", "analyse"]

ANALYSES = ("density", "msd", "order", "rank", "spectrum")
"""What is computed when nothing else is asked for; besides, there is ``two_time``."""
_KNOWN = (*ANALYSES, "two_time")
_BY_SLAB = {"density", "msd", "order", "two_time"}


def analyse(
    history: Any,
    which: Collection[str] = ANALYSES,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    drop_padding: int | None = None,
    threads: int | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    progress: Progress = silent,
) -> dict[str, xr.Dataset]:
    """The analyses named in `which`, each as its own function returns it, from as few readings as can be.

    `density`, `msd`, `order` and `two_time` share one pass over all weights; `rank` and `spectrum` share one Gram
    matrix per step, in a second pass that arithmetic bounds, not reading. `options` are passed on by analysis, for
    instance ``{"order": {"loss": loss}, "rank": {"draws": 4}}``. `progress` counts thousandths of the whole.
    """
    history = as_history(history)
    chosen = dict.fromkeys(which)
    for name in (*chosen, *(options or {})):
        if name not in _KNOWN:
            raise UnknownNameError("analysis", name, _KNOWN)
    given = {name: dict((options or {}).get(name, {})) for name in _KNOWN}
    if not chosen:
        raise PythiaDynError(f"nothing to analyse; choose from {', '.join(_KNOWN)}")
    projection = Projection(**given["rank"])
    warn_missing(history)
    by_slab, by_step = _BY_SLAB & set(chosen), set(chosen) - _BY_SLAB
    share = 500 if by_slab and by_step else 1000
    results: dict[str, xr.Dataset] = {}
    if by_slab:
        wanted: dict[str, Accumulator] = {}
        if by_slab & {"density", "order"}:
            wanted["counts"] = Counts()
        if "msd" in by_slab:
            wanted["integral"] = Integral()
        if "two_time" in by_slab:
            wanted["gram"] = Gram(device=device)
        filled = sweep(
            history,
            list(wanted.values()),
            drop_padding=drop_padding,
            threads=threads,
            executor=executor,
            progress=_part(progress, 0, share),
        )
        found: dict[str, Any] = dict(zip(wanted, filled, strict=True))
        if "density" in by_slab:
            results["density"] = _density(history, found["counts"], **given["density"])
        if "msd" in by_slab:
            results["msd"] = _msd(history, found["integral"], **given["msd"])
        if "order" in by_slab:
            results["order"] = _order(history, found["counts"], **given["order"])
        if "two_time" in by_slab:
            results["two_time"] = _two_time(history, found["gram"], **given["two_time"])
    if by_step:
        functions: dict[str, Callable[[FrameGram], Any]] = {"rank": projection, "spectrum": measure}
        functions = {name: function for name, function in functions.items() if name in chosen}
        rows = dict(
            zip(
                functions,
                over_grams(
                    history,
                    list(functions.values()),
                    drop_padding=drop_padding,
                    precision=precision,
                    device=device,
                    threads=threads,
                    executor=executor,
                    progress=_part(progress, 1000 - share, share),
                    warn=not by_slab,
                ),
                strict=True,
            )
        )
        if "rank" in chosen:
            results["rank"] = _rank(history, projection, rows["rank"])
        if "spectrum" in chosen:
            results["spectrum"] = _spectrum(history, rows["spectrum"], **given["spectrum"])
    return {name: results[name] for name in chosen}


def _part(progress: Progress, start: int, length: int) -> Progress:
    def report(done: int, total: int) -> None:
        progress(start + done * length // max(total, 1), 1000)

    return report
