"""Scores on data sets of the Hub lie where the Hub reads them, and are uploaded with the release."""

import yaml
from huggingface_hub import parse_eval_result_entries

from hf_jepa.hub import push_release, save_release
from tests.hub.test_card import evaluation
from tests.hub.test_push import FakeApi
from tests.hub.test_sources import ijepa


def release(tmp_path, evaluations):
    results = {
        "licence": "mit",
        "model": {"name": "x"},
        "data": {"name": "someone/pictures", "revision": "abc"},
        "environment": {"date": "2026-01-02"},
        "evaluations": evaluations,
    }
    return save_release(ijepa(), tmp_path / "release", results=results)


def test_entries_are_written_for_data_sets_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    seeds = [evaluation(0.5), evaluation(0.7, seed=1)]
    others = [
        evaluation(0.9, dataset="eval_dataset"),
        evaluation(0.9, dataset="own/pictures"),
        evaluation(None, task="z"),
    ]
    folder = release(tmp_path, seeds + others)
    files = list((folder / ".eval_results").iterdir())
    assert [file.name for file in files] == ["someone--pictures.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[0].read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("someone/pictures", "knn_accuracy", 0.6)
    assert (entry.dataset_revision, entry.date) == ("abc", "2026-01-02")
    assert entry.notes == "accuracy on test; mean; mean of 2 seeds"
    # A release without scores over it takes them away.
    assert not (release(tmp_path, []) / ".eval_results").exists()


def test_they_are_uploaded_and_other_hidden_files_are_not(tmp_path):
    folder = release(tmp_path, [evaluation(0.5)])
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("mine")
    api = FakeApi()
    push_release(folder, "me/x", api=api)
    patterns = api.uploads[0]["ignore_patterns"]
    assert ".cache/*" in patterns
    assert not any("eval_results" in pattern or pattern == ".*" for pattern in patterns)
