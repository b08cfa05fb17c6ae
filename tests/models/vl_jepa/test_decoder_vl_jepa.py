"""The Y-decoder: the loss of a text given its embedding, what trains, and generation."""

import pytest
import torch
import torch.nn.functional as F

from hf_jepa.models.vl_jepa import VLJepaTextDecoder


@pytest.fixture
def model(make_model, make_part):
    return make_model(y_decoder=make_part("llama", causal=True), y_decoder_prefix_length=3)


def test_the_loss_is_that_of_the_tokens_behind_the_prefix(model, batch):
    decoder, embeds = model.y_decoder, torch.randn(3, 16)
    ids, mask = batch["target_input_ids"], batch["target_attention_mask"]
    losses = []
    for row in range(3):
        real = ids[row][mask[row].bool()][None]
        prefix = decoder.prefix(F.normalize(embeds[row : row + 1], dim=-1)).view(1, 3, -1)
        words = decoder.language_model.get_input_embeddings()(real)
        logits = decoder.language_model(inputs_embeds=torch.cat([prefix, words], dim=1)).logits
        losses.append(F.cross_entropy(logits[0, 2:-1], real[0], reduction="none"))
    torch.testing.assert_close(decoder(embeds, ids, mask).loss, torch.cat(losses).mean())


def test_only_the_prefix_trains_unless_asked(model, make_model, make_part, batch):
    decoder = model.y_decoder.requires_grad_(True)
    assert isinstance(decoder, VLJepaTextDecoder)
    decoder.freeze_language_model()
    decoder(torch.randn(3, 16), batch["target_input_ids"]).loss.backward()
    assert decoder.prefix.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in decoder.language_model.parameters())
    unfrozen = make_model(y_decoder=make_part("llama", causal=True), freeze_y_decoder=False).y_decoder
    unfrozen.requires_grad_(True).freeze_language_model()
    unfrozen(torch.randn(3, 16), batch["target_input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in unfrozen.language_model.parameters())


def test_it_learns_texts_and_says_them_again(model):
    decoder, embeds = model.y_decoder.train(), torch.eye(16)[:3]
    texts = torch.tensor([[5, 6, 7, 2], [8, 5, 9, 2], [6, 6, 8, 2]])
    decoder.requires_grad_(True)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        decoder(embeds, texts).loss.backward()
        optimizer.step()
    # Direction alone counts.
    assert torch.equal(model.eval().generate_text(3 * embeds, max_new_tokens=4), texts)


def test_no_decoder_no_text(make_model):
    with pytest.raises(ValueError, match="no Y-decoder"):
        make_model().generate_text(torch.ones(1, 16))
