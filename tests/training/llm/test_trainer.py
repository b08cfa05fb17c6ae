"""The trainer of LLM-JEPA: what a step minimises for every split of its batch, logs, adapters, releases, faults."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_jepa import LLMJepaTrainer
from hf_jepa.cli import main
from hf_jepa.data import OfficialPairCollator, PairFormat
from tests.processes import run_script
from trainers.worlds import nl_regex

ROWS = nl_regex.make_splits((24,), seed=1)[0]


@pytest.fixture
def make_trainer(make_llm_trainer) -> Callable[..., LLMJepaTrainer]:
    return make_llm_trainer


def weights(trainer: LLMJepaTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize(
    "model",
    [
        {"num_predictor_tokens": 2},
        {"objective": "stp", "num_predictor_tokens": 0, "jepa_lambda": 0.5},
    ],
    ids=["jepa", "stp"],
)
def test_a_step_is_the_same_for_every_accumulation(make_trainer, model):
    found = []
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = make_trainer(
            model,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            jepa_dropout=0.5,
            max_row_tokens=100 if accumulation == 1 else None,
        )
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        found.append((weights(trainer), [[entry[key] for key in ("loss", "lm_loss", "jepa_loss")] for entry in logs]))
    assert difference(found[0][0], found[1][0]) < 1e-6
    torch.testing.assert_close(torch.tensor(found[0][1]), torch.tensor(found[1][1]), rtol=1e-5, atol=1e-6)
    # The terms are those of the loss.
    weight = trainer.model.config.jepa_lambda
    for loss, lm_loss, jepa_loss in found[0][1]:
        assert loss == pytest.approx(lm_loss + weight * jepa_loss, rel=1e-5)


def test_a_lambda_of_zero_is_plain_fine_tuning(make_trainer):
    # Every batch is all of the data, so that no order has to be known.
    trainer = make_trainer({"jepa_lambda": 0.0}, max_steps=1, per_device_train_batch_size=len(ROWS))
    plain, losses, count = trainer.model.export_decoder(), 0.0, 0
    for index in range(len(ROWS)):
        row = trainer.train_dataset[index]
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        number = int((labels[:, 1:] != -100).sum())
        losses, count = losses + plain(input_ids=ids, labels=labels).loss * number, count + number
    (losses / count).backward()
    trainer.train()
    for name, weight in plain.named_parameters():
        found = trainer.model.causal_lm.get_parameter(name)
        torch.testing.assert_close(found, weight - 0.05 * weight.grad, rtol=1e-5, atol=1e-6)
    logs = trainer.state.log_history[0]
    assert logs["loss"] == pytest.approx((losses / count).item(), rel=1e-5)
    assert not {"cos_paired", "margin"} & set(logs)


def test_the_weight_of_the_jepa_term_grows(make_trainer):
    trainer = make_trainer({"jepa_lambda": 3.0}, max_steps=4, lambda_warmup_steps=2)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = [(entry["loss"] - entry["lm_loss"]) / entry["jepa_loss"] for entry in logs]
    assert weights == pytest.approx([1.0, 2.0, 3.0, 3.0], rel=1e-3)


def test_an_ema_target_follows_and_is_not_published(make_trainer):
    trainer = make_trainer({"target": "ema"}, max_steps=1, ema_momentum=0.75, ema_momentum_end=0.75)
    before = trainer.model.target_encoder.layers[0].mlp.up_proj.weight.clone()
    trainer.train()
    moved = trainer.model.encoder.layers[0].mlp.up_proj.weight
    assert not torch.equal(moved, before)
    found = trainer.model.target_encoder.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(found, 0.75 * before + 0.25 * moved)
    names = set(load_file(trainer.write_release() / "model.safetensors"))
    assert names
    assert not any("target" in name for name in names)


def test_the_official_regime_grows_with_accumulation(make_trainer):
    # The released trainer adds up micro-batch means: a linear step is as many times longer.
    start = weights(make_trainer({"jepa_lambda": 1.0}))
    moved = []
    for accumulation in (1, 2):
        trainer = make_trainer(
            {"jepa_lambda": 1.0},
            {"train_dataset": [ROWS[0]] * 8, "pair_format": PairFormat.official()},
            max_steps=1,
            regime="official",
            learning_rate=1e-3,
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        moved.append(weights(trainer)["decoder.model.norm.weight"] - start["decoder.model.norm.weight"])
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-3, atol=1e-7)


def test_official_rows_train(make_trainer):
    tokenizer = nl_regex.build_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|predictor_1|>"]}, replace_extra_special_tokens=False
    )
    collator = OfficialPairCollator(tokenizer, ("<|predictor_1|>",), PairFormat.official(max_length=64))
    trainer = make_trainer(
        {"predictor_mode": "vocab"}, {"data_collator": collator, "eval_dataset": None}, regime="official"
    )
    trainer.train()
    assert {"lm_loss", "jepa_loss", "margin"} <= set(trainer.state.log_history[0])
    with pytest.raises(ValueError, match="has no token <|unheard_of|>"):
        OfficialPairCollator(tokenizer, ("<|unheard_of|>",))


def test_logs_and_evaluation(make_trainer):
    trainer = make_trainer(generate_examples=3, generate_max_new_tokens=4, per_device_eval_batch_size=2)
    trainer.train()
    expected = {"loss", "lm_loss", "jepa_loss", "cos_paired", "cos_unpaired", "margin", "retrieval_at_1"}
    expected |= {"rankme_text", "rankme_code", "displacement_rank", "tokens_per_second", "grad_norm"}
    assert expected <= set(trainer.state.log_history[0])
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_lm_loss"] + metrics["eval_jepa_loss"])
    assert 0 <= metrics["eval_exact_match"] <= metrics["eval_startswith"] <= 1
    # The next-token loss is the plain model's, answer tokens averaged over all rows.
    plain, losses, count = trainer.model.export_decoder(), 0.0, 0
    for index in range(5):
        row = trainer.eval_dataset[index]
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        number = int((labels[:, 1:] != -100).sum())
        losses, count = losses + plain(input_ids=ids, labels=labels).loss.item() * number, count + number
    assert metrics["eval_lm_loss"] == pytest.approx(losses / count, rel=1e-5)


def test_chats_lie_in_a_column_of_any_name(make_trainer):
    """In training, losses, answers and the card's question."""
    found = []
    for column in ("messages", "talk"):
        rows = [
            {column: [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["code"]}]}
            for row in ROWS
        ]
        datasets = {"train_dataset": rows, "eval_dataset": rows[:5]}
        trainer = make_trainer(
            trainer={**datasets, "pair_format": PairFormat(messages_column=column)},
            generate_examples=2,
            generate_max_new_tokens=2,
        )
        trainer.train()
        scores = {name: value for name, value in trainer.evaluate().items() if "runtime" not in name}
        found.append((scores, trainer.measured_results()["model"]["example"]))
    assert found[0] == found[1]


def test_evaluation_drops_no_pair(make_trainer):
    whole, dropping = make_trainer().evaluate(), make_trainer(jepa_dropout=0.9).evaluate()
    assert dropping["eval_jepa_loss"] == whole["eval_jepa_loss"]
    assert dropping["eval_loss"] == whole["eval_loss"]


def test_rows_whose_views_are_cut_off_are_evaluated_without_their_pair(make_trainer):
    trainer = make_trainer(per_device_eval_batch_size=1)
    sizes = [len(trainer.eval_dataset[index]["input_ids"]) for index in range(5)]
    whole = trainer.evaluate()
    longest = max(sizes)
    # The longest row keeps a part of its answer to learn, but no whole view of it.
    fmt = PairFormat(max_length=longest - 2)
    cut = make_trainer(trainer={"pair_format": fmt}, per_device_eval_batch_size=1)
    assert any(cut.eval_dataset[index]["code_ids"] is None for index in range(5))
    metrics = cut.evaluate()
    assert metrics["eval_jepa_loss"] != pytest.approx(whole["eval_jepa_loss"])
    kept = [index for index in range(5) if sizes[index] < longest]
    alone = make_trainer(trainer={"eval_dataset": [ROWS[index] for index in kept]}).evaluate()
    assert metrics["eval_jepa_loss"] == pytest.approx(alone["eval_jepa_loss"], rel=1e-5)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(make_trainer, tmp_path, adapter):
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None
    options = {"max_steps": 4, "jepa_dropout": 0.3, "optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2}
    options["trainer"] = {"peft_config": config}
    whole = make_trainer(**options)
    whole.train()
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert difference(weights(whole), weights(resumed)) == 0
    # Its logs go on, too.
    logs = [[entry for entry in each.state.log_history if "lm_loss" in entry] for each in (whole, resumed)]
    for entry, other in zip(*logs, strict=True):
        assert [other[name] for name in ("loss", "lm_loss", "jepa_loss")] == pytest.approx(
            [entry[name] for name in ("loss", "lm_loss", "jepa_loss")]
        )
    changed = make_trainer(**{**options, "jepa_dropout": 0.0})
    with pytest.raises(ValueError, match="jepa_dropout: 0.3 in the checkpoint, 0.0 now"):
        changed.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_alone_are_trained_and_peft_reloads_them(make_trainer, tmp_path, use_dora):
    from peft import LoraConfig, PeftModel

    base = make_trainer().model.export_decoder()
    base.save_pretrained(tmp_path / "base")
    options = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "use_dora": use_dora}
    adapter = LoraConfig(r=2, lora_alpha=4, **options)
    trainer = make_trainer(trainer={"peft_config": adapter})
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name or name == "predictor_tokens" for name in changed)
    folder = trainer.write_release()
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert names
    assert all("lora_" in name for name in names)
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder)
    ids = torch.tensor([[2, 7, 9, 11]])
    torch.testing.assert_close(reloaded(ids).logits, trainer.model.eval().decoder(ids).logits)
    if use_dora:
        return
    # Where the adapter knows its base, transformers loads both; merged, it is an ordinary model.
    adapted = shutil.copytree(folder, tmp_path / "adapter")
    config = json.loads((adapted / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (adapted / "adapter_config.json").write_text(json.dumps(config))
    shutil.rmtree(folder)
    merged = trainer.write_release(merge_adapter=True)
    assert not (merged / "adapter_config.json").exists()
    assert answers_of_a_stranger(adapted, merged) == [answer_of(trainer.model.causal_lm, folder)] * 2


STRANGER = """
import sys
sys.modules["hf_jepa"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    messages = [{"role": "user", "content": "lines with a vowel"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt.pop("token_type_ids", None)
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)[0, prompt["input_ids"].shape[1]:]
    print(*answer.tolist())
"""


def answer_of(model: torch.nn.Module, folder: Path) -> list[int]:
    messages = [{"role": "user", "content": "lines with a vowel"}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = prompt["input_ids"]
    return model.eval().generate(input_ids=ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :].tolist()


def answers_of_a_stranger(*folders: Path) -> list[list[int]]:
    run = run_script(STRANGER, *folders)
    assert run.returncode == 0, run.stderr[-2000:]
    return [[int(token) for token in line.split()] for line in run.stdout.splitlines()]


def test_a_release_generates_with_plain_transformers(make_trainer):
    trainer = make_trainer()
    trainer.train()
    folder = trainer.write_release()
    results = json.loads((folder / "results.json").read_text())
    assert results["training"]["steps"] == 2
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    assert "LLM-JEPA" in card
    assert answers_of_a_stranger(folder) == [answer_of(trainer.model.causal_lm, folder)]


@pytest.mark.parametrize("keep", [False, True])
def test_a_release_has_as_many_rows_as_its_tokenizer_has_tokens(make_trainer, keep):
    trainer = make_trainer({"predictor_mode": "vocab", "num_predictor_tokens": 2})
    sizes = len(nl_regex.build_tokenizer()), len(trainer.processing_class)
    assert sizes[1] == sizes[0] + 2
    folder = trainer.write_release(keep_predictor_tokens=keep)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer) == sizes[keep]
    assert ("<|predictor_2|>" in tokenizer.all_special_tokens) == keep
    known = trainer.processing_class(ROWS[0]["text"])["input_ids"]
    assert tokenizer(ROWS[0]["text"])["input_ids"] == known
    assert max(tokenizer("<|predictor_2|>")["input_ids"]) < len(tokenizer)


def test_the_command_exports_a_checkpoint(make_trainer, tmp_path, capsys):
    trainer = make_trainer({"predictor_mode": "vocab"}, save_strategy="steps", save_steps=2)
    trainer.train()
    checkpoint, release = tmp_path / "run" / "checkpoint-2", tmp_path / "exported"
    assert main(["export", str(checkpoint), str(release)]) == 1
    assert "pass --license" in capsys.readouterr().err
    assert main(["export", str(checkpoint), str(release), "--license", "mit"]) == 0
    assert "for plain transformers" in capsys.readouterr().out
    model, tokenizer = AutoModelForCausalLM.from_pretrained(release), AutoTokenizer.from_pretrained(release)
    assert model.config.vocab_size == len(tokenizer) == len(trainer.processing_class) - 1
    ids = torch.tensor([[2, 7, 9, 11]])
    expected = trainer.model.eval().causal_lm(ids).logits[..., :-1]
    torch.testing.assert_close(model(ids).logits, expected)
    assert "license: mit" in (release / "README.md").read_text()
    assert main(["export", str(checkpoint), str(release), "--license", "mit", "--keep-predictor-tokens"]) == 0
    assert AutoModelForCausalLM.from_pretrained(release).config.vocab_size == len(trainer.processing_class)


def test_adapters_that_leave_predictor_tokens_as_they_were_drawn(make_trainer, caplog):
    from peft import LoraConfig
    from transformers.utils import logging

    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    with caplog.at_level("WARNING"):
        logging.enable_propagation()
        make_trainer({"predictor_mode": "vocab"}, {"peft_config": adapter})
        logging.disable_propagation()
    assert any("predictor tokens' embeddings are not trained" in record.message for record in caplog.records)


def test_collapsed_pairs_are_warned_about_once(make_trainer, caplog):
    trainer = make_trainer(max_steps=12, collapse_margin=3.0)
    with caplog.at_level("WARNING"):
        from transformers.utils import logging

        logging.enable_propagation()
        trainer.train()
        logging.disable_propagation()
    assert sum("every Text predicts every Code alike" in record.message for record in caplog.records) == 1
    # The warning came at the end of a short run, and the card says so.
    assert "every Text predicts every Code alike" in trainer.measured_results()["limits"][0]


@pytest.mark.parametrize("logging_steps", [1, 10, 50])
def test_a_collapse_is_counted_in_updates_and_may_pass(make_trainer, monkeypatch, logging_steps):
    trainer = make_trainer(collapse_margin=0.02, logging_steps=logging_steps)
    warned = []
    monkeypatch.setattr("hf_jepa.training.llm.trainer.logger.warning", warned.append)
    guard, state, control = trainer.guard, trainer.state, trainer.control

    def log(step, margin):
        state.global_step = step
        guard.on_log(trainer.args, state, control, {"loss": 1.0, "margin": margin, "cos_paired": 1, "cos_unpaired": 1})

    guard.on_train_begin(trainer.args, state, control)
    for step in range(logging_steps, 101, logging_steps):
        assert not warned
        log(step, 0.0)
    assert len(warned) == 1
    log(100 + logging_steps, 0.5)
    guard.on_train_end(trainer.args, state, control)
    assert len(warned) == 1
    assert trainer.measured_results()["limits"] == []


@pytest.mark.parametrize(
    ("model", "trainer", "args", "message"),
    [
        ({}, {"processing_class": None}, {}, "needs the tokenizer"),
        ({}, {"train_dataset": []}, {}, "dataset of text pairs is empty"),
        ({}, {"train_dataset": ROWS[:3]}, {}, "fewer than the 8 samples"),
        ({}, {}, {"regime": "both"}, "choose 'clean' or 'official'"),
        ({}, {}, {"jepa_dropout": 1.5}, "jepa_dropout"),
        ({}, {}, {"tube_variant": "curved"}, "tube_variant"),
        ({}, {}, {"remove_unused_columns": True}, "remove_unused_columns"),
    ],
)
def test_faults_are_named(make_trainer, model, trainer, args, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(model, trainer, **args).train()


def test_answers_under_fsdp_are_refused(make_trainer, monkeypatch):
    # As if the stock trainer, which makes `control` at its end, had found FSDP configured.
    enabled = property(lambda self: "control" in vars(self), lambda self, value: None)
    monkeypatch.setattr(LLMJepaTrainer, "is_fsdp_enabled", enabled, raising=False)
    with pytest.raises(ValueError, match="generate_examples=0"):
        make_trainer(generate_examples=4)


def test_half_precision_weights_need_the_official_regime(make_trainer):
    trainer = make_trainer()
    half = trainer.model.bfloat16()
    with pytest.raises(ValueError, match="trained in torch.bfloat16"):
        LLMJepaTrainer(half, trainer.args, train_dataset=ROWS, processing_class=trainer.processing_class)
