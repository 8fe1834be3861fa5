"""Mistakes in a grid as one line, and the fields of a grid as a page."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ByteSize, ValidationError


def one_line(error: ValidationError, root: type[BaseModel]) -> str:
    """The first mistake of a validation, with its field and, for an unknown field, the nearest known one."""
    details = error.errors(include_url=False)
    first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    where = [
        str(part)
        for part in first["loc"]
        if not str(part).startswith(("tuple[", "literal[", "constrained-", "function-"))
    ]
    field = ".".join(part for part in where if part != "Every")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where[-1], _fields_at(root, where[:-1]), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(_fields_at(root, where[:-1]))}"
        text = f"{field}: unknown field; {hint}"
    elif first["type"] == "missing":
        text = f"{field}: is required; set it in the grid file or by a flag"
    elif first["type"] == "literal_error":
        text = f"{field}: {first['input']!r} is not available; expected {first['ctx']['expected']}"
    else:
        found = "" if first["type"] in ("value_error", "model_type") else f" (found {first['input']!r})"
        message = first["msg"].removeprefix("Value error, ")
        text = f"{field}: {message}{found}" if field else f"{message}{found}"
    more = len(details) - 1
    return " ".join(text.split()) + (f" (and {more} more)" if more else "")


def _fields_at(part: type[BaseModel], where: Iterable[str]) -> list[str]:
    for name in where:
        if name.isdecimal():
            continue
        field = part.model_fields.get(name)
        part = next(iter(_models_in(field.annotation))) if field else part
    return list(part.model_fields)


def _models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def describe_fields(root: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Every dotted field below `root` with its sentence and default, for docs/grid.md."""
    page: dict[str, str] = {}
    for name, field in root.model_fields.items():
        inner = list(_models_in(field.annotation))
        shown = field.is_required() or inner
        page[prefix + name] = f"{field.description}" + ("" if shown else f" Default: {_default_text(field.default)}.")
        if inner and name != "layers":
            page |= describe_fields(inner[0], f"{prefix}{name}.")
    return page


def _default_text(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, ByteSize):
        return value.human_readable()
    return "null" if value is None else str(value)
