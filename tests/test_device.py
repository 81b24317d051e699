from __future__ import annotations

import pytest
import torch

from pythia_dynamics.device import (
    DTYPES,
    describe_device,
    matmul_precision,
    resolve_device,
    resolve_dtype,
    resolve_exact_device,
)
from pythia_dynamics.errors import PythiaDynError, UnknownNameError


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    """A machine with so many CUDA devices, with or without MPS."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen", "exact"),
    [(0, False, "cpu", "cpu"), (0, True, "mps", "cpu"), (1, False, "cuda", "cuda"), (2, True, "cuda", "cuda")],
)
def test_auto_takes_what_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, chosen: str, exact: str
) -> None:
    machine(monkeypatch, cuda=cuda, mps=mps)
    assert resolve_device("auto") == torch.device(chosen)
    assert resolve_exact_device("auto") == exact


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cuda=2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device(torch.device("cuda", 5)) == torch.device("cuda", 5)
    assert resolve_exact_device("cuda:1") == "cuda:1"
    for absent in ("cuda:2", "mps"):
        with pytest.raises(PythiaDynError, match=f"no device {absent} on this machine"):
            resolve_device(absent)
    for unknown in ("gpu", "cuda:x", "cuda:-1", ""):
        with pytest.raises(UnknownNameError, match="no device"):
            resolve_device(unknown)


def test_mps_is_refused_where_float64_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, mps=True)
    with pytest.raises(PythiaDynError, match="MPS has no float64"):
        resolve_exact_device("mps")


def test_dtypes_by_name() -> None:
    assert [resolve_dtype(name) for name in DTYPES] == [torch.float32, torch.bfloat16, torch.float16]
    with pytest.raises(UnknownNameError, match="did you mean float16"):
        resolve_dtype("fp16")  # type: ignore[arg-type]


def test_devices_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert describe_device(torch.device("cpu")) == "cpu"
    assert describe_device(torch.device("cuda", 1)) == "GPU 1"


@pytest.mark.parametrize(("tf32", "expected"), [(False, "highest"), (True, "high")])
def test_the_precision_of_products_is_restored(tf32: bool, expected: str) -> None:
    before = torch.get_float32_matmul_precision()

    def fail() -> None:
        with matmul_precision(tf32=tf32):
            assert torch.get_float32_matmul_precision() == expected
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_float32_matmul_precision() == before
