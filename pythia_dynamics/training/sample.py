"""Text that a model of a suite writes."""

from __future__ import annotations

import torch
from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

from pythia_dynamics.checkpoints.registry import branch
from pythia_dynamics.training.quiet import quiet
from pythia_dynamics.training.suite import Suite

__all__ = ["sample_text"]


def sample_text(suite: Suite, step: int, *, prompt: str = "\n", samples: int = 4, seed: int = 0) -> str:
    """What the model at a step writes after a prompt, each sample as long as its context, sampled at temperature 1.

    Samples are separated by a line of dashes. On the CPU; the same seed gives the same text.
    """
    directory = suite.path / branch(step)
    with quiet():
        model = GPTNeoXForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval()  # type: ignore[no-untyped-call]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].expand(samples, -1)
    longest = model.config.max_position_embeddings
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        written = model.generate(  # type: ignore[misc]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=longest - ids.shape[1],
            pad_token_id=0,
            use_cache=True,
        )
    texts = [tokenizer.decode(row[ids.shape[1] :]) for row in written]
    return "\n----------\n".join(texts) + "\n"
