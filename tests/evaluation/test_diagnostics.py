import json

import pytest
import torch
from safetensors.torch import load_file

from hf_jepa.evaluation import collapse_report, content_share, effective_rank, feature_std, lidar, rankme

CASES = ["gaussian", "lowrank", "offset", "collapsed"]


@pytest.fixture
def golden(golden_dir):
    return load_file(golden_dir / "repr_metrics.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_ranks_and_std_match_the_recorded_numbers(golden, case):
    z = golden[f"{case}/z"]
    assert rankme(z) == pytest.approx(golden[f"{case}/rankme_paper_f64"].item(), rel=1e-8)
    assert rankme(z, epsilon=1e-5) == pytest.approx(golden[f"{case}/rankme_spt"].item(), rel=1e-4)
    assert effective_rank(z) == pytest.approx(golden[f"{case}/effective_rank_f64"].item(), rel=1e-8)
    centered = effective_rank(z, centered=True)
    assert centered == pytest.approx(golden[f"{case}/effective_rank_centered_f64"].item(), rel=1e-8)
    std = feature_std(z, normalize=True).mean().item()
    assert std == pytest.approx(golden[f"{case}/std_of_l2_normalized"].item(), rel=1e-3)


def test_lidar_matches_the_recorded_numbers(golden, golden_dir):
    config = json.loads((golden_dir / "repr_metrics.json").read_text())["config"]["lidar"]
    z, views = golden["lidar/z"], config["samples_per_class"]
    assert lidar(z, views) == pytest.approx(golden["lidar/lidar_f64"].item(), rel=1e-8)
    assert lidar(z, views) == pytest.approx(golden["lidar/lidar"].item(), rel=1e-3)
    assert lidar(z, views, delta=1e-2) == pytest.approx(golden["lidar/lidar_delta1e-2"].item(), rel=1e-3)


def test_feature_std_is_per_dimension():
    features = torch.randn(500, 3) * torch.tensor([1.0, 0.0, 5.0])
    torch.testing.assert_close(feature_std(features), features.double().std(dim=0))


@pytest.mark.parametrize(
    ("case", "verdict"),
    [("gaussian", "healthy"), ("lowrank", "healthy"), ("offset", "healthy"), ("collapsed", "collapsed")],
)
def test_report_on_recorded_matrices(golden, case, verdict):
    report = collapse_report(golden[f"{case}/z"])
    assert report["verdict"] == verdict
    assert (report["num_examples"], report["width"]) == (40, 12)
    assert report["rankme"] == pytest.approx(golden[f"{case}/rankme_paper_f64"].item(), rel=1e-8)


def test_report_sees_a_collapse_to_positions():
    positions = torch.randn(1, 16, 8)
    tokens = positions + 1e-3 * torch.randn(50, 16, 8)
    assert content_share(tokens) < 1e-4
    assert collapse_report(tokens + 0.0)["verdict"] in ("collapsed", "collapsed_to_positions")
    # The mean over positions cancels, so the pooled feature alone looks alive.
    centred = tokens - positions.mean(dim=1, keepdim=True)
    assert collapse_report(centred)["verdict"] == "collapsed_to_positions"
    assert collapse_report(centred.mean(dim=1))["verdict"] == "healthy"
    assert content_share(torch.randn(200, 16, 8)) > 0.95


def test_report_sees_low_rank_and_nan():
    line = torch.randn(300, 1) @ torch.randn(1, 64)
    assert collapse_report(line)["verdict"] == "low_rank"
    assert collapse_report(torch.full((4, 3), torch.nan))["verdict"] == "not_finite"
    assert collapse_report(torch.ones(10, 4))["verdict"] == "collapsed"
    assert collapse_report(torch.zeros(10, 4))["verdict"] == "collapsed"


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="shape"):
        rankme(torch.randn(3, 4, 5))
    with pytest.raises(ValueError, match="NaN"):
        effective_rank(torch.tensor([[1.0, torch.inf]]))
    with pytest.raises(ValueError, match="2 images of 2 views"):
        lidar(torch.randn(3, 4), 2)
