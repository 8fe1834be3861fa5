"""Train the toy world's encoder: a tiny BERT that learns translation from masked words in pairs of sentences."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, CLS, SEP, MASK = (SPECIAL.index(name) for name in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"))
IGNORED = -100
"""Label of a piece that is not masked."""


@dataclass(frozen=True)
class Settings:
    """What the encoder is and how it learns; part of the world's content hash."""

    layers: int = 4
    width: int = 64
    heads: int = 4
    pieces: int = 2400
    """Letters and merged pieces that the tokenizer learns."""
    positions: int = 64
    rows: int = 64
    """Rows of a step, half of them one sentence and half a sentence with its translation."""
    masked: float = 0.25
    """Share of the pieces to guess."""
    rate: float = 2e-3
    """Peak learning rate; linear warm-up, then cosine to zero."""
    warmup: int = 100
    checkpoints: tuple[int, ...] = (0, 100, 300, 600, 1200, 2400)
    """Steps after which the model is saved; the last one ends the training."""
    seed: int = 0


Row = list[tuple[int, int]]
"""(piece id, position) of every piece of a row; positions start again at a translation, which eases finding it."""


@contextmanager
def _borrowed_torch(seed: int) -> Iterator[None]:
    """Seed torch and take at most two threads; give both back as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def train_tokenizer(lines: Sequence[str], pieces: int) -> PreTrainedTokenizerFast:
    """Learn a cased WordPiece vocabulary of whitespace-separated words.

    The pieces are learned by byte-pair merges and then marked as word starts and continuations, because the library's
    own WordPiece trainer numbers pieces in another order in every process.

    Args:
        lines: sentences of all languages.
        pieces: letters and merged pieces to learn; the vocabulary, which marks continuations, is somewhat larger.

    Returns:
        Tokenizer that puts a row as [CLS] a [SEP], a pair as [CLS] a [SEP] b [SEP].
    """
    merger = Tokenizer(models.BPE())
    merger.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    merger.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=pieces, show_progress=False))
    words = {word for line in lines for word in line.split()}
    letters = {letter for word in words for letter in word}
    vocabulary = letters | {f"##{letter}" for letter in letters}
    for word in words:
        start, *rest = merger.encode(word).tokens
        vocabulary |= {start, *(f"##{piece}" for piece in rest)}
    numbers = {piece: number for number, piece in enumerate([*SPECIAL, *sorted(vocabulary)])}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def _batch(
    sentences: Sequence[Sequence[list[int]]], settings: Settings, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw one step's rows: ids, positions, labels, each (rows, longest row) int64."""
    rows: list[Row] = []
    for number in range(settings.rows):
        translations = sentences[rng.integers(len(sentences))]
        first, second = rng.permutation(len(translations))[:2]
        row = list(zip([CLS, *translations[first], SEP], range(settings.positions)))  # noqa: B905
        if number % 2:
            row += [(piece, place) for place, piece in enumerate([*translations[second], SEP], start=1)]
        rows.append(row)
    width = max(map(len, rows))
    ids, positions = (torch.zeros((settings.rows, width), dtype=torch.int64) for _ in range(2))
    for number, row in enumerate(rows):
        ids[number, : len(row)], positions[number, : len(row)] = torch.tensor(row).T
    hidden: NDArray[np.bool_] = rng.random((settings.rows, width)) < settings.masked
    mask = torch.from_numpy(hidden) & (ids >= len(SPECIAL))
    labels = torch.where(mask, ids, IGNORED)
    return torch.where(mask, MASK, ids), positions, labels


def _save(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _loss(model: Any, ids: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the masked pieces alone, in nats; the others never meet the vocabulary-wide layer."""
    states = model.bert(input_ids=ids, position_ids=positions, attention_mask=(ids != PAD).long())[0]
    guessed = labels != IGNORED
    return torch.nn.functional.cross_entropy(model.cls(states[guessed]), labels[guessed])


def train(
    corpus: Sequence[Sequence[str]],
    folder: Path,
    settings: Settings,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Train the encoder and save its checkpoints.

    Args:
        corpus: sentences, each in all languages in one order.
        folder: where ``step-NNNNNN`` Hugging Face directories (model and tokenizer) go.
        settings: size and schedule.
        progress: told one line at each checkpoint.
    """
    tokenizer = train_tokenizer([line for sentence in corpus for line in sentence], settings.pieces)
    sentences = [tokenizer(list(sentence), add_special_tokens=False)["input_ids"] for sentence in corpus]
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.width,
        max_position_embeddings=settings.positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
    )
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([settings.seed])))
    with _borrowed_torch(settings.seed):
        model = BertForMaskedLM(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, fused=True)
        last = max(settings.checkpoints)
        ramp = max(1, min(settings.warmup, last))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / ramp, 0.5 + 0.5 * float(np.cos(np.pi * step / max(1, last))))
        )
        for step in range(last + 1):
            if step in settings.checkpoints:
                _save(model, tokenizer, folder / f"step-{step:06d}")
                if progress:
                    progress(f"toy encoder: step {step} of {last}")
            if step < last:
                loss = _loss(model, *_batch(sentences, settings, rng))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
