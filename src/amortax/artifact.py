"""How is a trained posterior stored, and what is checked before it is believed? One zip, hashed throughout.

A stored (uncompressed) zip of two members opens with everyday tools, and reading it runs nothing:

    manifest.json        {"format": 1, "content": the caller's manifest, "arrays": {name: {"shape", "dtype"}},
                          "files": {"arrays.safetensors": {"sha256", "bytes"}}, "sha256": of the other keys}
    arrays.safetensors   the arrays, little-endian

The manifest's hash is SHA-256 of its canonical JSON (ASCII, sorted keys) without the hash itself; `files` holds that of
the arrays, so every byte that is believed is covered. A reader measures before it allocates, and hashes the arrays
before it parses them. Equal content is written as equal bytes.

Reference: https://github.com/huggingface/safetensors (format); PKWARE APPNOTE.TXT 6.3 (zip).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import struct
import zipfile
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from ._errors import ArtifactError
from ._files import write_bytes

FORMAT = 1
"""The format that is written; every format up to this one is read."""

MAX_BYTES = 4 * 1024**3
"""The largest file that `read_artifact` takes into memory unless told otherwise."""

_MANIFEST, _ARRAYS = "manifest.json", "arrays.safetensors"
_KEYS = {"format", "files", "arrays", "content", "sha256"}
_MAX_MANIFEST_BYTES = 64 * 1024**2
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_DTYPES = ("bool", *_INTEGERS, "float16", "float32", "float64")
_BAD_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error, ValueError, OverflowError)


def write_artifact(path: str | os.PathLike[str], manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes `manifest` and `arrays` to `path`, all or nothing: a file that stands there is replaced or left intact.

    `manifest` nests dicts with string keys, lists, strings, integers, finite floats, booleans and None; tuples are read
    back as lists. `arrays` are of booleans, integers, or floats of 16 to 64 bits, of any shape; they are read back in C
    order, native-endian. The bytes go to a temporary file beside `path`, which is synchronised, then renamed; then the
    directory is synchronised. Raises `ArtifactError` for a value that can't be stored, naming the keys that lead to it,
    and for a disk that is full or closed to us, naming path and bytes.

    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_artifact(f"{folder}/a.amortax", {"units": 85}, {"scale": np.float32([1, 2])})
    ...     read_artifact(f"{folder}/a.amortax")
    ({'units': 85}, {'scale': array([1., 2.], dtype=float32)})
    """
    if not isinstance(path, str | os.PathLike):
        raise ArtifactError(f"save(path): expected the name of a file, got {path!r}")
    path = os.fspath(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in _members(path, manifest, arrays):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)
    _replace_file(path, buffer.getbuffer())


def read_artifact(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The `(manifest, arrays)` that `write_artifact` stored, after every check that the format allows.

    A file larger than `max_bytes` is refused unread. Raises `ArtifactError` for no such file, not an artifact, a newer
    format, and any difference between what the manifest says and what is there: hashes, sizes, members, names, shapes,
    dtypes. The answer is therefore exactly what was written, whatever happened to the file since.
    """
    path = os.fspath(path)
    try:
        _check_regular(path)
        with open(path, "rb") as handle:
            return _read(path, handle, max_bytes)
    except OSError as error:
        raise _refusal(path, f"can't be read: {error.strerror or error}") from error


def _refusal(path: str, difference: str) -> ArtifactError:
    return ArtifactError(f"artifact '{path}' {difference}")


def _members(path: str, content: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[tuple[str, bytes]]:
    """The two members, (name, bytes), after the checks that make them readable again."""
    if not isinstance(content, dict):
        raise _refusal(path, f"needs a manifest that is a dict; got {type(content).__name__}")
    stored = {name: _storable(path, name, arrays[name]) for name in sorted(arrays, key=str)}
    try:
        _check_json(path, content, "manifest")
        data = safetensors.numpy.save(stored)
        file = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest = {"format": FORMAT, "files": {_ARRAYS: file}, "arrays": _describe(stored), "content": content}
        text = _canonical(manifest | {"sha256": hashlib.sha256(_canonical(manifest)).hexdigest()})
    except ArtifactError:
        raise
    except (safetensors.SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise _refusal(path, f"can't be written: {error}") from error
    if len(text) > _MAX_MANIFEST_BYTES:
        raise _refusal(path, f"has a manifest of {len(text):,} bytes; at most {_MAX_MANIFEST_BYTES:,}; use arrays")
    return [(_MANIFEST, text), (_ARRAYS, data)]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=True).encode("ascii")


def _describe(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    return {name: {"shape": list(array.shape), "dtype": array.dtype.name} for name, array in arrays.items()}


def _check_json(path: str, value: Any, where: str) -> None:
    """Refuses what JSON would drop, change or turn into NaN, naming the keys that lead to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise _refusal(path, f"can't be written: {where} has the key {key!r}; expected a string")
            _check_json(path, item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_json(path, item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise _refusal(path, f"can't be written: {where} is {value}; expected a finite number; store None or a string")
    elif not (value is None or isinstance(value, (str, bool, int, float))):
        kind, known = type(value).__name__, "dict, list, str, int, float, bool or None"
        raise _refusal(path, f"can't be written: {where} is of type {kind}; expected {known}; convert it")


def _storable(path: str, name: str, value: Any) -> np.ndarray:
    """`value` as a C-ordered, native-endian array of a dtype that the format knows."""
    if not isinstance(name, str) or name == "__metadata__":
        raise _refusal(path, f"can't be written: an array can't be named {name!r}; give another string")
    if isinstance(value, np.ma.MaskedArray):
        raise _refusal(path, f"can't be written: array '{name}' is masked; store data and mask as two arrays")
    array = np.asarray(value)
    if array.dtype.name not in _DTYPES:
        raise _refusal(path, f"can't be written: array '{name}' has dtype {array.dtype}; expected one of {_DTYPES}")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _replace_file(path: str, data: memoryview) -> None:
    """Writes the whole file, or names what prevents it; nothing stays behind on any failure."""
    try:
        write_bytes(path, data)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        advice = "nothing is half-written; make room or choose another place"
        raise _refusal(path, f"({data.nbytes:,} bytes) can't be written: {reason}; {advice}") from error


def _check_regular(path: str) -> None:
    """Refuses what `open` would block on or misread."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, ValueError):  # ValueError: a null byte in the path
        raise _refusal(path, "doesn't exist; check the path, or save a posterior there first") from None
    if stat.S_ISDIR(mode):
        raise _refusal(path, "is a directory; expected a file")
    if not stat.S_ISREG(mode):
        raise _refusal(path, "is a device, pipe or socket; expected a regular file")


def _read(path: str, handle: BinaryIO, max_bytes: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest first, then the bytes of the arrays, each measured and hashed before it is parsed."""
    size = os.fstat(handle.fileno()).st_size
    if size > max_bytes:
        raise _refusal(path, f"has {size:,} bytes, over max_bytes = {max_bytes:,}; if you trust it, pass a larger one")
    try:
        with zipfile.ZipFile(handle) as archive:
            manifest_info, arrays_info = _check_members(path, archive, size)
            manifest = _check_manifest(path, archive.read(manifest_info))
            said = _check_file_entry(path, manifest["files"], arrays_info.file_size)
            data = archive.read(arrays_info)
    except ArtifactError:
        raise
    except _BAD_ZIP as error:
        raise _refusal(path, f"is damaged or not an artifact ({error}); copy or save it again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != said:
        raise _refusal(path, f"is damaged: {_ARRAYS} has SHA-256 {found}, its manifest says {said}")
    return manifest["content"], _check_arrays(path, manifest["arrays"], data)


def _check_members(path: str, archive: zipfile.ZipFile, size: int) -> list[zipfile.ZipInfo]:
    """The two members, measured against the file itself: nothing has been allocated for them yet."""
    infos = archive.infolist()
    names = [info.orig_filename for info in infos]
    if names != [_MANIFEST, _ARRAYS]:
        raise _refusal(path, f"has the members {names[:8]}; expected {[_MANIFEST, _ARRAYS]}")
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise _refusal(path, f"has {info.filename} compressed or encrypted; expected it stored")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _refusal(path, f"has {info.filename} as a link or special file; expected a plain one")
    total = sum(info.file_size for info in infos)
    if total > size:
        raise _refusal(path, f"has {size:,} bytes, but its members claim {total:,}; copy or save it again")
    if infos[0].file_size > _MAX_MANIFEST_BYTES:
        raise _refusal(
            path, f"has a manifest of {infos[0].file_size:,} bytes; at most {_MAX_MANIFEST_BYTES:,} are read"
        )
    return infos


def _check_manifest(path: str, text: bytes) -> dict[str, Any]:
    """The manifest, once its format, its keys and the hash of itself agree."""
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"has a manifest that is not JSON ({error})") from error
    written = manifest.get("format") if isinstance(manifest, dict) else None
    if type(written) is not int or written < 1:
        raise _refusal(path, f"states the format {written!r} in {_MANIFEST}; expected a number; it is not an artifact")
    if written > FORMAT:
        needed = f"this amortax reads formats up to {FORMAT}; install a version that reads format {written}"
        raise _refusal(path, f"is written in format {written}; {needed}")
    if manifest.keys() != _KEYS:
        unknown, absent = sorted(manifest.keys() - _KEYS), sorted(_KEYS - manifest.keys())
        raise _refusal(path, f"has a manifest with the unknown keys {unknown}, without {absent}")
    said = manifest.pop("sha256")
    try:
        found = hashlib.sha256(_canonical(manifest)).hexdigest()
        same = found == said and text == _canonical(manifest | {"sha256": said})
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"has a manifest that is not canonical JSON ({error})") from error
    if not same:
        raise _refusal(
            path, f"is damaged: {_MANIFEST} has SHA-256 {found}, it says {said!r} of itself, or other spacing"
        )
    if not isinstance(manifest["content"], dict):
        raise _refusal(path, f"has a {type(manifest['content']).__name__} as its content; expected a dict")
    return manifest


def _check_file_entry(path: str, files: Any, size: int) -> str:
    """The SHA-256 that the manifest gives for the arrays, once it knows their bytes and no other file."""
    entry = files.get(_ARRAYS) if isinstance(files, dict) and len(files) == 1 else None
    if not isinstance(entry, dict) or entry.keys() != {"sha256", "bytes"}:
        raise _refusal(path, f"describes the files {files!r}; expected '{_ARRAYS}' alone, by sha256 and bytes")
    if entry["bytes"] != size:
        raise _refusal(path, f"has {size:,} bytes of {_ARRAYS}, its manifest says {entry['bytes']!r}")
    return entry["sha256"]


def _check_arrays(path: str, said: Any, data: bytes) -> dict[str, np.ndarray]:
    """The arrays, once names, shapes and dtypes are those of the manifest."""
    try:
        arrays = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise _refusal(path, f"has {_ARRAYS} of another kind than this format stores ({error!r})") from error
    found = _describe(arrays)
    listed = said.keys() if isinstance(said, dict) else set()
    if listed != found.keys():
        absent, besides = sorted(listed - found.keys())[:8], sorted(found.keys() - listed)[:8]
        raise _refusal(path, f"lacks the arrays {absent} of its manifest and has {besides} besides")
    for name, kind in found.items():
        if kind != said[name] or kind["dtype"] not in _DTYPES:
            raise _refusal(path, f"has array '{name}' as {kind}, its manifest says {said[name]!r}")
    return {name: arrays[name] for name in sorted(arrays)}
