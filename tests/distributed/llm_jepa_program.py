"""One process of a tiny LLM-JEPA run; `test_llm_jepa_ddp.py` starts it alone or as one of two."""

import json
import runpy
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from hf_jepa import LLMJepaForCausalLM, LLMJepaTrainer, LLMJepaTrainingArguments

WORLD = runpy.run_path(str(Path(__file__).parents[2] / "trainers" / "nl_regex.py"))


def main(output: Path, batch_size: int, accumulation: int) -> None:
    rows = WORLD["make_splits"]((20,), seed=1)[0]
    tokenizer = WORLD["build_tokenizer"]()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LLMJepaForCausalLM.from_decoder(LlamaForCausalLM(config), num_predictor_tokens=1)
    args = LLMJepaTrainingArguments(
        output_dir=str(output),
        max_steps=3,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=2,
        learning_rate=0.05,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        # Most micro-batches of two then hold no or one pair.
        jepa_dropout=0.6,
        logging_steps=1,
        generate_examples=5,
        generate_max_new_tokens=4,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = LLMJepaTrainer(model, args, rows, rows[:7], tokenizer)
    trainer.train()
    trainer.evaluate()
    if args.process_index == 0:
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, output / "weights.safetensors")
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
