"""Lines of a foreign text file, and what to do with a bad one."""

from __future__ import annotations

import csv
import io
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path

from raypipe.errors import InputError

PathText = str | PathLike[str]
INT32_MAX = 2**31 - 1


class BadLine(ValueError):
    """What was found on a line and what was expected, without the place."""


def read_bytes(path: PathText) -> bytes:
    """A file's bytes, without a UTF-8 byte order mark; InputError where it cannot be read."""
    try:
        return Path(path).read_bytes().removeprefix(BOM_UTF8)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: PathText, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{path}: cannot be read ({reason}); expected a file")


def numbered_lines(path: PathText) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1 and lines, ended at LF only (a CR before it is dropped), never at U+2028 and the like."""
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.removeprefix(BOM_UTF8) if number == 1 else raw
                if line:  # else a byte order mark alone
                    yield number, line.removesuffix(b"\n").removesuffix(b"\r")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def parse_lines(path: PathText, parse: Callable[[int, str], None], max_bad_lines: int = 0) -> tuple[str, ...]:
    """Give every numbered line to `parse`, which raises `BadLine` before it keeps anything of one.

    Returns:
        The messages of the lines skipped so, at most `max_bad_lines`.

    Raises:
        InputError: FILE:LINE of the next one, what was found and what was expected.
    """
    skipped: list[str] = []
    for number, line in numbered_lines(path):
        try:
            parse(number, decoded(line))
        except BadLine as bad:
            message = f"{path}:{number}: {bad}"
            if len(skipped) >= max_bad_lines:
                after = f" ({len(skipped)} bad lines skipped before)" if skipped else ""
                raise InputError(message + after) from None
            skipped.append(message)
    return tuple(skipped)


def decoded(line: bytes) -> str:
    """A line as text; BadLine where it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLine(f"byte 0x{line[error.start]:02x} at column {error.start + 1}; expected UTF-8") from None


def text_lines(path: PathText) -> Iterator[str]:
    """The lines as text, see `numbered_lines`; InputError at FILE:LINE of what is not UTF-8."""
    for number, line in numbered_lines(path):
        try:
            text = decoded(line)
        except BadLine as bad:
            raise InputError(f"{path}:{number}: {bad}") from None
        yield text


def csv_rows(path: PathText) -> Iterator[tuple[int, list[str]]]:
    """Line number (of the last line of a quoted cell) and fields of each row of a CSV file; InputError at FILE:LINE of what is none."""
    reader = csv.reader(io.StringIO("\n".join(text_lines(path)), newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}; expected comma-separated fields") from None


def read_counts(path: PathText) -> dict[str, int]:
    """Words with their counts, `word count` per line; InputError at FILE:LINE of anything else, or of a word that stands there twice."""
    found: dict[str, int] = {}

    def parse(_: int, line: str) -> None:
        word, count = fields if len(fields := line.split()) == 2 else ("", line)
        if not word or word in found:
            raise BadLine(f"{line!r}; expected a word that stands nowhere else, and its count")
        found[word] = natural("count", count)

    parse_lines(path, parse)
    return found


def natural(name: str, text: str, most: int = INT32_MAX) -> int:
    """An integer of 0 to `most` written in ASCII digits; BadLine for anything else."""
    if not (text.isascii() and text.isdigit()):
        raise BadLine(f"{name} {text!r} is not an integer >= 0")
    if len(text) > 20 or int(text) > most:
        raise BadLine(f"{name} {text[:30]} is too large; expected at most {most}")
    return int(text)


def has_space(word: str) -> bool:
    """Whether a text holds any Unicode whitespace, so that it is not one word."""
    return any(map(str.isspace, word))


def write_lines(path: PathText, lines: Iterable[str]) -> None:
    """Write UTF-8 lines, each ended by LF; InputError where the file cannot be written."""
    content = "".join(f"{line}\n" for line in lines).encode()
    if content.startswith(BOM_UTF8):  # a character of the first word, which a reader takes for the file's mark
        content = BOM_UTF8 + content
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); name a file in a folder that is there"
        ) from None
