"""What a run and its checkpoints tell the card."""

import json

import pytest
from huggingface_hub import ModelCard

from hf_jepa import IJepaForPreTraining
from hf_jepa.cli import main
from hf_jepa.hub import save_release
from hf_jepa.training.results import checkpoint_results


def test_an_exported_checkpoint_says_what_its_run_knew(make_trainer, tmp_path, capsys):
    trainer = make_trainer(
        max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, logging_steps=1
    )
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-4"
    assert main(["export", str(checkpoint), str(tmp_path / "exported"), "--license", "mit"]) == 0
    results = json.loads((tmp_path / "exported" / "results.json").read_text())
    history = trainer.state.log_history
    last = next(entry for entry in reversed(history) if "eval_knn_accuracy" in entry)
    assert results["training"]["steps"] == 4
    assert results["training"]["batch_size"] == trainer.global_batch_size
    rates = sorted(entry["images_per_second"] for entry in history if "images_per_second" in entry)
    assert results["training"]["images_per_second"] in rates
    assert results["data"]["num_examples"] == len(trainer.train_dataset)
    scores = {entry["task"]: entry["value"] for entry in results["evaluations"]}
    assert scores == {"knn": last["eval_knn_accuracy"], "ridge": last["eval_ridge_accuracy"]}
    # The context encoder was not scored.
    assert main(["export", str(checkpoint), str(tmp_path / "other"), "--license", "mit", "--which", "context"]) == 0
    assert "evaluations" not in json.loads((tmp_path / "other" / "results.json").read_text())


@pytest.mark.parametrize(
    ("logged", "expected"),
    [
        ({"eval_knn_accuracy": 0.5, "step": 4}, [("knn", "eval_dataset", "accuracy", 0.5)]),
        ({"eval_night_ridge_accuracy": 0.5, "step": 4}, [("ridge", "night", "accuracy", 0.5)]),
        ({"eval_my_set_exact_match": 0.25, "step": 4}, [("generation", "my_set", "exact match", 0.25)]),
        ({"eval_reverse_retrieval_at_5": 1.0, "step": 4},
         [("retrieval of predictions by text", "eval_dataset", "recall@5", 1.0)]),
        ({"eval_x_reverse_retrieval_at_5": 1.0, "step": 4},
         [("retrieval of predictions by text", "x", "recall@5", 1.0)]),
        ({"eval_knn_accuracy": 0.5, "step": 2}, []),
        ({"eval_runtime": 0.5, "step": 4}, []),
    ],
)  # fmt: skip
def test_only_scores_of_these_weights_count(logged, expected, tmp_path):
    state = {"global_step": 4, "log_history": [logged, {"images_per_second": 3.0}, {"images_per_second": 5.0}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    results = checkpoint_results(tmp_path)
    found = [(entry["task"], entry["dataset"], entry["metric"], entry["value"]) for entry in results["evaluations"]]
    assert found == expected
    assert results["training"] == {"steps": 4, "images_per_second": 5.0}
    assert checkpoint_results(tmp_path / "absent") == {}


def test_a_bare_trainer_carries_the_licence_of_its_source(make_trainer, tiny_model, tmp_path):
    results = {"licence": "cc-by-nc-4.0", "model": {"name": "x", "repo_id": "me/first"}}
    first = save_release(tiny_model(), tmp_path / "first", results=results)
    options = {"predictor_hidden_size": 12, "predictor_num_hidden_layers": 1}
    trainer = make_trainer(model=IJepaForPreTraining.from_encoder(str(first), **options), max_steps=1)
    trainer.train()
    data = ModelCard((trainer.write_release() / "README.md").read_text()).data.to_dict()
    assert (data["license"], data["base_model"], data["base_model_relation"]) == (
        "cc-by-nc-4.0", "me/first", "finetune",
    )  # fmt: skip


def test_the_cards_example_is_of_the_users_data(make_llm_trainer):
    trainer = make_llm_trainer(max_steps=1)
    trainer.train()
    question = trainer.train_dataset.rows[0]["text"]
    code = (trainer.write_release() / "README.md").read_text()
    assert f"messages = {json.dumps([{'role': 'user', 'content': question}], ensure_ascii=False)}" in code
