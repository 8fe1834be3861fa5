"""Concept tables: what is read, what is refused, what is counted."""

from pathlib import Path

import pytest

from raypipe.errors import InputError
from raypipe.interop.concepttable import NATIVE_NAMES, Concept, read_concepts
from raypipe.interop.lines import read_counts


def table(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "table.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_rows_become_concepts_with_their_forms_in_order_and_incomplete_rows_are_counted(tmp_path: Path) -> None:
    text = "concept,gloss,fr,de,en\r\nc_1,an animal,chat|minou,Katze,cat\r\nc_2,,,Hund,dog\r\nc_3,,rose,Rose,rose\r\n"
    read = read_concepts(table(tmp_path, text), ["en", "fr"])
    assert read.concepts == (
        Concept("c_1", {"en": ("cat",), "fr": ("chat", "minou")}, {"gloss": "an animal"}),
        Concept("c_3", {"en": ("rose",), "fr": ("rose",)}),
    )
    assert read.languages == ("en", "fr")
    assert read.dropped == 1
    assert read.warnings == {"concepts with a form in both languages": {"en-fr": 1}}
    assert read.notes() == [
        "1 concepts dropped: no form in one of the languages",
        "concepts with a form in both languages: en-fr 1",
    ]


def test_the_first_column_is_the_id_where_none_is_called_concept(tmp_path: Path) -> None:
    assert [c.id for c in read_concepts(table(tmp_path, "synset,de\na-n,Tier\nb-n,Tor"), ["de"]).concepts] == [
        "a-n",
        "b-n",
    ]


def test_what_is_odd_is_counted_by_language(tmp_path: Path) -> None:
    text = "concept,en,ru\na,bank|bank,банк\nb,bank,берег\nc,high seas,mope\nd,ship,корабль\n"
    assert read_concepts(table(tmp_path, text), ["en", "ru"]).warnings == {
        "forms listed twice in a cell": {"en": 1},
        "forms of several words": {"en": 1},
        "concepts that share their first form": {"en": 2},
        "forms in an unexpected script": {"ru": 1},
    }


def test_the_fingerprint_follows_ids_forms_their_order_and_the_languages_and_nothing_else(tmp_path: Path) -> None:
    def of(text: str, *languages: str) -> str:
        return read_concepts(table(tmp_path, text), languages).fingerprint

    base = of("concept,en,de\na,cat|puss,Katze\n", "en", "de")
    assert base == of("concept,de,en,fr\na,Katze,cat|puss,chat\n", "en", "de")
    others = [
        of("concept,en,de\na,puss|cat,Katze\n", "en", "de"),
        of("concept,en,de\nb,cat|puss,Katze\n", "en", "de"),
        of("concept,en,de\na,cat|puss,Katze\n", "de", "en"),
        of("concept,en,de\na,cat|puss,Katze\n", "en"),
    ]
    assert len({base, *others}) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table.csv:1: no column for concept, en; expected an id and one per language"),
        ("en\ncat\n", "table.csv:1: no column for concept; expected an id"),
        ("concept,de\na,Katze\n", "table.csv:1: no column for en; expected an id"),
        ("concept,en,en\na,b,c\n", "table.csv:1: column 'en' stands twice in the header"),
        ("concept,en\na,cat\na,dog\n", "table.csv:3: id 'a' stands in line 2 already; expected one row per concept"),
        ("concept,en\n,cat\n", "table.csv:2: no id; expected one row"),
        ("concept,en\na,cat,x\n", "table.csv:2: 3 fields; expected 2 as in the header"),
        ('concept,en\na,"the ""cat"""\n', "table.csv:2: en 'the \"cat\"' has a double quote; expected plain forms"),
        ('concept,en\na,"the\ncat"\n', r"table.csv:3: en 'the\\ncat' has a newline"),
        ("concept,en\na,a\tb\n", "has a tab"),
        ("concept,en\na,cat |puss\n", "table.csv:2: en 'cat ' has a space at its end"),
        ("concept,en\na,cat||puss\n", "table.csv:2: en '' has an empty form"),
        ("concept,en\na,cafe\u0301\n", "has signs that are not NFC; expected plain forms in NFC"),
        (b"concept,en\na,caf\xe9\n", "table.csv:2: byte 0xe9 at column 6; expected UTF-8"),
        ('concept,en\na,"cat"x\n', "table.csv:2: .*; expected comma-separated fields"),
        ("concept,en\na,cat\nb,\n", "table.csv: 1 concepts have a form in en; expected at least 2"),
    ],
)
def test_a_broken_table_is_refused_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_concepts(table(tmp_path, text), ["en"], least=2)


@pytest.mark.shared
def test_the_table_of_core_synsets_loads_as_it_is(shared: Path) -> None:
    languages = ["en", "de", "fr", "es", "it", "fi", "pt", "id"]
    read = read_concepts(shared / "data/words/omw_core.csv", languages)
    assert len(read.concepts) + read.dropped == 3625
    assert read.concepts[0].forms["de"][0] == "Tier"
    assert set(languages) <= set(NATIVE_NAMES)


def test_counts_of_words_are_read_and_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("chat 5\nchien\t12\n", encoding="utf-8")
    assert read_counts(tmp_path / "c.txt") == {"chat": 5, "chien": 12}
    for line, message in (
        ("chat 7", "'chat 7'; expected a word that stands nowhere else, and its count"),
        ("chat noir 7", "'chat noir 7'; expected a word"),
        ("lait many", "count 'many' is not an integer >= 0"),
    ):
        (tmp_path / "c.txt").write_text(f"chat 5\n{line}\n", encoding="utf-8")
        with pytest.raises(InputError, match=f"c.txt:2: {message}"):
            read_counts(tmp_path / "c.txt")
