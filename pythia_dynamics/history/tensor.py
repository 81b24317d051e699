"""One tensor of one checkpoint, as an array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.open import HUB
from pythia_dynamics.checkpoints.reader import RevisionReader
from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.checkpoints.roles import UNEMBEDDING
from pythia_dynamics.checkpoints.source import Source
from pythia_dynamics.checkpoints.tensors import TensorRequest
from pythia_dynamics.errors import IntegrityError, PythiaDynError, UnknownNameError
from pythia_dynamics.history.request import FetchRequest
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.whole import has_whole_checksum, read_whole, repeat_if_damaged

__all__ = ["tensor"]


def tensor(
    model: str | Path | Model,
    name: str = UNEMBEDDING,
    revision: int | str = "main",
    *,
    source: str | Path | Source = HUB,
    suite: Mapping[str, Any] | str | Path | None = None,
    verify_whole: bool = False,
) -> NDArray[Any]:
    """One tensor of one checkpoint, at the cost of its bytes: nothing is stored, and nothing else is downloaded.

    ``pyd.tensor("allenai/OLMo-2-0425-1B", "lm_head.weight", "stage1-step140000-tokens294B")``

    Parameters
    ----------
    model
        An alias (``70m``), a repository id, the name of a store, a directory of checkpoints, or a `Model`.
    name
        The tensor's name in the checkpoint, its role (``unembedding``, ``embedding``), or a glob that matches one.
    revision
        The step as a number; or a branch, a tag, a commit, or the folder or file of a directory by name.
    source, suite
        As for `FetchRequest`.
    verify_whole
        Whether to download a whole safetensors file, to compare it with the SHA-256 that the Hub states of it.

    Returns
    -------
    array
        float16, bfloat16 or float32, in the tensor's shape. Every range was of the pinned commit and of the
        right length, and the checksum of a torch file was compared; a safetensors file has none for one tensor,
        only for the whole of it.

    Raises
    ------
    UnknownNameError
        There is no such model, revision or tensor.
    IntegrityError
        The tensor fails its checksum.
    PythiaDynError
        `name` matches several tensors; or as `pythia_dynamics.fetch`.
    """
    opened = FetchRequest(model, name, source=source, suite=suite).open_source()
    if isinstance(revision, str):
        found = opened.revision(revision)
    else:
        revisions = opened.revisions()
        if revision not in revisions:
            raise UnknownNameError("step", revision, revisions, where=opened.location)
        found = revisions[revision]
    cache = LayoutCache(rule=opened.suite.roles)

    def read() -> NDArray[Any]:
        reader = RevisionReader(opened, found, headers_only=verify_whole)
        try:
            found_tensors = reader.find((name,), cache)
            return _read(reader, _only_one(found_tensors, name), verify_whole)
        finally:
            reader.close()

    return repeat_if_damaged(read)


def _only_one(requests: Iterator[TensorRequest], name: str) -> TensorRequest:
    """The only request. Raises when there are several, before any is read."""
    first, *others = islice(requests, 2)
    if others:
        both = f"{first.tensor.name} and {others[0].tensor.name}"
        raise PythiaDynError(f"{name!r} matches several tensors, {both} among them; name one")
    return first


def _read(reader: RevisionReader, request: TensorRequest, verify_whole: bool) -> NDArray[Any]:
    found = request.tensor
    spec, sha256 = TensorSpec(found.name, found.dtype, found.shape), reader.sha256.get(found.file)
    if verify_whole and sha256 is not None and has_whole_checksum(found, sha256):
        content = bytearray()
        read_whole(reader.source, reader.revision, {found: content.extend}, sha256=sha256)
    else:
        content = bytearray(b"".join(reader.read(request)))
    if found.crc32 is not None and crc32(content) != found.crc32:
        raise IntegrityError(f"{found.name} of {reader.revision.ref} fails the checksum of {found.file}")
    array: NDArray[Any] = np.frombuffer(content, spec.numpy_dtype).reshape(spec.shape)
    return array
