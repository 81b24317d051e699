"""Text sampled from a checkpoint of a suite."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pythia_dynamics.checkpoints.registry import branch
from pythia_dynamics.evaluation import nanogpt  # noqa: F401  (registers the architecture)
from pythia_dynamics.training.suite import Suite
from pythia_dynamics.training.transformers_log import silence_transformers

__all__ = ["sample_text"]


def sample_text(suite: Suite, step: int, *, prompt: str = "\n", samples: int = 4, seed: int = 0) -> str:
    """Sample text from a checkpoint, on the CPU, at temperature 1, each sample as long as the context.

    Parameters
    ----------
    suite
        The suite.
    step
        The step of the checkpoint.
    prompt
        The text to continue; it is not part of a sample.
    samples
        The number of samples.
    seed
        Seed of the sampling; the same seed gives the same text.

    Returns
    -------
    str
        The samples, with a line of dashes between them.
    """
    directory = suite.path / branch(step)
    with silence_transformers():
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
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
