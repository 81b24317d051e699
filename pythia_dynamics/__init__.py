"""pythia-dynamics: how the weights of language models move while they train.

    import pythia_dynamics as pyd

    history = pyd.fetch("70m")          # W_U at 143 steps, by byte range, into cache/
    pyd.msd(history)                    # an xarray.Dataset over `step`

Names are imported when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pythia_dynamics.callback import StationarityStop, WeightDynamicsCallback
    from pythia_dynamics.claims import judge
    from pythia_dynamics.density import density
    from pythia_dynamics.diffusion import msd, two_time
    from pythia_dynamics.errors import PythiaDynError
    from pythia_dynamics.fetch import fetch
    from pythia_dynamics.history import History, open_history
    from pythia_dynamics.monitor import WeightMonitor
    from pythia_dynamics.order import order_parameter
    from pythia_dynamics.perplexity.portrait import portrait
    from pythia_dynamics.perplexity.runner import perplexity
    from pythia_dynamics.phases import phases
    from pythia_dynamics.rank import covariance_rank
    from pythia_dynamics.report import write_report
    from pythia_dynamics.spectrum import spectrum
    from pythia_dynamics.stationarity import StationarityRule
    from pythia_dynamics.suites import resolve
    from pythia_dynamics.train import train_suite

_HOME = {
    "History": "history",
    "PythiaDynError": "errors",
    "StationarityRule": "stationarity",
    "StationarityStop": "callback",
    "WeightDynamicsCallback": "callback",
    "WeightMonitor": "monitor",
    "covariance_rank": "rank",
    "density": "density",
    "fetch": "fetch",
    "judge": "claims",
    "msd": "diffusion",
    "open_history": "history",
    "order_parameter": "order",
    "perplexity": "perplexity.runner",
    "phases": "phases",
    "portrait": "perplexity.portrait",
    "resolve": "suites",
    "spectrum": "spectrum",
    "train_suite": "train",
    "two_time": "diffusion",
    "write_report": "report",
}

__all__ = [
    "History",
    "PythiaDynError",
    "StationarityRule",
    "StationarityStop",
    "WeightDynamicsCallback",
    "WeightMonitor",
    "__version__",
    "covariance_rank",
    "density",
    "fetch",
    "judge",
    "msd",
    "open_history",
    "order_parameter",
    "perplexity",
    "phases",
    "portrait",
    "resolve",
    "spectrum",
    "train_suite",
    "two_time",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Some functions bear the name of their module. Importing that module must not put it in the function's place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
