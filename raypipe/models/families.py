"""The model types raypipe can read, and where each keeps what the other modules need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """What differs between model types.

    Attributes:
        components: the parts whose states can be read.
        blocks: attribute path of the list of blocks inside the base model.
        parameters: weights of all blocks, computed from the configuration; embeddings and heads not counted.
        positions_after_padding: positions count from `pad_token_id + 1` (fairseq's habit), so that many of them are never used.
    """

    components: tuple[str, ...]
    blocks: str
    parameters: Callable[[Any], int]
    positions_after_padding: bool


def _bert_parameters(config: Any) -> int:
    """Four attention matrices, two feed-forward ones, their biases, and two layer norms for each block."""
    width, inner = config.hidden_size, config.intermediate_size
    return int(config.num_hidden_layers * (4 * width * width + 2 * width * inner + 9 * width + inner))


_BERT = Family(("encoder",), "encoder.layer", _bert_parameters, positions_after_padding=False)
_ROBERTA = Family(("encoder",), "encoder.layer", _bert_parameters, positions_after_padding=True)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "camembert": _ROBERTA,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
