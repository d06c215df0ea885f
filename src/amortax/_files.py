"""How does a file appear whole or not at all? Written beside its place, synchronised, then renamed into it.

The bytes reach the disk before the name does, and the name before the call returns: a path holds at every moment, also
after a loss of power, what it held before or the whole new file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path`, with its suffix, for the block to write; what stands there then takes the place of `path`.

    **Raises** `OSError` (a full disk, no such folder) and `ValueError` (a path that can't be one); then, and where the
    block itself raises or is interrupted, `path` is as it was and nothing stays beside it.
    """
    target = Path(path)
    partial = target.with_name(f".amortax-{secrets.token_hex(8)}{target.suffix}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Writes `data` to `path`, all or nothing; raises as `replacing` does."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
