"""What is scored was not learned: splits that share rows, classes that train lacks, labels that count differently."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from hf_jepa.data.labels import align_labels, hold_out, refuse_shared_rows, shared_rows
from hf_jepa.data.loading import open_images
from hf_jepa.data.train_and_test import SplitChoice, subset


def opener(name, split):
    return open_images(name, split, label_column="label")


def rows(numbers, labels, names=("a", "b", "c")) -> Dataset:
    pictures = [PILImage.fromarray(np.full((8, 8), number, np.uint8)) for number in numbers]
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"image": pictures, "label": list(labels)}, features=features)


@pytest.fixture
def lone(tmp_path):
    rows(range(30), [number % 3 for number in range(30)]).to_parquet(str(tmp_path / "lone.parquet"))
    return tmp_path / "lone.parquet"


def choose(**options):
    return SplitChoice(**options).rows(opener, "image", "label")


def test_parts_of_a_lone_file(lone):
    chosen = choose(dataset=lone, train_split="train[:80%]", test_split="train[80%:]")
    assert (len(chosen.train), len(chosen.test), chosen.split) == (24, 6, "train[80%:]")
    with pytest.raises(ValueError, match="no split 'test'"):
        choose(dataset=lone)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("train", "train", "'train' and 'train' .* share rows 0 to 29 of 'train'"),
        ("train[:80%]", "train[50%:]", "share rows 15 to 23 of 'train'"),
        ("train[:3]+train[20:]", "train[29:]", "share rows 29 to 29"),
        (None, "all", "share rows 0 to 29"),
    ],
)
def test_splits_that_share_rows_are_refused(lone, train, test, message):
    with pytest.raises(ValueError, match=message):
        choose(dataset=lone, train_split=train, test_split=test)


def test_datasets_that_hold_the_same_files_are_refused(tmp_path, lone, caplog):
    rows(range(20, 40), [number % 3 for number in range(20)]).to_parquet(str(tmp_path / "other.parquet"))
    with pytest.raises(ValueError, match="10 of the 20 rows of test are also in train"):
        choose(train_dataset=lone, test_dataset=tmp_path / "other.parquet")
    # One of twenty is said and let pass.
    with caplog.at_level("WARNING", logger="hf_jepa"):
        chosen = choose(train_dataset=lone, train_split="train[:21]", test_dataset=tmp_path / "other.parquet")
    assert len(chosen.test) == 20
    assert "1 of the 20 rows of test have the content of a row of train (the first is row 0)" in caplog.text


def test_shared_rows_compares_contents_not_names(tmp_path):
    for name, value in (("a", 1), ("b", 2), ("c", 1)):
        PILImage.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / f"{name}.png")

    def listed(*names):
        return Dataset.from_dict({"image": [str(tmp_path / f"{name}.png") for name in names]})

    assert shared_rows(listed("a"), listed("b", "c"), "image") == ([1], [1])
    assert shared_rows(listed("a"), listed("b"), "image") == ([], [])
    # Made-up clips of one colour are many rows of one content, and none of them is another.
    assert shared_rows(listed("a", "c"), listed("b", "c"), "image") == ([1], [])
    refuse_shared_rows(listed("a", "c"), listed("b", "c"), "image")
    cells = Dataset.from_dict({"image": [[1, 2], [3, 4]]})
    assert shared_rows(cells, cells.select([1]), "image") == ([0], [0])


def test_holdout_is_seeded_and_takes_every_class(lone):
    chosen = choose(dataset=lone, holdout=0.2)
    assert (len(chosen.train), len(chosen.test)) == (24, 6)
    assert np.bincount(chosen.test["label"][:]).tolist() == [2, 2, 2]
    assert shared_rows(chosen.train, chosen.test, "image") == ([], [])
    assert chosen.split == "20% of train, held out with seed 0"
    again, other = choose(dataset=lone, holdout=0.2), choose(dataset=lone, holdout=0.2, seed=1)
    pixels = [
        [cell["bytes"] for cell in part.test.cast_column("image", Image(decode=False))["image"]]
        for part in (chosen, again, other)
    ]
    assert pixels[0] == pixels[1] != pixels[2]
    with pytest.raises(ValueError, match="give no test split"):
        choose(dataset=lone, holdout=0.2, test_split="test")
    with pytest.raises(ValueError, match="between 0 and 1, got 20"):
        choose(dataset=lone, holdout=20)


def test_a_class_of_one_row_stays_in_train():
    train, test = hold_out(rows(range(5), [0, 0, 0, 0, 1]), "label", 0.3, 0)
    assert 1 in train["label"][:]
    assert test["label"][:] == [0]
    with pytest.raises(ValueError, match="leaves nothing to score"):
        hold_out(rows([0, 1], [0, 1]), "label", 0.3, 0)


def test_test_classes_that_train_lacks_are_an_error(tmp_path):
    rows(range(30), [number // 10 for number in range(30)]).to_parquet(str(tmp_path / "sorted.parquet"))
    with pytest.raises(ValueError, match="Test has 1 class.* that no row of train has.*'c'.*--holdout"):
        choose(dataset=tmp_path / "sorted.parquet", train_split="train[:20]", test_split="train[20:]")
    chosen = choose(dataset=tmp_path / "sorted.parquet", train_split="train[:15]", test_split="train[15:20]")
    assert set(chosen.test["label"]) == {1}


def test_labels_are_matched_by_name(tmp_path):
    train, test = align_labels(rows([0, 1, 2], [0, 1, 2]), rows([3, 4], [0, 1], ("c", "a")), "label")
    assert train["label"][:] == [0, 1, 2]
    assert [test.features["label"].int2str(label) for label in test["label"]] == ["c", "a"]
    assert test["label"][:] == [2, 0]
    numbers = Dataset.from_dict({"label": [0, 1]})
    with pytest.raises(ValueError, match="have names .* and those of the other are numbers"):
        align_labels(train, numbers, "label")
    assert align_labels(numbers, numbers, "label")[1]["label"][:] == [0, 1]


def test_what_fits_nothing_scores_all_rows_of_a_lone_file(lone):
    chosen = SplitChoice(dataset=lone).rows(opener, "image", None, fits=False)
    assert (chosen.train, len(chosen.test), chosen.split) == (None, 30, "all")
    chosen = SplitChoice(dataset=lone, holdout=0.1).rows(opener, "image", "label", fits=False)
    assert len(chosen.test) == 3
    with pytest.raises(ValueError, match="no split 'test'"):
        SplitChoice(dataset=lone, test_split="test").rows(opener, "image", None, fits=False)
    with pytest.raises(ValueError, match="No dataset is given to score on"):
        SplitChoice()
    with pytest.raises(ValueError, match="No dataset is given to fit on"):
        choose(test_dataset=lone)


def test_subsets_are_drawn_once_and_for_all(lone):
    chosen = choose(dataset=lone, train_split="train[:20]", test_split="train[20:]", max_train=15, max_test=4)
    assert (len(chosen.train), len(chosen.test)) == (15, 4)
    whole = Dataset.from_dict({"n": list(range(100))})
    assert subset(whole, 5, 0)["n"][:] == sorted(subset(whole, 5, 0)["n"][:])
    assert subset(whole, 5, 0)["n"][:] != subset(whole, 5, 1)["n"][:]
