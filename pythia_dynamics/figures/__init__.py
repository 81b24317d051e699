"""Figures from saved results: each function draws a result on matplotlib `Axes` and returns nothing.

A figure shows the values of the result file and computes no others. Missing steps are gaps. The null of a quantity is
dashed, in the colour of the quantity.

The public names are those of ``__init__.pyi``. Each is imported when it is first used.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
