"""Foreign formats: golden readings, the message of every malformed line, round trips, and arbitrary input."""

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypipe.errors import GridError, InputError
from raypipe.interop import alignments, arrays, clusterfiles, dictionaries
from raypipe.interop.clusterfiles import ClusterFile
from raypipe.interop.dictionaries import Dictionary, Entry, read_dictionary, write_dictionary
from raypipe.science.occurrences import dictionary_from_links, normalise


@pytest.fixture
def file(tmp_path):
    """Write text or bytes, give the path."""

    def write(content, name="input.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path, message, read, *arguments, **options):
    with pytest.raises(InputError, match="^" + re.escape(f"{path}{message}") + "$"):
        read(path, *arguments, **options)


# --- dictionaries ---


def arrow(*entries):
    return "".join(f"{s} -> {t}: Probability = {p}, Count = {c}\n" for s, t, p, c in entries)


def test_golden_order(file):
    # G3: best by probability is A, first in the file is Z.
    path = file(arrow(("a", "Z", 0.1, 1), ("a", "A", 0.7, 7), ("a", "B", 0.2, 2)))
    assert read_dictionary(path).ranked() == {"a": ["A", "B", "Z"]}
    assert read_dictionary(path, nbest_order="file").ranked() == {"a": ["Z", "A", "B"]}
    assert read_dictionary(path, semantics="official").ranked() == {"a": ["Z", "A", "B"]}
    # G3b: Y and W tie at .5 and 5 links: file order.
    path = file(arrow(("a", "X", 0.5, 3), ("a", "Y", 0.5, 5), ("a", "W", 0.5, 5)))
    assert read_dictionary(path).ranked() == {"a": ["Y", "W", "X"]}
    assert read_dictionary(path, semantics="official").ranked() == {"a": ["X", "Y", "W"]}
    # G3c: one multi-word entry and one duplicate.
    path = file(arrow(("a", "to go", 0.6, 6), ("a", "go", 0.3, 3), ("a", "go", 0.1, 1)))
    found = read_dictionary(path)
    assert found == Dictionary({"a": (Entry("go", 0.3, 3),)}, dropped_multiword=1, dropped_duplicates=1)
    assert read_dictionary(path, semantics="official").ranked() == {"a": ["to go", "go", "go"]}
    assert read_dictionary(path, multiword="keep").ranked() == {"a": ["to go", "go"]}


def test_arrow_reads_from_the_right(file):
    line = "-> -> ->: Probability = 0.9, Count = 3\n"
    assert read_dictionary(file(line)).entries == {"->": (Entry("->", 0.9, 3),)}
    line = "a: Probability = 1, Count = 2 -> :: Probability = 1e-05, Count = 0\n"
    source = "a: Probability = 1, Count = 2"
    assert read_dictionary(file(line), multiword="keep").entries == {source: (Entry(":", 1e-05, 0),)}


def test_pairs_and_detection(file):
    path = file("a A\nb\tB\na  C\na A\n")
    assert dictionaries.detect_format(path) == "muse"
    found = read_dictionary(path)
    assert found.entries == {"a": (Entry("A"), Entry("C")), "b": (Entry("B"),)}
    assert found.dropped_duplicates == 1
    assert read_dictionary(path, semantics="official").ranked() == {"a": ["A", "C", "A"], "b": ["B"]}
    assert dictionaries.detect_format(file("wrong line\n" + arrow(("a", "A", 1, 1)))) == "arrow"
    assert dictionaries.detect_format(file("a A\n" * 200)) == "muse"
    assert read_dictionary(file("\ufeffa A\u3000B\r\nc C\r\n")).entries == {"c": (Entry("C"),)}  # a BOM, CR, whitespace


def test_a_first_word_that_begins_with_the_character_of_the_mark_comes_back(file, tmp_path):
    found = read_dictionary(file("\ufeff\ufeffa A\n"))
    assert list(found.entries) == ["\ufeffa"]
    write_dictionary(tmp_path / "again.txt", found, "muse")
    assert read_dictionary(tmp_path / "again.txt").entries == found.entries


def test_normalised_entries_are_merged(file):
    path = file(arrow(("Haus", "House", 0.2, 1), ("haus", "house", 0.9, 9), ("haus", "home", 0.5, 5)))
    found = read_dictionary(path, normalise=lambda word: normalise(word, "lower"))
    assert found.ranked() == {"haus": ["house", "home"]}
    assert found.dropped_duplicates == 1


def test_inverted(file):
    path = file(arrow(("a", "X", 0.9, 1), ("b", "X", 0.1, 3), ("b", "Y", 0.9, 27)))
    # X: a 1 of 4 links, b 3 of 4.
    assert read_dictionary(path).inverted().entries == {
        "X": (Entry("b", 0.75, 3), Entry("a", 0.25, 1)),
        "Y": (Entry("b", 1.0, 27),),
    }
    # Without counts: b ranks X first, a ranks it second.
    assert read_dictionary(file("a Y\na X\nb X\n")).inverted().ranked() == {"Y": ["a"], "X": ["b", "a"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Haus house 0.9", "no ' -> ' and no ': Probability = P, Count = C'"),
        ("", "no ' -> ' and no ': Probability = P, Count = C'"),
        ("a -> b", "no ': Probability = P, Count = C'"),
        ("a b: Probability = 0.5, Count = 1", "no ' -> '"),
        ("a -> b: Probability = 1.2, Count = 3", "probability 1.2 outside 0..1"),
        ("a -> b: Probability = -0.1, Count = 3", "probability -0.1 outside 0..1"),
        ("a -> b: Probability = nan, Count = 3", "probability 'nan' is not a number"),
        ("a -> b: Probability = 0.5, Count = 3.5", "count '3.5' is not an integer >= 0"),
        (
            "a -> b: Probability = 0.5, Count = 99999999999999999999",
            "count 99999999999999999999 is too large; expected at most 9223372036854775807",
        ),
        (
            "a -> b -> c: Probability = 0.5, Count = 1",
            "' -> ' occurs 2 times; cannot tell the two sides apart",
        ),
        ("a -> -> b: Probability = 0.5, Count = 1", "' -> ' occurs 2 times; cannot tell the two sides apart"),
        (" -> b: Probability = 0.5, Count = 1", "empty source word"),
        ("a -> : Probability = 0.5, Count = 1", "empty target word"),
    ],
)
def test_malformed_arrow_lines(file, line, message):
    path = file(f"x -> y: Probability = 1, Count = 1\n{line}\n")
    refused(path, f":2: {message}", read_dictionary)


def test_malformed_pairs_and_empty_dictionaries(file):
    refused(file("a A\nto go gehen\n"), ":2: 3 fields; expected source and target", read_dictionary)
    refused(file("a A\n\n"), ":2: 0 fields; expected source and target", read_dictionary)
    nothing = ": no usable entry (0 multi-word); expected at least one translation"
    refused(file(""), nothing, read_dictionary)
    path = file(arrow(("a", "to go", 1, 1)))
    refused(path, ": no usable entry (1 multi-word); expected at least one translation", read_dictionary)
    refused(file(b"a A\nb \xff\n"), ":2: byte 0xff at column 3; expected UTF-8", read_dictionary)
    refused(path.parent, ": cannot be read (Is a directory); expected a file", read_dictionary)
    missing = path.parent / "missing"
    refused(missing, ": cannot be read (No such file or directory); expected a file", dictionaries.detect_format)


def test_bad_lines_are_skipped_up_to_a_limit(file):
    path = file("a A\nto go gehen\nb B\n\nc C\n")
    found = read_dictionary(path, max_bad_lines=2)
    assert found.ranked() == {"a": ["A"], "b": ["B"], "c": ["C"]}
    assert found.bad_lines == (
        f"{path}:2: 3 fields; expected source and target",
        f"{path}:4: 0 fields; expected source and target",
    )
    message = ":4: 0 fields; expected source and target (1 bad lines skipped before)"
    refused(path, message, read_dictionary, max_bad_lines=1)


@pytest.mark.parametrize("name", ["format", "nbest_order", "multiword", "semantics"])
def test_dictionary_arguments(file, name):
    with pytest.raises(GridError, match=f"{name} 'x': expected "):
        read_dictionary(file("a A\n"), **{name: "x"})


def test_dictionary_writers(file, tmp_path):
    path = tmp_path / "out"
    text = arrow(("b", "Y", "0.75", 3), ("b", "X", "0.25", 1), ("a", "Z", "0.333333", 1))
    write_dictionary(path, read_dictionary(file(text)), "arrow")
    assert path.read_text() == text
    write_dictionary(path, read_dictionary(file(text)), "muse")
    assert path.read_text() == "b Y\nb X\na Z\n"
    with pytest.raises(GridError, match="format 'csv': expected arrow or muse"):
        write_dictionary(path, Dictionary({}), "csv")
    pairs = read_dictionary(file("a A\n"))
    refused(path, ": 'a' -> 'A' has no probability or count; write it as muse", write_dictionary, pairs, "arrow")
    spaced = Dictionary({"a": (Entry("to go", 1.0, 1),)})
    refused(path, ": 'a' -> 'to go' holds whitespace; expected single words", write_dictionary, spaced, "muse")
    write_dictionary(path, spaced, "arrow")
    assert read_dictionary(path, multiword="keep") == spaced
    for word in ("to -> go", "to\ngo"):
        spaced = Dictionary({"a": (Entry(word, 1.0, 1),)})
        refused(path, f": 'a' -> {word!r} holds whitespace; expected single words", write_dictionary, spaced, "arrow")


def test_dictionary_from_links_is_written_and_read(tmp_path):
    # G12, through a file.
    found = dictionary_from_links([["a"]] * 4, [["A"], ["A"], ["B"], ["A"]], [[(0, 0)]] * 4, [True] * 4)
    dictionary = Dictionary({word: tuple(Entry(*entry) for entry in entries) for word, entries in found.items()})
    write_dictionary(tmp_path / "out", dictionary, "arrow")
    assert (tmp_path / "out").read_text() == arrow(("a", "A", "0.75", 3), ("a", "B", "0.25", 1))
    assert read_dictionary(tmp_path / "out") == dictionary


# --- cluster files ---


def same_points(one, two):
    names = ("occurrences", "sentences", "tokens", "concepts")
    assert one.words == two.words
    assert all(getattr(one, name).tolist() == getattr(two, name).tolist() for name in names)


def test_cluster_lines_are_split_from_the_right(file):
    lines = ("x|||y|||0|||1|||2|||3", "a||||1|||0|||4|||3", "", "b\u2028\u0085\x0b|||1|||0|||5|||0\r")
    found = clusterfiles.read_clusters(file("\ufeff" + "\n".join(lines)))
    assert found.words == ["x|||y", "a|", "b\u2028\u0085\x0b"]
    assert found.occurrences.tolist() == [0, 1, 1]
    assert (found.sentences.tolist(), found.tokens.tolist()) == ([1, 0, 0], [2, 4, 5])
    assert (found.concepts.tolist(), found.concepts.dtype) == ([3, 3, 0], np.int32)
    assert found.blank_lines == 1


def test_repeated_points(file):
    text = "a|||0|||3|||1|||7\na|||1|||3|||1|||7\nb|||0|||3|||2|||7\n"
    found = clusterfiles.read_clusters(file(text))
    assert (found.words, found.merged) == (["a", "b"], 1)
    kept = clusterfiles.read_clusters(file(text), official=True)
    assert (kept.words, kept.merged) == (["a", "a", "b"], 0)
    message = ":4: sentence 3, token 2 again, in cluster 6; expected 7 as before"
    refused(file(text + "b|||0|||3|||2|||6\n"), message, clusterfiles.read_clusters)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dog|||0|||3|||1", "4 fields; expected word, occurrence, sentence, token, cluster"),
        ("dog|||0|||x|||1|||7", "sentence 'x' is not an integer >= 0"),
        ("dog|||0|||3|||-1|||7", "token '-1' is not an integer >= 0"),
        ("dog|||0|||3|||1|||\u0663", "cluster '\u0663' is not an integer >= 0"),
        ("dog|||0|||3|||1|||2147483648", "cluster 2147483648 is too large; expected at most 2147483647"),
        ("|||0|||3|||1|||7", "empty word"),
    ],
)
def test_malformed_cluster_lines(file, line, message):
    path = file(f"a|||0|||0|||0|||0\n{line}\n")
    refused(path, f":2: {message}", clusterfiles.read_clusters)
    assert clusterfiles.read_clusters(path, max_bad_lines=1).bad_lines == (f"{path}:2: {message}",)


def cluster_file(rows):
    columns = np.array([row[1:] for row in rows], np.int32).reshape(-1, 4).T
    return ClusterFile([row[0] for row in rows], *columns)


def test_cluster_writer(tmp_path):
    path = tmp_path / "out"
    clusterfiles.write_clusters(path, cluster_file([("b", 0, 0, 0, 2), ("a", 0, 1, 0, 0), ("c", 0, 2, 0, 2)]))
    assert path.read_text() == "a|||0|||1|||0|||0\nb|||0|||0|||0|||2\nc|||0|||2|||0|||2\n"
    for word in ("to go", ""):
        message = f": word {word!r} is empty or holds whitespace; expected a single word"
        refused(path, message, clusterfiles.write_clusters, cluster_file([(word, 0, 0, 0, 0)]))
    assert clusterfiles.occurrence_numbers(["a", "a", "c"]).tolist() == [0, 1, 0]  # G7's source
    assert clusterfiles.occurrence_numbers(["a", "b", "a"], first=1).tolist() == [1, 1, 2]


def test_joint_files(tmp_path):
    path = tmp_path / "joint"
    parts = {"en": cluster_file([("a", 1, 2, 0, 1)]), "de": cluster_file([("A", 1, 0, 3, 0), ("B", 1, 2, 0, 1)])}
    clusterfiles.write_joint(path, parts, {"en": 1000, "de": 1000})
    assert path.read_text() == "A|||1|||1000|||3|||0\na|||1|||2|||0|||1\nB|||1|||1002|||0|||1\n"
    side = tmp_path / "joint.json"
    assert json.loads(side.read_text()) == {"first_sentence": {"en": 0, "de": 1000}, "lines": 2000}
    first = clusterfiles.read_first_sentences(side)
    assert first == {"en": 0, "de": 1000}
    read = clusterfiles.read_clusters(path)
    assert clusterfiles.languages_of(read.sentences, first) == ["de", "en", "de"]
    assert clusterfiles.languages_of(np.array([2, 3], np.int32), {"1": 0, "2": 3}) == ["1", "2"]
    refused(path, ": sentence 2 of en; it has 2 lines", clusterfiles.write_joint, parts, {"en": 2, "de": 9})
    with pytest.raises(InputError, match=r"sentence 2 lies before every language; expected \{'en': 5\}"):
        clusterfiles.languages_of(np.array([7, 2], np.int32), {"en": 5})
    with pytest.raises(InputError, match=r"first sentences \{'en': 0, 'de': 0\}: expected a different one"):
        clusterfiles.languages_of(read.sentences, {"en": 0, "de": 0})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"first_sentence": 1}', '{"first_sentence": {"en": "0"}}'])
def test_malformed_side_files(file, text):
    message = ': not a side file; expected {"first_sentence": {LANGUAGE: NUMBER}, "lines": N}'
    refused(file(text), message, clusterfiles.read_first_sentences)


# --- alignments ---

TEXT = [["a", "b"], []], [["A", "B", "C"], ["X"]]


def test_golden_mapping(file, tmp_path):
    # G11: text "a b" / "A B C", alignment 0-0 1-2.
    found = alignments.read_pharaoh(file("0-0 1-2\n\n"), *TEXT)
    assert found.links == [[(0, 0), (1, 2)], []]
    path = tmp_path / "mapping.json"
    alignments.write_mapping(path, found.links, *TEXT)
    assert path.read_text() == '{"0": [["a", "A", [0], [0]], ["b", "C", [1], [2]]]}\n'
    assert alignments.read_mapping(path, *TEXT) == found
    alignments.write_pharaoh(path, [[(1, 2), (0, 1), (0, 0)], []])
    assert path.read_text() == "0-0 0-1 1-2\n\n"
    alignments.write_mapping(path, [[(0, 0)]], [["\u00e4"]], [["\u4e2d"]])
    assert "\u00e4" in path.read_text()  # not escaped
    refused(
        tmp_path / "none",
        ": cannot be read (No such file or directory); expected a file",
        alignments.read_mapping,
        *TEXT,
    )
    with pytest.raises(InputError, match=r"mapping.json: 1 source but 2 target sentences; expected as many"):
        alignments.write_mapping(path, [[]], [["a"]], TEXT[1])


def test_mapping_of_several_words(file):
    path = file('{"0": [["b a", "B", [1, 0], [1]], ["b", "B", [1], [1]]]}')
    assert alignments.read_mapping(path, *TEXT).links == [[(1, 1), (0, 1)], []]


def test_pharaoh_variants(file):
    read = alignments.read_pharaoh
    assert read(file("1-1 2-3\r\n\n"), *TEXT, form=["one_based"]).links == [[(0, 0), (1, 2)], []]
    assert read(file(" 1-1\t0-0  1-1 \n\n"), *TEXT).links == [[(1, 1), (0, 0)], []]  # a repeated link counts once
    assert read(file("0p0 1?2\n\n"), *TEXT, form=["possible"]).links == [[(0, 0), (1, 2)], []]
    path = file(b"\xff\n\n")
    found = read(path, *TEXT, max_bad_lines=1)
    assert (found.links, len(found.bad_lines)) == ([[], []], 1)


def test_links_are_read_anew_on_each_walk(file):
    path = file("\ufeff1-1 0-2 1-1\r\n\n")
    links = alignments.PharaohLinks(path, *TEXT, 2)
    assert len(links) == 2
    assert list(links) == list(links) == alignments.read_pharaoh(path, *TEXT).links == [[(1, 1), (0, 2)], []]
    assert list(alignments.PharaohLinks(path, *TEXT, 2, inverted=True)) == [[(1, 1), (2, 0)], []]
    refused(file("0-0\n"), ": 1 lines; expected 2, one per sentence pair", alignments.PharaohLinks, *TEXT, 2)
    walked = lambda path: list(alignments.PharaohLinks(path, *TEXT, 2))  # noqa: E731
    refused(file("0-0\n0-0\n"), ":2: source index 0 in an empty sentence", walked)
    refused(file(b"0-0\n\xff\n"), ":2: byte 0xff at column 1; expected UTF-8", walked)
    refused(file("\ufeff"), ": 0 lines; expected 2, one per sentence pair", walked)


@pytest.mark.parametrize(
    ("line", "message", "options"),
    [
        ("0-0 5-1", "source index 5 outside 0..1", {}),
        ("0-3", "target index 3 outside 0..2", {}),
        ("0-0", "source index 0 outside 1..2", {"form": ["one_based"]}),
        ("0-x", "target index 'x' is not an integer >= 0", {}),
        ("00", "link '00'; expected SOURCE-TARGET, such as 0-0", {}),
        ("0p0", "possible link '0p0'; expected sure links only, or possible ones to be allowed", {}),
    ],
)
def test_malformed_links(file, line, message, options):
    path = file(f"{line}\n\n")
    refused(path, f":1: {message}", alignments.read_pharaoh, *TEXT, **options)


def test_wrong_alignment_files(file):
    refused(file("0-0\n"), ": 1 lines; expected 2, one per sentence pair", alignments.read_pharaoh, *TEXT)
    refused(file("\n0-0\n"), ":2: source index 0 in an empty sentence", alignments.read_pharaoh, *TEXT)
    message = ": 1 source but 2 target sentences; expected as many"
    refused(file("\n"), message, alignments.read_pharaoh, [["a"]], TEXT[1])
    source = [["a", "b", "c", "d"]]  # the specification's own example
    refused(file("0-0 5-1\n"), ":1: source index 5 outside 0..3", alignments.read_pharaoh, source, [["A", "B"]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0": [["a b", "A", [0], [0]]]}, ":0[0]: 2 source words but 1 index"),
        ({"0": [["a", "A", [0], [0, 1]]]}, ":0[0]: 1 target word but 2 indices"),
        ({"0": [["a", "A", [0], [0]], ["a", "A", [9], [0]]]}, ":0[1]: source index 9 outside 0..1"),
        ({"0": [["a", "A", [-1], [0]]]}, ":0[0]: source index -1 outside 0..1"),
        ({"0": [["a", "A", [True], [0]]]}, ":0[0]: source index True is not an integer >= 0"),
        ({"0": [["b", "A", [0], [0]]]}, ":0[0]: source word 'b' at index 0; the text has 'a'"),
        ({"0": ["a"]}, ":0[0]: not [source words, target words, [source indices], [target indices]]"),
        ({"0": {}}, ":0: a dict; expected a list of links"),
        ({"x": []}, ":x: sentence 'x' is not an integer >= 0"),
        ({"2": []}, ":2: sentence index 2 outside 0..1"),
        ([], ": a list; expected an object of sentence numbers"),
        ({"0": [], "00": []}, ":00: another form of sentence 0; expected '0', so that each is there once"),
    ],
)
def test_malformed_mappings(file, content, message):
    refused(file(json.dumps(content)), message, alignments.read_mapping, *TEXT)


def test_mappings_that_are_not_json(file):
    refused(
        file('{"0": [], "0": []}'), ": a key occurs twice; expected each sentence once", alignments.read_mapping, *TEXT
    )
    for content in ("{", b"\xff", "[" * 100_000):
        with pytest.raises(InputError, match=r"not JSON .*; expected a mapping of sentences to links"):
            alignments.read_mapping(file(content), *TEXT)


# --- arrays ---


def test_arrays_round_trip(tmp_path):
    vocab = arrays.Vocab(["x|||y", "\u4e2d"], *(np.array(v, np.int32) for v in ([0, 1], [2, 3], [4, 5])))
    arrays.write_vocab(tmp_path / "vocab.npy", vocab)
    assert np.load(tmp_path / "vocab.npy").tolist() == ["x|||y|||0|||2|||4", "\u4e2d|||1|||3|||5"]
    read = arrays.read_vocab(tmp_path / "vocab.npy")
    assert read.words == vocab.words
    assert [column.tolist() for column in read[1:]] == [[0, 1], [2, 3], [4, 5]]
    path, values = tmp_path / "points.npy", np.array([[0.5, 1.25], [2.0, -3.0]])
    for double, dtype in ((False, np.float32), (True, np.float64)):
        arrays.write_points(path, [values[:1], values[1:]], 2, double=double)
        found = arrays.read_points(path, 2)
        assert (found.dtype, found.tolist()) == (dtype, values.tolist())
    message = ": word 'to go' is empty or holds whitespace; expected a single word"
    refused(path, message, arrays.write_vocab, vocab._replace(words=["to go", "a"]))


def test_wrong_arrays(tmp_path):
    path = tmp_path / "input.npy"
    np.save(path, np.array(["a|||0|||0|||0", "b|||0|||0"]))
    refused(path, ":row 1: 3 fields; expected word, occurrence, sentence, token", arrays.read_vocab)
    np.save(path, np.array([["a"]]))
    refused(path, ": 2 dimensions of <U1; expected 1 of fixed-width text", arrays.read_vocab)
    np.save(path, np.array(["a", None]), allow_pickle=True)
    refused(path, ": cannot be read (ValueError); expected a plain .npy array", arrays.read_vocab)
    refused(tmp_path / "none", ": cannot be read (FileNotFoundError); expected a plain .npy array", arrays.read_vocab)
    for code in (0x110000, 0xD800):
        np.save(path, np.array([97, code], ">u4").view(">U1"))
        refused(path, ":row 1: not Unicode; expected text", arrays.read_vocab)
    np.save(path, np.array([], "<U4"))
    assert arrays.read_vocab(path).words == []
    np.save(path, np.zeros((2, 2), np.int32))
    refused(path, ": 2 dimensions of int32; expected 2 of float16, 32 or 64", arrays.read_points, 2)
    np.save(path, np.zeros((2, 2), np.float16))
    refused(path, ": 2 rows; expected 3, one per key of the vocab", arrays.read_points, 3)
    values = np.zeros((5000, 2), np.float32)
    values[4500, 1] = np.inf
    np.save(path, values)
    refused(path, ":row 4500: NaN or infinity; expected finite numbers", arrays.read_points, 5000)


# --- any content ---


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("any") / "input"


WORD = st.text(min_size=1, max_size=4).filter(lambda w: not any(map(str.isspace, w)) and w.isprintable())
NATURAL = st.integers(0, 2**31 - 1)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(WORD, NATURAL, NATURAL, NATURAL, NATURAL), max_size=6, unique_by=lambda row: row[2:4]))
def test_clusters_round_trip(scratch, rows):
    points = cluster_file(sorted(rows, key=lambda row: row[4]))
    clusterfiles.write_clusters(scratch, points)
    same_points(clusterfiles.read_clusters(scratch), points)


ENTRIES = st.dictionaries(WORD, st.dictionaries(WORD, st.tuples(st.integers(0, 999), NATURAL), min_size=1), min_size=1)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(ENTRIES, st.sampled_from(["arrow", "muse"]))
def test_dictionaries_round_trip(scratch, words, format):
    entries = {}
    for source, found in words.items():
        ranked = sorted(found.items(), key=lambda item: (-item[1][0], -item[1][1]))
        entries[source] = tuple(Entry(t, p / 1000, c) if format == "arrow" else Entry(t) for t, (p, c) in ranked)
    write_dictionary(scratch, Dictionary(entries), format)
    assert read_dictionary(scratch, format=format).entries == entries


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), unique=True), max_size=4))
def test_alignments_round_trip(scratch, links):
    source, target = [["a", "b", "a"]] * len(links), [["A", "B", "C", "A"]] * len(links)
    alignments.write_mapping(scratch, links, source, target)
    assert alignments.read_mapping(scratch, source, target).links == links
    alignments.write_pharaoh(scratch, links)
    assert alignments.read_pharaoh(scratch, source, target).links == [sorted(pairs) for pairs in links]


# --- real data ---


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "format"), [("captions/en-de.txt", "arrow"), ("induced/en-ru.txt", "arrow"), ("omw/en-ja.txt", "muse")]
)
def test_real_dictionaries(name, format, shared, tmp_path):
    path = shared / "data" / "dictionaries" / name
    assert dictionaries.detect_format(path) == format
    found = read_dictionary(path)
    assert len(found.entries) > 1000
    write_dictionary(tmp_path / "out", found, format)
    assert read_dictionary(tmp_path / "out").entries == found.entries
