"""What the VL-JEPA demo is made of: pairs from archives, splits by families of names, the linear floor, streams."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.worlds.emoji_pairs import ARCHIVES, held_out_concepts, load_emoji, render
from trainers.worlds.linear_floor import PENALTIES, Fold, linear_floor, ridge
from trainers.worlds.vl_streams import LENGTH, decodes_saved

CODES = {"1f600": "GRINNING FACE", "1f431": "CAT FACE", "1f436": "DOG FACE"}


@pytest.fixture
def archives(tmp_path):
    """Three small archives; one concept is not drawn in Fluent, another is a component."""

    def add(tar, name, data):
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))

    listing = [
        {"name": name, "unified": code.upper(), "image": f"{code}.png", "category": "A"}
        for code, name in CODES.items()
    ]
    listing[-1]["category"] = "Component"
    for style, file in ARCHIVES.items():
        with tarfile.open(tmp_path / file, "w:gz") as tar:
            for number, code in enumerate(sorted(CODES, reverse=True)):
                if style == "fluent" and code == "1f431":
                    continue
                stream = io.BytesIO()
                size = 32 if style == "fluent" else 64
                pixels = np.full((size, size, 4), 60 * number + len(style), np.uint8)
                pixels[..., 3] = 255
                Image.fromarray(pixels, "RGBA").save(stream, "PNG")
                name = f"assets/{code}.webp" if style == "fluent" else f"img/{style}/64/{code}.png"
                add(tar, f"package/{name}", stream.getvalue())
            add(tar, "package/emoji.json", json.dumps(listing).encode())
    return tmp_path


def test_only_what_all_styles_draw_is_loaded(archives):
    emoji = load_emoji(archives)
    assert emoji.names == ["grinning face"]
    assert emoji.groups == ["A"]
    # In each style's own shade, from each archive's own place.
    shades = {style: int(images[0, 0, 5, 5]) for style, images in emoji.images.items()}
    assert shades == {"twitter": 7, "fluent": 6, "google": 6}
    assert all(images.shape == (1, 4, 64, 64) for images in emoji.images.values())
    (archives / ARCHIVES["google"]).unlink()
    with pytest.raises(ValueError, match=r"setup_env.sh --vl"):
        load_emoji(archives)


def test_families_of_names_are_held_out_as_a_whole():
    names = [f"{who}{role}" for role in ("elf", "judge", "mage", "cook", "pilot") for who in ("", "man ", "woman ")]
    names += [f"flag {number}" for number in range(30)]
    held_out = held_out_concepts(names, 11)
    assert held_out.sum() == 11
    for start in range(0, 15, 3):
        assert held_out[start : start + 3].sum() in (0, 3)
    assert not torch.equal(held_out, held_out_concepts(names, 11, seed=1))


def test_pictures_are_drawn_on_white_or_changed_a_little():
    images = torch.zeros(2, 4, 64, 64, dtype=torch.uint8)
    images[:, 3, 16:48, 16:48] = 255
    plain = render(images, size=112)
    assert plain[0, :, 0, 0].tolist() == [1, 1, 1]
    assert plain[0, :, 56, 56].tolist() == [-1, -1, -1]
    changed = render(images, torch.Generator().manual_seed(0), size=112)
    assert changed.shape == plain.shape
    assert changed.abs().max() <= 1
    # The square stays black, on a ground of another colour.
    assert changed[:, :, 56, 56].max() < -0.9
    assert not torch.equal(changed[0], changed[1])
    again = render(images, torch.Generator().manual_seed(0), size=112)
    assert torch.equal(changed, again)


def test_the_floor_is_ridge_regression_with_the_penalty_that_validation_likes_best():
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(1, 2, 40, 6, generator=generator), torch.randn(40, 3, generator=generator)
    expected = Ridge(alpha=30 * 2, solver="cholesky").fit(features[0].flatten(0, 1), targets.repeat(2, 1))
    new = torch.randn(5, 6, generator=generator)
    np.testing.assert_allclose(ridge(features, targets, 30)(new), expected.predict(new), rtol=1e-3, atol=1e-4)

    tests = {"seen": (new, torch.arange(5))}
    held_out = {"seen": (torch.randn(7, 6, generator=generator), torch.arange(7))}

    def score(predicted, rows):
        return {"small": -float(predicted.norm()), "first": float(predicted[0, 0])}

    found = linear_floor(Fold(features, targets, tests), Fold(features, targets, held_out), score)
    settings = [(views, penalty) for views in (1, 2) for penalty in PENALTIES]
    fitted = [ridge(features[:, :views], targets, penalty) for views, penalty in settings]
    for metric, value in found["seen"].items():
        # What validation likes best, whatever the test would.
        best = max(fitted, key=lambda fit: score(fit(held_out["seen"][0]), None)[metric])  # noqa: B023
        assert value == pytest.approx(score(best(new), None)[metric])


def test_decodes_saved_are_counted_at_equal_quality():
    names = ("uniform", "uniform, mean", "selective", "selective, mean")
    rates = ((LENGTH // 2, (0.2, 0.1, 0, 0)), (LENGTH, (0.3, 0.4, 0, 0.6)), (2 * LENGTH, (0.5, 0.8, 0, 0)))
    sweep = [
        {"decodes": count, "windows": 10 * LENGTH, **dict(zip(names, values, strict=True))} for count, values in rates
    ]
    found = decodes_saved(sweep)
    assert found["uniform_decodes_needed"] == 1.5 * LENGTH
    assert found["times_fewer"] == pytest.approx(1.5)
    sweep[-1]["uniform, mean"] = 0.5
    assert decodes_saved(sweep)["times_fewer"] is None
