from __future__ import annotations

import sys

import pytest
import torch

from pythia_dynamics.evaluation.memory import cached_positions_budget, free_cached_memory, is_out_of_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried …"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 9 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ],
)
def test_errors_of_the_allocators_are_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), OSError("out of memory"), KeyError("memory")])
def test_other_errors_are_not_taken_for_them(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_host_holds_one_gibibyte_of_keys_and_values() -> None:
    assert cached_positions_budget(CPU, 1024) == 1 << 20
    assert cached_positions_budget(CPU, 1 << 40) == 1
    assert cached_positions_budget(CPU, 0) == 1 << 30


def test_what_a_gpu_holds_does_not_depend_on_what_is_free() -> None:
    assert cached_positions_budget(torch.device("cuda:1"), 1 << 20) == 8 << 10
    assert cached_positions_budget(torch.device("mps"), 1 << 20) == 2 << 10


@pytest.mark.skipif(sys.platform != "linux", reason="the words of torch's allocator on Linux")
def test_torch_itself_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def test_memory_is_freed_on_the_device_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: freed.append("mps"))
    for kind in ("cpu", "cuda", "mps"):
        free_cached_memory(torch.device(kind))
    assert freed == ["cuda", "mps"]
