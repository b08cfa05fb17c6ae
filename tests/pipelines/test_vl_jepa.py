"""What VL-JEPA is used for: each use against the embeddings it is made of, and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, PreTrainedTokenizerFast, VJEPA2VideoProcessor

from hf_jepa import VLJepaProcessor
from hf_jepa.pipelines.vl_jepa import VLJepaPipeline, rank
from hf_jepa.streaming import ShiftTrigger

LABELS = ["w1", "w2 w3", "w7 w9 w4"]


def word_tokenizer(first: int) -> PreTrainedTokenizerFast:
    words = {"[PAD]": 0, "[EOS]": 2, **{f"w{number}": first + number for number in range(40)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]")


@pytest.fixture
def processor() -> VLJepaProcessor:
    return VLJepaProcessor(
        video_processor=VJEPA2VideoProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}),
        query_tokenizer=word_tokenizer(3),
        target_tokenizer=word_tokenizer(5),
        decoder_tokenizer=word_tokenizer(3),
        num_frames=4,
        prompts={"title": "w30 "},
    )


@pytest.fixture
def pipeline(make_model, make_part, processor) -> VLJepaPipeline:
    model = make_model(y_decoder=make_part("llama", causal=True))
    return VLJepaPipeline(model, processor, batch_size=2)


def clip(seed: int, frames: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (frames, 20, 24, 3)).astype(np.uint8)


CLIPS, IMAGE = [clip(0), clip(1)], clip(5)[0]


def test_embeddings_are_the_model_s_images_first_in_any_batch(pipeline, processor):
    found = pipeline.encode(CLIPS, ["w4", "w5 w6", "w7"], images=[IMAGE])
    batch = processor([IMAGE], CLIPS, ["w4", "w5 w6", "w7"])
    expected = F.normalize(pipeline.model.get_pred_embeds(**batch), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    same = pipeline.encode(CLIPS, "w4", [IMAGE])
    torch.testing.assert_close(same[0], found[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(same[1:], found[1:], atol=1e-3)
    tokens, mask = pipeline.model.encode_vision(batch["pixel_values"], batch["pixel_values_videos"])
    cached = pipeline.encode(query=["w4", "w5 w6", "w7"], vision_embeds=tokens, vision_attention_mask=mask)
    torch.testing.assert_close(cached, expected, rtol=1e-4, atol=1e-5)


def test_texts_are_embedded_as_the_y_encoder_does(pipeline, processor):
    found = pipeline.encode_text(LABELS)
    expected = F.normalize(pipeline.model.get_target_embeds(**processor(target=LABELS)), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pipeline.encode_text("w1", "title"), pipeline.encode_text("w30 w1"))


def test_classes_answers_and_texts_are_ranked_by_cosine(pipeline):
    cosine = pipeline.encode(CLIPS, "w4") @ pipeline.encode_text(LABELS).T
    for found in (
        pipeline.zero_shot_classify(LABELS, videos=CLIPS, query="w4"),
        pipeline.answer("w4", LABELS, videos=CLIPS),
        pipeline.retrieve_texts(LABELS, videos=CLIPS, query="w4"),
    ):
        for row, ranked in enumerate(found):
            scores = cosine[row].sort(descending=True)[0].tolist()
            assert [entry.score for entry in ranked] == pytest.approx(scores, abs=1e-6)
            assert [entry.index for entry in ranked] == cosine[row].argsort(descending=True).tolist()
            assert [entry.text for entry in ranked] == [LABELS[entry.index] for entry in ranked]
    assert len(pipeline.zero_shot_classify(LABELS, videos=CLIPS, top_k=2)[0]) == 2
    with_template = pipeline.zero_shot_classify(LABELS, videos=CLIPS[:1], query="w4", template="w8 {}")[0]
    cosine = (pipeline.encode(CLIPS[:1], "w4") @ pipeline.encode_text([f"w8 {label}" for label in LABELS]).T)[0]
    assert with_template[0].score == pytest.approx(float(cosine.max()))
    assert with_template[0].text in LABELS


def test_media_are_found_by_text(pipeline):
    media = pipeline.encode(CLIPS, "w4")
    found = pipeline.retrieve_media(LABELS, media, top_k=1)
    cosine = pipeline.encode_text(LABELS) @ media.T
    assert [row[0][0] for row in found] == cosine.argmax(dim=1).tolist()
    table = pipeline.index(media, {"name": ["a", "b"]}, faiss=False)
    np.testing.assert_allclose(np.array(table["embeds"]), media.numpy(), rtol=1e-6)
    assert table["name"] == ["a", "b"]


def test_faiss_finds_what_the_dot_product_finds(pipeline):
    pytest.importorskip("faiss", reason="faiss is not installed")
    media = F.normalize(torch.randn(50, 16), dim=1)
    table = pipeline.index(media, {"row": list(range(50))})
    query = F.normalize(torch.randn(16), dim=0)
    scores, rows = table.get_nearest_examples("embeds", query.numpy(), k=5)
    assert rows["row"] == (media @ query).argsort(descending=True)[:5].tolist()


def test_captions_by_bank_and_by_y_decoder(pipeline):
    nearest = pipeline.retrieve_texts(LABELS, videos=CLIPS, top_k=1)
    assert pipeline.caption(videos=CLIPS, bank=LABELS) == [row[0].text for row in nearest]
    embeds = pipeline.encode(CLIPS)
    tokens = pipeline.model.generate_text(embeds, max_new_tokens=3, pad_token_id=0, eos_token_id=2)
    expected = pipeline.processor.decoder_tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert pipeline.caption(videos=CLIPS, max_new_tokens=3) == [text.strip() for text in expected]


def test_a_stream_is_cut_where_its_scene_changes(pipeline, write_video, tmp_path):
    frames = np.concatenate([np.repeat(clip(0, 1), 12, axis=0), np.repeat(clip(9, 1), 20, axis=0)])
    found = pipeline.stream(frames, "w4", LABELS, window=4, num_segments=2)
    assert found.seconds.tolist() == [1.5 + 4 * place for place in range(8)]
    assert found.decoding.starts.tolist() == [0, 3]
    assert found.decoding.num_saved == 6
    assert [(entry.begin, entry.second, entry.end) for entry in found.texts] == [(1.5, 5.5, 13.5), (13.5, 21.5, 29.5)]
    windows = torch.stack([pipeline.encode([frames[4 * place : 4 * place + 4]], "w4")[0] for place in range(8)])
    torch.testing.assert_close(found.embeds, windows, rtol=1e-4, atol=1e-5)
    scenes = pipeline.decode(torch.stack([windows[:3].mean(dim=0), windows[3:].mean(dim=0)]), LABELS)
    assert [entry.text for entry in found.texts] == scenes
    online = pipeline.stream(frames, "w4", LABELS, 4, policy="online", trigger=ShiftTrigger(high=1e-3, window=2))
    assert online.decoding.positions.tolist() == [0, 3]
    # Files are read window by window, overlapping ones too, and know their seconds.
    path = write_video(tmp_path / "clip.mp4", num_frames=22, fps=10)
    slid = pipeline.stream(path, bank=LABELS, window=8, stride=4, num_segments=1)
    assert slid.seconds.tolist() == pytest.approx([0.35, 0.75, 1.15, 1.55])
    short = pipeline.stream(path, bank=LABELS, window=100)
    assert len(short.embeds) == len(short.texts) == 1


def test_loads_what_was_saved(pipeline, processor, tmp_path):
    pipeline.model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = VLJepaPipeline.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(loaded.encode(CLIPS, "w4"), VLJepaPipeline(pipeline.model, processor).encode(CLIPS, "w4"))


def test_bad_input(pipeline, make_model, make_part, processor, tmp_path):
    with pytest.raises(ValueError, match="There is no label to choose from"):
        pipeline.zero_shot_classify([], videos=CLIPS)
    with pytest.raises(ValueError, match="There is no candidate to choose from"):
        pipeline.answer("w4", [], videos=CLIPS)
    with pytest.raises(ValueError, match="There is no caption to choose from"):
        pipeline.caption(videos=CLIPS, bank=[])
    with pytest.raises(ValueError, match="Label 1 is empty"):
        pipeline.zero_shot_classify(["w1", " "], videos=CLIPS)
    with pytest.raises(ValueError, match='`template` must hold "{}"'):
        pipeline.zero_shot_classify(LABELS, videos=CLIPS, template="a photo")
    with pytest.raises(ValueError, match="Pass images, videos"):
        pipeline.encode(query="w4")
    with pytest.raises(ValueError, match="2 images and clips, but 3 queries"):
        pipeline.encode(CLIPS, ["w1", "w2", "w3"])
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    for path in (broken, tmp_path / "missing.mp4"):
        with pytest.raises(ValueError, match=r"Video 0 cannot be read"):
            pipeline.encode([str(path)])
        with pytest.raises(ValueError, match="decode|no file|read|video"):
            pipeline.stream(str(path), bank=LABELS)
    with pytest.raises(ValueError, match="`window` and `stride` must be at least 1"):
        pipeline.stream(clip(0), bank=LABELS, window=0)
    with pytest.raises(ValueError, match="'often'"):
        pipeline.stream(clip(0), bank=LABELS, policy="often")
    with pytest.raises(ValueError, match="matrices of one width"):
        pipeline.retrieve_media("w1", torch.randn(3, 5))
    with pytest.raises(ValueError, match=r"columns of lengths \{'name': 1\}"):
        pipeline.index(torch.randn(2, 16), {"name": ["a"]}, faiss=False)
    with pytest.raises(ValueError, match="at least one candidate"):
        rank(torch.randn(2, 4), torch.randn(0, 4), [])
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        VLJepaPipeline(pipeline.model, processor, batch_size=0)
    plain = VLJepaPipeline(make_model(), processor)
    with pytest.raises(ValueError, match="pass a `bank` of captions"):
        plain.caption(videos=CLIPS)
    make_part("vit").save_pretrained(tmp_path / "vit")
    assert AutoModel.from_pretrained(tmp_path / "vit").config.model_type == "vit"
    for place in (tmp_path / "vit", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="Cannot load a VL-JEPA"):
            VLJepaPipeline.from_pretrained(str(place))
