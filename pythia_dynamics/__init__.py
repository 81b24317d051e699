"""pythia-dynamics: how the weights of language models move while they train.

    import pythia_dynamics as pyd

    history = pyd.fetch("70m")          # W_U at 143 steps, by byte range, into cache/
    pyd.msd(history)                    # an xarray.Dataset over `step`

The public names are those of ``__init__.pyi``. Each is imported when it is first used, so the import of the package is
fast. A measure that another package registers is ``pyd.<name>`` as well.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_public_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public name, or the registered measure of that name."""
    try:
        return _public_name(name)
    except AttributeError:
        from importlib.metadata import entry_points

        if name in __all__ or name not in entry_points(group="pythia_dynamics.measures").names:
            raise
    from pythia_dynamics.errors import PythiaDynError
    from pythia_dynamics.measures.catalogue import find_measure

    try:
        return find_measure(name)
    except PythiaDynError as error:
        raise AttributeError(str(error)) from error
