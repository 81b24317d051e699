"""Name, dtype, shape and roles of a tensor, the same at every step of a history."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pythia_dynamics.checkpoints.roles import UNEMBEDDING, Role, find_roles
from pythia_dynamics.errors import StoreError, UnknownNameError
from pythia_dynamics.history.bfloat16 import BFloat16

__all__ = ["DTYPES", "TensorSpec"]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": BFloat16().to_native_dtype(),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
"""The dtypes of a history, by the name that Zarr stores. float64 occurs in training only: fetch takes the others."""

_WIDER = {"float16": ("float32", "float64"), "bfloat16": ("float32", "float64"), "float32": ("float64",)}
"""The dtypes that have every value of another one."""

_SAFE_NAME = re.compile(r"\w[\w.-]*")
_RESERVED_NAMES = ("step", "tokens", "learning_rate", "zarr.json", "c")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a tensor, the same at every step.

    Parameters
    ----------
    name
        Its name in the checkpoint files.
    dtype
        One of `DTYPES`.
    shape
        Its shape at one step, without the step axis.
    roles
        What it is for: the unembedding, the embedding, both where they are tied; empty for other tensors. None where
        that is not known.

    Raises
    ------
    UnknownNameError
        `dtype` is none of `DTYPES`.
    StoreError
        `name` cannot be the name of a folder in the store.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    roles: tuple[Role, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UnknownNameError("dtype", self.dtype, DTYPES)
        # The name becomes a folder, and it is read from a file of unknown origin.
        if not _SAFE_NAME.fullmatch(self.name) or self.name in _RESERVED_NAMES:
            raise StoreError(f"a tensor cannot be stored under the name {self.name!r}")

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    def holds(self, other: TensorSpec) -> bool:
        """Whether the values of another tensor of this shape can be stored with this dtype without loss."""
        return self.shape == other.shape and (self.dtype == other.dtype or self.dtype in _WIDER.get(other.dtype, ()))

    def asked_as(self, patterns: Sequence[str]) -> str:
        """What each revision is asked for to get this tensor: its role where a request names that, else its name.

        Some revisions of a tied model have the unembedding under its own name as well, others do not.

        Parameters
        ----------
        patterns
            The names, roles and globs of the request.
        """
        roles = [role for role in self.roles or () if role in patterns]
        return roles[0] if roles and self.name not in patterns else self.name

    @property
    def known_roles(self) -> tuple[Role, ...]:
        """Its roles; where they are not known, what its name says."""
        return tuple(find_roles([self.name])) if self.roles is None else self.roles

    @property
    def nbytes(self) -> int:
        """Bytes of one step."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of its values in memory."""
        return DTYPES[self.dtype]

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the axes of the stored array. xarray requires axes of equal name to have equal lengths."""
        if len(self.shape) == 2 and UNEMBEDDING in self.known_roles:
            return ("step", "vocab", "d_model")
        return self.own_dimensions

    @property
    def own_dimensions(self) -> tuple[str, ...]:
        """Names of the axes that no other tensor has."""
        return ("step", *(f"{self.name}.{axis}" for axis in range(len(self.shape))))
