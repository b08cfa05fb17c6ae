import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from hf_jepa.evaluation import (
    attentive_probe,
    knn_accuracy,
    linear_probe,
    logistic_probe,
    low_shot_accuracy,
    ridge_probe,
)
from hf_jepa.evaluation.closed_form import _fit_ridge, held_out_rows
from hf_jepa.evaluation.linear_probe import _Heads
from hf_jepa.evaluation.low_shot import draw_labelled_rows


def blobs(num_rows: int, width: int = 12, num_classes: int = 4, noise: float = 1.3, seed: int = 0):
    """Two splits of overlapping clusters: a probe gets some right and some wrong."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, width, generator=generator)
    splits = []
    for _ in range(2):
        labels = torch.arange(num_rows) % num_classes
        splits += [centres[labels] + noise * torch.randn(num_rows, width, generator=generator), labels]
    return splits


def test_knn_equals_scikit_learn():
    data = blobs(300)
    train, test = (torch.nn.functional.normalize(data[i], dim=1) for i in (0, 2))

    def weights(distances):  # of unit vectors: squared euclidean distance is 2 - 2 * similarity
        return np.exp((1 - distances**2 / 2) / 0.1)

    theirs = KNeighborsClassifier(7, weights=weights).fit(train.numpy(), data[1].numpy())
    expected = theirs.score(test.numpy(), data[3].numpy())
    assert 0.5 < expected < 1
    for chunk_size in (1024, 17):
        assert knn_accuracy(*data, k=7, temperature=0.1, chunk_size=chunk_size) == pytest.approx(expected)


def test_knn_weights_decide_where_votes_are_even():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    query = torch.tensor([[1.0, 0.5]])
    labels = torch.tensor([0, 1])
    assert knn_accuracy(train, labels, query, torch.tensor([0]), k=2) == 1
    assert knn_accuracy(train, labels, query, torch.tensor([1]), k=2) == 0
    assert knn_accuracy(train, labels, query, torch.tensor([0]), k=2, temperature=1e-6) == 1


@pytest.mark.parametrize(("num_rows", "width"), [(200, 12), (30, 50), (1300, 1100), (1100, 1300)])
def test_ridge_equals_scikit_learn(num_rows, width):
    train, labels, test, test_labels = blobs(num_rows, width)
    train[:, 0] = 3.0  # a constant column must do no harm
    scaler = StandardScaler().fit(train.double().numpy())
    targets = torch.nn.functional.one_hot(labels).double().numpy()
    theirs = Ridge(alpha=0.05 * num_rows).fit(scaler.transform(train.double().numpy()), targets)
    expected = torch.from_numpy(theirs.predict(scaler.transform(test.double().numpy())))
    (predict,) = _fit_ridge(train, labels, [0.05])
    scores = predict(test)
    # The column is constant in train only: scikit-learn maps test rows to their distance from it, with weight 0.
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-4)
    result = ridge_probe(train, labels, test, test_labels, penalties=[0.05])
    assert result.accuracy == pytest.approx((expected.argmax(dim=1) == test_labels).double().mean().item())


def test_logistic_equals_scikit_learn():
    data = blobs(240)
    scaler = StandardScaler().fit(data[0].numpy())
    theirs = LogisticRegression(C=1 / (240 * 0.01), max_iter=1000, tol=1e-8)
    theirs.fit(scaler.transform(data[0].numpy()), data[1].numpy())
    expected = theirs.score(scaler.transform(data[2].numpy()), data[3].numpy())
    assert 0.5 < expected < 1
    assert logistic_probe(*data, penalties=[0.01]).accuracy == pytest.approx(expected, abs=1 / 240 + 1e-9)


@pytest.mark.parametrize("probe", [ridge_probe, logistic_probe])
def test_penalty_is_picked_on_held_out_train_rows(probe):
    # 40 rows of 60 dimensions: hardly any penalty memorises noise.
    data = blobs(40, width=60, noise=4.0, seed=1)
    result = probe(*data, penalties=[1e-6, 1e-2, 1.0])
    scores = [candidate["held_out_accuracy"] for candidate in result.candidates]
    assert result.chosen["held_out_accuracy"] == max(scores)
    assert float(result) == result.accuracy
    assert result.accuracy == probe(*data, penalties=[result.chosen["penalty"]]).accuracy
    # Test labels must not sway the choice.
    shuffled = [*data[:3], data[3].roll(1)]
    assert probe(*shuffled, penalties=[1e-6, 1e-2, 1.0]).chosen == result.chosen


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_linear_probe_learns_with_either_optimizer(optimizer):
    data = blobs(600, noise=0.8)
    rates = (0.05, 0.01) if optimizer == "sgd" else (50.0, 10.0)
    result = linear_probe(*data, learning_rates=rates, epochs=20, batch_size=64, optimizer=optimizer)
    assert result.accuracy > 0.85
    assert len(result.candidates) == 2 * 2 * 2


def test_linear_probe_reports_the_head_that_held_out_rows_prefer():
    data = blobs(400, noise=0.8)
    good = {"last": data[0], "junk": torch.randn_like(data[0])}
    test = {"last": data[2], "junk": torch.randn_like(data[2])}
    result = linear_probe(good, data[1], test, data[3], epochs=10, batch_size=64)
    assert result.chosen["features"] == "last"
    assert result.chosen["held_out_accuracy"] == max(c["held_out_accuracy"] for c in result.candidates)
    again = linear_probe(good, data[1], test, data[3], epochs=10, batch_size=64)
    assert again == result


def test_heads_trained_side_by_side_equal_heads_trained_alone():
    data = blobs(200)
    options = {"weight_decays": (0.0,), "batch_norm": (True,), "epochs": 4, "batch_size": 32}
    both = linear_probe(*data, learning_rates=(0.1, 0.001), **options)
    # The first head of a group draws the same initial weights alone or in company.
    alone = linear_probe(*data, learning_rates=(0.1,), **options)
    assert both.candidates[0]["held_out_accuracy"] == alone.candidates[0]["held_out_accuracy"]


def test_batch_norm_rescues_badly_scaled_features():
    data = blobs(400, noise=0.8)
    scale = torch.logspace(-4, 0, 12)
    data[0], data[2] = data[0] * scale, data[2] * scale
    plain, normed = (
        linear_probe(*data, batch_norm=(norm,), epochs=10, batch_size=64).accuracy for norm in (False, True)
    )
    assert normed > plain + 0.1


def pointer_task(num_rows: int, seed: int):
    """One token, marked by its first channel, holds the class in a sign; the rest is noise that drowns the mean."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(num_rows, 16, 16, generator=generator)
    tokens[..., 0] = 0
    labels = torch.randint(0, 2, (num_rows,), generator=generator)
    where = torch.randint(0, 16, (num_rows,), generator=generator)
    rows = torch.arange(num_rows)
    tokens[rows, where, 0] = 6
    tokens[rows, where, 1] = 2.0 * labels - 1
    return tokens, labels


def test_attentive_probe_solves_what_mean_pooling_cannot():
    train, train_labels = pointer_task(1200, 0)
    test, test_labels = pointer_task(500, 1)
    result = attentive_probe(train, train_labels, test, test_labels, num_heads=4, epochs=15, batch_size=64)
    assert result.accuracy > 0.9
    assert ridge_probe(train.mean(dim=1), train_labels, test.mean(dim=1), test_labels).accuracy < 0.7
    assert len(result.candidates) == 4
    assert result.chosen in result.candidates


def test_attentive_probes_side_by_side_equal_a_probe_alone():
    train, train_labels = pointer_task(100, 0)
    test, test_labels = pointer_task(50, 1)
    data = (train, train_labels, test, test_labels)
    both = attentive_probe(*data, learning_rates=(1e-2, 1e-4), epochs=2, batch_size=32)
    alone = attentive_probe(*data, learning_rates=(1e-2,), epochs=2, batch_size=32)
    assert both.candidates[0] == alone.candidates[0]


def test_low_shot_draws_the_same_number_from_each_class():
    labels = torch.cat([torch.zeros(200), torch.ones(50)]).long()
    rows = draw_labelled_rows(labels, 0.1, torch.Generator().manual_seed(0))
    assert labels[rows].bincount().tolist() == [20, 5]
    rows = draw_labelled_rows(labels, 3, torch.Generator().manual_seed(0))
    assert labels[rows].bincount().tolist() == [3, 3]
    assert len(draw_labelled_rows(labels, 0.001, torch.Generator())) == 2
    with pytest.raises(ValueError, match="class 1 has 50 rows"):
        draw_labelled_rows(labels, 60, torch.Generator())
    with pytest.raises(ValueError, match="amount"):
        draw_labelled_rows(labels, 1.5, torch.Generator())


def test_low_shot_is_seeded_and_grows_with_labels():
    data = blobs(800, noise=1.0)
    few, many = (low_shot_accuracy(*data, amount=amount) for amount in (2, 0.5))
    assert few.accuracies == low_shot_accuracy(*data, amount=2).accuracies
    assert len(set(few.accuracies)) > 1
    assert few.std > 0
    assert (few.num_labels, many.num_labels) == (8, 400)
    assert many.mean > few.mean + 0.05
    assert float(low_shot_accuracy(*data, amount=5, probe=lambda *a: knn_accuracy(*a, k=5))) > 0.4


def test_global_rng_is_untouched():
    state = torch.get_rng_state()
    data = blobs(60)
    ridge_probe(*data)
    linear_probe(*data, epochs=1, batch_size=16)
    low_shot_accuracy(*data, amount=2)
    tokens = torch.zeros(20, 3, 4)
    attentive_probe(tokens, torch.arange(20) % 2, tokens, torch.arange(20) % 2, epochs=1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("probe", [knn_accuracy, ridge_probe, logistic_probe, linear_probe, low_shot_accuracy])
def test_bad_input_is_named(probe):
    train, labels, test, test_labels = blobs(60)
    with pytest.raises(ValueError, match="train"):
        probe(train, labels[:-1], test, test_labels)
    with pytest.raises(ValueError, match="NaN"):
        probe(train, labels, test * torch.nan, test_labels)
    with pytest.raises(ValueError, match="integers from 0"):
        probe(train, labels - 1, test, test_labels)


def test_more_bad_input():
    data = blobs(60)
    with pytest.raises(ValueError, match="k must be"):
        knn_accuracy(*data, k=61)
    with pytest.raises(ValueError, match="temperature"):
        knn_accuracy(*data, temperature=0)
    with pytest.raises(ValueError, match="penalties"):
        ridge_probe(*data, penalties=[0.0])
    with pytest.raises(ValueError, match="optimizer"):
        linear_probe(*data, optimizer="adam")
    with pytest.raises(ValueError, match='pool="none"'):
        attentive_probe(*data)
    with pytest.raises(ValueError, match="num_heads=5"):
        attentive_probe(data[0][:, None], data[1], data[2][:, None], data[3], num_heads=5)


def test_ridge_survives_wide_redundant_features_in_float32():
    train, labels, test, test_labels = blobs(2100, 12)
    wide, wide_test = (torch.cat([features] * 180, dim=1) for features in (train, test))
    result = ridge_probe(wide, labels, wide_test, test_labels, penalties=[1e-9])
    assert result.accuracy > ridge_probe(train, labels, test, test_labels).accuracy - 0.02


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_head_takes_the_steps_of_torch_sgd(batch_norm):
    train, labels, *_ = blobs(32)
    heads = _Heads("x", 12, 4, batch_norm, [(0.3, 0.0), (0.1, 0.01)])
    linear = torch.nn.Linear(12, 4)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    groups = [{"params": [linear.weight], "weight_decay": 0.01}, {"params": [linear.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    norm = torch.nn.BatchNorm1d(12, affine=False) if batch_norm else torch.nn.Identity()
    for _ in range(5):
        heads.step(train, labels, 1.0, lars=False)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(linear(norm(train)), labels).backward()
        optimizer.step()
    torch.testing.assert_close(heads.weight[1].T, linear.weight.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(heads.bias[1, 0], linear.bias.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("probe", ["linear", "ridge", "logistic", "attentive"])
def test_what_is_chosen_does_not_depend_on_what_is_scored(probe):
    """Whatever the test labels are, the setting that held-out train rows prefer is the one that is scored."""
    train, labels, test, test_labels = blobs(120, noise=2.5)
    run = {
        "linear": lambda *data: linear_probe(*data, epochs=4, batch_size=16),
        "ridge": ridge_probe,
        "logistic": lambda *data: logistic_probe(*data, penalties=(1e-4, 1e-2, 1.0, 100.0), max_iterations=30),
        "attentive": lambda train, labels, test, scored: attentive_probe(
            train[:, None],
            labels,
            test[:, None],
            scored,
            learning_rates=(1e-4, 1e-3, 1e-2, 3e-1),
            epochs=3,
            batch_size=16,
        ),
    }[probe]
    results = [run(train, labels, test, test_labels)]
    for seed in range(6):
        shuffled = test_labels[torch.randperm(len(test_labels), generator=torch.Generator().manual_seed(seed))]
        results.append(run(train, labels, test, shuffled))
    assert all(result.chosen == results[0].chosen for result in results)
    assert len({result.accuracy for result in results}) > 1
    best = max(candidate["held_out_accuracy"] for candidate in results[0].candidates)
    assert results[0].chosen["held_out_accuracy"] == best
    # Otherwise the settings would be as good as each other, and anything could be chosen.
    assert len({candidate["held_out_accuracy"] for candidate in results[0].candidates}) > 1


def test_the_penalty_is_picked_on_rows_that_were_not_fitted():
    """In wide noise the weakest penalty fits its rows best and new rows worst."""
    train, labels, test, test_labels = blobs(80, width=200, noise=4.0)
    result = ridge_probe(train, labels, test, test_labels)
    kept, held_out = held_out_rows(80, 0.2, 0)
    scaler = StandardScaler().fit(train[kept].double().numpy())
    rows, others = (scaler.transform(train[part].double().numpy()) for part in (kept, held_out))
    targets = torch.nn.functional.one_hot(labels[kept]).double().numpy()
    for candidate in result.candidates:
        model = Ridge(alpha=max(candidate["penalty"] * len(kept), 1e-9)).fit(rows, targets)
        expected = (model.predict(others).argmax(1) == labels[held_out].numpy()).mean()
        assert candidate["held_out_accuracy"] == pytest.approx(expected)
        assert candidate["held_out_accuracy"] < 0.9
