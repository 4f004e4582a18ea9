"""MemGen's model: a frozen reasoner whose input embeddings are interleaved with latents that the weaver writes.

    model = MemGenModel(reasoner, settings, seed=0)                 # reasoner: any causal language model of transformers
    output = model(input_ids_BL, attention_mask_BL, plan_BL=plan)   # output.logits (B, L, V): of the token after each token
    model.memory_off()                                              # inside: the plain reasoner, bit for bit
    model(input_ids_BL, attention_mask_BL, plan_BL=plan, decides=True).logits    # (B, L): of inserting after each token

The reasoner's weights are there once. The weaver is a LoRA adapter on them (arclab.lm.switched), active in the weaver's
passes only; trainable are the adapter, the queries and the projections. With settings.fast the adapter works on the queries
alone, which look at the reasoner's own keys and values; else the weaver reads the whole context with its adapter. A weaver
may also be another model. Latents never enter input_ids; positions are counted with them. What is trained is the weaver, or
after train_trigger() the trigger alone (trigger_model.py).

The forward pass is batched: rounds of insertions, in each of which every row reads what is new to it, then one pass of the
reasoner over everything. `backbone` gives states without the vocabulary head, which is how trl's trainers call it.

Shapes: B rows, L tokens, T columns (tokens and latents), W columns of a chunk, N latents, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from arclab.lm.switched import LoraSettings, active, adapter_layers, adapter_parameters, add_adapter
from arclab.methods.memgen.insertions import INFERENCE, PROMPT
from arclab.methods.memgen.layout import Layout
from arclab.methods.memgen.trigger_model import START_LOGIT, TokenReader, TriggerModel, TriggerSettings
from arclab.methods.memgen.weaver import Weaver, WeaverContext, WeaverSizes

WEAVER, TRIGGER = "weaver", "trigger"


@dataclass(frozen=True, slots=True)
class MemGenSettings:
    """sizes: latents of an insertion. lora: of the weaver. fast: see the module. adapts_reasoner: no memory at all; the
    adapter is part of the reasoner in every pass, which is ordinary LoRA fine-tuning: the control."""

    sizes: WeaverSizes
    lora: LoraSettings
    fast: bool
    adapts_reasoner: bool = False


class MemoryBackbone(nn.Module):
    """Reasoner and weaver without the vocabulary head."""

    def __init__(
        self, reasoner: Any, settings: MemGenSettings, seed: int, weaver_model: Any | None, trigger: TriggerSettings | None
    ) -> None:
        super().__init__()
        self.reasoner = reasoner.requires_grad_(False)
        self.settings, self.is_off = settings, False
        self.other = weaver_model.requires_grad_(False) if weaver_model is not None else None
        add_adapter(self.written_by, WEAVER, settings.lora, seed)
        self.weaver = Weaver(
            settings.sizes, _width(reasoner), _width(self.written_by), embedding_rms=_rms(reasoner),
            query_rms=_rms(self.written_by), seed=seed, reads_reasoner=settings.fast,
        ).to(reasoner.device)  # fmt: skip
        self.weaver.requires_grad_(not settings.adapts_reasoner)
        self.trigger, self.is_trigger_untrained = None, False
        if trigger is not None:
            self.trigger = TriggerModel(trigger, _width(reasoner), seed).to(reasoner.device).requires_grad_(False)
            if trigger.lora is not None:
                add_adapter(reasoner, TRIGGER, trigger.lora, seed)
                _want_gradients(adapter_parameters(reasoner, TRIGGER), wanted=False)

    def train_trigger(self) -> None:
        """From now on the trigger alone is trained."""
        assert self.trigger is not None
        self.weaver.requires_grad_(False)
        _want_gradients(adapter_parameters(self.written_by, WEAVER), wanted=False)
        self.trigger.requires_grad_(True)
        _want_gradients(adapter_parameters(self.reasoner, TRIGGER), wanted=True)

    @property
    def written_by(self) -> Any:
        """The language model that carries the weaver's adapter."""
        return self.reasoner if self.other is None else self.other

    def train(self, mode: bool = True) -> MemoryBackbone:
        """The frozen models stay in eval mode; only the adapter's dropout is switched."""
        super().train(mode)
        for model in (self.reasoner, self.other):
            if model is not None:
                model.eval()
        for model in {id(model): model for model in (self.reasoner, self.written_by)}.values():
            for layer in adapter_layers(model):
                layer.lora_dropout.train(mode)
        return self

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, plan_BL: Tensor | None = None, **_: object
    ) -> BaseModelOutputWithPast:
        """States (B, L, D) from which the head predicts the token after each token. plan_BL: see insertions.py; None: no
        memory."""
        layout, hidden_BTD = self._reasoned(input_ids, attention_mask, plan_BL)
        if idle := self._idle(layout):
            hidden_BTD = hidden_BTD + 0 * torch.stack([parameter.sum() for parameter in idle]).sum()
        return BaseModelOutputWithPast(last_hidden_state=layout.aligned(hidden_BTD))  # pyright: ignore[reportArgumentType]

    def _reasoned(self, input_ids: Tensor, attention_mask: Tensor | None, plan_BL: Tensor | None) -> tuple[Layout, Tensor]:
        """Where everything stands, and the reasoner's states (B, T, D) there."""
        mask_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if plan_BL is None or self.is_off or self.settings.adapts_reasoner:
            plan_BL = torch.zeros_like(input_ids)
        layout = Layout(plan_BL, mask_BL, self.settings.sizes.of_kind)
        embeds_BTD = layout.scattered(self.embed(input_ids))
        if layout.events:
            embeds_BTD = self._written(layout, embeds_BTD)
        return layout, self.reason(embeds_BTD, layout.mask_BT, layout.position_BT, None)

    def insert_logits(self, input_ids: Tensor, attention_mask: Tensor | None, plan_BL: Tensor | None) -> Tensor:
        """(B, L): the trigger's logit of inserting after each token, if memory stood before it as in the plan. A gradient
        reaches the trigger alone."""
        assert self.trigger is not None, "this model has no trigger that is trained"
        if self.is_trigger_untrained:
            return torch.full(input_ids.shape, START_LOGIT, device=input_ids.device)
        if self.trigger.reads_tokens:
            mask_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            return self.trigger(self.read_tokens(input_ids, mask_BL, (mask_BL.cumsum(1) - 1).clamp(min=0), None))
        with torch.no_grad():
            layout, hidden_BTD = self._reasoned(input_ids, attention_mask, plan_BL)
            hidden_BLD = layout.own(hidden_BTD)
        return self.trigger(hidden_BLD)

    def read_tokens(self, ids_BW: Tensor, mask_BT: Tensor, position_BW: Tensor, cache: Any | None) -> Tensor:
        """States (B, W, D) of plain tokens, with the trigger's adapter."""
        with active(self.reasoner, TRIGGER):
            return _states(self.reasoner, self.embed(ids_BW), mask_BT, position_BW, cache)

    def new_reader(self, mask_BT: Tensor) -> TokenReader:
        return TokenReader(self.read_tokens, mask_BT)

    def _idle(self, layout: Layout) -> list[nn.Parameter]:
        """What trains and this batch does not use. It has to have a gradient of zero: ranks wait for each parameter's, and the
        loss of a batch without insertions would have none at all."""
        if not (self.training and torch.is_grad_enabled()) or self.settings.adapts_reasoner:
            return []
        if not layout.events:
            return [*adapter_parameters(self.written_by, WEAVER).values(), *self.weaver.parameters()]
        present = torch.stack([event.kind_B for event in layout.events]).unique().tolist()
        queries = {PROMPT: self.weaver.prompt_queries, INFERENCE: self.weaver.inference_queries}
        return [queries[kind] for kind in queries if kind not in present]

    def _written(self, layout: Layout, embeds_BTD: Tensor) -> Tensor:
        """The embeddings with all latents, each written from what stands before it."""
        context = self.new_context(layout.mask_BT[:, :0])
        for event in layout.events:
            columns_BWD = event.columns_BW[..., None].expand(-1, -1, embeds_BTD.shape[-1])
            position_BW = layout.position_BT.gather(1, event.columns_BW)
            context.read(embeds_BTD.gather(1, columns_BWD), event.chunk_mask_BW, position_BW)
            first_B = event.latent_columns_BN.masked_fill(~event.latent_mask_BN, embeds_BTD.shape[1]).amin(1)
            next_B = layout.position_BT.gather(1, first_B.clamp(max=embeds_BTD.shape[1] - 1)[:, None])[:, 0]
            latents_BND, _ = context.ask(event.kind_B, next_B)
            embeds_BTD = layout.inserted(embeds_BTD, event, latents_BND)
        return embeds_BTD

    def new_context(self, mask_BC: Tensor, cache: Any | None = None) -> WeaverContext:
        """An empty context of the weaver; with a cache of the reasoner, one that has read what is in it (settings.fast)."""
        read = self.reason if self.settings.fast else self._read
        return WeaverContext(self.weaver, read, self._ask, DynamicCache() if cache is None else cache, mask_BC)

    def embed(self, ids_BL: Tensor) -> Tensor:
        return self.reasoner.get_input_embeddings()(ids_BL)

    def reason(self, embeds_BWD: Tensor, mask_BT: Tensor, position_BW: Tensor, cache: Any | None) -> Tensor:
        """The reasoner's last states (B, W, D). mask_BT also covers what is in the cache."""
        with active(self.reasoner, WEAVER if self.settings.adapts_reasoner and not self.is_off else None):
            return _states(self.reasoner, embeds_BWD, mask_BT, position_BW, cache)

    def _read(self, embeds_BWD: Tensor, mask_BT: Tensor, position_BW: Tensor, cache: Any) -> Tensor:
        assert self.weaver.to_weaver is not None, "the fast weaver reads through the reasoner"
        return self._ask(self.weaver.to_weaver(embeds_BWD.to(self.weaver.gain.dtype)), mask_BT, position_BW, cache)

    def _ask(self, embeds_BWE: Tensor, mask_BT: Tensor, position_BW: Tensor, cache: Any) -> Tensor:
        model = self.written_by
        with active(model, WEAVER):
            return _states(model, embeds_BWE.to(model.dtype), mask_BT, position_BW, cache)


def _states(model: Any, embeds_BWD: Tensor, mask_BT: Tensor, position_BW: Tensor, cache: Any | None) -> Tensor:
    body = model.base_model
    taken = inspect.signature(body.forward).parameters
    given = {"cache" if "cache" in taken else "past_key_values": cache}  # transformers renamed it
    output = body(
        inputs_embeds=embeds_BWD, attention_mask=mask_BT, position_ids=position_BW, use_cache=cache is not None, **given
    )
    return output.last_hidden_state


def _want_gradients(parameters: Mapping[str, nn.Parameter], *, wanted: bool) -> None:
    for parameter in parameters.values():
        parameter.requires_grad_(wanted)


def _width(model: Any) -> int:
    return model.get_input_embeddings().weight.shape[1]


def _rms(model: Any) -> float:
    return float(model.get_input_embeddings().weight.float().square().mean().sqrt())


class MemGenModel(PreTrainedModel):
    """See the module. A model of transformers, so that trl's trainers take it as it is."""

    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(
        self, reasoner: Any, settings: MemGenSettings, *, seed: int, weaver_model: Any | None = None,
        trigger: TriggerSettings | None = None,
    ) -> None:  # fmt: skip
        _require_plain_head(reasoner)
        super().__init__(copy.deepcopy(reasoner.config))
        self.backbone = MemoryBackbone(reasoner, settings, seed, weaver_model, trigger)
        self.generation_config = copy.deepcopy(reasoner.generation_config)  # trl's trainers ask it for the end tokens
        self.eval()

    def get_input_embeddings(self) -> Any:
        return self.backbone.reasoner.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.backbone.reasoner.get_output_embeddings()

    @property
    def reasoner(self) -> Any:
        return self.backbone.reasoner

    @contextmanager
    def memory_off(self, is_off: bool = True) -> Iterator[None]:
        """Inside, plans are ignored and nothing is inserted, in the same code. is_off=False: nothing changes."""
        before, self.backbone.is_off = self.backbone.is_off, is_off or self.backbone.is_off
        try:
            yield
        finally:
            self.backbone.is_off = before

    @contextmanager
    def untrained_trigger(self) -> Iterator[None]:
        """Inside, the trigger decides as if it had never been trained: the reference of its own training."""
        self.backbone.is_trigger_untrained = True
        try:
            yield
        finally:
            self.backbone.is_trigger_untrained = False

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, plan_BL: Tensor | None = None, decides: bool = False,
        **_: object,
    ) -> CausalLMOutputWithPast:  # fmt: skip
        """logits (B, L, V) of the token after each token; with decides (B, L), of inserting memory after it."""
        if decides:  # here, so that what wraps the model for several ranks sees the pass
            logits_BL: Any = self.backbone.insert_logits(input_ids, attention_mask, plan_BL)
            return CausalLMOutputWithPast(logits=logits_BL)
        states = self.backbone(input_ids, attention_mask, plan_BL=plan_BL).last_hidden_state
        return CausalLMOutputWithPast(logits=self.get_output_embeddings()(states))


def _require_plain_head(reasoner: Any) -> None:
    """ValueError: a model that does more than its head to turn states into logits; trl's losses know other rules for those."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=reasoner.device)
    with torch.no_grad():
        output = reasoner(input_ids=ids, output_hidden_states=True, use_cache=False)
        own = reasoner.get_output_embeddings()(output.hidden_states[-1])
    if not torch.allclose(own.float(), output.logits.float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"the logits of {type(reasoner).__name__} are not its vocabulary head applied to its last states (it scales "
            "or caps them), which memory does not support; use another reasoner."
        )
