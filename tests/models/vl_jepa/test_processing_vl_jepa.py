"""The processor: media of every kind, texts, what it writes, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoProcessor, PreTrainedTokenizerFast, ViTImageProcessor, VJEPA2VideoProcessor

from hf_jepa import VLJepaProcessor
from hf_jepa.data.vl_media import even_indices, read_clip


def word_tokenizer(first: int = 3, **special: str) -> PreTrainedTokenizerFast:
    words = {"[PAD]": 0, "[EOS]": 2, **{f"w{number}": first + number for number in range(40)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(special or {"pad_token": "[PAD]"}))


@pytest.fixture
def video_processor() -> VJEPA2VideoProcessor:
    return VJEPA2VideoProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})


@pytest.fixture
def image_processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": 16, "width": 16})


@pytest.fixture
def processor(video_processor) -> VLJepaProcessor:
    return VLJepaProcessor(
        video_processor=video_processor,
        query_tokenizer=word_tokenizer(),
        target_tokenizer=word_tokenizer(first=5),
        num_frames=4,
    )


def picture(seed: int = 0, size: tuple[int, int] = (24, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8))


def test_keys_shapes_and_the_model(processor, make_model):
    clip = np.random.default_rng(0).integers(0, 255, (9, 20, 30, 3)).astype(np.uint8)
    batch = processor([picture()], [clip, clip[:2]], ["w1 w2", "w3", "w4 w5 w6"], target=["w1", "w2 w3", "w4"])
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    assert batch["pixel_values_videos"].shape == (2, 4, 3, 16, 16)
    assert batch["query_input_ids"].tolist() == [[4, 5, 0], [6, 0, 0], [7, 8, 9]]
    assert batch["query_attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert batch["target_input_ids"].tolist() == [[6, 0], [7, 8], [9, 0]]
    assert make_model()(**batch).loss.isfinite()


def test_the_pixels_are_those_of_the_encoder_s_own_processors(processor, image_processor, video_processor):
    clip = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (4, 3, 20, 30)).astype(np.uint8))
    expected = video_processor([clip], return_tensors="pt", do_sample_frames=False)["pixel_values_videos"]
    torch.testing.assert_close(processor(videos=clip)["pixel_values_videos"], expected)
    # An image is a clip of one frame.
    still = Image.fromarray(clip[0].permute(1, 2, 0).numpy())
    torch.testing.assert_close(processor(still)["pixel_values"], expected[:, 0])
    # With an image processor clips are frames.
    tokenizers = {"query_tokenizer": word_tokenizer(), "target_tokenizer": word_tokenizer()}
    by_frame = VLJepaProcessor(image_processor, **tokenizers, num_frames=None)
    frames = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in clip]
    expected = image_processor(frames, return_tensors="pt")["pixel_values"]
    found = by_frame(images=frames, videos=[frames])
    torch.testing.assert_close(found["pixel_values"], expected)
    torch.testing.assert_close(found["pixel_values_videos"], expected[None])
    both = VLJepaProcessor(image_processor, video_processor, **tokenizers, num_frames=1)
    found = both(still, clip)
    torch.testing.assert_close(found["pixel_values"], expected[:1])
    assert not torch.allclose(found["pixel_values_videos"][:, 0], expected[2:3])


def test_media_of_every_kind_are_one(processor, tmp_path):
    image = picture()
    image.save(tmp_path / "image.png")
    kinds = [
        image,
        np.array(image),
        str(tmp_path / "image.png"),
        tmp_path / "image.png",
        (tmp_path / "image.png").read_bytes(),
        {"bytes": None, "path": str(tmp_path / "image.png")},
    ]
    pixels = processor(kinds)["pixel_values"]
    assert torch.equal(pixels, pixels[:1].expand_as(pixels))
    frames = [picture(seed) for seed in range(6)]
    array = np.stack([np.array(frame) for frame in frames])
    kinds = [frames, array, torch.from_numpy(array).permute(0, 3, 1, 2)]
    clips = processor(videos=kinds)["pixel_values_videos"]
    assert torch.equal(clips, clips[:1].expand_as(clips))
    for one in (frames, array, array[None]):
        assert torch.equal(processor(videos=one)["pixel_values_videos"], clips[:1])


def test_a_video_file_is_sampled_evenly(processor, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for shade in range(0, 240, 20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    shades = read_clip(str(tmp_path / "clip.mp4"), 4).float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(shades, torch.tensor([20.0, 80, 140, 200]), rtol=0, atol=6)
    assert processor(videos=str(tmp_path / "clip.mp4"))["pixel_values_videos"].shape == (1, 4, 3, 16, 16)


@pytest.mark.parametrize(
    ("length", "frames", "expected"),
    [(12, 4, [1, 4, 7, 10]), (4, 4, [0, 1, 2, 3]), (1, 3, [0, 0, 0]), (2, 4, [0, 0, 1, 1]), (3, None, [0, 1, 2])],
)
def test_frames_are_the_middles_of_equal_parts(length, frames, expected):
    assert even_indices(length, frames) == expected


def test_queries_and_prompts(processor):
    images = [picture(), picture(1)]
    assert processor(images, query="w1")["query_input_ids"].tolist() == [[4], [4]]
    assert "query_input_ids" not in processor(images)
    processor.default_query = "w2 w3"
    assert processor(images)["query_input_ids"].tolist() == [[5, 6], [5, 6]]
    assert processor(images, query="w1")["query_input_ids"].tolist() == [[4], [4]]
    processor.prompts = {"document": "w9 w9 "}
    assert processor(target="w1", target_prompt="document")["target_input_ids"].tolist() == [[14, 14, 6]]
    processor.target_prompt = "document"
    assert processor(target="w1")["target_input_ids"].tolist() == [[14, 14, 6]]
    with pytest.raises(ValueError, match=r"no prompt 'query'; known are \['document'\]"):
        processor(target="w1", target_prompt="query")


def test_texts_are_cut_only_when_asked(processor):
    processor.max_query_length = processor.max_target_length = 3
    for kind in ("query", "target"):
        with pytest.raises(ValueError, match=f"{kind.capitalize()} 1 has 5 tokens, more than `max_{kind}_length=3`"):
            processor(**{kind: ["w1", "w1 w2 w3 w4 w5"]})
        cut = processor(**{kind: ["w1", "w1 w2 w3 w4 w5"]}, truncation=True)
        assert cut[f"{kind}_attention_mask"].sum(dim=1).tolist() == [1, 3]


def test_a_tokenizer_without_padding_pads_by_its_end(video_processor):
    query = word_tokenizer(eos_token="[EOS]")
    processor = VLJepaProcessor(None, video_processor, query, word_tokenizer())
    batch = processor(query=["w1 w2", "w3"])
    assert batch["query_input_ids"].tolist() == [[4, 5], [6, 2]]
    assert batch["query_attention_mask"].tolist() == [[1, 1], [1, 0]]
    with pytest.raises(ValueError, match="neither a padding nor an end-of-text token"):
        VLJepaProcessor(None, video_processor, word_tokenizer(unk_token="[PAD]"), word_tokenizer())


@pytest.mark.parametrize("kind", ["image", "video", "both"])
def test_what_is_written_is_read(processor, image_processor, kind, tmp_path):
    settings = {
        "query_tokenizer": word_tokenizer(),
        "target_tokenizer": word_tokenizer(first=5),
        "num_frames": 2,
        "max_query_length": 7,
        "default_query": "w1",
        "prompts": {"document": "w2 "},
        "target_prompt": "document",
    }
    if kind != "video":
        settings["image_processor"] = image_processor
    if kind != "image":
        settings["video_processor"] = processor.video_processor
    if kind == "both":
        settings["decoder_tokenizer"] = word_tokenizer(first=7)
    original = VLJepaProcessor(**settings)
    original.save_pretrained(tmp_path / "whole" / "pretraining")
    for again in (
        AutoProcessor.from_pretrained(tmp_path / "whole" / "pretraining"),
        VLJepaProcessor.from_pretrained(tmp_path / "whole", subfolder="pretraining"),
    ):
        assert type(again) is VLJepaProcessor
        clip = np.random.default_rng(0).integers(0, 255, (4, 20, 20, 3)).astype(np.uint8)
        inputs = {"images": picture(), "videos": clip, "target": "w3"}
        ours, theirs = original(**inputs), again(**inputs)
        assert set(ours) == set(theirs)
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name
        assert (again.num_frames, again.max_query_length, again.default_query) == (2, 7, "w1")
        assert (again.decoder_tokenizer is None) == (kind != "both")
    assert VLJepaProcessor.from_pretrained(tmp_path / "whole" / "pretraining", num_frames=3).num_frames == 3
    with pytest.raises(OSError, match="processor_config"):
        VLJepaProcessor.from_pretrained(tmp_path)


def test_processors_of_components(processor, image_processor, tmp_path):
    processor.video_processor.save_pretrained(tmp_path / "video")
    image_processor.save_pretrained(tmp_path / "image")
    for name in ("decoder", "text"):
        word_tokenizer().save_pretrained(tmp_path / name)
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    (tmp_path / "text" / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    folders = str(tmp_path / "decoder"), str(tmp_path / "text")
    found = VLJepaProcessor.from_components(str(tmp_path / "video"), *folders, num_frames=8)
    assert found.prompts == prompts
    assert found.num_frames == 8
    assert found.image_processor is None
    assert found.video_processor.crop_size["height"] == 16
    found = VLJepaProcessor.from_components(str(tmp_path / "image"), *folders, str(tmp_path / "decoder"))
    assert found.video_processor is None
    assert found.decoder_tokenizer is not None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"images": ["nowhere.png"]}, "Image 0 cannot be read"),
        ({"images": [picture(), b"no image"]}, "Image 1 cannot be read"),
        ({"images": [3]}, "Image 0 cannot be read.*int"),
        ({"images": torch.zeros(3, 8, 8)}, "must be a uint8 tensor"),
        ({"videos": "nowhere.mp4"}, "Video 0 cannot be read.*no file"),
        ({"videos": [b"no video"]}, "Video 0 cannot be read"),
        ({"videos": [[]]}, "Video 0 has no frames"),
        ({"videos": np.zeros((2, 8, 8, 3))}, "Video 0 must be uint8"),
        ({"videos": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, "Video 0 must be"),
        ({"videos": [[picture(), picture(size=(9, 9))]]}, "different sizes"),
        ({"images": picture(), "query": ["w1", "w2"]}, "1 images and clips, but 2 queries"),
        ({"query": [None]}, "A query must be a string, got NoneType"),
        ({"target": ["w1", "  "]}, "Target 1 is empty"),
        ({"target": []}, "There is no target"),
        ({"target": [None]}, "A target must be a string, got NoneType"),
        ({}, "Pass images, videos, a query or a target"),
        ({"query": "w1", "return_tensors": "np"}, "\"pt\", got 'np'"),
    ],
)
def test_bad_inputs_are_named(processor, inputs, message):
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


def test_clips_of_different_lengths_need_a_number(processor):
    processor.num_frames = None
    with pytest.raises(ValueError, match=r"Clips have \[2, 3\] frames"):
        processor(videos=[np.zeros((n, 8, 8, 3), np.uint8) for n in (2, 3)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_processor": None}, "needs an `image_processor` or"),
        ({"query_tokenizer": None}, "needs a `query_tokenizer` and"),
        ({"num_frames": 0}, "`num_frames` must be at least 1"),
        ({"max_target_length": 0}, "`max_target_length` must be at least 1"),
        ({"target_prompt": "document"}, "no prompt 'document'"),
    ],
)
def test_bad_settings_are_named(video_processor, change, message):
    settings = {
        "video_processor": video_processor,
        "query_tokenizer": word_tokenizer(),
        "target_tokenizer": word_tokenizer(),
    }
    with pytest.raises(ValueError, match=message):
        VLJepaProcessor(**{**settings, **change})
