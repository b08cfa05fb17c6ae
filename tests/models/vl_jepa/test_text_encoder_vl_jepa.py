"""The Y-encoder against sentence-transformers' own modules, and numbers for texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel, VJEPA2VideoProcessor

from hf_jepa import VLJepaProcessor
from hf_jepa.models.vl_jepa import load_text_tower
from hf_jepa.models.vl_jepa.text_encoder_vl_jepa import hash_tokens, pool_tokens

TEXTS = ["w5 w6 w7", "w9", "w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14", "w7 w6 w5"]


def word_tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    words = {"[PAD]": 0, "[BOS]": 1, "[EOS]": 2, **{f"w{number}": number for number in range(3, 60)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        padding_side=padding_side,
    )


@pytest.fixture
def save_tower(make_part, tmp_path) -> Callable[..., tuple[Any, str]]:
    """A sentence-transformers model of a tiny random encoder, and the folder it was saved to."""

    def save(name: str, *heads: tuple[int, bool, Any], pooling: str = "mean", normalize: bool = True, **options: Any):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

        encoder = make_part(name, **options)
        encoder.save_pretrained(tmp_path / "encoder")
        word_tokenizer().save_pretrained(tmp_path / "encoder")
        width = encoder.config.hidden_size
        modules = [Transformer(str(tmp_path / "encoder")), Pooling(width, pooling_mode=pooling)]
        for out, bias, activation in heads:
            modules.append(Dense(width, out, bias=bias, activation_function=activation))
            width = out
        model = SentenceTransformer(modules=[*modules, *([Normalize()] if normalize else [])], device="cpu")
        folder = str(tmp_path / "tower")
        model.save(folder)
        return model.eval(), folder

    return save


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_embedding_gemma_is_that_of_sentence_transformers(make_model, save_tower, padding_side):
    # EmbeddingGemma's stack: mean, two dense heads without bias or activation, L2 norm.
    reference, folder = save_tower("gemma3", (48, False, torch.nn.Identity()), (32, False, torch.nn.Identity()))
    expected = reference.encode(TEXTS, convert_to_tensor=True)
    model = make_model(y_encoder=folder, target="frozen", y_projection="none", projection_dim=32)
    assert model.config.y_dense_layers == [
        {"out_features": 48, "bias": False, "activation": "identity"},
        {"out_features": 32, "bias": False, "activation": "identity"},
    ]
    tokens = word_tokenizer(padding_side)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = F.normalize(model.get_target_embeds(tokens["input_ids"], tokens["attention_mask"]), dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # Without its heads it is another embedding.
    plain = make_model(y_encoder=folder, y_heads="none", target="frozen", y_projection="none", projection_dim=32)
    assert not plain.config.y_dense_layers
    with torch.no_grad():
        other = F.normalize(plain.get_target_embeds(tokens["input_ids"], tokens["attention_mask"]), dim=-1)
    assert (other * expected).sum(dim=-1).max() < 0.9


def test_prompts_are_applied_as_sentence_transformers_does(make_model, make_part, save_tower, tmp_path):
    reference, folder = save_tower("gemma3", (32, False, torch.nn.Identity()))
    reference.prompts = {"query": "w20 w21 ", "document": "w22 w23 "}
    reference.save(folder)
    VJEPA2VideoProcessor().save_pretrained(tmp_path / "vision")
    word_tokenizer().save_pretrained(tmp_path / "decoder")
    processor = VLJepaProcessor.from_components(str(tmp_path / "vision"), str(tmp_path / "decoder"), folder)
    model = make_model(y_encoder=folder, target="frozen", y_projection="none", projection_dim=32)
    found = {}
    for name in (None, "query", "document"):
        tokens = processor(target=TEXTS, target_prompt=name)
        with torch.no_grad():
            found[name] = F.normalize(model.get_target_embeds(**tokens), dim=-1)
        expected = reference.encode(TEXTS, prompt_name=name, convert_to_tensor=True)
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-5)
    assert (found["query"] - found["document"]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("heads", "options"),
    [
        ((), {"pooling": "cls"}),
        (((24, True, torch.nn.Tanh()), (12, True, torch.nn.ReLU())), {"pooling": "mean"}),
        (((24, True, torch.nn.GELU()),), {"pooling": "lasttoken", "normalize": False}),
    ],
)
def test_other_stacks_of_sentence_transformers(make_model, save_tower, heads, options):
    reference, folder = save_tower("bert", *heads, **options)
    expected = reference.encode(TEXTS, convert_to_tensor=True)
    width = expected.shape[1]
    model = make_model(y_encoder=folder, target="frozen", y_projection="none", projection_dim=width)
    tokens = word_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.get_target_embeds(tokens["input_ids"], tokens["attention_mask"])
    if options.get("normalize", True):
        found = F.normalize(found, dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_heads_survive_checkpoints_and_references(make_model, save_tower, make_part, tmp_path):
    from transformers import AutoModel

    _, folder = save_tower("gemma3", (48, False, torch.nn.Identity()), (32, False, torch.nn.Identity()))
    make_part("vjepa2").save_pretrained(tmp_path / "vision")
    vision = str(tmp_path / "vision")
    tokens = word_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    for save_frozen in (True, False):
        model = make_model(vision, y_encoder=folder, target="frozen", save_frozen=save_frozen)
        model.save_pretrained(tmp_path / "saved")
        again = AutoModel.from_pretrained(tmp_path / "saved")
        assert torch.equal(
            model.get_target_embeds(tokens["input_ids"], tokens["attention_mask"]),
            again.get_target_embeds(tokens["input_ids"], tokens["attention_mask"]),
        )
    (Path(folder) / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="`y_encoder` by reference.*has no 2_Dense/model.safetensors"):
        AutoModel.from_pretrained(tmp_path / "saved")


def test_a_plain_text_encoder_has_no_heads(make_part, tmp_path):
    make_part("bert").save_pretrained(tmp_path)
    tower = load_text_tower(str(tmp_path))
    assert (tower.pooling, tower.dense_layers, tower.dense_weights) == ("mean", [], [])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pools by max"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt=False"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.SiLU"}, "activation torch.*SiLU"),
        ("2_Dense/config.json", {"use_residual": True}, "residual True"),
    ],
)
def test_unknown_settings_are_named(save_tower, file, change, message):
    _, folder = save_tower("bert", (24, True, torch.nn.Tanh()))
    path = Path(folder) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_text_tower(folder)


def test_unknown_modules_are_named(save_tower):
    _, folder = save_tower("bert")
    path = Path(folder) / "modules.json"
    listed = json.loads(path.read_text())
    path.write_text(json.dumps([*listed, {"idx": 9, "name": "9", "path": "9_LSTM", "type": "x.y.LSTM"}]))
    with pytest.raises(ValueError, match="module 'LSTM'"):
        load_text_tower(folder)


def test_legacy_pooling_settings_are_read(save_tower):
    _, folder = save_tower("bert")
    path = Path(folder) / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"word_embedding_dimension": 20, "pooling_mode_cls_token": True}))
    assert load_text_tower(folder).pooling == "cls"


def test_pooling_by_hand():
    states = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]])
    assert torch.equal(pool_tokens(states, mask, "cls"), torch.stack([states[0, 1], states[1, 0]]))
    assert torch.equal(pool_tokens(states, mask, "last"), torch.stack([states[0, 2], states[1, 3]]))
    expected = torch.stack([states[0, 1:3].mean(dim=0), states[1].mean(dim=0)])
    torch.testing.assert_close(pool_tokens(states, mask), expected)


def test_a_text_longer_than_the_positions_is_refused(make_model):
    limit = make_model().config.y_encoder_config.max_position_embeddings
    ids = torch.ones(2, limit + 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"has {limit + 1} tokens, but the Y-encoder has {limit} positions; shorten"):
        make_model().y_encoder(ids)
    assert make_model().y_encoder(ids[:, 1:]).isfinite().all()


def test_positions_begin_behind_padding_in_a_roberta(make_model):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(**sizes, vocab_size=60, max_position_embeddings=10)
    encoder = make_model(y_encoder=RobertaModel(config, add_pooling_layer=False)).y_encoder
    ids = torch.full((2, 9), 5)
    with pytest.raises(ValueError, match="has 9 tokens, but the Y-encoder has 8 positions; shorten"):
        encoder(ids)
    assert encoder(ids[:, 1:]).isfinite().all()


def test_hashes_tell_texts_apart_and_ignore_padding():
    ids = torch.randint(0, 1000, (4000, 9), generator=torch.Generator().manual_seed(0))
    assert len(hash_tokens(ids).unique()) == len(ids.unique(dim=0))
    assert len(hash_tokens(ids[:1].expand(9, -1).tril(0)[:, :9]).unique()) == 9
    # Order and length count.
    one, two = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 7, 6]])
    assert hash_tokens(one) != hash_tokens(two)
    zeros = torch.zeros(2, 3, dtype=torch.int64)
    assert hash_tokens(zeros, torch.tensor([[1, 1, 0], [1, 1, 1]])).unique().numel() == 2
    left, right = F.pad(one, (4, 0), value=8), F.pad(one, (0, 2), value=3)
    assert hash_tokens(left, F.pad(torch.ones_like(one), (4, 0))) == hash_tokens(one)
    assert hash_tokens(right, F.pad(torch.ones_like(one), (0, 2))) == hash_tokens(one)
