"""Grid files and flags: YAML in, overrides on top, relative paths made absolute."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from raypipe.errors import GridError, InputError
from raypipe.grid import Grid
from raypipe.storage import Place, place

FILES = (
    *("corpus.path", "corpus.labels", "corpus.upos", "words.alignment", "lexicon.path"),
    *("similarity.concept_table", "similarity.am2ico", "patching.table", "patching.frequencies"),
)
ALIASED = 10  # values that a character of a grid may stand for
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")  # toy:, s3://, … are not relative paths


def load_grid(path: str | Place | None, overrides: Sequence[tuple[str, Any]] = ()) -> Grid:
    """Reads a grid from a YAML file (or from nothing), with fields set on top.

    Args:
        path: YAML file; its relative paths are relative to its folder. None starts from an empty grid.
        overrides: (dotted field, value) pairs, applied in order; the field `models` takes what `--model` takes, a list of
            NAME_OR_PATH[@REVISION]. Relative paths are relative to the current directory.

    Raises:
        InputError: The file is missing, not UTF-8 or not YAML.
        GridError: A field is unknown, missing or out of range.
    """
    data: dict[str, Any] = {}
    if path is not None:
        file = place(path)
        data = _read_yaml(file)
        _absolute_paths(data, file.resolve().parent if isinstance(file, Path) else Path.cwd())
    for field, value in overrides:
        if field == "models":
            data["models"] = _models(data.get("models"), value)
        elif isinstance(value, str) and (re.fullmatch(r"models\.\d+\.path", field) or field in FILES):
            _set(data, field, (_if_there if field.startswith("models.") else _absolute)(value, Path.cwd()))
        else:
            _set(data, field, value)
    return Grid(**data)


def plain_value(text: str) -> Any:
    """A flag's value as YAML reads it; language codes such as `no` stay texts."""
    try:
        value = _plain_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text
    octal = type(value) is int and str(value) != text.strip()  # or base 60: YAML takes 010 for 8 and 1:30 for 90
    return text if octal or isinstance(value, bool) or (value is None and text not in ("null", "~")) else value


def setting_of(flag: str) -> tuple[str, Any]:
    """A flag FIELD=VALUE as (dotted field, value); GridError where it is not of that form, or sets all models at once."""
    field, equals, value = flag.partition("=")
    if not equals or not field.isprintable():
        raise GridError(f"--set {' '.join(flag.split())}: expected FIELD=VALUE, such as --set words.max_freq=30")
    if field.strip() == "models":
        raise GridError(
            f"--set {' '.join(flag.split())}: expected --model NAME_OR_PATH, or one field such as --set models.0.path=VALUE"
        )
    return field.strip(), plain_value(value)


def absolute(grid: Grid) -> Grid:
    """The same grid with its relative paths made absolute, from the current directory."""
    data = grid.to_dict()
    _absolute_paths(data, Path.cwd())
    return Grid(**data)


def _models(known: Any, flags: Sequence[str]) -> list[dict[str, Any]]:
    """The models that flags name: by a name of the grid file, or by path; revisions of one model are put together."""
    listed = known if isinstance(known, list) else [known]
    named = {model["name"]: model for model in listed if isinstance(model, dict) and isinstance(model.get("name"), str)}
    chosen: dict[str, dict[str, Any]] = {}
    for flag in flags:
        where, _, revision = (flag, "", "") if flag in named or os.path.exists(flag) else flag.partition("@")
        model = chosen.get(where) or {**named.get(where, {"path": _if_there(where, Path.cwd())}), "flagged": []}
        chosen[where] = {**model, "flagged": [*model["flagged"], *([revision] if revision else [])]}
    models: list[dict[str, Any]] = []
    for model in chosen.values():
        revisions = model.pop("flagged")
        name = model.get("name") or _free_name(
            Path(model["path"].removeprefix("toy:")).name, {m["name"] for m in models}
        )
        models.append({**model, "name": name} | ({"revisions": revisions} if revisions else {}))
    return models


def _free_name(text: str, taken: set[str]) -> str:
    """The text as a short name that is not taken: `bert`, `bert-2`, ..."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip(".-") or "model"
    tries = (name if n == 1 else f"{name}-{n}" for n in count(1))
    return next(option for option in tries if option not in taken)


def _read_yaml(path: Place) -> dict[str, Any]:
    try:
        data = _plain_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such grid file; write one with `raypipe grid FLAGS > {path.name}`") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise InputError(
            f"{path}{where}: not plain YAML: {' '.join(str(getattr(error, 'problem', error)).split())}"
        ) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: not plain YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(
            f"{path}: a grid is a mapping of fields such as models, languages, corpus; found {type(data).__name__}"
        )
    return data


class _Once(yaml.SafeLoader):
    """Plain YAML in which no key of a mapping stands twice, of which YAML itself keeps the last one silently."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):  # what is merged comes later
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def _plain_yaml(text: str) -> Any:
    """YAML as plain values; aliases that make it huge or endless, which no message could show, are a YAMLError."""
    value, sizes = yaml.load(text, _Once), dict[int, float]()  # noqa: S506 (a safe loader)

    def size(part: Any) -> float:
        if id(part) not in sizes and isinstance(part, dict | list):
            sizes[id(part)] = math.inf  # met again within itself
            sizes[id(part)] = 1 + sum(map(size, part.values() if isinstance(part, dict) else part))
        return sizes.get(id(part), 1)

    if size(value) > max(len(text), 1) * ALIASED:
        raise yaml.YAMLError("its aliases stand for far more than is written; write out what they stand for")
    return value


def _absolute_paths(data: dict[str, Any], base: Path) -> None:
    for field in FILES:
        part, name = field.split(".")
        section = data.get(part)
        if isinstance(section, dict) and isinstance(section.get(name), str):
            local = not (field == "corpus.path" and section.get("format") == "datasets")
            section[name] = _absolute(section[name], base) if local else _if_there(section[name], base)
    models = data.get("models")
    for model in models if isinstance(models, list) else [models]:
        if isinstance(model, dict) and isinstance(model.get("path"), str):
            model["path"] = _if_there(model["path"], base)


def _absolute(path: str, base: Path) -> str:
    if "\0" in path:
        raise GridError(f"{path!r}: holds a NUL; expected a path")
    return path if not path or SCHEME.match(path) else str(base / os.path.expanduser(path))


def _if_there(path: str, base: Path) -> str:
    """A path that may also be a Hub id: local when it is there, or when it can only be a path."""
    local = _absolute(path, base)
    looks_local = path.startswith((".", "~", "/")) or path.count("/") > 1
    return local if looks_local or (path and os.path.exists(local)) else path


def _set(data: dict[str, Any], field: str, value: Any) -> None:
    """Sets a dotted field; a number steps into a list."""
    spot: Any = data
    *parents, last = field.split(".")
    for part in parents:
        if isinstance(spot, dict) and spot.get(part) is None:
            spot[part] = {}  # a frozen grid writes an absent section as null
        spot = spot[_index(part, spot, field)] if isinstance(spot, list) else spot[part]
        if not isinstance(spot, dict | list):
            raise GridError(f"{field}: {part} is a plain value and has no fields")
    if isinstance(spot, list):
        spot[_index(last, spot, field)] = value
    else:
        spot[last] = value


def _index(part: str, spot: list[Any], field: str) -> int:
    if not part.isdecimal() or int(part) >= len(spot):
        raise GridError(f"{field}: {part} is not a position in a list of {len(spot)}")
    return int(part)
