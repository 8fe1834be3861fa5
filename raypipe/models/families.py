"""The model types raypipe can read, and where each keeps what the other modules need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """One stack of blocks: an encoder or a decoder.

    Attributes:
        blocks: attribute path of the list of blocks inside the base model.
        norm: attribute path of the norm after the last block; None where there is none.
        layers: the configuration's name of the number of blocks.
        parameters: weights of one block on average, from the configuration; embeddings, heads and the last norm not counted.
    """

    blocks: str
    norm: str | None
    layers: str
    parameters: Callable[[Any], float]


@dataclass(frozen=True)
class Family:
    """What differs between model types.

    Attributes:
        parts: the components whose states can be read, `encoder` before `decoder`.
        positions: the configuration's name of the longest sequence; None where positions are relative.
        positions_after_padding: positions count from `pad_token_id + 1` (fairseq's habit), so that many of them are never used.
        sdpa: whether transformers has torch's fused attention for it.
        pooler: whether the base model takes `add_pooling_layer`.
        starts_with_last: the decoder starts with the line's last piece (a language code), not with the one of the configuration.
    """

    parts: dict[str, Part]
    positions: str | None = "max_position_embeddings"
    positions_after_padding: bool = False
    sdpa: bool = True
    pooler: bool = False
    starts_with_last: bool = False

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(self.parts)


def _plain(inner: str = "", *, crossed: bool = False) -> Callable[[Any], float]:
    """Four attention matrices (eight with attention to an encoder), two feed-forward ones, their biases and layer norms."""

    def parameters(config: Any) -> float:
        width = config.hidden_size
        wide = getattr(config, inner, None) or 4 * width
        attention = 4 * width * width + 6 * width
        return float(attention * (1 + crossed) + 2 * width * wide + wide + 3 * width)

    return parameters


def _t5(*, crossed: bool) -> Callable[[Any], float]:
    """No biases; the buckets of relative positions are in the first block only."""

    def parameters(config: Any) -> float:
        width, heads = config.d_model, config.num_heads
        attention = 4 * width * heads * config.d_kv + width
        buckets = config.relative_attention_num_buckets * heads
        blocks = config.num_decoder_layers if crossed else config.num_layers
        feed_forward = (2 + config.is_gated_act) * width * config.d_ff + width
        return float(attention * (1 + crossed) + feed_forward + buckets / blocks)

    return parameters


def _modernbert(config: Any) -> float:
    """Gated feed-forward, no biases; the first block has one norm less."""
    width = config.hidden_size
    return float(4 * width**2 + 3 * width * config.intermediate_size + 2 * width - width / config.num_hidden_layers)


def _gated(*, norms: int = 2, biased: bool = False, normed_heads: bool = False) -> Callable[[Any], float]:
    """Grouped attention and a gated feed-forward, with the biases of queries, keys and values where `biased`."""

    def parameters(config: Any) -> float:
        width, heads = config.hidden_size, config.num_attention_heads
        head = getattr(config, "head_dim", None) or width // heads
        queries, keys = heads * head, config.num_key_value_heads * head
        extra = biased * (queries + 2 * keys) + normed_heads * 2 * head + norms * width
        return float(2 * width * (queries + keys) + 3 * width * config.intermediate_size + extra)

    return parameters


def _decoder(blocks: str, norm: str, parameters: Callable[[Any], float]) -> dict[str, Part]:
    return {"decoder": Part(blocks, norm, "num_hidden_layers", parameters)}


_BERT = {"encoder": Part("encoder.layer", None, "num_hidden_layers", _plain("intermediate_size"))}
_ROBERTA = Family(_BERT, positions_after_padding=True, pooler=True)
_T5 = Family(
    {
        "encoder": Part("encoder.block", "encoder.final_layer_norm", "num_layers", _t5(crossed=False)),
        "decoder": Part("decoder.block", "decoder.final_layer_norm", "num_decoder_layers", _t5(crossed=True)),
    },
    positions=None,
)
_BART = {
    "encoder": Part("encoder.layers", "encoder.layer_norm", "encoder_layers", _plain("encoder_ffn_dim")),
    "decoder": Part("decoder.layers", "decoder.layer_norm", "decoder_layers", _plain("decoder_ffn_dim", crossed=True)),
}
_LLAMA = Family(_decoder("layers", "norm", _gated()))

FAMILIES: dict[str, Family] = {
    "bert": Family(_BERT, pooler=True),
    "bloom": Family(_decoder("h", "ln_f", _plain()), positions="seq_length", sdpa=False),
    "camembert": _ROBERTA,
    "distilbert": Family({"encoder": Part("transformer.layer", None, "n_layers", _plain("hidden_dim"))}),
    "gemma": _LLAMA,
    "gemma2": Family(_decoder("layers", "norm", _gated(norms=4)), sdpa=False),
    "gemma3_text": Family(_decoder("layers", "norm", _gated(norms=4, normed_heads=True))),
    "gpt2": Family(_decoder("h", "ln_f", _plain("n_inner"))),
    "llama": _LLAMA,
    "m2m_100": Family(_BART),
    "mbart": Family(_BART, starts_with_last=True),
    "mistral": _LLAMA,
    "modernbert": Family({"encoder": Part("layers", "final_norm", "num_hidden_layers", _modernbert)}),
    "mt5": _T5,
    "qwen2": Family(_decoder("layers", "norm", _gated(biased=True))),
    "qwen3": Family(_decoder("layers", "norm", _gated(normed_heads=True))),
    "roberta": _ROBERTA,
    "t5": _T5,
    "xlm-roberta": _ROBERTA,
}
