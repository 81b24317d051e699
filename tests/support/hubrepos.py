"""Repositories of the loopback Hub: files, commits, and how the API describes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

__all__ = ["LFS_SUFFIXES", "File", "Repository", "entry_json", "refs_json", "tree_json"]

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".h5")


@dataclass(frozen=True)
class File:
    """One file of a repository: in memory, or on disk."""

    content: bytes | Path
    lfs: bool

    @cached_property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self, start: int, stop: int) -> bytes:
        if isinstance(self.content, bytes):
            return self.content[start:stop]
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    @cached_property
    def sha256(self) -> str:
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        with self.content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def oid(self) -> str:
        """git's blob id: of the content, or of the pointer file for LFS."""
        body = self.pointer if self.lfs else self.read(0, self.size)
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return text.encode()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Repository:
    name: str
    branches: dict[str, str] = field(default_factory=dict)
    """Branch name → commit."""
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """(commit, title) of every commit of a branch, the latest first."""
    gated: bool = False
    token: str | None = None
    """Needed to read the files; without `gated`, to see the repository at all."""


def refs_json(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in names.items()]


def entry_json(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    return entry


def tree_json(files: Mapping[str, File], under: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{under}/" if under else ""
    entries: list[dict[str, Any]] = []
    folders: set[str] = set()
    for path in sorted(files):
        if not path.startswith(prefix):
            continue
        inside = path[len(prefix) :].split("/")
        for depth in range(1, len(inside) if recursive else min(len(inside), 2)):
            folder = prefix + "/".join(inside[:depth])
            if folder not in folders:
                folders.add(folder)
                oid = hashlib.sha1(folder.encode()).hexdigest()
                entries.append({"type": "directory", "oid": oid, "size": 0, "path": folder})
        if recursive or len(inside) == 1:
            entries.append(entry_json(path, files[path]))
    return entries
