"""Pieces of words: three kinds of tokenizer, scripts of all directions, lost words, batches of sentences."""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import SENTENCES, bare_bytes, byte_level, save_m2m100_tokenizer, unigram, wordpiece
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    M2M100Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerFast,
    XLMRobertaTokenizer,
)

from raypipe.errors import InputError
from raypipe.models.batches import plan_batches
from raypipe.models.families import language_code
from raypipe.models.words import Encoded, Lost, LostSentence, _spans, encode

KINDS = {
    "wordpiece": wordpiece,
    "bytes": byte_level,
    "bytes-untrimmed": lambda: byte_level(trim_offsets=False),
    "unigram": unigram,
    "xlm-roberta": unigram,  # its vocabulary in the real class, whose lone '▁' claims the next sign's offsets
}


@cache
def fast(kind: str) -> PreTrainedTokenizerFast:
    if kind == "xlm-roberta":
        return XLMRobertaTokenizer(vocab=[tuple(piece) for piece in json.loads(unigram().to_str())["model"]["vocab"]])
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[kind]())


def spelled(kind: str, tokens: list[str]) -> str:
    """What some pieces spell, without offsets: the independent view of what belongs to a word."""
    if kind == "wordpiece":
        return "".join(token.removeprefix("##") for token in tokens)
    if kind in ("unigram", "xlm-roberta"):
        return "".join(tokens).replace("▁", "")
    return fast(kind).backend_tokenizer.decoder.decode(tokens).strip(" ")


def as_normalised(kind: str, word: str) -> str:
    if kind == "wordpiece":
        bare = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        return "".join(c for c in bare if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", word) if kind == "unigram" else word


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_spell_their_word(kind: str) -> None:
    tokenizer = fast(kind)
    encoded = encode(tokenizer, SENTENCES, None, 512)
    assert encoded.lost == []
    assert list(zip(encoded.sentence, encoded.token, strict=True)) == [
        (s, t) for s, words in enumerate(SENTENCES) for t in range(len(words))
    ]
    assert encoded.words == [word for words in SENTENCES for word in words]
    for row, first, last, word in zip(encoded.row, encoded.first, encoded.last, encoded.words, strict=True):
        tokens = tokenizer.convert_ids_to_tokens(encoded.ids[row][first : last + 1].tolist())
        if tokenizer.unk_token not in tokens:
            assert spelled(kind, tokens) == as_normalised(kind, word)


@pytest.mark.parametrize("kind", KINDS)
def test_every_piece_but_the_special_ones_belongs_to_one_word(kind: str) -> None:
    # Also holds each lone '▁' or 'Ġ' to the word that follows it.
    encoded = encode(fast(kind), SENTENCES, None, 512)
    for row, ids in enumerate(encoded.ids):
        of = encoded.row == row
        spans = zip(encoded.first[of], encoded.last[of], strict=True)
        assert [p for first, last in spans for p in range(first, last + 1)] == list(range(1, len(ids) - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_sentence_as_written(kind: str) -> None:
    encoded = encode(fast(kind), SENTENCES, None, 512)
    for ids, words in zip(encoded.ids, SENTENCES, strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == fast(kind)(" ".join(words))["input_ids"]


@pytest.mark.parametrize("kind", ["unigram", "xlm-roberta"])
def test_a_lone_space_piece_belongs_to_the_word_after_it(kind: str) -> None:
    # Unigram pieces of '狗 狗 Q': <s> ▁ 狗 ▁ 狗 ▁ Q </s> at 0..7; each word is two pieces, its space first.
    encoded = encode(fast(kind), [["狗", "狗", "Q"]], None, 512)
    assert fast(kind).convert_ids_to_tokens(encoded.ids[0].tolist())[1:7] == ["▁", "狗", "▁", "狗", "▁", "<unk>"]
    assert encoded.first.tolist() == [1, 3, 5]
    assert encoded.last.tolist() == [2, 4, 6]


def test_a_piece_over_several_words_belongs_to_the_last() -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁new▁york", -1.0), ("▁is", -1.0)], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    encoded = encode(PreTrainedTokenizerFast(tokenizer_object=tokenizer), [["new", "york", "is"]], None, 512)
    assert encoded.lost == [Lost(0, 0, "no_piece")]
    assert (encoded.token.tolist(), encoded.first.tolist(), encoded.last.tolist()) == ([1, 2], [0, 1], [0, 1])


def test_a_trailing_space_piece_belongs_to_the_word_before_it() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a ": 0, "b": 1, "?": 2}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    encoded = encode(PreTrainedTokenizerFast(tokenizer_object=tokenizer), [["a", "b"]], None, 512)
    assert encoded.ids[0].tolist() == [0, 1]
    assert encoded.first.tolist() == encoded.last.tolist() == [0, 1]


def test_a_piece_without_signs_at_the_end_of_a_sentence_belongs_to_no_word() -> None:
    class Pieces(NamedTuple):
        ids: list[int]
        offsets: list[tuple[int, int]]
        special_tokens_mask: list[int]

    # 'a' and 'b', each one piece of one sign and one empty piece after it.
    pieces = [Pieces([0, 1], [(0, 1), (1, 1)], [0, 0]) for _ in range(2)]
    first, last = _spans(pieces, [["a"], ["b"]])
    assert (first.tolist(), last.tolist()) == ([0, 0], [0, 0])


@pytest.mark.parametrize(
    ("kind", "words", "lost"),
    [
        # BERT drops a combining mark that stands alone, and control signs.
        ("wordpiece", ["a", "\u0301", "man"], [1]),
        ("wordpiece", ["\u200d", "man"], [0]),
        # The soft hyphen goes; what is left of ' \u00ad ' is the space before 'man', or a lone '▁' at the end.
        ("unigram", ["A", "\u00ad", "man"], [1]),
        ("unigram", ["A", "\u00ad"], [1]),
        ("unigram", ["\u00ad", "man"], [0]),
        # Byte-level tokenizers drop nothing.
        ("bytes", ["a", "\u0301", "\u00ad"], []),
    ],
)
def test_words_without_a_piece_are_lost_alone(kind: str, words: list[str], lost: list[int]) -> None:
    encoded = encode(fast(kind), [["window"], words], None, 512)
    assert encoded.lost == [Lost(1, token, "no_piece") for token in lost]
    assert encoded.words == ["window", *[word for token, word in enumerate(words) if token not in lost]]


def test_a_saved_tokenizer_that_cuts_and_pads_does_neither_here() -> None:
    backend = wordpiece()
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    encoded = encode(PreTrainedTokenizerFast(tokenizer_object=backend), [["狗"] * 6], None, 512)
    assert len(encoded.ids[0]) == 8


def test_special_tokens_in_the_text_are_text() -> None:
    encoded = encode(fast("bytes"), [["</s>", "<s>"]], None, 512)
    tokens = fast("bytes").convert_ids_to_tokens(encoded.ids[0].tolist())
    assert tokens == ["<s>", "<", "/", "s", ">", "Ġ", "<", "s", ">", "</s>"]
    assert (encoded.first.tolist(), encoded.last.tolist()) == ([1, 5], [4, 8])


def test_only_wanted_words_and_their_sentences() -> None:
    every = encode(fast("unigram"), SENTENCES, None, 512)
    wanted = [[3, 1, 1], [], *[[0]] * (len(SENTENCES) - 2)]
    some = encode(fast("unigram"), SENTENCES, wanted, 512)
    assert some.lengths[1] == 0
    assert some.take(np.array([0, 1])).closing.tolist() == [1, 0]
    assert list(zip(some.sentence, some.token, strict=True))[:3] == [(0, 1), (0, 3), (2, 0)]
    spans = {(s, t): (f, e) for s, t, f, e in zip(every.sentence, every.token, every.first, every.last, strict=True)}
    for s, t, f, e in zip(some.sentence, some.token, some.first, some.last, strict=True):
        assert spans[s, t] == (f, e)


def test_a_sentence_whose_wanted_words_are_all_lost_is_not_run() -> None:
    encoded = encode(fast("wordpiece"), [["a", "\u0301"], ["man"]], [[1], [0]], 512)
    assert encoded.lengths.tolist()[0] == 0
    assert encoded.words == ["man"]


@pytest.mark.parametrize("sentences", [[], [[]], [[], ["man"], []]])
def test_empty_sentences(sentences: list[list[str]]) -> None:
    encoded = encode(fast("unigram"), sentences, None, 512)
    assert len(encoded.ids) == len(sentences)
    assert encoded.words == [word for words in sentences for word in words]


def test_take_keeps_the_callers_numbers() -> None:
    encoded = encode(fast("unigram"), SENTENCES, None, 512)
    part = encoded.take(np.array([2, 5]))
    assert part.sentences.tolist() == [2, 5]
    assert part.words == SENTENCES[2] + SENTENCES[5]
    assert part.sentence.tolist() == [2] * len(SENTENCES[2]) + [5] * len(SENTENCES[5])
    assert [ids.tolist() for ids in part.ids] == [encoded.ids[2].tolist(), encoded.ids[5].tolist()]
    for name in ("token", "first", "last"):
        assert getattr(part, name).tolist() == getattr(encoded, name)[np.isin(encoded.row, [2, 5])].tolist()


def test_take_in_another_order() -> None:
    encoded = encode(fast("unigram"), SENTENCES, None, 512)
    part = encoded.take(np.array([5, 2]))
    assert part.words == SENTENCES[5] + SENTENCES[2]
    assert part.row.tolist() == [0] * len(SENTENCES[5]) + [1] * len(SENTENCES[2])
    assert [encoded.words[place] for place in encoded.words_of(np.array([5, 2]))] == part.words
    assert encoded.take(np.zeros(0, np.int64)).words == []


def test_encoding_together_equals_encoding_alone() -> None:
    together = encode(fast("bytes"), SENTENCES, None, 40)
    for index, words in enumerate(SENTENCES):
        alone = encode(fast("bytes"), [words], None, 40)
        part = together.take(np.flatnonzero(together.sentences == index))
        assert [ids.tolist() for ids in alone.ids] == [ids.tolist() for ids in part.ids]
        assert alone.last.tolist() == part.last.tolist()
        assert [(lost.token, lost.why) for lost in alone.lost] == [
            (lost.token, lost.why) for lost in together.lost if lost.sentence == index
        ]


@pytest.fixture(scope="module")
def python_based(tmp_path_factory: pytest.TempPathFactory) -> M2M100Tokenizer:
    return save_m2m100_tokenizer(tmp_path_factory.mktemp("m2m"))


def test_pieces_of_a_python_based_tokenizer_spell_their_word(python_based: M2M100Tokenizer) -> None:
    with pytest.raises(ValueError, match="word_ids"):
        python_based("a").word_ids()
    encoded = encode(python_based, SENTENCES, None, 512)
    assert encoded.lost == []
    assert encoded.words == [word for words in SENTENCES for word in words]
    for row, first, last, word in zip(encoded.row, encoded.first, encoded.last, encoded.words, strict=True):
        tokens = python_based.convert_ids_to_tokens(encoded.ids[row][first : last + 1].tolist())
        assert tokens[0].startswith("▁")
        if "<unk>" not in tokens:
            spelled = "".join(tokens).removeprefix("▁")
            assert spelled == unicodedata.normalize("NFKC", word)
    for ids, words in zip(encoded.ids, SENTENCES, strict=True):
        assert ids.tolist() == python_based(" ".join(words))["input_ids"]
        assert python_based.convert_ids_to_tokens([ids[0], ids[-1]]) == ["__en__", "</s>"]


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (["\u200b", "man"], [0]),  # sentencepiece reads it as a space
        (["a", "\u200b", "\u200b", "man"], [1, 2]),
        (["man", "\u200b"], [1]),
        (["\u200b"], [0]),
        (["½", "ﬁne"], []),
        (["a▁b", "▁", "c"], [1]),  # what spells sentencepiece's space is one
        (["__en__", "</s>"], []),
    ],
)
def test_words_that_a_python_based_tokenizer_drops(
    python_based: M2M100Tokenizer, words: list[str], lost: list[int]
) -> None:
    encoded = encode(python_based, [["window"], words], None, 512)
    assert encoded.lost == [Lost(1, token, "no_piece") for token in lost]
    pieces = python_based.tokenize(" ".join(words), split_special_tokens=True)
    starts = [place + 1 for place, piece in enumerate(pieces) if piece.startswith("▁")]
    if words[0] != "a▁b":
        assert encoded.first[1:].tolist() == starts[: len(words) - len(lost)]
    else:
        assert encoded.token[1:].tolist() == [0, 2]


def test_pieces_that_cannot_be_given_to_words_for_certain(tmp_path: Path) -> None:
    tokenizer = save_m2m100_tokenizer(tmp_path, "61 20 62\t63\n")  # 'a b' becomes 'c'
    encoded = encode(tokenizer, [["a", "b", "man"], ["a", "man"]], [[0, 2], [0, 1]], 512)
    assert encoded.lost == [Lost(0, 0, "no_alignment"), Lost(0, 2, "no_alignment")]
    assert encoded.words == ["a", "man"]
    assert encoded.lengths.tolist()[0] == 0


def test_a_tokenizer_of_bytes(python_based: M2M100Tokenizer) -> None:
    # <s>-less bytes: 'é' is 2, 'ab' 2; 'é ab é' = 0 1, space 2, 3 4, space 5, 6 7. A space goes with the word after it.
    from transformers import ByT5Tokenizer

    encoded = encode(ByT5Tokenizer(), [["é", "ab", "é"]], None, 512)
    assert (encoded.first.tolist(), encoded.last.tolist()) == ([0, 2, 5], [1, 4, 7])


def test_signs_split_over_byte_pieces() -> None:
    # Single bytes only: '狗' is 3 pieces, whose offsets are all the sign's own; 'Ġ' goes with the word after it.
    tokenizer = Tokenizer(
        models.BPE({sign: n for n, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoded = encode(PreTrainedTokenizerFast(tokenizer_object=tokenizer), [["狗", "é狗", "a"]], None, 512)
    assert (encoded.first.tolist(), encoded.last.tolist()) == ([0, 3, 9], [2, 8, 10])


def test_windows_golden() -> None:
    # [CLS] 狗*9 [SEP] at 6: four pieces fit, windows start at 0 2 4 5 and hold 0-3, 2-5, 4-7, 5-8. Distances from an edge:
    # 0: 0 | 1: 1 | 2: 1, 0 | 3: 0, 1 | 4: -, 1, 0 | 5: -, 0, 1, 0 | 6: 1, 1 (the earlier) | 7: 0, 1 | 8: 0.
    encoded = encode(fast("wordpiece"), [["the"], ["狗"] * 9], None, 6, long_sentences="window")
    assert encoded.lost == []
    assert encoded.sentences.tolist() == [0, 1, 1, 1, 1]
    assert encoded.row.tolist() == [0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    assert encoded.token.tolist() == [0, *range(9)]
    assert encoded.first.tolist() == encoded.last.tolist() == [1, 1, 2, 3, 2, 3, 2, 3, 3, 4]
    assert encoded.closing.tolist() == [1] * 5
    for ids in encoded.ids[1:]:
        assert (len(ids), ids[0], ids[-1]) == (6, 2, 3)
    part = encoded.take(np.array([2, 4]))
    assert (part.sentence.tolist(), part.token.tolist()) == ([1, 1, 1, 1], [3, 4, 7, 8])


def test_windows_that_hold_no_wanted_word_are_not_run() -> None:
    encoded = encode(fast("wordpiece"), [["狗"] * 9], [[4]], 6, long_sentences="window")
    assert (encoded.sentences.tolist(), encoded.row.tolist(), encoded.first.tolist()) == ([0], [0], [3])


def test_a_word_is_never_split_over_windows() -> None:
    # [CLS] 狗狗狗 狗狗狗狗狗 狗狗 [SEP] at 6: the second word is longer than the four pieces of a window.
    encoded = encode(fast("wordpiece"), [["狗狗狗", "狗狗狗狗狗", "狗狗"]], None, 6, long_sentences="window")
    assert encoded.lost == [Lost(0, 1, "truncated")]
    assert (encoded.last - encoded.first + 1).tolist() == [3, 2]


def test_long_sentences_are_skipped_or_refused() -> None:
    sentences = [["狗"] * 4, ["狗"] * 5]
    encoded = encode(fast("wordpiece"), sentences, [[1], [0, 3]], 6, long_sentences="skip")
    assert encoded.lost == [Lost(1, 0, "too_long"), Lost(1, 3, "too_long")]
    assert (encoded.lengths.tolist(), encoded.sentence.tolist()) == ([6, 0], [0])
    message = r"^sentences\[1\]: 7 pieces, the model reads 6; split the sentence, or set states.long_sentences to window or skip$"
    with pytest.raises(InputError, match=message):
        encode(fast("wordpiece"), sentences, None, 6, long_sentences="error")
    assert encode(fast("wordpiece"), sentences[:1], None, 6, long_sentences="error").lost == []


def test_context_is_asked_for() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=bare_bytes())
    sentences = [["The", "man"], ["A"]]
    assert encode(bare, sentences, None, 64, needs_context=True).lost == [
        Lost(0, 0, "no_context"),
        Lost(1, 0, "no_context"),
    ]
    assert encode(fast("bytes"), sentences, None, 64, needs_context=True).lost == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["狗", "狗狗", "狗狗狗", "the"]), max_size=12), max_size=3),
    st.sampled_from(["wordpiece", "bytes"]),
    st.integers(3, 20),
)
def test_windows_hold_the_pieces_of_the_sentence(sentences: list[list[str]], kind: str, most: int) -> None:
    whole = encode(fast(kind), sentences, None, 512)
    parts = encode(fast(kind), sentences, None, most, long_sentences="window")
    room, stride = most - 2, max((most - 2) // 2, 1)
    found = {(s, t): (row, f, e) for s, t, row, f, e in _words(parts)}
    lost = {(word.sentence, word.token) for word in parts.lost}
    assert len(found) + len(lost) == len(whole.words)
    for sentence, token, row, first, last in _words(whole):
        length = len(whole.ids[row])
        starts = [0] if length <= most else [*range(0, length - most, stride), length - most]
        margins = [min(first - 1 - start, start + min(room, length - 2) - last) for start in starts]
        if max(margins) < 0:
            assert (sentence, token) in lost
            continue
        start = starts[margins.index(max(margins))]
        at, begin, end = found[sentence, token]
        assert (begin, end) == (first - start, last - start)
        body = whole.ids[row][1 + start : 1 + start + room]
        assert parts.ids[at].tolist() == [whole.ids[row][0], *body[: length - 2], whole.ids[row][-1]][:most]
        assert len(parts.ids[at]) <= most


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["狗", "狗狗狗", "the"]), max_size=14), min_size=1, max_size=3),
    st.sampled_from(["wordpiece", "bare"]),
    st.integers(1, 12),
    st.booleans(),
)
def test_each_piece_of_a_whole_sentence_counts_once(
    sentences: list[list[str]], kind: str, most: int, context: bool
) -> None:
    special = 2 if kind == "wordpiece" else 0
    tokenizer = fast(kind) if special else PreTrainedTokenizerFast(tokenizer_object=bare_bytes())
    encoded = encode(
        tokenizer, sentences, None, most + special, long_sentences="window", needs_context=context, whole=True
    )
    lost = [sentence.sentence for sentence in encoded.lost_sentences]
    assert encoded.own is not None
    for index, words in enumerate(sentences):
        pieces = tokenizer(" ".join(words))["input_ids"] if words else []
        body = pieces[special // 2 : len(pieces) - special // 2]
        length = min(most, len(body))
        starts = [0] if len(body) <= most else [*range(0, len(body) - most, max(most // 2, 1)), len(body) - most]
        expected = []
        for piece, number in enumerate(body):
            margins = [min(piece - start, start + length - 1 - piece) for start in starts]
            window = margins.index(max(margins))
            place = piece - starts[window] + special // 2
            if place > 0 or not context:
                expected.append((window, place, number))
        rows = np.flatnonzero(encoded.sentences == index)
        found = [(at, place) for at, row in enumerate(rows) for place in range(*encoded.own[row])]
        assert [(at, place, encoded.ids[rows[at]][place]) for at, place in found] == expected
        assert (index in lost) == (not expected)


def test_whole_sentences_golden() -> None:
    # Windows of four pieces start at 0 2 4 5 (see the windows above); each piece is farthest from an edge in 0 0 0 1 1 2 2 3 3.
    sentences = [["the"], ["狗"] * 9, [], ["\u0301"]]
    encoded = encode(fast("wordpiece"), sentences, [[], [4], [], []], 6, long_sentences="window", whole=True)
    assert encoded.own is not None
    assert encoded.own.tolist() == [[1, 2], [1, 4], [2, 4], [2, 4], [3, 5], [0, 0], [0, 0]]
    assert encoded.sentences.tolist() == [0, 1, 1, 1, 1, 2, 3]
    assert encoded.lengths.tolist() == [3, 6, 6, 6, 6, 0, 0]
    assert (encoded.row.tolist(), encoded.first.tolist()) == ([2], [3])
    assert encoded.lost_sentences == [LostSentence(2, "no_piece"), LostSentence(3, "no_piece")]
    part = encoded.take(np.array([3, 1]))
    assert part.own is not None
    assert part.own.tolist() == [[2, 4], [1, 4]]
    assert encode(fast("wordpiece"), sentences, None, 6).own is None


def test_whole_sentences_that_have_no_state() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=bare_bytes())
    alone = encode(bare, [["a"], ["a", "man"]], None, 64, needs_context=True, whole=True)
    assert alone.lost_sentences == [LostSentence(0, "no_context")]
    assert alone.own is not None
    assert (alone.own[0].tolist(), alone.own[1, 0]) == ([0, 0], 1)
    encoded = encode(fast("wordpiece"), [["狗"] * 5], None, 6, long_sentences="skip", whole=True)
    assert (encoded.lost_sentences, encoded.words) == ([LostSentence(0, "too_long")], [])
    none_fits = encode(fast("wordpiece"), [["狗"] * 5], None, 2, long_sentences="window", whole=True)
    assert none_fits.lost_sentences == [LostSentence(0, "truncated")]


def test_a_sentence_without_an_alignment_can_be_read_whole(tmp_path: Path) -> None:
    tokenizer = save_m2m100_tokenizer(tmp_path, "61 20 62\t63\n")  # 'a b' becomes 'c'
    encoded = encode(tokenizer, [["a", "b", "man"]], None, 512, whole=True)
    assert [lost.why for lost in encoded.lost] == ["no_alignment"] * 3
    assert encoded.lost_sentences == []
    assert encoded.own is not None
    assert encoded.own.tolist() == [[1, len(encoded.ids[0]) - 1]]


def test_codes_of_languages(python_based: M2M100Tokenizer) -> None:
    mbart, nllb = MBartTokenizer(), NllbTokenizer()
    for tokenizer, language, code in (
        (mbart, "de", "de_DE"),
        (mbart, "de_DE", "de_DE"),
        (mbart, "zh", "zh_CN"),
        (python_based, "de", "de"),
        (nllb, "deu", "deu_Latn"),
        (nllb, "zho_Hans", "zho_Hans"),
        (fast("bytes"), "de", None),
    ):
        assert language_code(tokenizer, language) == code
    for tokenizer, language, message in (
        (nllb, "zho", "language 'zho': the tokenizer has zho_Hans and zho_Hant; name one of them"),
        (
            mbart,
            "pt",
            "language 'pt': the tokenizer has no such code, expected one of its 25; the first are ar_AR, cs_CZ, de_DE, "
            "en_XX, es_XX, et_EE, fi_FI, fr_XX",
        ),
        (
            mbart,
            "zh_TW",
            "language 'zh_TW': the tokenizer has no such code, expected one of its 25; those that begin alike: zh_CN",
        ),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            language_code(tokenizer, language)


def _words(encoded: Encoded) -> zip[tuple[int, ...]]:
    return zip(encoded.sentence, encoded.token, encoded.row, encoded.first, encoded.last, strict=True)


words = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=6).filter(lambda w: w.split() == [w])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(words, max_size=6), max_size=4), st.sampled_from(sorted(KINDS)), st.integers(3, 20))
def test_every_word_is_kept_or_lost_once(sentences: list[list[str]], kind: str, most: int) -> None:
    encoded = encode(fast(kind), sentences, None, most)
    seen = [*zip(encoded.sentence, encoded.token, strict=True), *[(lost.sentence, lost.token) for lost in encoded.lost]]
    assert sorted(seen) == [(s, t) for s, ws in enumerate(sentences) for t in range(len(ws))]
    assert (encoded.first <= encoded.last).all()
    for row, last in zip(encoded.row, encoded.last, strict=True):
        assert 0 < last < len(encoded.ids[row]) - 1 < most


def least_cost(lengths: list[int], budget: int) -> int:
    """Of all ways to cut ascending lengths into runs that fit the budget: padded areas, and a 16th of the budget for each run."""
    if not lengths:
        return 0
    return min(
        least_cost(lengths[:start], budget) + (len(lengths) - start) * lengths[-1] + budget // 16
        for start in range(len(lengths))
        if (len(lengths) - start) * lengths[-1] <= budget
    )


@given(st.lists(st.integers(0, 30), max_size=10), st.integers(30, 200))
def test_batches_fit_the_budget_hold_every_sentence_once_and_cost_least(lengths: list[int], budget: int) -> None:
    batches = plan_batches(np.array(lengths, dtype=np.int64), budget)
    areas = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
    assert max(areas, default=0) <= budget
    assert sum(areas) + len(areas) * (budget // 16) == least_cost(sorted(n for n in lengths if n), budget)
    in_order = [i for batch in batches for i in sorted(batch, key=lambda i: (lengths[i], i))]
    assert in_order == sorted((i for i, n in enumerate(lengths) if n), key=lambda i: (lengths[i], i))
    assert all(batch.tolist() == sorted(batch) for batch in batches)


def test_batches_golden() -> None:
    # Sorted: 2 (index 1), 3 (0), 3 (3), 5 (2). Budget 48, so 3 for each batch: all 4x5 + 3 = 23; 3x3 + 5 + 6 = 20;
    # 2 + 2x3 + 5 + 9 = 22.
    assert [b.tolist() for b in plan_batches(np.array([3, 2, 5, 3, 0]), 48)] == [[0, 1, 3], [2]]
    # Budget 9, so 0 for each: 4x5 does not fit; 2 + 2x3 + 5 = 13 is less than 3x3 + 5 = 14.
    assert [b.tolist() for b in plan_batches(np.array([3, 2, 5, 3, 0]), 9)] == [[1], [0, 3], [2]]


def test_a_sentence_above_the_budget_stands_alone() -> None:
    assert [b.tolist() for b in plan_batches(np.array([3, 10, 9]), 9)] == [[0], [2], [1]]
