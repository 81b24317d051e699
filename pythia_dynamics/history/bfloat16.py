"""bfloat16 as a Zarr v3 data type, so that bfloat16 checkpoints are stored without loss.

zarr-python does not have bfloat16, but a registry for further data types. Importing this module registers one that
reads as `ml_dtypes.bfloat16`. Plain ``zarr.open`` of a bfloat16 array needs this import first, since zarr 3.1 collects
its entry-point group ``zarr.data_type`` but never loads it. The name and the encoding are those of the zarr-extensions
registry, which TensorStore reads without any addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import ml_dtypes
import numpy as np
from zarr.core.dtype.common import HasEndianness, HasItemSize
from zarr.core.dtype.wrapper import ZDType
from zarr.dtype import DataTypeValidationError, data_type_registry

__all__ = ["BFloat16"]

_NATIVE = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BFloat16(ZDType[Any, Any], HasEndianness, HasItemSize):
    """The Zarr v3 data type ``bfloat16``, little-endian only. The methods are those of `zarr.dtype.ZDType`."""

    _zarr_v3_name: ClassVar[Literal["bfloat16"]] = "bfloat16"
    dtype_cls = type(_NATIVE)

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        """The Zarr data type of `ml_dtypes.bfloat16`. Raises `DataTypeValidationError` for any other `dtype`."""
        if dtype != _NATIVE:
            raise DataTypeValidationError(f"not a bfloat16 data type: {dtype}")
        return cls()

    def to_native_dtype(self) -> Any:
        """The NumPy dtype `ml_dtypes.bfloat16`."""
        return _NATIVE

    @classmethod
    def _from_json_v2(cls, data: Any) -> Self:
        raise DataTypeValidationError("bfloat16 is a data type of Zarr v3 only")

    @classmethod
    def _from_json_v3(cls, data: Any) -> Self:
        if data != cls._zarr_v3_name:
            raise DataTypeValidationError(f"not a bfloat16 data type: {data}")
        return cls()

    def to_json(self, zarr_format: Literal[2, 3]) -> Any:
        """The name in ``zarr.json``. Raises `DataTypeValidationError` for a `zarr_format` of 2."""
        if zarr_format == 2:
            raise DataTypeValidationError("bfloat16 is a data type of Zarr v3 only")
        return self._zarr_v3_name

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (int, float, np.floating, np.integer, ml_dtypes.bfloat16))

    def cast_scalar(self, data: object) -> Any:
        """A number as a bfloat16 scalar. Raises `TypeError` for anything else."""
        if not self._check_scalar(data):
            raise TypeError(f"cannot make a bfloat16 of {data!r}")
        return _NATIVE.type(data)

    def default_scalar(self) -> Any:
        """Zero."""
        return _NATIVE.type(0)

    def from_json_scalar(self, data: Any, *, zarr_format: Literal[2, 3]) -> Any:
        """A fill value from JSON: a number, or ``NaN``, ``Infinity``, ``-Infinity``."""
        return _NATIVE.type(float(data))

    def to_json_scalar(self, data: Any, *, zarr_format: Literal[2, 3]) -> Any:
        """A fill value as JSON: a number, or ``NaN``, ``Infinity``, ``-Infinity``."""
        value = float(data)
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(value), value)

    @property
    def item_size(self) -> int:
        """Bytes per element."""
        return 2


data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)
