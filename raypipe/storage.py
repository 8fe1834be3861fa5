"""Where a run lies: a folder, or a prefix of an object store with the part of pathlib's interface that a run needs.

A file appears under its name only when it is whole. In a folder: a temporary name beside it, then a rename. In an object store: the
whole file is uploaded from a local temporary one, and an object becomes visible when its upload is completed, never before; what an
interrupted upload leaves is invisible. A file that replaces another replaces it at once in both; several files never do, so that a
cell's mark is written after its files. An object that is replaced while it is read comes back cut off or filled up, since its length is
asked before its bytes: it is read again.
"""

from __future__ import annotations

import os
import secrets
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from raypipe.errors import RunError

OPTIONS = {"s3": ("endpoint_override", "region", "scheme"), "gs": ("endpoint_override", "scheme")}  # of a URI
MAGIC = b"PAR1"  # begins and ends a Parquet file
LENGTH = 4 + len(MAGIC)  # bytes of the footer's length and what ends the file
SUM = struct.Struct("<QQI")  # where a column chunk starts and stops, and its CRC-32
END_BYTES = 2**16  # of a file that are read at once to find its footer
ATTEMPTS, SECONDS = 9, 60.0  # of one request to S3, with waits of 25 ms that double, 6 s in all; and what each may take


@lru_cache(8)
def _connected(uri: str) -> tuple[fs.FileSystem, str]:
    parts = urlsplit(uri)
    path = f"{parts.netloc}{parts.path}".rstrip("/")
    if parts.scheme != "s3":
        return fs.FileSystem.from_uri(uri)[0], path
    system = fs.S3FileSystem(
        retry_strategy=fs.AwsDefaultS3RetryStrategy(
            max_attempts=ATTEMPTS
        ),  # the other one has a budget for all requests
        request_timeout=SECONDS,
        connect_timeout=SECONDS,
        allow_delayed_open=True,
        **dict(parse_qsl(parts.query)),
    )
    return system, path


@dataclass(frozen=True, order=True)
class Remote:
    """A name in an object store, used like a `pathlib.Path`; `str` gives the URI without its options.

    Attributes:
        uri: Such as `s3://bucket/runs/one` or `s3://bucket/runs/one?region=eu-central-1`.
        inside: The name below it.
    """

    uri: str
    inside: str = ""

    @property
    def address(self) -> str:
        """The URI that makes this place again, options included."""
        base, mark, options = self.uri.partition("?")
        return f"{base.rstrip('/')}/{self.inside}".rstrip("/") + mark + options

    def __str__(self) -> str:
        return self.address.partition("?")[0]

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.uri, f"{self.inside}/{name}".strip("/"))

    @property
    def name(self) -> str:
        """The last part of the name."""
        return PurePosixPath(self.inside).name

    def connected(self) -> tuple[fs.FileSystem, str]:
        """The store and the name within it."""
        system, root = _connected(self.uri)
        return system, f"{root.rstrip('/')}/{self.inside}".rstrip("/")

    def _info(self) -> Any:
        with asking(self):
            system, path = self.connected()
            return system.get_file_info(path)

    def is_file(self) -> bool:
        """Whether an object of this name is there."""
        return bool(self._info().type == fs.FileType.File)

    exists = is_file

    def size(self) -> int | None:
        """Its length in bytes; None where there is no object."""
        found = self._info().size
        return None if found is None else int(found)

    def open_file(self) -> Any:
        """The object, for reading at any place of it."""
        system, path = self.connected()
        return system.open_input_file(path)

    def read_bytes(self) -> bytes:
        """The object's bytes, all of one version; FileNotFoundError where there is none, OSError where each is replaced at once."""
        for _ in range(ATTEMPTS):
            with self.open_file() as file:
                try:
                    data = bytes(file.read())
                except OSError:  # also of a version that is there no more
                    if not self.is_replaced(file):
                        raise
                else:
                    if not self.is_replaced(file):
                        return data
        raise OSError("replaced again and again while it is read")

    def is_replaced(self, file: Any) -> bool:
        """Whether another object stands here than when the file was opened."""
        with self.open_file() as now:
            return bool(now.metadata() != file.metadata())

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object's text."""
        return self.read_bytes().decode(encoding)

    def upload(self, file: Path) -> None:
        """Puts a local file here, whole."""
        system, path = self.connected()
        # One write for the object: a stream that is closed by an error would publish what it had got.
        with pa.memory_map(str(file)) as held, system.open_output_stream(path, buffer_size=0) as out:
            out.write(held.read_buffer())

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        system, path = self.connected()
        try:
            system.delete_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise


Place = Path | Remote


@contextmanager
def asking(where: Place) -> Iterator[None]:
    """RunError where a place does not say what it holds, or the options of its URI are none."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"{where}: out of reach ({_said(error)}); check its name and your credentials") from None


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def place(where: str | Path | Remote) -> Place:
    """A folder, or the prefix of an object store that a URI names (`s3://`, `gs://`; `file://` is a folder).

    Raises:
        RunError: It is empty or no URI, its scheme is unknown, it names no bucket, or it carries a secret.
    """
    if where == "":
        raise RunError("the run directory's name is empty; expected a folder, s3://, gs:// or file:///")
    if not isinstance(where, str) or "://" not in where:
        return where if isinstance(where, Remote) else Path(where)
    try:
        parts = urlsplit(where)
    except ValueError:
        raise RunError(f"{where.partition(':')[0]}://…: not a URI; expected such as s3://BUCKET/PREFIX") from None
    if parts.scheme == "file" and parts.hostname in (None, "localhost"):
        return Path(unquote(parts.path))
    shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    if parts.scheme not in OPTIONS:
        raise RunError(f"{shown}: unknown kind of storage; expected a folder, s3://, gs:// or file:///")
    if parts.username or parts.password:
        raise RunError(f"{shown}: holds credentials; give them by the environment or the machine's role instead")
    known = OPTIONS[parts.scheme]
    if unknown := sorted(set(dict(parse_qsl(parts.query))) - set(known)):
        raise RunError(f"{shown}: unknown option {unknown[0]}; expected {', '.join(known)}")
    if not parts.netloc:
        raise RunError(f"{shown}: names no bucket; expected {parts.scheme}://BUCKET/PREFIX")
    return Remote(where)


def address(where: Place) -> str:
    """The text from which `place` makes the same place on another node."""
    return where.address if isinstance(where, Remote) else str(where)


def is_same(where: Place, entry: Mapping[str, int]) -> bool:
    """Whether a file stands there that has the length, and if it has one the seal, of an entry {"bytes", "seal"}."""
    size = where.size() if isinstance(where, Remote) else where.stat().st_size if where.is_file() else None
    if size != entry["bytes"] or "seal" not in entry:
        return size == entry["bytes"]
    with asking(where), _opened(where) as source:
        try:
            return _Checked(source).seal == entry["seal"]
        except _Damaged:
            return False


def _opened(where: Place) -> Any:
    return where.open_file() if isinstance(where, Remote) else pa.OSFile(str(where))


def seal(file: Path) -> int:
    """Puts checksums of all bytes of a Parquet file before its footer, where no other reader looks; returns that of them all.

    One of each column chunk, pages and their headers, with the place of the chunk; then one of the footer with what ends the file.
    A chunk's is compared when the chunk is read: who reads one layer of many reads the bytes of that layer alone.
    """
    with pa.memory_map(str(file)) as held:
        whole = held.read_buffer()
        metadata = pq.read_metadata(pa.BufferReader(whole))
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        chunks = [group.column(i) for group in groups for i in range(metadata.num_columns)]
        starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
        end = len(whole) - LENGTH - metadata.serialized_size
        sums = [SUM.pack(a, b, zlib.crc32(whole[_before(a) : b])) for a, b in pairwise([*starts, end])]
        footer = bytes(whole[end:])
    checksums = b"".join(sums) + _crc(footer)
    with file.open("r+b") as data:
        data.seek(-len(footer), os.SEEK_END)
        data.write(checksums + footer)
    return zlib.crc32(checksums)


def _before(start: int) -> int:
    """Where the bytes start that are checked with a chunk: with the first one those that begin the file."""
    return 0 if start == len(MAGIC) else start


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


class _Damaged(Exception):
    pass


class _Checked:
    """A sealed Parquet file as pyarrow reads it: a column chunk at a time, or several that follow each other.

    Attributes:
        metadata: What its footer says.
        seal: The checksum of its checksums.
    """

    closed = False

    def __init__(self, source: pa.NativeFile) -> None:
        size = source.size()
        end = source.read_at(min(size, END_BYTES), max(0, size - END_BYTES))
        length = LENGTH + int.from_bytes(end[-LENGTH : -len(MAGIC)], "little")
        wanted = min(size, 2 * length)  # a chunk's checksum takes less than what the footer says of the chunk
        if wanted > len(end):
            end = source.read_at(wanted, size - wanted)
        footer, held = end[-length:], end[-length - 4 : -length]
        if held != _crc(footer):
            raise _Damaged("the checksum of its footer is another one")
        self.metadata = pq.read_metadata(pa.BufferReader(footer))
        sums = SUM.size * self.metadata.num_row_groups * self.metadata.num_columns
        self.seal = zlib.crc32(end[-length - 4 - sums : -length])
        self._sums = {a: (b, crc) for a, b, crc in SUM.iter_unpack(end[-length - 4 - sums : -length - 4])}
        if not sums and source.read_at(len(MAGIC), 0) != MAGIC:
            raise _Damaged("it does not begin like a Parquet file")
        self._source, self.seek, self.tell, self.close = source, source.seek, source.tell, source.close

    def read(self, count: int) -> memoryview:
        """The chunks that start here."""
        place, first = self.tell(), _before(self.tell())
        stop = place + count
        self.seek(first)
        data = memoryview(self._source.read_buffer(stop - first))
        wanted = data[place - first :]
        while place < stop:
            end, crc = self._sums.get(place, (stop, None))
            if end > stop or zlib.crc32(data[_before(place) - first : end - first]) != crc:
                raise _Damaged(f"the checksum of the bytes from {place} is another one")
            place = end
        return wanted


@contextmanager
def parquet(where: Place) -> Iterator[pq.ParquetFile]:
    """A Parquet file of a run, for reading inside the block; the checksums of its footer and of all that is read are compared.

    Raises:
        RunError: It is missing, cannot be reached, was replaced meanwhile, or is damaged; a damaged one is removed where it can be, so
            that its cell is computed again.
    """
    try:
        with _opened(where) as source:
            try:
                checked = _Checked(source)
                yield pq.ParquetFile(pa.PythonFile(checked, "r"), metadata=checked.metadata)
            except (_Damaged, OSError) as error:
                if isinstance(where, Remote) and where.is_replaced(source):
                    raise RunError(f"{where}: was replaced while it was read; read it again") from None
                if isinstance(error, OSError):
                    raise
                raise _removed(where, error) from None
    except OSError as error:
        raise RunError(f"{where}: missing or out of reach ({_said(error)}); run the grid again") from None


def _removed(where: Place, error: _Damaged) -> RunError:
    try:
        where.unlink(missing_ok=True)
    except OSError:
        return RunError(f"{where}: is damaged ({error}) and may not be removed here; let its owner do so")
    return RunError(f"{where}: was damaged ({error}) and is removed; run the grid again, which makes it anew")


def below(where: Place, pattern: str, recursive: bool = True) -> list[str]:
    """The names, below a place, of the files whose last part fits the pattern, sorted; none where the place is not there."""
    if isinstance(where, Path):
        with asking(where):
            walked = islice(os.walk(where, onerror=_not_there), None if recursive else 1)
            found = (Path(folder, name) for folder, _, names in walked for name in names if fnmatchcase(name, pattern))
            return sorted(str(file.relative_to(where)) for file in found if file.is_file())
    with asking(where):
        system, path = where.connected()
        infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=recursive))
    files = (info for info in infos if info.type == fs.FileType.File and fnmatchcase(info.base_name, pattern))
    return sorted(str(PurePosixPath(info.path).relative_to(path)) for info in files)


def _not_there(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def remove_folder(where: Place) -> None:
    """Removes every file below."""
    if isinstance(where, Path):
        if where.exists():
            shutil.rmtree(where)
        return
    for name in below(where, "*"):
        (where / name).unlink(missing_ok=True)


@contextmanager
def published(target: Place) -> Iterator[Path]:
    """A local temporary file that stands under the target's name when the block ends well."""
    if isinstance(target, Remote):
        with tempfile.TemporaryDirectory(prefix="raypipe-") as folder:
            temporary = Path(folder) / "file"
            yield temporary
            target.upload(temporary)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
