"""Answers by generation and their scores; diagnostics of paired embeddings."""

import runpy
import sqlite3
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_jepa.cli import ANSWER_TASKS, main
from hf_jepa.evaluation import (
    SCORERS,
    displacement_spectrum,
    execution_match,
    generate_responses,
    linear_map_error,
    pair_report,
    score_responses,
    sqlite_match,
)

WORLD = runpy.run_path(str(Path(__file__).parents[2] / "trainers" / "nl_regex.py"))
ROWS = WORLD["make_splits"]((7,), seed=2)[0]


@pytest.fixture(scope="module")
def model_and_tokenizer():
    tokenizer = WORLD["build_tokenizer"]()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def test_batched_answers_equal_single_ones(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    # As chat models come: sampling, with a penalty. Neither may touch a greedy evaluation.
    model.generation_config.do_sample, model.generation_config.repetition_penalty = True, 1.8
    questions = [[{"role": "user", "content": row["text"]}] for row in ROWS]
    batched = generate_responses(model, tokenizer, questions, max_new_tokens=6, batch_size=4)
    assert len(set(batched)) > 1
    for question, answer in zip(questions, batched, strict=True):
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        for _ in range(6):
            token = model(ids).logits[:, -1].argmax(dim=-1)
            if token == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, token[None]], dim=1)
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        assert answer == tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()
    with pytest.raises(ValueError, match="end with a user's turn"):
        generate_responses(model, tokenizer, [[{"role": "assistant", "content": "a"}]])


@pytest.mark.parametrize(
    ("scorer", "prediction", "reference", "correct"),
    [
        ("exact-match", " (dog) ", "(dog)", True),
        ("exact-match", "(dog).", "(dog)", False),
        ("startswith", "(dog) and more", "(dog)", True),
        ("startswith", "anything", "", False),
        ("contains", "It was Paris.", "paris", True),
        # What the released scorers count as right.
        ("contains", "", "paris", False),
        ("contains", "par", "paris", False),
        ("final-answer", "so\n#### 1,024.0", "#### 1024", True),
        ("final-answer", "#### 3\nno:\n#### 4", "#### 3", False),
        ("final-answer", "4", "#### 4", False),
    ],
)
def test_scorers(scorer, prediction, reference, correct):
    assert SCORERS[scorer](prediction, reference) is correct


def test_shares_and_unknown_scorers():
    assert score_responses(["a", "b"], ["a", "c"]) == 0.5
    assert score_responses(["a"], ["b"], lambda prediction, reference: True) == 1.0
    with pytest.raises(ValueError, match="no scorer 'exact'"):
        score_responses(["a"], ["a"], "exact")
    with pytest.raises(ValueError, match="2 predictions for 1"):
        score_responses(["a", "b"], ["a"])
    assert set(ANSWER_TASKS) == set(SCORERS)


def test_queries_are_compared_by_what_they_return(tmp_path):
    file = tmp_path / "pets.db"
    with sqlite3.connect(file) as connection:
        connection.execute("create table pets (name text, age int)")
        connection.executemany("insert into pets values (?, ?)", [("a", 3), ("b", 1), ("c", 2)])
    score = sqlite_match(file, timeout=0.5)
    assert score("select name from pets order by age", "select name from pets")
    assert not score("select name from pets", "select name from pets order by age")
    # An empty right answer is not matched by a query that fails.
    nothing = "select name from pets where age > 9"
    assert score("select name from pets where age > 10", nothing)
    assert not score("select nonsense from pets", nothing)
    assert not score("", nothing)
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    assert not score(endless, nothing)
    assert not score("delete from pets", nothing)
    assert score("select count(*) from pets", "select 3")
    with pytest.raises(ValueError, match="reference .* cannot be executed"):
        score("select 1", "selec 1")
    with pytest.raises(ValueError, match="no database"):
        sqlite_match(tmp_path / "none.db")
    assert execution_match(lambda text: eval(text))("1 + 2", "3")


def test_pair_report_tells_pairing_from_collapse():
    text = torch.eye(6)
    report = pair_report(text, text, text)
    assert report["cos_paired"] == pytest.approx(1)
    assert report["cos_unpaired"] == pytest.approx(0, abs=1e-9)
    assert report["retrieval_at_1"] == 1
    assert report["rankme_text"] == pytest.approx(6, rel=1e-3)
    assert report["displacement_rank"] == 0
    ones = torch.ones(6, 6) + 1e-3 * torch.randn(6, 6)
    collapsed = pair_report(ones, ones.flip(0), ones)
    assert collapsed["cos_paired"] > 0.999
    assert collapsed["margin"] < 1e-3
    assert collapsed["retrieval_at_1"] < 1
    with pytest.raises(ValueError, match="n >= 2"):
        pair_report(text[:1], text[:1], text[:1])


def test_linear_map_and_spectrum():
    text = torch.randn(40, 5)
    code = text @ torch.randn(5, 5)
    assert linear_map_error(text, code) < 1e-5
    assert 0.5 < linear_map_error(text, torch.randn(40, 5)) <= 1
    spectrum = displacement_spectrum(text, text - torch.tensor([3.0, 0, 0, 0, 0]))
    assert spectrum[0] == pytest.approx(3 * 40**0.5)
    assert spectrum[1:].max() < 1e-4
    with pytest.raises(ValueError, match="more pairs"):
        linear_map_error(text[:5], code[:5])


def test_the_command_scores_a_saved_model(tmp_path, capsys, model_and_tokenizer):
    from datasets import Dataset

    model, tokenizer = model_and_tokenizer
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    Dataset.from_list(ROWS).to_json(str(tmp_path / "test.jsonl"))
    command = ["evaluate", str(tmp_path / "model"), "--dataset", str(tmp_path), "--task", "exact-match"]
    output = tmp_path / "out.json"
    flags = ["--max-new-tokens", "3", "--max-test", "4", "--device", "cpu", "--output", str(output)]
    assert main([*command, *flags]) == 0
    assert "exact-match: 0.0000 (4 answers)" in capsys.readouterr().out
    assert '"num_examples": 4' in output.read_text()
    assert main([*command, "--code-column", "regex"]) == 1
    assert "needs 'messages', or 'text' and 'regex'" in capsys.readouterr().err
    assert main([*command, "--test-split", "validation"]) == 1
    assert "no validation.jsonl" in capsys.readouterr().err
