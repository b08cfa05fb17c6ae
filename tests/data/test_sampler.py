import pytest
import torch

from hf_jepa.data import CountedSampler


def test_epochs_permute_all_rows_and_count_on():
    sampler = CountedSampler(10, seed=3)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert sorted(index for index, _ in pairs) == list(range(10))
        assert [draw for _, draw in pairs] == list(range(epoch * 10, epoch * 10 + 10))
        epochs.append([index for index, _ in pairs])
    assert epochs[0] != epochs[1] != epochs[2]
    sampler.set_epoch(1)
    assert [index for index, _ in sampler] == epochs[1]
    assert [index for index, _ in CountedSampler(10, seed=4)] != epochs[0]


def test_each_epoch_is_whole_steps():
    sampler = CountedSampler(11, batch_size=4)
    assert len(sampler) == 8
    left_out = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert [draw // 4 for _, draw in pairs] == [2 * epoch] * 4 + [2 * epoch + 1] * 4
        left_out |= set(range(11)) - {index for index, _ in pairs}
    assert left_out == set(range(11))


def test_global_rng_is_untouched():
    state = torch.get_rng_state()
    list(CountedSampler(50))
    assert torch.equal(state, torch.get_rng_state())


def test_in_order_without_shuffle():
    assert list(CountedSampler(3, shuffle=False)) == [(0, 0), (1, 1), (2, 2)]


def test_too_small_a_dataset_is_refused():
    with pytest.raises(ValueError, match="3 rows, fewer than the 8"):
        CountedSampler(3, batch_size=8)


def test_draws_are_counted_through_chunks(monkeypatch):
    whole = [list(CountedSampler(11, seed=3, batch_size=2, shuffle=shuffle)) for shuffle in (True, False)]
    monkeypatch.setattr("hf_jepa.data.sampler._CHUNK", 4)
    sampler = CountedSampler(11, seed=3, batch_size=2)
    assert [list(sampler), list(CountedSampler(11, batch_size=2, shuffle=False))] == whole
    sampler.set_epoch(1)
    assert [draw for _, draw in sampler] == list(range(10, 20))
