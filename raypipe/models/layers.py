"""Hidden states by hooks: one component of a model runs, and the layers asked for are kept.

Axes: B sequences of a batch, T pieces of the longest, S pieces of the longest line of the encoder, D the model's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from raypipe.errors import ModelError
from raypipe.models.families import Family

if TYPE_CHECKING:
    import torch

_CURE = "use the version of transformers that raypipe's constraints name, and report the model"


class Batch(NamedTuple):
    """What a component reads: ids and mask, int64 [B, T], and for a decoder with an encoder that one's, int64 [B, S]."""

    ids: torch.Tensor
    mask: torch.Tensor
    source_ids: torch.Tensor | None = None
    source_mask: torch.Tensor | None = None


class Reader:
    """Keeps layers of one component while it runs.

    Layer i is what transformers returns as `hidden_states[i]`: 0 the input of the first block, i the output of block i, and
    the last one after the final norm where there is one.

    Args:
        model: the base model.
        family: where it keeps its blocks.
        component: the part to read.
        layers: layer ids; blocks that are no longer there are not asked for.
        final_norm: False takes the last block's own output.
    """

    def __init__(self, model: Any, family: Family, component: str, layers: Iterable[int], *, final_norm: bool = True):
        part = family.parts[component]
        self._model = model
        self._component = component
        self._kept: dict[int, torch.Tensor] = {}
        blocks, last = attrgetter(part.blocks)(model), getattr(model.config, part.layers)
        self._hooks = []
        for layer in set(layers):
            if layer == 0:
                self._hooks.append(blocks[0].register_forward_pre_hook(self._before, with_kwargs=True))
            elif layer == last and final_norm and part.norm:
                self._hooks.append(attrgetter(part.norm)(model).register_forward_hook(self._after(layer)))
            else:
                self._hooks.append(blocks[layer - 1].register_forward_hook(self._after(layer)))

    def __call__(self, batch: Batch) -> dict[int, torch.Tensor]:
        """Layer id -> states, [B, T, D] in the precision of the forward."""
        forward(self._model, self._component, batch)
        kept, self._kept = self._kept, {}
        return kept

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._kept[0] = args[0] if args else kwargs["hidden_states"]

    def _after(self, layer: int) -> Callable[[Any, Any, Any], None]:
        def keep(_module: Any, _args: Any, output: Any) -> None:
            self._kept[layer] = output[0] if isinstance(output, tuple) else output

        return keep


def forward(model: Any, component: str, batch: Batch, *, hidden_states: bool = False) -> Any:
    """Output of one component: of the whole model, of its encoder, or of its encoder and then its decoder."""
    read = {"input_ids": batch.ids, "attention_mask": batch.mask, "output_hidden_states": hidden_states}
    if not model.config.is_encoder_decoder:
        return model(**read, **({"use_cache": False} if component == "decoder" else {}))
    if component == "encoder":
        return model.encoder(**read)
    memory = model.encoder(input_ids=batch.source_ids, attention_mask=batch.source_mask).last_hidden_state
    return model.decoder(
        **read, encoder_hidden_states=memory, encoder_attention_mask=batch.source_mask, use_cache=False
    )


def check_layers(model: Any, family: Family, component: str, label: str) -> None:
    """Holds the hooks to transformers' own `hidden_states` on two pieces.

    Raises:
        ModelError: the blocks are not where they are expected, are not as many, or give other states.
    """
    import torch

    part = family.parts[component]
    try:
        found = len(attrgetter(part.blocks)(model))
        attrgetter(part.norm or part.blocks)(model)
    except (AttributeError, TypeError):
        places = " and ".join(filter(None, (part.blocks, part.norm)))
        raise ModelError(f"{label}: {type(model).__name__} has no blocks and norm at {places}; {_CURE}") from None
    expected = getattr(model.config, part.layers)
    if found != expected:
        raise ModelError(f"{label}: {found} blocks at {part.blocks}, expected {expected} ({part.layers}); {_CURE}")
    reader = Reader(model, family, component, range(found + 1))
    ids = torch.tensor([[0, 1]])
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        states = forward(model, component, Batch(ids, mask, ids, mask), hidden_states=True).hidden_states
        kept = reader(Batch(ids, mask, ids, mask))
    reader.remove()
    for layer, state in enumerate(states):
        if layer not in kept or not torch.allclose(kept[layer], state, rtol=0, atol=0, equal_nan=True):
            raise ModelError(f"{label}: layer {layer} read at {part.blocks} is not hidden_states[{layer}]; {_CURE}")
