"""`raypipe calign` and `raypipe colap`: golden cases, what they print for people, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Done
from test_cli import printed

Command = Callable[..., Done]

SOURCE_A = ["abcde", "fghij", "kl", "mnopq"]
TARGET_A = ["ABCDX", "FGYUV", "KL", "MN"]
KNOWN_A = "abcdfghijklmn"
CALIGN_FIELDS = ["concepts", "eligible", "reachable", "aligned"]
CALIGN_FIELDS += ["calign", "calign_eligible", "calign_reachable", "coverage", "pairs"]
COLAP_FIELDS = ["concepts", "eligible", "overlapping", "overlapping_excl_shared", "colap", "overlapping_concepts"]


def calign_of(found: dict[str, Any]) -> list[Any]:
    return [found[name] for name in CALIGN_FIELDS]


def colap_of(found: dict[str, Any]) -> list[Any]:
    return [found[name] for name in COLAP_FIELDS]


@pytest.fixture
def example_a(tmp_path: Path) -> tuple[Path, Path, Path, Path]:
    """Example A of the specification: source and target clusters, dictionary, its reverse."""
    files = tuple(tmp_path / name for name in ("src.txt", "tgt.txt", "dict.txt", "reverse.txt"))
    for file, concepts in zip(files, (SOURCE_A, TARGET_A), strict=False):
        points = [(word, concept) for concept, words in enumerate(concepts) for word in words]
        file.write_text("".join(f"{word}|||1|||{i}|||0|||{concept}\n" for i, (word, concept) in enumerate(points)))
    files[2].write_text("".join(f"{word} {word.upper()}\n" for word in KNOWN_A))
    files[3].write_text("".join(f"{word.upper()} {word}\n" for word in KNOWN_A))
    return files[0], files[1], files[2], files[3]


def test_calign_of_example_a(example_a: tuple[Path, ...], command: Command) -> None:
    source, target, dictionary, reverse = example_a
    found = printed(command("calign", source, target, dictionary, "--json"))
    # Concept 0: 4 of 5 types; 1: at best 2 of 5; 2: two types only; 3: 2 of 5 covered. Covered: 13 of 17.
    assert calign_of(found) == [4, 3, 2, 1, 1 / 4, 1 / 3, 1 / 2, 13 / 17, [[0, 0]]]
    back = printed(command("calign", target, source, reverse, "--json"))
    assert calign_of(back) == [4, 2, 1, 1, 1 / 4, 1 / 2, 1.0, 10 / 14, [[0, 0]]]


@pytest.mark.parametrize(
    ("theta", "types", "pairs"), [("0.8", 4, []), ("0.7", 4, [[0, 0]]), ("0.7", 1, [[0, 0], [2, 2]])]
)
def test_calign_of_example_a_as_the_released_code(
    theta: str, types: int, pairs: list[list[int]], example_a: tuple[Path, ...], command: Command
) -> None:
    flags = ["--official", "--theta", theta, "--translations", 5, "--min-types", types, "--size-ratio", "0.6"]
    found = printed(command("calign", *example_a[:3], *flags, "--json"))
    assert (found["aligned"], found["pairs"], found["concepts"]) == (len(pairs), pairs, 4)


def test_calign_where_a_denominator_is_zero(example_a: tuple[Path, ...], tmp_path: Path, command: Command) -> None:
    source, target, dictionary, _ = example_a
    found = printed(command("calign", source, target, dictionary, "--min-types", "6", "--json"))
    assert calign_of(found) == [4, 0, 0, 0, 0.0, None, None, 13 / 17, []]
    text = command("calign", source, target, dictionary, "--min-types", "6").out
    assert text.splitlines()[3:7] == ["aligned: 0", "calign: 0.0", "calign_eligible: null", "calign_reachable: null"]
    (tmp_path / "empty.txt").write_text("\n")  # the official writer's empty concept
    found = printed(command("calign", tmp_path / "empty.txt", target, dictionary, "--json"))
    assert calign_of(found) == [0, 0, 0, 0, None, None, None, None, []]


def test_calign_mistakes(example_a: tuple[Path, ...], tmp_path: Path, command: Command) -> None:
    source, target, dictionary, _ = example_a
    done = command("calign", source, target, dictionary, "--official", "--theta", "0.8", "--translations", "5")
    assert done.code == 1
    assert done.error == "--official: give --min-types, --size-ratio; these semantics have no defaults"
    assert "theta 80: expected a fraction above 0" in command("calign", *example_a[:3], "--theta", "80").error
    (tmp_path / "bad.txt").write_text("dog|||0|||3|||1\n")
    done = command("calign", tmp_path / "bad.txt", target, dictionary)
    assert done.error == f"{tmp_path}/bad.txt:1: 4 fields; expected word, occurrence, sentence, token, cluster"
    assert command("calign", tmp_path / "none.txt", target, dictionary).error == (
        f"{tmp_path}/none.txt: cannot be read (No such file or directory); expected a file"
    )


def joint(path: Path, concepts: list[list[tuple[str, int]]]) -> Path:
    """A cluster file of (word, sentence) points, one list per concept."""
    points = [(word, sentence, concept) for concept, mine in enumerate(concepts) for word, sentence in mine]
    path.write_text("".join(f"{word}|||1|||{s}|||{i}|||{concept}\n" for i, (word, s, concept) in enumerate(points)))
    return path


@pytest.mark.parametrize(
    ("flags", "overlapping"),
    [
        (["--theta", "0.3"], []),
        ([], []),
        (["--theta", "0.25"], [0]),
        (["--theta", "25", "--official"], []),
        (["--theta", "0.3", "--official"], [0]),  # 0.3 %
    ],
)
def test_colap_of_example_c(flags: list[str], overlapping: list[int], tmp_path: Path, command: Command) -> None:
    """Three English points and one German: shares 0.75 and 0.25."""
    file = joint(tmp_path / "c.txt", [[("a", 0), ("b", 1), ("c", 2), ("D", 3)]])
    found = printed(command("colap", file, "--boundary", 2, *flags, "--json"))
    assert colap_of(found) == [1, 1, len(overlapping), len(overlapping), float(len(overlapping)), overlapping]


def test_colap_without_shared_strings(tmp_path: Path, command: Command) -> None:
    """4/7 and 3/7 with `2024`, 1/0 without it."""
    english = [("2024", 0), ("2024", 1), ("2024", 2), ("year", 2)]
    file = joint(tmp_path / "c.txt", [[*english, ("2024", 3), ("2024", 4), ("2024", 5)]])
    found = printed(command("colap", file, "--boundary", 2, "--json"))
    assert colap_of(found) == [1, 1, 1, 0, 1.0, [0]]
    text = command("colap", file, "--boundary", 2).out
    assert text.splitlines() == [
        *("concepts: 1", "eligible: 1", "overlapping: 1", "overlapping_excl_shared: 0", "colap: 1.0"),
        *("overlapping_concepts: 1", "colap_eligible: 1.0", "eligible_3: 1", "overlapping_3: 1"),
        *("eligible_5: 0", "overlapping_5: 0", "reason: ", "points: 1 4, 2 3", "shares: 2", "files: 1"),
        "settings: semantics default, theta 0.3, min_types 1, rule all, count tokens, balance none, normalise none",
    ]


@pytest.mark.parametrize(
    ("flags", "boundary", "overlapping"),
    [
        (["--theta", "0.3"], 2, [0]),
        (["--theta", "0.25"], 2, [0, 1]),
        (["--theta", "30", "--official"], 2, [0]),
        (["--theta", "25", "--official"], 2, [0]),
        (["--theta", "24.9", "--official"], 2, [0, 1]),
        (["--theta", "0.3", "--official"], 2, [0, 1]),
        (["--theta", "30", "--official"], 3, []),
        (["--theta", "25", "--official"], 3, []),
    ],
)
def test_colap_of_golden_test_g5(
    flags: list[str], boundary: int, overlapping: list[int], tmp_path: Path, command: Command
) -> None:
    sentences = [[0, 1, 3, 4], [0, 1, 2, 5], [0, 1]]
    file = joint(tmp_path / "g5.txt", [[(f"w{c}-{s}", s) for s in mine] for c, mine in enumerate(sentences)])
    found = printed(command("colap", file, "--boundary", boundary, *flags, "--json"))
    n = len(overlapping)
    assert colap_of(found) == [3, 3, n, n, n / 3, overlapping]


def test_colap_mistakes(tmp_path: Path, command: Command) -> None:
    file = joint(tmp_path / "c.txt", [[("a", 0), ("b", 1), ("C", 7)]])
    assert command("colap", file, "--boundary", 1, "--official").error == (
        "--official: give --theta; these semantics have no defaults"
    )
    done = command("colap", file, "--boundary", 1, "--theta", "30")
    assert (done.code, done.error) == (1, "theta 30: fraction expected, did you mean 0.3?")
    done = command("colap", file, "--boundary", 1, "--theta", "30", "--official", "--min-types", 2)
    assert done.error == "--official: has no --min-types; leave it out"
    for boundary, language in ((7, "2"), (-1, "1")):
        done = command("colap", file, "--boundary", boundary)
        assert done.code == 1
        assert done.error == (
            f"--boundary {boundary}: no point of language {language}; {file} holds sentences up to 7, "
            "give the last one of language 1"
        )
    (tmp_path / "empty").touch()
    assert command("colap", tmp_path / "empty", "--boundary", 0).error == (
        f"{tmp_path}/empty: holds no point; expected at least one of each language"
    )
    assert command("colap", file).error == (
        f"{file}: no c.txt.json beside it; give --boundary, the last sentence of language 1"
    )


def test_calign_lists_every_source_concept(example_a: tuple[Path, ...], command: Command) -> None:
    found = printed(command("calign", *example_a[:3], "--json"))
    listed = [list(concept.values()) for concept in found["source_concepts"]]
    # Concept 1: m = 2 in target 1 (F G), q = 5/5. Concept 3: m = 2 in target 3 (M N), q = 2/5.
    assert [row[:6] for row in listed] == [
        *([0, 5, 4, 0, 4 / 5, 1.0], [1, 5, 5, 1, 2 / 5, 1.0], [2, 2, 2, 2, 1.0, 1.0], [3, 5, 2, 3, 2 / 5, 2 / 5])
    ]
    ((target,), *others) = [row[6] for row in listed]
    assert others == [[], [], []]
    assert target["word_pairs"] == [["a", "A"], ["b", "B"], ["c", "C"], ["d", "D"]]
    official = ["--official", "--theta", "0.9", "--translations", 1, "--min-types", 1, "--size-ratio", 0]
    found = printed(command("calign", *example_a[:3], *official, "--json"))
    assert [concept["size_ratio"] for concept in found["source_concepts"]] == [1.0, 1.0, 1.0, 5 / 2]  # source / target
    assert found["settings"] == {
        "semantics": "official",
        "theta": "0.9",
        "translations": 1,
        "min_types": 1,
        "size_ratio": "0",
    }


def test_calign_of_both_directions(example_a: tuple[Path, ...], command: Command) -> None:
    source, target, dictionary, reverse = example_a
    found = printed(command("calign", source, target, dictionary, "--reverse", reverse, "--json"))
    assert calign_of(found["reverse"]) == [4, 2, 1, 1, 1 / 4, 1 / 2, 1.0, 10 / 14, [[0, 0]]]
    assert found["mutual"] == 1


def test_calign_says_what_it_left_out(example_a: tuple[Path, ...], tmp_path: Path, command: Command) -> None:
    source, target, _, _ = example_a
    words = tmp_path / "words.txt"
    words.write_text("a A\na A\nbroken\n")
    done = command("calign", source, target, words, "--max-bad-lines", 1, "--json")
    found = json.loads(done.out)
    assert (found["dropped_duplicates"], found["dropped_multiword"]) == (1, 0)
    assert found["bad_lines"] == [f"{words}:3: 1 fields; expected source and target"]
    assert done.err == f"skipped: {found['bad_lines'][0]}\n"
    assert command("calign", source, target, words).error == found["bad_lines"][0]
    words.write_text("z Z\n")
    found = printed(command("calign", source, target, words, "--json"))
    assert (found["calign"], found["coverage"], found["reason"]) == (0.0, 0.0, "no_coverage")
    words.write_text("A a\n")  # upper-case source words and lower-case target words meet when lower-cased
    found = printed(command("calign", source, target, words, "--normalise", "lower", "--json"))
    assert found["coverage"] == 1 / 17
    assert found["settings"]["normalise"] == "lower"


def test_the_official_semantics_have_none_of_the_other_choices(example_a: tuple[Path, ...], command: Command) -> None:
    official = ["--official", "--theta", "0.8", "--translations", 1, "--min-types", 1, "--size-ratio", 0]
    done = command("calign", *example_a[:3], *official, "--denominator", "covered", "--normalise", "nfc")
    assert (done.code, done.error) == (1, "--official: has no --denominator, --normalise; leave it out")


def test_colap_of_several_languages_by_the_side_file(tmp_path: Path, command: Command) -> None:
    """Concept 0: two points of each of three languages; concept 1: of two of them."""
    file = joint(tmp_path / "j.txt", [[(f"w{s}", s) for s in range(6)], [("a", 0), ("b", 1), ("c", 2), ("d", 3)]])
    (tmp_path / "j.txt.json").write_text('{"first_sentence": {"fr": 4, "de": 2, "en": 0}, "lines": 6}')
    found = printed(command("colap", file, "--json"))
    assert colap_of(found) == [2, 2, 1, 1, 1 / 2, [0]]
    assert found["points"] == {"de": 4, "en": 4, "fr": 2}
    assert [row["share"] for row in found["shares"]] == [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 0.0]
    assert colap_of(printed(command("colap", file, "--rule", "at_least:2", "--json")))[-1] == [0, 1]
    assert command("colap", file, "--official", "--theta", 30).error == "3 languages: the official mode takes exactly 2"


def test_colap_warns_of_a_fraction_taken_for_a_percentage(tmp_path: Path, command: Command) -> None:
    file = joint(tmp_path / "c.txt", [[("a", 0), ("b", 1)]])
    found = printed(command("colap", file, "--boundary", 0, "--official", "--theta", "0.3", "--json"))
    assert found["reason"] == "PERCENT_SCALE: theta 0.3 is a percentage here; 30 means a share of 0.3"


def test_a_boundary_that_is_the_first_sentence_of_the_second_language_is_told(tmp_path: Path, command: Command) -> None:
    file = tmp_path / "c.txt"
    file.write_text("".join(f"w{s}|||1|||{s}|||0|||0\n" for s in range(6)), encoding="utf-8")
    Path(f"{file}.json").write_text('{"first_sentence": {"de": 3, "en": 0}, "lines": 6}')
    for boundary, said in ((2, ""), (3, "OFF_BY_ONE: sentence 3 is the first of language 2; give --boundary 2")):
        assert printed(command("colap", file, "--boundary", boundary, "--json"))["reason"] == said
    flags = ("--boundary", 3, "--official", "--theta", "0.3", "--json")
    reason = printed(command("colap", file, *flags))["reason"]
    assert reason.startswith("PERCENT_SCALE: ")
    assert "; OFF_BY_ONE: " in reason
