"""Functions that Numba compiles, with their machine code kept on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from numba import njit

__all__ = ["kernel"]

F = TypeVar("F", bound=Callable[..., Any])


@overload
def kernel(function: F, /) -> F: ...


@overload
def kernel(**options: Any) -> Callable[[F], F]: ...


def kernel(function: F | None = None, /, **options: Any) -> F | Callable[[F], F]:
    """Compile a function when it is first called, without Python's lock: ``@kernel`` or ``@kernel(fastmath=True)``.

    The machine code is kept beside the package, else in the user's cache. Where neither can be written, as in a
    read-only installation without a home, each process compiles anew: a few seconds at the first call.

    Parameters
    ----------
    function
        The function.
    **options
        Options of `numba.njit`.
    """

    def compiled(given: F) -> F:
        try:
            result: F = njit(cache=True, nogil=True, **options)(given)
        except RuntimeError:  # "no locator available": Numba finds no directory that it can write
            result = njit(nogil=True, **options)(given)
        return result

    return compiled if function is None else compiled(function)
