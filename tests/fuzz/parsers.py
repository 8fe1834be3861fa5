"""Every reader of a user's file: how it is called on arbitrary bytes, and which functions read them.

A parser reads a file, or refuses it by a `RaypipeError` in one line. What it reads and can write is written and read again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CORPUS = Path(__file__).parent / "corpus"
TEXT = [["a", "b"], ["c"], []], [["A"], ["B", "C"], ["D"]]
GRID = """models: [{name: m, path: ./m}]
languages: [en, de]
corpus: {path: 'x/{lang}'}
lexicon: {format: muse, path: 'x/{source}-{target}'}
"""
LINES = "parse_lines numbered_lines decoded"
TEXT_LINES = "text_lines numbered_lines decoded"


class Parser(NamedTuple):
    """A reader under test.

    Attributes:
        read: Reads the file.
        functions: Module to the names of its functions (of methods as `Class.name`) that read, whose branches must be walked.
    """

    read: Callable[[Path], Any]
    functions: dict[str, str]

    def seeds(self) -> list[Path]:
        """The files that a search starts from."""
        return sorted((CORPUS / next(name for name, parser in PARSERS.items() if parser is self)).iterdir())


def _of(module: str) -> Any:
    return importlib.import_module(f"raypipe.{module}")


def grid(path: Path) -> None:
    found = _of("gridfile").load_grid(path)
    path.write_text(found.to_yaml(), encoding="utf-8")
    assert _of("gridfile").load_grid(path) == found


def flags(path: Path) -> None:
    """A flag in each line, of which those without `=` name models; then, after `---`, the grid file below them."""
    given, _, below = path.read_bytes().decode("utf-8", "replace").partition("\n---\n")
    lines = given.split("\n")
    named = [line for line in lines if line and "=" not in line]
    overrides = [("models", named)] if named else []
    path.write_text(below or GRID, encoding="utf-8")
    _of("gridfile").load_grid(path, overrides + [_of("gridfile").setting_of(line) for line in lines if "=" in line])


def dictionary(path: Path) -> None:
    module = _of("interop.dictionaries")
    kind = module.detect_format(path)
    for options in ({"semantics": "official", "max_bad_lines": 1}, {"multiword": "keep", "nbest_order": "file"}, {}):
        found = module.read_dictionary(path, normalise=str.casefold if options else None, **options)
    found.inverted().inverted()
    try:
        module.write_dictionary(path, found, kind)
    except _of("errors").InputError:  # words that hold the separator of a pair file
        return
    assert {w: list(e) for w, e in module.read_dictionary(path).ranked().items()} == found.ranked()


def clusters(path: Path) -> None:
    module = _of("interop.clusterfiles")
    module.read_clusters(path, official=True, max_bad_lines=2)
    found = module.read_clusters(path)
    module.languages_of(found.sentences, {"en": 0, "de": 2})
    module.write_clusters(path, found)
    assert len(module.read_clusters(path).words) == len(found.words)


def sides(path: Path) -> None:
    module = _of("interop.clusterfiles")
    module.languages_of(_of("interop.clusterfiles").np.arange(3), module.read_first_sentences(path))


def pharaoh(path: Path) -> None:
    module = _of("interop.alignments")
    module.read_pharaoh(path, *TEXT, form=("one_based", "possible"), max_bad_lines=1)
    found = module.read_pharaoh(path, *TEXT).links
    for inverted in (False, True):
        walked = list(module.PharaohLinks(path, *TEXT, 3, inverted=inverted))
        assert walked == [[(b, a) if inverted else (a, b) for a, b in pairs] for pairs in found]
    module.write_pharaoh(path, found)
    assert module.read_pharaoh(path, *TEXT).links == [sorted(pairs) for pairs in found]


def mapping(path: Path) -> None:
    module = _of("interop.alignments")
    found = module.read_mapping(path, *TEXT).links
    module.write_mapping(path, found, *TEXT)
    assert module.read_mapping(path, *TEXT).links == found


def tsv(path: Path) -> None:
    text = _of("stages.text").Text("de", "tsv", str(path))
    assert text.measure()[1] == len(list(text))


def marks(path: Path) -> None:
    """Labels and word classes beside a text of three lines."""
    annotated, text = _of("stages.annotated"), _of("stages.text")
    words = path.with_name("words")
    words.write_text("a b\nc\nd e f\n", encoding="utf-8")
    for kind in ("labels", "upos"):
        annotated._check(kind, path, text.Text("de", "text", str(words)))


def concepts(path: Path) -> None:
    module = _of("interop.concepttable")
    module.read_concepts(path, ["en", "ru", "x"], least=0).notes()
    module.read_concepts(path, ["en", "ru"], least=1)


def am2ico(path: Path) -> None:
    for example in _of("interop.am2ico").read_am2ico(path):
        assert all(context.words[context.marked.start : context.marked.stop] for context in example.contexts)


def scores(path: Path) -> None:
    _of("interop.taskscores").read_task_scores(path)


def sheet(path: Path) -> None:
    read = _of("stages.annotation")._labels
    read(path, "label")
    read(path, "label", {"0": "empty", "1": "target"})


def vocab(path: Path) -> None:
    module = _of("interop.arrays")
    found = module.read_vocab(path)
    module.write_vocab(path, found)
    assert module.read_vocab(path).words == found.words


def points(path: Path) -> None:
    _of("interop.arrays").read_points(path, 3)


PARSERS = {
    "grid": Parser(
        grid,
        {
            "gridfile": "_read_yaml _Once.compose_mapping_node _plain_yaml _absolute_paths _absolute _if_there",
            "grid": "_not_yes_no _layer_form Model._names_step Grid.__init__ Grid._limits Grid._layers Grid._cross_checks "
            "Grid._check_parts Grid._check_rule Grid.language_pairs Grid.to_dict _bytes_text",
            "gridcheck": "one_line _fields_at _models_in",
        },
    ),
    "flags": Parser(flags, {"gridfile": "load_grid plain_value setting_of _models _free_name _set _index"}),
    "dictionary": Parser(
        dictionary,
        {
            "interop.dictionaries": "detect_format read_dictionary _merged _arrow _pair Dictionary.inverted",
            "interop.lines": LINES,
        },
    ),
    "clusters": Parser(
        clusters, {"interop.clusterfiles": "split_key read_clusters", "interop.lines": f"{LINES} natural"}
    ),
    "sides": Parser(
        sides, {"interop.clusterfiles": "read_first_sentences languages_of", "interop.lines": "read_bytes"}
    ),
    "pharaoh": Parser(
        pharaoh,
        {
            "interop.alignments": "read_pharaoh PharaohLinks.__iter__ _check_lines _links _link _inside",
            "interop.lines": f"{LINES} natural",
        },
    ),
    "mapping": Parser(
        mapping, {"interop.alignments": "read_mapping _unique _entry _inside _count", "interop.lines": "natural"}
    ),
    "tsv": Parser(tsv, {"stages.text": "_tsv_column", "interop.lines": TEXT_LINES}),
    "marks": Parser(marks, {"stages.annotated": "_check read_marks", "interop.lines": TEXT_LINES}),
    "counts": Parser(
        lambda path: _of("interop.lines").read_counts(path),
        {"interop.lines": "numbered_lines decoded read_counts natural"},
    ),
    "concepts": Parser(
        concepts,
        {
            "interop.concepttable": "read_concepts _columns _check_forms _oddities",
            "interop.lines": f"csv_rows {TEXT_LINES}",
        },
    ),
    "am2ico": Parser(
        am2ico, {"interop.am2ico": "read_am2ico _example _context", "interop.lines": "numbered_lines decoded"}
    ),
    "scores": Parser(scores, {"interop.taskscores": "read_task_scores", "interop.lines": f"csv_rows {TEXT_LINES}"}),
    "sheet": Parser(sheet, {"stages.annotation": "_labels", "interop.lines": f"csv_rows {TEXT_LINES}"}),
    "vocab": Parser(vocab, {"interop.arrays": "_load read_vocab", "interop.clusterfiles": "split_key"}),
    "points": Parser(points, {"interop.arrays": "_load open_points read_points"}),
}


def attempt(name: str, content: bytes, folder: Path) -> str | None:
    """Gives a parser a file; what it refuses it with, or None. Any other exception than `RaypipeError` escapes."""
    path = folder / "input"
    path.write_bytes(content)
    try:
        PARSERS[name].read(path)
    except _of("errors").RaypipeError as error:
        return str(error)
    return None
