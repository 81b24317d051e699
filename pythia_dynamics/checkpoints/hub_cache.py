"""Files of checkpoints in the Hugging Face cache: which are there, and how some are removed while others arrive.

The cache has a folder for each commit with links to the contents (blobs) of its files. Commits share the content of
equal files: a download that finds it there only makes the link. So a content may be removed when no link to it is left,
and a download that has seen it before has to look again. Both happen under one lock of the repository.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

__all__ = ["absent_files", "cache_lock", "remove_files"]


def absent_files(repository: str, commit: str, files: Sequence[str]) -> list[str]:
    """The files of a commit that are not in the cache.

    Parameters
    ----------
    repository
        Its id.
    commit
        The commit, or the name of a branch or tag.
    files
        Paths in the repository.
    """
    from huggingface_hub import try_to_load_from_cache

    return [file for file in files if not isinstance(try_to_load_from_cache(repository, file, revision=commit), str)]


def cache_lock(snapshot: Path) -> FileLock:
    """The lock of a repository in the cache, between threads and between processes.

    It is held while files are removed, and while a finished download looks whether all its files are there: either
    sees the other whole. It is not held during a download.

    Parameters
    ----------
    snapshot
        The folder of any commit of the repository: ``<cache>/models--<owner>--<name>/snapshots/<commit>``.
    """
    repository = snapshot.parents[1]
    folder = repository.parent / ".locks" / repository.name  # where the library has its own locks
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "pythia-dynamics.lock")


def remove_files(snapshot: Path, files: Sequence[str], *, whole: bool) -> None:
    """Remove files of a commit from the cache, and their contents where no other commit has them.

    Downloads may be under way. `HFCacheInfo.delete_revisions` is not used because it is made for a cache at rest: it
    removes the whole repository when no other commit has a file yet, and with it the parts of a first download.

    Parameters
    ----------
    snapshot
        The folder of the commit.
    files
        Paths in it.
    whole
        Nobody downloads other files of the commit, so that its folders are removed as well where they are empty.
    """
    from huggingface_hub import DeleteCacheStrategy

    with cache_lock(snapshot):
        links = frozenset(snapshot / file for file in files)
        contents = {link: _content(link) for link in links}
        others = (path for path in snapshot.parent.rglob("*") if path.is_symlink() and path not in links)
        unused = {content for link, content in contents.items() if content != link} - {
            _content(path) for path in others
        }
        # Of this class because a content may itself be a link into a store of all repositories, which it cleans up.
        DeleteCacheStrategy(
            expected_freed_size=0,
            blobs=frozenset(path for path in unused if path.is_symlink() or path.exists()),
            refs=frozenset(),
            repos=frozenset(),
            snapshots=frozenset(),
            files=links,
            cache_dir=snapshot.parents[2],
        ).execute()
        for folder in sorted({link.parent for link in links} if whole else (), reverse=True):
            with suppress(OSError):  # it has other files
                while folder.is_relative_to(snapshot):
                    folder.rmdir()
                    folder = folder.parent


def _content(link: Path) -> Path:
    """The content that a file of a commit is a link to; the file itself where the system has no links."""
    return Path(os.path.normpath(link.parent / link.readlink())) if link.is_symlink() else link
