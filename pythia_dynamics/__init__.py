"""pythia-dynamics: how the weights of language models move while they train.

    import pythia_dynamics as pyd

    history = pyd.fetch("70m")          # W_U at 143 steps, by byte range, into cache/
    pyd.msd(history)                    # an xarray.Dataset over `step`

The public names are those of ``__init__.pyi``. Each is imported when it is first used, so the import of the package is
fast.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
