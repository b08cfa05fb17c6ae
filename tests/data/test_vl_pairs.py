"""Rows of images, videos and vision tokens with texts: seeded choices, mixed batches, faults."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, VJEPA2VideoProcessor

from hf_jepa import VLJepaProcessor
from hf_jepa.data import TooManyBadPairsError, VisionTextCollator, VisionTextDataset


def picture(shade: int) -> PILImage.Image:
    return PILImage.fromarray(np.full((12, 10, 3), shade, np.uint8))


def clip(shade: int, frames: int = 3) -> np.ndarray:
    return np.full((frames, 12, 10, 3), shade, np.uint8)


ROWS = [
    {"image": picture(10), "text": "w1"},
    {"video": clip(20), "text": "w2 w3"},
    {"image": picture(30), "text": ["w4", "w5", "w6"]},
    {"video": clip(40, 5), "text": "w7"},
]


@pytest.fixture
def processor() -> VLJepaProcessor:
    words = {"[PAD]": 0, **{f"w{number}": number for number in range(1, 20)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    video = VJEPA2VideoProcessor(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, do_normalize=False, do_rescale=False
    )
    return VLJepaProcessor(None, video, tokenizer, tokenizer, num_frames=2)


def test_samples_are_what_the_rows_hold():
    dataset = VisionTextDataset(ROWS, num_frames=2)
    assert len(dataset) == 4
    image, video = dataset[0], dataset[3, 17]
    assert image["image"].shape == (3, 12, 10)
    assert image["image"].unique().tolist() == [10]
    assert (image["target"], image["query"], image["draw"]) == ("w1", None, 0)
    assert video["video"].shape == (2, 3, 12, 10)
    assert video["video"].unique().tolist() == [40]
    assert video["draw"] == 17
    tokens = torch.randn(5, 7)
    sample = VisionTextDataset([{"vision_embeds": tokens, "text": "w1"}])[0]
    assert torch.equal(sample["vision_embeds"], tokens)


def test_choices_follow_the_seed_and_the_draw():
    queries = ["q1", "q2", "q3"]
    dataset = VisionTextDataset(ROWS, queries=queries, seed=1)
    samples = [dataset[2, draw] for draw in range(40)]
    assert {sample["target"] for sample in samples} == {"w4", "w5", "w6"}
    assert {sample["query"] for sample in samples} == set(queries)
    again = VisionTextDataset(ROWS, queries=queries, seed=1)
    assert [again[2, draw]["target"] for draw in range(40)] == [sample["target"] for sample in samples]
    other = VisionTextDataset(ROWS, queries=queries, seed=2)
    assert [other[2, draw]["target"] for draw in range(40)] != [sample["target"] for sample in samples]
    # A row's own query comes first, and does not move its text.
    rows = [{**row, "ask": "mine"} for row in ROWS]
    own = VisionTextDataset(rows, query_column="ask", queries=queries, seed=1)
    assert [own[2, draw]["target"] for draw in range(40)] == [sample["target"] for sample in samples]
    assert own[2, 5]["query"] == "mine"


def test_augmentation_is_seeded_by_the_draw():
    def augment(frames: torch.Tensor) -> torch.Tensor:
        return frames + torch.randint(100, (1,)).to(torch.uint8)

    dataset = VisionTextDataset(ROWS, augment=augment, num_frames=2)
    before = torch.get_rng_state()
    found = [int(dataset[1, draw]["video"][0, 0, 0, 0]) for draw in (3, 4, 3)]
    assert found[0] == found[2] != found[1]
    assert torch.equal(torch.get_rng_state(), before)
    assert dataset[0, 3]["image"].shape == (3, 12, 10)


def test_a_mixed_batch_has_images_first(processor):
    dataset = VisionTextDataset(ROWS, num_frames=2)
    batch = VisionTextCollator(processor)([dataset[index] for index in (1, 0, 3, 2)])
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [10, 30]
    assert batch["pixel_values_videos"].shape == (2, 2, 3, 8, 8)
    assert batch["pixel_values_videos"][:, 0, 0, 0, 0].tolist() == [20, 40]
    assert batch["target_input_ids"][:, 0].tolist()[0] == 1
    assert batch["target_input_ids"].tolist()[2:] == [[2, 3], [7, 0]]
    assert "query_input_ids" not in batch


def test_queries_of_a_batch(processor):
    collator = VisionTextCollator(processor)
    dataset = VisionTextDataset(ROWS, queries=["w9 w8"])
    assert collator([dataset[0], dataset[1]])["query_input_ids"].tolist() == [[9, 8], [9, 8]]
    plain = VisionTextDataset(ROWS)
    processor.default_query = "w3"
    assert collator([plain[0], plain[1]])["query_input_ids"].tolist() == [[3], [3]]
    with pytest.raises(ValueError, match="Some rows of a batch have a query and some have none"):
        collator([dataset[0], plain[1]])


def test_vision_tokens_are_padded_and_long_texts_cut(processor):
    processor.max_target_length, processor.default_query = 2, "w5"
    rows = [{"vision_embeds": torch.ones(n, 4), "text": "w1 w2 w3"} for n in (2, 3)]
    dataset = VisionTextDataset(rows)
    batch = VisionTextCollator(processor)([dataset[0], dataset[1]])
    assert batch["vision_embeds"].sum(dim=-1).tolist() == [[4, 4, 0], [4, 4, 4]]
    assert batch["vision_attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["target_input_ids"].tolist() == [[1, 2], [1, 2]]
    assert batch["query_input_ids"].tolist() == [[5], [5]]
    with pytest.raises(ValueError, match="has 3 tokens, more than `max_target_length=2`"):
        VisionTextCollator(processor, truncation=False)([dataset[0]])
    with pytest.raises(ValueError, match="some pixels"):
        VisionTextCollator(processor)([dataset[0], VisionTextDataset(ROWS)[0]])


def test_columns_of_datasets_stay_undecoded(tmp_path):
    picture(50).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    names = [str(tmp_path / "good.png"), str(tmp_path / "bad.png")]
    rows = Dataset.from_dict({"image": names, "text": ["w1", "w2"]}).cast_column("image", Image())
    dataset = VisionTextDataset(rows, max_bad_fraction=0.6)
    assert dataset[0]["image"].unique().tolist() == [50]
    # The next usable row takes the place of the broken one, text included.
    assert dataset[1]["target"] == "w1"
    assert dataset.num_bad == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": b"no image", "text": "w1"}, "cannot be read"),
        ({"video": "nowhere.mp4", "text": "w1"}, "there is no file 'nowhere.mp4'"),
        ({"image": picture(1), "text": " "}, "no text in 'text'"),
        ({"image": picture(1), "text": []}, "no text in 'text'"),
        ({"image": picture(1)}, "no text in 'text'"),
        ({"text": "w1"}, "neither image nor video"),
    ],
)
def test_unusable_rows_are_named_and_counted(row, message, caplog):
    rows = [row, *ROWS]
    with pytest.raises(TooManyBadPairsError, match=f"1 of 5 pairs cannot be used.*{message}"):
        VisionTextDataset(rows)[0]
    tolerant = VisionTextDataset(rows, max_bad_fraction=0.5)
    from transformers.utils import logging as hf_logging

    hf_logging.enable_propagation()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert [tolerant[0]["target"] for _ in range(2)] == ["w1", "w1"]
    hf_logging.disable_propagation()
    assert sum("Unusable pair in row 0" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "no rows"),
        (ROWS, {"max_bad_fraction": 1.0}, "max_bad_fraction"),
        ([{"text": "w1"}], {}, "no column among"),
        (ROWS, {"target_column": "caption"}, "no column 'caption'"),
        (ROWS, {"query_column": "question"}, "no column 'question'"),
    ],
)
def test_bad_arguments_are_named(rows, options, message):
    with pytest.raises(ValueError, match=message):
        VisionTextDataset(rows, **options)
