"""Train the toy world's encoder: a tiny BERT that learns translation from masked words in pairs of sentences."""

from __future__ import annotations

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
from transformers.utils import logging

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, CLS, SEP, MASK = (SPECIAL.index(name) for name in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"))
IGNORED = -100
"""Label of a piece that is not masked."""


@dataclass(frozen=True)
class Schedule:
    """How a model learns."""

    rate: float = 2e-3
    """Peak learning rate; linear warm-up, then cosine to zero."""
    warmup: int = 100
    checkpoints: tuple[int, ...] = (0, 100, 250, 500, 1000, 1500)
    """Steps after which the model is saved; the last one ends the training."""
    seed: int = 0


@dataclass(frozen=True)
class Settings(Schedule):
    """What the encoder is and how it learns; part of the world's content hash."""

    layers: int = 4
    width: int = 64
    heads: int = 4
    pieces: int = 2400
    """Letters and merged pieces to learn; the vocabulary marks continuations and drops unused merges."""
    positions: int = 64
    """Longest row, in pieces."""
    rows: int = 32
    """Rows of a step, half of them one sentence and half a sentence with its translation."""
    masked: float = 0.25
    """Share of the pieces to guess."""


Row = list[tuple[int, int]]
"""(piece id, position) of every piece of a row; positions start again at a translation, which eases finding it."""


@contextmanager
def _borrowed_torch(seed: int) -> Iterator[None]:
    """Seed torch and take one thread; give both back as they were.

    One thread, because a second gains little at this size, slows a busy machine down, and would let the weights
    depend on the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def train_tokenizer(lines: Sequence[str], settings: Settings) -> PreTrainedTokenizerFast:
    """Learn a cased WordPiece vocabulary of whitespace-separated words.

    The pieces are learned by byte-pair merges and then marked as word starts and continuations, because the library's
    own WordPiece trainer numbers pieces in another order in every process.

    Args:
        lines: sentences of all languages.
        settings: its ``pieces`` bounds the merges, its ``positions`` is the longest row.

    Returns:
        Tokenizer that puts a row as [CLS] a [SEP], a pair as [CLS] a [SEP] b [SEP].
    """
    merger = Tokenizer(models.BPE())
    merger.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    merger.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=settings.pieces, show_progress=False))
    words = {word for line in lines for word in line.split()}
    letters = {letter for word in words for letter in word}
    vocabulary = letters | {f"##{letter}" for letter in letters}
    for word in words:
        start, *rest = merger.encode(word).tokens
        vocabulary |= {start, *(f"##{piece}" for piece in rest)}
    numbers = {piece: number for number, piece in enumerate([*SPECIAL, *sorted(vocabulary)])}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=settings.positions, **names)


def _batch(
    sentences: Sequence[Sequence[list[int]]], settings: Settings, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw one step's rows: ids, positions, labels, each (rows, longest row) int64."""
    rows: list[Row] = []
    for number in range(settings.rows):
        translations = sentences[int(rng.integers(len(sentences)))]
        first, second = rng.permutation(len(translations))[:2]
        row = [(piece, place) for place, piece in enumerate([CLS, *translations[first], SEP])]
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


def _model(vocabulary: int, settings: Settings) -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.width,
        max_position_embeddings=settings.positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
    )
    return BertForMaskedLM(config)


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face directory without the library's progress bar."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if shown:
        logging.enable_progress_bar()


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
    tokenizer = train_tokenizer([line for sentence in corpus for line in sentence], settings)
    sentences = [tokenizer(list(sentence), add_special_tokens=False)["input_ids"] for sentence in corpus]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([settings.seed])))
    learn(
        "toy encoder",
        lambda: _model(len(tokenizer), settings),
        lambda model: _loss(model, *_batch(sentences, settings, rng)),
        tokenizer,
        folder,
        settings,
        progress,
    )


def learn(
    name: str,
    make: Callable[[], Any],
    loss: Callable[[Any], torch.Tensor],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    settings: Schedule,
    progress: Callable[[str], None] | None,
) -> None:
    """Lower a model's loss by AdamW and save the model at its checkpoints.

    Args:
        name: what progress calls the model.
        make: gives the model, called with torch seeded.
        loss: the loss of the next step's rows.
        tokenizer: saved with each checkpoint.
        folder: where ``step-NNNNNN`` directories go.
        settings: how it learns.
        progress: told one line at each checkpoint.
    """
    with _borrowed_torch(settings.seed):
        model = make().train()
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
                    progress(f"{name}: step {step} of {last}")
            if step < last:
                error = loss(model)
                optimizer.zero_grad()
                torch.autograd.backward(error)
                optimizer.step()
                schedule.step()
