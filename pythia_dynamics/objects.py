"""Places that are not directories: objects of S3, Google Cloud and Azure, and files of a web server.

An `ObjectPath` has what is used here of `pathlib.Path`. All requests go through obstore, which takes credentials and
endpoints from the environment (``AWS_…``, ``GOOGLE_…``, ``AZURE_…``) and repeats what fails for a moment. An object
appears complete or not at all.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import IO, Any

from pythia_dynamics.errors import PythiaDynError, StoreError, first_line, optional_import
from pythia_dynamics.files import store_errors

__all__ = ["Lease", "ObjectPath", "Place", "as_place", "is_web", "object_errors", "tag"]

Version = dict[str, str]
"""What a write on a condition names: the entity tag for S3 and Azure, the generation (``version``) for Google Cloud."""

_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https")

_WEB = ("http://", "https://")

_ENDPOINTS = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"),
    *("GOOGLE_BASE_URL", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    *("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
)
"""Variables of the environment that may name a server without TLS."""

_RETRY: Any = {"max_retries": 8, "retry_timeout": timedelta(seconds=60)}
"""A request that fails is repeated for a minute at most, longer than what a loaded store asks to wait for."""

_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist", "ResourceNotFound")
"""What the answers to a request say whose bucket does not exist, which are those for a missing object otherwise."""

_DENIED = ("403 Forbidden", "401 Unauthorized", "169.254.169.254")
"""What an answer says to wrong credentials; the address is where those of a machine in a cloud are looked for last."""

_LEASE_SECONDS = 30.0
"""A lock whose object has not changed for so long is of a process that was killed. Its holder changes it three times as
often."""

_POLL_SECONDS = 0.25
"""Wait between two attempts to take a lock. Writing a record takes a few requests, of 10 to 50 ms each."""


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """An object, or all objects whose names begin with a prefix.

    Parameters
    ----------
    root
        Scheme and bucket, or scheme and host: ``s3://bucket``.
    key
        The name of the object in it, without a slash at its ends.
    """

    root: str
    key: str

    @classmethod
    def parse(cls, url: str) -> ObjectPath:
        """The place of a URL. Raises `PythiaDynError` for one without a bucket, or of another kind."""
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        if scheme not in _SCHEMES:
            raise PythiaDynError(f"{url}: a place is a directory, or begins with s3://, gs://, az:// or https://")
        if not bucket:
            raise PythiaDynError(f"{url} names no bucket; a place is {scheme}://bucket/folder")
        return cls(f"{scheme}://{bucket}", "/".join(part for part in key.split("/") if part))

    def __str__(self) -> str:
        return f"{self.root}/{self.key}" if self.key else self.root

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.root, f"{self.key}/{name}" if self.key else name)

    def joinpath(self, *names: str) -> ObjectPath:
        """The place of a name inside of this one."""
        found = self
        for name in names:
            found = found / name
        return found

    @property
    def name(self) -> str:
        """The last part of the name."""
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of the name from its last point."""
        return Path(self.name).suffix

    @property
    def parent(self) -> ObjectPath:
        """The place that this one is in."""
        return ObjectPath(self.root, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        """The place of another name beside this one."""
        return self.parent / name

    def absolute(self) -> ObjectPath:
        """This place, whose name is absolute."""
        return self

    # -- reading ----------------------------------------------------------------------------------------------

    def size(self) -> int | None:
        """Bytes of the object; None where there is none. Raises `StoreError` if it cannot be asked."""
        try:
            with object_errors(self, missing_is_error=False):
                return int(_obstore().head(self.store, self.key)["size"])
        except FileNotFoundError:
            return None

    def is_file(self) -> bool:
        """Whether there is such an object. Raises `StoreError` if it cannot be asked, and for a missing bucket."""
        try:
            self.read_ranges([(0, 1)])  # an answer without content does not say that it is the bucket that is missing
        except FileNotFoundError:
            return False
        return True

    exists = is_file

    def read_bytes(self) -> bytes:
        """The whole object. Raises `FileNotFoundError` and `StoreError`."""
        with object_errors(self, missing_is_error=False):
            return bytes(_obstore().get(self.store, self.key).bytes())

    def read_ranges(self, ranges: list[tuple[int, int]]) -> list[memoryview]:
        """Ranges (start, stop) of the bytes. Raises `FileNotFoundError` and `StoreError`."""
        with object_errors(self, missing_is_error=False):
            starts, ends = [start for start, _ in ranges], [stop for _, stop in ranges]
            found = _obstore().get_ranges(self.store, self.key, starts=starts, ends=ends)
        views = [memoryview(each) for each in found]
        if any(len(view) != stop - start for view, (start, stop) in zip(views, ranges, strict=True)):
            raise StoreError(f"{self} is shorter than it should be")
        return views

    def sizes(self) -> dict[str, int]:
        """Bytes of all objects whose names begin with this one and a slash, by the rest of their names.

        Raises `StoreError`, also for a web server, which lists nothing.
        """
        if is_web(self):
            raise StoreError(f"{self}: a web server lists no files; name a store in it")
        with object_errors(self):
            entries = _obstore().list(self.store, prefix=self.key or None).collect()
        prefix = f"{self.key}/" if self.key else ""
        return {each["path"].removeprefix(prefix): int(each["size"]) for each in entries}

    def tags(self, *, deep: bool = True) -> dict[str, str | None]:
        """The entity tag of each object, named as by `sizes`. Not `deep`: without those with another slash. Raises as
        `sizes`."""
        if is_web(self):
            raise StoreError(f"{self}: a web server lists no files; name a store in it")
        prefix = f"{self.key}/" if self.key else ""
        with object_errors(self):
            if deep:
                entries: Any = _obstore().list(self.store, prefix=self.key or None).collect()
            else:
                entries = _obstore().list_with_delimiter(self.store, prefix=self.key or None)["objects"]
        return {each["path"].removeprefix(prefix): tag(each) for each in entries}

    def folders(self) -> list[str]:
        """What would be the directories in this one: parts of names that follow it and end with a slash. Raises as
        `sizes`."""
        if is_web(self):
            raise StoreError(f"{self}: a web server lists no files; name a store in it")
        with object_errors(self):
            found: Any = _obstore().list_with_delimiter(self.store, prefix=self.key or None)
        return sorted(key.rstrip("/").rpartition("/")[2] for key in found["common_prefixes"])

    # -- writing ----------------------------------------------------------------------------------------------

    @contextmanager
    def new_file(self) -> Iterator[IO[bytes]]:
        """A temporary file that becomes the object after the ``with`` block has ended without an exception.

        Raises
        ------
        StoreError
            The object cannot be written, or there is no room for the temporary file.
        """
        folder = Path(tempfile.gettempdir())
        with store_errors(folder), tempfile.NamedTemporaryFile(dir=folder, prefix="pythia-dyn-") as file:
            yield file
            file.flush()
            with object_errors(self):
                _obstore().put(self.store, self.key, Path(file.name))

    def put(self, content: bytes, *, mode: Any = "overwrite") -> Version:
        """Write an object and return its version.

        Parameters
        ----------
        content
            The bytes.
        mode
            ``"overwrite"``; ``"create"`` if there must be none; or a version, if it must be that one.

        Raises
        ------
        FileExistsError
            There is one, or it is another one.
        StoreError
            It cannot be written.
        """
        known = _obstore().exceptions
        with object_errors(self):
            try:
                done = _obstore().put(self.store, self.key, content, mode=mode, use_multipart=False)
            except (known.AlreadyExistsError, known.PreconditionError):
                raise FileExistsError(str(self)) from None
        return _version(done)

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects, named as by `sizes`. Those that are not there are no matter. Raises `StoreError`."""
        with object_errors(self):
            for name in names:
                with suppress(FileNotFoundError):
                    _obstore().delete(self.store, self.joinpath(*name.split("/")).key)

    # -- for zarr ---------------------------------------------------------------------------------------------

    @property
    def store(self) -> Any:
        """The obstore of the bucket."""
        return _open(self.root, os.getpid())

    def zarr_store(self) -> Any:
        """The bucket as a store of zarr; `key` is then a path in it."""
        return _zarr_class()(self.root, read_only=is_web(self), versions=_versions.get())


def tag(version: Any) -> str | None:
    """The entity tag of a version, or of an entry of a list: Azure has it in quotes in one and without in the other."""
    e_tag = version["e_tag"]
    return None if e_tag is None else str(e_tag).strip('"')


def _version(found: Any) -> Version:
    return {name: found[name] for name in ("e_tag", "version") if found[name] is not None}


Place = Path | ObjectPath
"""A directory or a file: here, or in an object store."""


def as_place(place: str | Path | ObjectPath) -> Place:
    """A place as a path: of a URL an `ObjectPath`, else a `Path`.

    Raises
    ------
    PythiaDynError
        The URL has no bucket, or is of a kind that cannot be read.
    """
    if isinstance(place, ObjectPath):
        return place
    return ObjectPath.parse(str(place)) if "://" in str(place) else Path(place)


def is_web(place: Place) -> bool:
    """Whether a place is on a web server, which can only be read, and lists nothing."""
    return isinstance(place, ObjectPath) and place.root.startswith(_WEB)


def _obstore() -> Any:
    """The library of the requests, which takes 20 ms to import. Raises `PythiaDynError` where it is not installed."""
    with optional_import("a place in an object store", "remote"):
        import obstore
    return obstore


@cache
def _open(root: str, process: int) -> Any:
    """The obstore of a bucket, one in each process: its connections must not be shared after a fork."""
    scheme = root.partition("://")[0]
    options: dict[str, Any] = {"retry_config": _RETRY, "client_options": {"timeout": timedelta(seconds=120)}}
    if scheme == "http" or any("http://" in os.environ.get(name, "") for name in _ENDPOINTS):
        options["client_options"]["allow_http"] = True
    with object_errors(ObjectPath(root, "")):
        return _obstore().store.from_url(root, **options)


@contextmanager
def object_errors(path: ObjectPath, *, missing_is_error: bool = True) -> Iterator[None]:
    """Convert an error of obstore into a `StoreError` with a message of one line.

    Parameters
    ----------
    path
        The object or prefix, for the message.
    missing_is_error
        Whether a missing object is one too; else it stays a `FileNotFoundError`. A missing bucket always is.
    """
    try:
        yield
    except (FileExistsError, StoreError):
        raise
    except Exception as error:
        if not type(error).__module__.startswith("obstore") and not isinstance(error, (OSError, ValueError)):
            raise
        text = str(error)
        if any(word in text for word in _NO_BUCKET):
            raise StoreError(f"{path.root}: there is no such bucket") from None
        if isinstance(error, FileNotFoundError) and not missing_is_error:
            raise FileNotFoundError(str(path)) from None
        kind = type(error).__name__
        if kind in ("PermissionDeniedError", "UnauthenticatedError") or any(word in text for word in _DENIED):
            raise StoreError(f"{path}: access denied; check the credentials in the environment") from None
        raise StoreError(f"{path}: {first_line(error).rpartition(' - ')[2]}") from None


# -- several writers ------------------------------------------------------------------------------------------

_versions: ContextVar[dict[str, Version | None] | None] = ContextVar("versions", default=None)
"""Inside `Lease.held`: the version of each object that was read, None for those that were not there."""


@cache
def _zarr_class() -> Any:
    """The store of zarr. A function, because zarr takes a third of a second to import."""
    from obstore.exceptions import AlreadyExistsError, PreconditionError
    from zarr.storage import ObjectStore

    class GuardedStore(ObjectStore[Any]):
        """Objects below a prefix. While a lock is held, one that was read is only replaced if it is still the same."""

        def __init__(self, root: str, *, read_only: bool, versions: dict[str, Version | None] | None) -> None:
            super().__init__(ObjectPath(root, "").store, read_only=read_only)
            self.root, self.versions = root, versions

        def with_read_only(self, read_only: bool = False) -> Any:
            return type(self)(self.root, read_only=read_only, versions=self.versions)

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            if self.versions is None or byte_range is not None:
                with object_errors(ObjectPath(self.root, key)):
                    return await super().get(key, prototype, byte_range)
            try:
                with object_errors(ObjectPath(self.root, key), missing_is_error=False):
                    found = await _obstore().get_async(self.store, key)
                    content = await found.bytes_async()
            except FileNotFoundError:
                self.versions[f"{self.root}/{key}"] = None
                return None
            self.versions[f"{self.root}/{key}"] = _version(found.meta)
            return prototype.buffer.from_bytes(content)

        async def set(self, key: str, value: Any) -> None:
            mode: Any = "overwrite"
            name = f"{self.root}/{key}"
            if self.versions is not None and name in self.versions:
                mode = self.versions[name] or "create"
            with object_errors(ObjectPath(self.root, key)):
                try:
                    done = await _obstore().put_async(self.store, key, value.as_buffer_like(), mode=mode)
                except (AlreadyExistsError, PreconditionError):
                    raise StoreError(f"another process has changed {name}; run the same command again") from None
            if self.versions is not None:
                self.versions[name] = _version(done)

    return GuardedStore


class Lease:
    """A lock of several processes on any machines: an object that its holder writes anew from time to time.

    Taking it needs writes on a condition, which S3, Google Cloud, Azure and MinIO have. A process that is killed keeps
    others waiting for half a minute. One that sleeps for longer may find that another has taken the lock: objects that
    it has read before are then not replaced.

    Parameters
    ----------
    path
        The object.
    """

    def __init__(self, path: ObjectPath) -> None:
        self.path = path
        self._depth, self._local = 0, threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lease, (self.path,)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock. Blocks inside one another hold it once.

        Raises
        ------
        StoreError
            The place cannot be written.
        """
        if is_web(self.path):
            raise StoreError(f"{self.path.parent} is a web server, which can only be read; name another --cache")
        with self._local:
            if self._depth:
                yield
                return
            owner = secrets.token_hex(8)
            version, ended = _take(self.path, owner), threading.Event()
            renewing = threading.Thread(target=self._renew, args=(owner, [version], ended), daemon=True)
            renewing.start()
            token = _versions.set({})
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                _versions.reset(token)
                ended.set()
                renewing.join()

    def _renew(self, owner: str, version: list[Version], ended: threading.Event) -> None:
        """Write the lock anew while it is held, and free it at the end, unless another process has taken it."""
        count = 0
        try:
            while not ended.wait(_LEASE_SECONDS / 3):
                count += 1
                version[0] = self.path.put(_lock(owner, count), mode=version[0])
            self.path.put(_lock("", 0), mode=version[0])
        except (FileExistsError, StoreError):  # taken, or not to be reached: after its time it is free
            return


def _lock(owner: str, count: int) -> bytes:
    """The content of a lock; without an owner it is free. Each has another one, so that its version differs."""
    return json.dumps({"owner": owner, "count": count, "nonce": secrets.token_hex(8)}).encode()


def _take(path: ObjectPath, owner: str) -> Version:
    """Take a lock as soon as it is free, or has not changed for its time; return its version."""
    seen: tuple[Version, float] = ({}, 0.0)
    while True:
        try:
            return path.put(_lock(owner, 0), mode="create")
        except FileExistsError:
            version, is_free = _state(path)
        if version is None:  # it was removed meanwhile
            continue
        if version != seen[0]:
            seen = version, time.monotonic()
        if is_free or time.monotonic() - seen[1] > _LEASE_SECONDS:
            try:
                return path.put(_lock(owner, 0), mode=version)
            except FileExistsError:  # another process was faster
                continue
        time.sleep(_POLL_SECONDS)


def _state(path: ObjectPath) -> tuple[Version | None, bool]:
    """The version of a lock, None where there is none, and whether it is free."""
    try:
        with object_errors(path, missing_is_error=False):
            found = _obstore().get(path.store, path.key)
            content = bytes(found.bytes())
    except FileNotFoundError:
        return None, True
    try:
        is_free = not json.loads(content).get("owner")
    except (ValueError, AttributeError):
        is_free = False
    return _version(found.meta), is_free
