"""A stand-in for CUDA graphs: operations on tensors, recorded once and done again on the same memory.

Like a captured graph, a replay runs none of the Python code of the step, reads and writes the tensors that the capture
saw, and so gives wrong results where these are not the right ones any more. What a capture on CUDA refuses is refused:
reading a value on the host, and shapes that depend on values. A copy from the host is not noticed: all is on the host.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

__all__ = ["capture_by_recording", "start_recording"]

_REFUSED = ("item", "_local_scalar_dense", "nonzero", "unique", "masked_select", "equal", "is_nonzero")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[torch.Tensor]]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in _REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if name.startswith("index") and any(
            isinstance(at, torch.Tensor) and at.dtype == torch.bool for at in tree_flatten(args[1:])[0]
        ):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name} with a mask")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                storage = value.untyped_storage()
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = func(*args, **kwargs)
        outputs = [value for value in tree_flatten(result)[0] if isinstance(value, torch.Tensor)]
        self.operations.append((func, args, kwargs, outputs))
        return result


def capture_by_recording(step: Callable[[], None]) -> Callable[[], None]:
    """Record a step. As after a capture on CUDA, what the step writes has its old values afterwards."""
    with _Recorder() as recorder:
        step()
    for storage, before in recorder.before.values():
        storage.copy_(before)

    def replay() -> None:
        with torch.inference_mode():
            for func, args, kwargs, outputs in recorder.operations:
                fresh = [value for value in tree_flatten(func(*args, **kwargs))[0] if isinstance(value, torch.Tensor)]
                for old, new in zip(outputs, fresh, strict=True):
                    if old.data_ptr() != new.data_ptr():  # not a view of an input, nor written in place
                        old.copy_(new)

    return replay


def start_recording() -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Captures with one pool of memory, as those of `capture_on_cuda`: once all its graphs are gone, so is the pool."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    begun = False

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        nonlocal begun
        if begun and not alive:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        replay = capture_by_recording(step)
        alive.add(replay)
        begun = True
        return replay

    return capture
