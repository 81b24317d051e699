"""The model of "A Large Language Model Order Parameter": the GPT of Karpathy's lecture, as a model of transformers.

No architecture of transformers computes it: attention is scaled by 1/√d_model where others use 1/√(d_model/heads), the
queries, keys and values have no bias, and the untied head has one. The tensors are named as in GPT-2 where they are the
same. Importing this module registers the architecture, so that ``AutoConfig`` and ``AutoModelForCausalLM`` load its
checkpoints; without it they do not know the ``model_type`` nanogpt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.gpt_neox.modeling_gpt_neox import eager_attention_forward
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

__all__ = ["NanoGPTConfig", "NanoGPTForCausalLM", "NanoGPTModel", "NanoGPTPreTrainedModel"]


class NanoGPTConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """The sizes of a model. The inner width of an MLP is four times `hidden_size`.

    Parameters
    ----------
    vocab_size
        Number of tokens.
    hidden_size, num_hidden_layers, num_attention_heads
        d_model, number of blocks, attention heads of a block.
    max_position_embeddings
        Number of learned positions, which is the longest sequence.
    dropout
        Dropout of the attention matrix, of the output of attention and of that of the MLP. There is none after the
        embedding.
    initializer_range
        Standard deviation of the normal initialisation of transformers.
    **kwargs
        As for every config of transformers.
    """

    model_type = "nanogpt"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (transformers declares it so)

    vocab_size: int = 65
    hidden_size: int = 32
    num_hidden_layers: int = 1
    num_attention_heads: int = 2
    max_position_embeddings: int = 256
    dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None


def _has_kernels(values: torch.Tensor, dropout: float) -> bool:
    """Whether the kernels for training on a CPU compute with these values."""
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64) and dropout < 1


class _Dropout(nn.Dropout):
    """Dropout whose mask is computed and not stored, where values are on a CPU."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.p > 0 and _has_kernels(values, self.p)):
            return super().forward(values)
        from pythia_dynamics.evaluation import attention  # only training needs Numba

        return attention.dropout(values, self.p)


class _Attention(nn.Module):
    """Causal attention whose scores are divided by √d_model, whatever the number of heads."""

    def __init__(self, config: NanoGPTConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.config, self.layer_idx, self.is_causal = config, layer, True
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.scaling = width**-0.5
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, length, width = states.shape
        dropout = self.dropout if self.training else 0.0
        joined = self.query_key_value(states)
        plainly_causal = mask is None and cache is None and self.config._attn_implementation == "sdpa"
        if self.training and plainly_causal and _has_kernels(joined, dropout):
            from pythia_dynamics.evaluation import attention  # only training needs Numba

            return self.projection(attention.causal_attention(joined, self.heads, self.scaling, dropout)), None
        parts = joined.chunk(3, dim=-1)
        query, key, value = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, weights = attend(self, query, key, value, mask, scaling=self.scaling, dropout=dropout, **kwargs)
        return self.projection(mixed.reshape(batch, length, width)), weights


class _Block(nn.Module):
    """Attention, then an MLP with ReLU, each after a LayerNorm and added to the stream."""

    def __init__(self, config: NanoGPTConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(config, layer)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = _Dropout(config.dropout)

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None, **kwargs: Any
    ) -> torch.Tensor:
        mixed, _ = self.attn(self.ln_1(states), mask, cache, **kwargs)
        states = states + self.dropout(mixed)
        added: torch.Tensor = self.dropout(self.down(torch.relu(self.up(self.ln_2(states)))))
        return states + added


class NanoGPTPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """What both models share: the kinds of attention, and where transformers finds the attention matrices."""

    config: NanoGPTConfig
    config_class = NanoGPTConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["_Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": _Block, "attentions": _Attention}  # noqa: RUF012


class NanoGPTModel(NanoGPTPreTrainedModel):
    """The model without its head.

    Parameters
    ----------
    config
        Its sizes.
    """

    def __init__(self, config: NanoGPTConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList([_Block(config, layer) for layer in range(config.num_hidden_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, value: Any) -> None:
        self.wte = value

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """The last hidden states, shape (batch, length, d_model); parameters as for every model of transformers.

        A position past `max_position_embeddings` has no embedding and raises `IndexError`.
        """
        states = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(states.shape[1], device=states.device) + past)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        states = states + self.wpe(position_ids)
        for block in self.h:
            states = block(states, mask, past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(states), past_key_values=past_key_values)


class NanoGPTForCausalLM(NanoGPTPreTrainedModel, GenerationMixin):
    """The model with its head, which has a bias and a weight of its own.

    Parameters
    ----------
    config
        Its sizes.
    """

    def __init__(self, config: NanoGPTConfig) -> None:
        super().__init__(config)
        self.transformer = NanoGPTModel(config)
        self.lm_head: nn.Linear = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.lm_head = new_embeddings

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, shape (batch, length, vocab), and the mean loss where there are labels.

        Parameters
        ----------
        input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, logits_to_keep
            As for every model of transformers.
        labels
            Tokens of the same positions; each position predicts the label of the next one, the last one nothing.
        shift_labels
            In place of `labels`: the token that each position predicts, the last one too, as the blog trains.
        **kwargs
            For the attention and the loss function.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None or shift_labels is not None:
            targets = None if shift_labels is None else shift_labels.contiguous()
            vocab = self.config.vocab_size
            loss = self.loss_function(logits, labels, vocab_size=vocab, shift_labels=targets, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


AutoConfig.register(NanoGPTConfig.model_type, NanoGPTConfig, exist_ok=True)
AutoModelForCausalLM.register(NanoGPTConfig, NanoGPTForCausalLM, exist_ok=True)
