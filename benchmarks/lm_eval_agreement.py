"""Last-word perplexity and accuracy, ours against lm-evaluation-harness 0.4.13, on the same texts and the same model.

The harness runs its own task definition (its `lambada_openai.yaml`, with the data set replaced by a local file), its
own tokenisation, batching and metrics. The model is a small GPT-NeoX with Pythia's vocabulary, trained for a few steps
on the first texts so that it predicts some last words. The harness is no dependency of the package; in an environment
of its own:

    python -m venv agree && . agree/bin/activate
    pip install torch==2.13.0 && pip install lm_eval==0.4.13 . && pip install accelerate
    python benchmarks/lm_eval_agreement.py --texts lambada_test.jsonl --tokenizer 20B_tokenizer.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
import time
from pathlib import Path

import torch
import yaml
from machine import describe_machine
from tokenizers import Tokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from pythia_dynamics.evaluation.corpus import Corpus, load_corpus
from pythia_dynamics.evaluation.runner import perplexity

END = "<|endoftext|>"


def train(texts: tuple[str, ...], tokenizer: Tokenizer, steps: int) -> GPTNeoXForCausalLM:
    """A small model that has memorised some of the texts."""
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=50304,
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    encoded = [torch.tensor([tokenizer.encode(text).ids]) for text in texts]
    for step in range(steps):
        ids = encoded[step % len(encoded)]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained {steps} steps, last loss {float(loss):.2f}")
    return model.eval()


def harness(checkpoint: Path, texts: tuple[str, ...], directory: Path, batch: int) -> dict[str, float]:
    """Perplexity and accuracy by lm-evaluation-harness."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    data = directory / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    original = Path(lm_eval.__file__).parent / "tasks" / "lambada" / "lambada_openai.yaml"
    task = yaml.safe_load(original.read_text())
    task |= {"task": "lambada_here", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    del task["dataset_name"], task["tag"]
    (directory / "tasks").mkdir()
    (directory / "tasks" / "lambada_here.yaml").write_text(yaml.safe_dump(task))
    model = HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=batch)
    manager = TaskManager(include_path=str(directory / "tasks"), include_defaults=False)
    results = lm_eval.simple_evaluate(model=model, tasks=["lambada_here"], task_manager=manager, bootstrap_iters=0)
    found = results["results"]["lambada_here"]
    return {"ppl": found["perplexity,none"], "accuracy": found["acc,none"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True, help="LAMBADA test passages, .jsonl with `text`")
    parser.add_argument("--tokenizer", type=Path, required=True, help="Pythia's tokenizer, 20B_tokenizer.json")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--train-steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "lm_eval_agreement.json")
    options = parser.parse_args()
    texts = (*load_corpus(options.texts, limit=options.limit).texts, "Word", "two  spaces", "a trailing space ")
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "suite" / "step1"
        model = train(texts[:40], tokenizer, options.train_steps)
        model.save_pretrained(checkpoint)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)
        fast.save_pretrained(checkpoint)
        start = time.perf_counter()
        ours = perplexity(checkpoint.parent, "last-word", corpus=Corpus("texts", texts), limit=None, device="cpu")
        seconds = {"ours": time.perf_counter() - start}
        start = time.perf_counter()
        theirs = harness(checkpoint, texts, Path(scratch), batch=8)
        seconds["harness"] = time.perf_counter() - start
    mine = {name: float(ours[name][0]) for name in ("ppl", "accuracy")}
    result = {
        "machine": describe_machine(),
        "texts": len(texts),
        "ours": mine,
        "harness": theirs,
        "relative_difference_ppl": mine["ppl"] / theirs["ppl"] - 1,
        "difference_accuracy": mine["accuracy"] - theirs["accuracy"],
        "seconds": seconds,
        "versions": {name: importlib.metadata.version(name) for name in ("lm_eval", "torch", "transformers")},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if abs(result["relative_difference_ppl"]) > 1e-4 or abs(result["difference_accuracy"]) > 1e-4:
        raise SystemExit("ours and the harness differ in the first four digits")


if __name__ == "__main__":
    main()
