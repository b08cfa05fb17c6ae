import copy

import pytest
import torch
import torch.nn.functional as F

from hf_jepa.evaluation import ridge_probe
from hf_jepa.evaluation.attentive_heads import VJEPA1_PROBE, _accuracies, _backward, _Head, train_attentive_heads
from hf_jepa.evaluation.closed_form import held_out_rows
from hf_jepa.models.vjepa.pooler_vjepa import VJepaAttentivePooler, init_attentive_pooler


def pointer_task(num_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One token, marked by its first channel, holds the class in a sign; the rest is noise that drowns the mean."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(num_rows, 9, 16, generator=generator)
    tokens[..., 0] = 0
    labels = torch.randint(0, 2, (num_rows,), generator=generator)
    where = torch.randint(0, 9, (num_rows,), generator=generator)
    rows = torch.arange(num_rows)
    tokens[rows, where, 0] = 6
    tokens[rows, where, 1] = 2.0 * labels - 1
    return tokens, labels


SHAPES = {"vjepa": (0, "query"), "vjepa deep": (2, "query"), "vjepa2": (2, "tokens"), "vjepa2 shallow": (0, "tokens")}


def random_heads(layers: int, self_attention_on: str, num_heads: int = 3) -> list[_Head]:
    heads = []
    for _ in range(num_heads):
        pooler = VJepaAttentivePooler(16, 4, layers, self_attention_on)
        init_attentive_pooler(pooler, std=0.3)
        torch.nn.init.normal_(pooler.cross_attention_layer.layer_norm1.weight)
        torch.nn.init.normal_(pooler.cross_attention_layer.layer_norm1.bias)
        torch.nn.init.normal_(pooler.cross_attention_layer.cross_attn.v_proj.bias)
        heads.append(_Head(pooler, 3))
    return heads


@pytest.mark.parametrize(("layers", "self_attention_on"), SHAPES.values(), ids=SHAPES)
def test_heads_side_by_side_have_the_gradients_of_heads_alone(layers, self_attention_on):
    heads = random_heads(layers, self_attention_on)
    alone = copy.deepcopy(heads)
    tokens, labels = torch.randn(5, 7, 16), torch.tensor([0, 1, 2, 1, 0])
    _backward(heads, tokens, labels)
    for head in alone:
        F.cross_entropy(head.classifier(head.pooler(tokens)[:, 0]), labels).backward()
    for ours, reference in zip(heads, alone, strict=True):
        for name, parameter in reference.named_parameters():
            if not parameter.requires_grad:
                continue
            gradient = ours.get_parameter(name).grad
            if name.endswith("cross_attn.k_proj.bias"):  # its true gradient is zero
                gradient = torch.zeros_like(parameter) if gradient is None else gradient
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("layers", "self_attention_on"), [(0, "query"), (1, "tokens")])
def test_training_is_that_of_each_head_with_torch_adamw(layers, self_attention_on):
    (train, train_labels), (test, test_labels) = pointer_task(120, 0), pointer_task(60, 1)
    grid = [(3e-3, 0.01), (3e-3, 0.4), (1e-3, 0.01), (1e-3, 0.4)]
    result = train_attentive_heads(
        *(train, train_labels, test, test_labels),
        num_attention_heads=4,
        num_self_attention_layers=layers,
        self_attention_on=self_attention_on,
        learning_rates=(3e-3, 1e-3),
        weight_decays=(0.01, 0.4),
        epochs=6,
        batch_size=32,
        max_grad_norm=0.5,
        held_out_fraction=0.4,
        seed=3,
    )
    kept, held_out = held_out_rows(120, 0.4, 3)
    scores, test_scores = [], []
    for learning_rate, decay in grid:
        torch.manual_seed(3)
        pooler = VJepaAttentivePooler(16, 4, layers, self_attention_on)
        init_attentive_pooler(pooler)
        head = _Head(pooler, 2)
        optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=decay)
        generator, step = torch.Generator().manual_seed(3), 0
        for _ in range(6):
            order = kept[torch.randperm(72, generator=generator)]
            for rows in (order[:32], order[32:64]):
                cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 12)))
                optimizer.param_groups[0]["lr"] = learning_rate * float(cosine)
                optimizer.zero_grad()
                F.cross_entropy(head.classifier(head.pooler(train[rows])[:, 0]), train_labels[rows]).backward()
                torch.nn.utils.clip_grad_norm_(head.parameters(), 0.5)
                optimizer.step()
                step += 1
        with torch.no_grad():
            right = [
                (head.classifier(head.pooler(tokens)[:, 0]).argmax(1) == labels).double().mean().item()
                for tokens, labels in ((train[held_out], train_labels[held_out]), (test, test_labels))
            ]
        scores.append(right[0])
        test_scores.append(right[1])
    assert [candidate["held_out_accuracy"] for candidate in result.candidates] == pytest.approx(scores)
    assert [(c["learning_rate"], c["weight_decay"]) for c in result.candidates] == grid
    assert result.chosen == result.candidates[scores.index(max(scores))]
    assert result.accuracy == pytest.approx(test_scores[scores.index(max(scores))])


def test_it_finds_what_mean_pooling_cannot_and_leaves_the_rng_alone():
    data = (*pointer_task(1000, 0), *pointer_task(400, 1))
    state = torch.get_rng_state()
    result = train_attentive_heads(*data, num_self_attention_layers=0, epochs=10, batch_size=64)
    assert torch.equal(state, torch.get_rng_state())
    assert len(result.candidates) == 20
    assert result.accuracy > 0.9
    assert ridge_probe(data[0].mean(dim=1), data[1], data[2].mean(dim=1), data[3]).accuracy < 0.7
    single = train_attentive_heads(*data, epochs=2, **VJEPA1_PROBE)
    assert [(c["learning_rate"], c["weight_decay"]) for c in single.candidates] == [(1e-3, 0.01)]


def test_the_test_split_does_not_choose():
    train, train_labels = pointer_task(200, 0)
    test, test_labels = pointer_task(100, 1)
    options = {"num_self_attention_layers": 0, "epochs": 3, "batch_size": 32}
    result = train_attentive_heads(train, train_labels, test, test_labels, **options)
    flipped = train_attentive_heads(train, train_labels, test, 1 - test_labels, **options)
    assert flipped.chosen == result.chosen
    assert flipped.accuracy == pytest.approx(1 - result.accuracy)


def test_views_share_one_vote_of_mean_probabilities():
    heads = random_heads(0, "query")
    tokens, rows = 3 * torch.randn(200, 4, 5, 16), torch.arange(200)
    with torch.no_grad():
        pooled = [head.pooler(tokens.flatten(0, 1))[:, 0] for head in heads]
        for head, states in zip(heads, pooled, strict=True):
            # Sharp and balanced, so that a mean of logits votes otherwise than a mean of probabilities.
            head.classifier.weight *= 20
            head.classifier.bias.copy_(-head.classifier.weight @ states.mean(dim=0))
        logits = torch.stack([head.classifier(states) for head, states in zip(heads, pooled, strict=True)])
    logits = logits.view(3, 200, 4, 3)
    votes = logits.softmax(-1).mean(2).argmax(-1)
    assert (votes != logits.mean(2).argmax(-1)).any()
    for index in range(3):
        scores = _accuracies(heads, tokens, votes[index], rows, 64, torch.device("cpu"))
        assert scores[index] == 1
        assert scores == [float((votes[other] == votes[index]).double().mean()) for other in range(3)]
    train, train_labels = pointer_task(60, 0)
    options = {"num_self_attention_layers": 0, "epochs": 2, "learning_rates": (3e-3,)}
    single = train_attentive_heads(train, train_labels, train, train_labels, **options)
    repeated = train[:, None].repeat(1, 3, 1, 1)
    assert train_attentive_heads(train, train_labels, repeated, train_labels, **options) == single


def test_a_diverged_head_is_not_right_by_accident():
    train, _ = pointer_task(60, 0)
    zeros = torch.zeros(60, dtype=torch.int64)
    result = train_attentive_heads(
        *(train, zeros, train, zeros), num_self_attention_layers=0, learning_rates=(float("inf"),), epochs=1
    )
    assert result.accuracy == 0


def test_bad_input_is_named():
    (train, train_labels), (test, test_labels) = pointer_task(30, 0), pointer_task(20, 1)
    with pytest.raises(ValueError, match=r"train tokens \(n, N, D\)"):
        train_attentive_heads(train[:, 0], train_labels, test, test_labels)
    with pytest.raises(ValueError, match="width 16, test tokens have width 8"):
        train_attentive_heads(train, train_labels, test[..., :8], test_labels)
    with pytest.raises(ValueError, match="5 attention heads do not divide the width 16"):
        train_attentive_heads(train, train_labels, test, test_labels, num_attention_heads=5)
    with pytest.raises(ValueError, match="and a grid"):
        train_attentive_heads(train, train_labels, test, test_labels, weight_decays=())
    with pytest.raises(ValueError, match="NaN"):
        train_attentive_heads(train * torch.nan, train_labels, test, test_labels)
