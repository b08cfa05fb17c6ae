"""Tiny LLM-JEPA runs, of one process or one of two; see `test_llm_jepa_ddp.py`."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from hf_jepa import LLMJepaForCausalLM, LLMJepaTrainer, LLMJepaTrainingArguments
from tests.tiny_models import tiny_llama
from trainers.worlds import nl_regex

# fields of the model's configuration, share without pairs, examples per step, micro-batches of two processes
CASES = {
    # Most micro-batches of two hold no or one pair.
    "jepa": ({"num_predictor_tokens": 1}, 0.6, 8, 2),
    "stp": ({"objective": "stp", "num_predictor_tokens": 0, "jepa_lambda": 0.5}, 0.6, 8, 2),
    # What compares pairs with each other does so across processes, one micro-batch at a time; here processes hold
    # unequally many.
    "infonce": ({"num_predictor_tokens": 1, "distance": "infonce"}, 0.3, 8, 1),
    "sigreg": ({"num_predictor_tokens": 1, "regularizer": "sigreg", "num_slices": 16}, 0.3, 8, 1),
    "vicreg": ({"num_predictor_tokens": 0, "regularizer": "vicreg", "target": "stop_gradient"}, 0.3, 8, 1),
}


def run(output: Path, case: str) -> None:
    fields, jepa_dropout, examples, accumulation = CASES[case]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = accumulation if processes > 1 else 1
    rows = nl_regex.make_splits((20,), seed=1)[0]
    tokenizer = nl_regex.build_tokenizer()
    torch.manual_seed(0)
    model = LLMJepaForCausalLM.from_decoder(tiny_llama(tokenizer), **fields)
    args = LLMJepaTrainingArguments(
        output_dir=str(output),
        max_steps=3,
        per_device_train_batch_size=examples // processes // accumulation,
        gradient_accumulation_steps=accumulation,
        # Five rows: in the last of two rounds, one of two processes has none.
        per_device_eval_batch_size=4 // processes,
        learning_rate=0.05,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        jepa_dropout=jepa_dropout,
        logging_steps=1,
        generate_examples=5,
        generate_max_new_tokens=4,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = LLMJepaTrainer(model, args, rows, rows[:5], tokenizer)
    trainer.train()
    trainer.evaluate()
    if args.process_index == 0:
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, output / f"{case}.safetensors")
        (output / f"{case}.json").write_text(json.dumps(trainer.state.log_history))


def run_all(output: Path) -> None:
    for name in CASES:
        run(output, name)
