"""Answers by generation and their scores; diagnostics of paired embeddings."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from hf_jepa.cli import main
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
from tests.tiny_models import tiny_llama
from trainers.worlds import nl_regex

ROWS = nl_regex.make_splits((7,), seed=2)[0]


@pytest.fixture(scope="module")
def model_and_tokenizer():
    tokenizer = nl_regex.build_tokenizer()
    torch.manual_seed(1)
    model = tiny_llama(tokenizer, hidden_size=32, intermediate_size=48, num_hidden_layers=2, initializer_range=0.5)
    return model.eval(), tokenizer


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
    with pytest.raises(ValueError, match="end with a user's, which the model"):
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model_and_tokenizer) -> Path:
    """A model's folder, beside a data set of which it answers all rows but the first right."""
    model, tokenizer = model_and_tokenizer
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    questions = [[{"role": "user", "content": row["text"]}] for row in ROWS]
    answers = generate_responses(model, tokenizer, questions, max_new_tokens=6)
    assert all(answers)
    rows = [{"text": row["text"], "code": answer} for row, answer in zip(ROWS, answers, strict=True)]
    rows[0]["code"] += "?"
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("adapted", [False, True])
def test_the_command_scores_a_saved_model(saved, tmp_path, capsys, adapted):
    name = saved / "model"
    if adapted:
        from peft import LoraConfig, get_peft_model

        base = LlamaForCausalLM.from_pretrained(name)
        get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
        shutil.copytree(
            name, tmp_path / "adapter", ignore=shutil.ignore_patterns("*model*", "config*"), dirs_exist_ok=True
        )
        name = tmp_path / "adapter"
    command = ["evaluate", str(name), "--dataset", str(saved), "--task", "exact-match", "--max-new-tokens", "6"]
    output = tmp_path / "out.json"
    assert main([*command, "--device", "cpu", "--output", str(output)]) == 0
    assert "exact-match: 0.8571 (7 answers)" in capsys.readouterr().out
    results = json.loads(output.read_text())
    assert [answer["correct"] for answer in results["answers"]] == [False] + [True] * 6
    assert results["evaluations"][0]["value"] == 6 / 7
    assert main([*command, "--max-test", "4", "--no-thinking"]) == 0
    assert "(4 answers)" in capsys.readouterr().out
    rows = [json.loads(line) for line in (saved / "test.jsonl").read_text().splitlines()]
    with open(tmp_path / "chats.jsonl", "w") as file:
        for row in rows:
            turns = zip(("user", "assistant"), (row["text"], row["code"]), strict=True)
            file.write(json.dumps({"chat": [{"role": role, "content": said} for role, said in turns]}) + "\n")
    chats = ["--dataset", str(tmp_path / "chats.jsonl"), "--messages-column", "chat"]
    assert main([*command, *chats, "--device", "cpu"]) == 0
    assert "exact-match: 0.8571 (7 answers)" in capsys.readouterr().out
    assert main([*command, "--code-column", "regex"]) == 1
    assert "needs 'messages', or 'text' and 'regex'" in capsys.readouterr().err
    assert main([*command, "--test-split", "validation"]) == 1
    assert "has no split 'validation', only 'test' (7 rows)" in capsys.readouterr().err


def test_the_command_runs_queries(saved, tmp_path, capsys, monkeypatch):
    for name, age in (("pets", 3), ("farm", 4)):
        (tmp_path / "dbs" / name).mkdir(parents=True)
        with sqlite3.connect(tmp_path / "dbs" / name / f"{name}.sqlite") as connection:
            connection.execute("create table animals (age int)")
            connection.execute("insert into animals values (?)", (age,))
    rows = [
        {"text": "For db_id:[pets] how old?", "code": "select 3"},
        {"text": "For db_id:[farm] how old?", "code": "select 3"},
        {"text": "how old?", "code": "select 4", "db_id": "farm"},
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = "select age from animals"
    monkeypatch.setattr("hf_jepa.evaluation.language.generate_responses", lambda *args, **kwargs: [answer] * 3)
    command = [
        "evaluate",
        str(saved / "model"),
        "--dataset",
        str(tmp_path),
        "--task",
        "sqlite-match",
        "--device",
        "cpu",
    ]
    assert main([*command, "--database", str(tmp_path / "dbs")]) == 0
    assert "sqlite-match: 0.6667 (3 answers)" in capsys.readouterr().out
    assert main([*command, "--database", str(tmp_path / "dbs" / "farm" / "farm.sqlite")]) == 0
    assert "sqlite-match: 0.3333 (3 answers)" in capsys.readouterr().out
    assert main(command) == 1
    assert "need each other" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "dbs" / "farm")
    assert main([*command, "--database", str(tmp_path / "dbs")]) == 1
    assert "There is no database" in capsys.readouterr().err
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "how old?", "code": "select 4"}) + "\n")
    assert main([*command, "--database", str(tmp_path / "dbs")]) == 1
    assert "says which database 'how old?'" in capsys.readouterr().err
