"""Tokenizers trained on a few sentences and random models of a few thousand weights, for the tests of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    line.split()
    for line in (
        "The quick brown fox doesn't stop at high-end cafés .",
        "Der schnelle braune Fuchs springt über den faulen Hund .",
        "الثعلب البني السريع يقفز فوق الكلب الكسول .",
        "הַשּׁוּעָל הַחוּם קוֹפֵץ מֵעַל הַכֶּלֶב",
        "तेज़ भूरी लोमड़ी आलसी कुत्ते पर कूदती है ।",
        "敏捷 的 棕色 狐狸 跳过 懒惰 的 狗 。",
        "A man in a blue shirt is standing on a ladder cleaning a window .",
        "Ein Mann in einem blauen Hemd steht auf einer Leiter und putzt ein Fenster .",
        "fi ﬁne Ａ１ e\u0301te\u0301 👩\u200d👩\u200d👧 “quoted” ½",
    )
]
TEXTS = [" ".join(words) for words in SENTENCES]
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def wordpiece(size: int = 300) -> Tokenizer:
    """BERT's pipeline: clean, lower, strip accents, split at punctuation, CJK signs apart."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=BERT_SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def byte_level(trim_offsets: bool = True) -> Tokenizer:
    """RoBERTa's pipeline; with `trim_offsets` a piece's offsets leave out its leading space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=ROBERTA_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=False
    )
    return tokenizer


def unigram() -> Tokenizer:
    """XLM-R's pipeline in kind: NFKC, runs of spaces made one, the space kept as `▁` in front of a piece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace("\u200b", " "),
            normalizers.Replace("\u00ad", ""),
            normalizers.Replace("  ", " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=ROBERTA_SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def save_model(directory: Path, kind: str, *, head: bool = False, seed: int = 0, **changed: Any) -> Path:
    """Saves a random model of four blocks, 16 wide, and its tokenizer; `kind` is its model type, `head` adds an LM head."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedTokenizerFast

    backend = {"bert": wordpiece, "roberta": byte_level}.get(kind, unigram)()
    names = BERT_SPECIAL if kind == "bert" else ROBERTA_SPECIAL
    pad, unk = ("[PAD]", "[UNK]") if kind == "bert" else ("<pad>", "<unk>")
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    fields = {"vocab_size": backend.get_vocab_size(), "max_position_embeddings": 64, "pad_token_id": names.index(pad)}
    config = AutoConfig.for_model(kind, **{**sizes, **fields, "initializer_range": 0.5, **changed})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (AutoModelForMaskedLM if head else AutoModel).from_config(config)
    model.save_pretrained(directory)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, unk_token=unk, padding_side="left")
    tokenizer.save_pretrained(directory)
    return directory
