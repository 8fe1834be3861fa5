"""Train the toy world's decoder: a tiny Qwen2 that translates words, line by line, between the toy's languages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from raypipe.toy.lexicon import LANGUAGES, things
from raypipe.toy.train import IGNORED, Schedule, learn

NAMES = {"en": "English", "es": "Español", "pt": "Português", "ru": "Русский"}
"""How each language calls itself."""
SPECIAL = ("<pad>", "</s>")


@dataclass(frozen=True)
class Settings(Schedule):
    """What the decoder is and how it learns; part of the world's content hash."""

    near: int = 2
    """First blocks, in which a piece sees itself alone: a word's meaning has to come about at the word, not where it is read."""
    far: int = 2
    """Blocks after them, which see everything before."""
    width: int = 64
    spread: float = 0.1
    """Standard deviation of new weights: wide enough for so small a width to start from."""
    heads: int = 4
    pieces: int = 2000
    """Most bytes and merged pieces: enough for every word to be one."""
    positions: int = 256
    """Longest prompt with its answer, in pieces."""
    lines: int = 6
    """Translations of a row, all of one pair of languages."""
    rows: int = 16
    """Rows of a step."""
    rate: float = 6e-3
    warmup: int = 50
    checkpoints: tuple[int, ...] = (0, 100, 200, 300, 400, 600)


def parts(word: str, answer: str, source: str, target: str) -> tuple[str, str]:
    """One line of a prompt: what asks, and what answers."""
    return f'{NAMES[source]}: "{word}" - {NAMES[target]}: "', f'{answer}"\n'


def train_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """Learn byte pairs of the lines, a quote always a piece of its own behind a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.pieces,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [
        "".join(parts(c.forms[a][0], c.forms[b][0], a, b)) for c in things() for a, b in product(LANGUAGES, LANGUAGES)
    ]
    tokenizer.train_from_iterator(lines, trainer)
    names = {"pad_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=settings.positions, **names)


def train(folder: Path, settings: Settings, progress: Callable[[str], None] | None = None) -> None:
    """Train the decoder and save its checkpoints.

    A row is `lines` lines of distinct concepts in one ordered pair of languages, a language with itself included; only answers count.

    Args:
        folder: where ``step-NNNNNN`` Hugging Face directories (model and tokenizer) go.
        settings: size and schedule.
        progress: told one line at each checkpoint.
    """
    tokenizer = train_tokenizer(settings)
    pairs = list(product(LANGUAGES, LANGUAGES))
    lines = [
        [tokenizer(list(parts(c.forms[a][0], c.forms[b][0], a, b)))["input_ids"] for c in things()] for a, b in pairs
    ]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([settings.seed])))

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels, int64 [rows, longest row]."""
        ids, labels = [], []
        for _ in range(settings.rows):
            of_pair = lines[int(rng.integers(len(pairs)))]
            chosen = [of_pair[at] for at in rng.choice(len(of_pair), size=settings.lines, replace=False)]
            ids.append(torch.tensor([piece for asks, answers in chosen for piece in (*asks, *answers)]))
            labels.append(
                torch.tensor([piece for asks, answers in chosen for piece in (*[IGNORED] * len(asks), *answers)])
            )
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(ids, batch_first=True), pad(labels, batch_first=True, padding_value=IGNORED)

    def loss(model: Qwen2ForCausalLM) -> torch.Tensor:
        """Cross-entropy of the answers' pieces, in nats; padding stands behind all that counts."""
        ids, labels = batch()
        wanted = labels[:, 1:] != IGNORED
        states = model.model(input_ids=ids, use_cache=False)[0][:, :-1]
        return torch.nn.functional.cross_entropy(model.lm_head(states[wanted]), labels[:, 1:][wanted])

    def model() -> Qwen2ForCausalLM:
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            initializer_range=settings.spread,
            num_hidden_layers=settings.near + settings.far,
            layer_types=["sliding_attention"] * settings.near + ["full_attention"] * settings.far,
            use_sliding_window=True,
            sliding_window=1,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            intermediate_size=3 * settings.width,
            max_position_embeddings=settings.positions,
            tie_word_embeddings=True,
            pad_token_id=SPECIAL.index("<pad>"),
            eos_token_id=SPECIAL.index("</s>"),
            bos_token_id=None,
        )
        return Qwen2ForCausalLM(config)

    learn("toy decoder", model, loss, tokenizer, folder, settings, progress)
