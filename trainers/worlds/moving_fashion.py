"""
A little world whose laws are known: two real garments of Fashion-MNIST glide over a still, noisy background, each in
its own direction and speed, and what leaves the picture on one side comes back on the other. No frame alone tells
where anything is going.
"""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset

from hf_jepa.data import load_image_dataset
from hf_jepa.masking.image import hashed_bits, hashed_uniform

DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
# Pixels per frame
SPEEDS = (1.0, 2.0, 3.0)
DATA = Path("demo_data")


@cache
def load_garments(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Photos uint8 `(n, 28, 28)` and classes int64 `(n,)` of a split that `make_demo_data.py` wrote."""
    table = load_image_dataset(folder, split, label_column="label").with_format("arrow")[:]
    cells = table.column("image").to_pylist()
    photos = np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells])
    return photos, table.column("label").to_numpy()


class MovingFashion(Dataset):
    """
    Clips of two moving garments, drawn from `(seed, index)` alone. The main garment is the one in front; the other
    passes behind it at half the brightness. Garments of the splits are disjoint, as those of the data are.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.
        num_clips (`int`): length of the dataset. Clips cost nothing until they are asked for.
        seed (`int`): of all clips.
        image_size (`int`): height and width of a clip, in pixels; garments are 5/8 of it.
        num_frames (`int`): frames of a clip.
        mean (`Sequence[float]`): channel means in [0, 1]. One value makes grey clips, three repeat the grey channel.
        std (`Sequence[float]`): channel standard deviations, as many as means.
        folder (`Path`): what `make_demo_data.py` wrote.

    Returns, for an `index` or `(index, draw)`:
        `dict` with `pixel_values_videos` float32 `(F, C, H, W)`, `draw`, and of the main garment the class number
        `label` (and `garment`, the same), `direction` (of `DIRECTIONS`) and `speed` (of `SPEEDS`).
    """

    def __init__(
        self,
        split: str,
        num_clips: int,
        seed: int = 0,
        image_size: int = 48,
        num_frames: int = 16,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.5,),
        folder: Path = DATA,
    ) -> None:
        if num_clips < 1 or num_frames < 1 or image_size < 16:
            raise ValueError(
                f"MovingFashion needs at least one clip, one frame and 16 pixels, got num_clips={num_clips}, "
                f"num_frames={num_frames} and image_size={image_size}."
            )
        photos, self.classes = load_garments(Path(folder), split)
        side = 5 * image_size // 8
        resized = F.interpolate(torch.from_numpy(photos)[:, None], (side, side), mode="bilinear", antialias=True)
        self.photos = resized[:, 0].numpy()
        self.num_clips, self.seed = num_clips, seed
        self.image_size, self.num_frames = image_size, num_frames
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[int | tuple[int, int]]) -> list[dict[str, Any]]:
        pairs = [(key, key) if isinstance(key, int) else key for key in keys]
        indices = np.array([index for index, _ in pairs])
        if indices.min() < 0 or indices.max() >= self.num_clips:
            # Also what ends a `for` over the dataset.
            raise IndexError(f"indices must lie in [0, {self.num_clips}), got {indices.tolist()}")
        plan = self.plan(indices)
        clips = self.normalize(self.render(indices))
        samples = []
        for place, (clip, (_, draw)) in enumerate(zip(clips, pairs, strict=True)):
            labels = {name: int(plan[name][place, 0]) for name in ("garment", "direction", "speed")}
            samples.append({"pixel_values_videos": clip, "draw": draw, "label": labels["garment"], **labels})
        return samples

    def plan(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """
        What happens in clips, the main garment first: `photo` (row of the photos), `garment` (its class), `direction`
        and `speed` (numbers), int64 `(n, 2)`; `position`, int64 `(n, 2, F, 2)`, row and column of the upper left
        corner in each frame; `background`, the grey level under the noise, `(n,)`.
        """
        draws = hashed_uniform(self.seed, 0, np.asarray(indices), 11)
        of_two = draws[:, :10].reshape(-1, 2, 5)
        photo, direction, speed = (
            (of_two[:, :, place] * count).astype(np.int64)
            for place, count in enumerate((len(self.photos), len(DIRECTIONS), len(SPEEDS)))
        )
        angle = direction * (2 * np.pi / len(DIRECTIONS))
        velocity = np.stack([np.sin(angle), np.cos(angle)], axis=-1) * np.array(SPEEDS)[speed][..., None]
        travelled = velocity[:, :, None] * np.arange(self.num_frames)[:, None]
        position = np.floor(of_two[:, :, None, 3:] * self.image_size + travelled).astype(np.int64)
        return {
            "photo": photo,
            "garment": self.classes[photo],
            "direction": direction,
            "speed": speed,
            "position": position,
            "background": draws[:, 10] * 64,
        }

    def render(self, indices: np.ndarray, teleport_at: int | None = None) -> np.ndarray:
        """
        Args:
            indices (`np.ndarray` of shape `(n,)`): clips.
            teleport_at (`int`, *optional*): frame at which the main garment jumps half the picture down and right, to
                go on as before: what no clip of this world does.

        Returns:
            `np.ndarray` of shape `(n, F, H, W)`, uint8.
        """
        indices = np.asarray(indices)
        plan = self.plan(indices)
        size, side = self.image_size, self.photos.shape[-1]
        bits = hashed_bits(self.seed, 1, indices, -(-size * size // 8))
        noise = bits.view(np.uint8)[:, : size * size].reshape(-1, 1, size, size) >> 3
        still = (noise + plan["background"].astype(np.uint8)[:, None, None, None]).astype(np.uint8)
        frames = np.repeat(still, self.num_frames, axis=1)
        if teleport_at is not None:
            plan["position"][:, 0, teleport_at:] += size // 2
        clip, time = np.ogrid[: len(indices), : self.num_frames]
        clip, time = clip[..., None, None], time[..., None, None]
        for which in (1, 0):
            photos = self.photos[plan["photo"][:, which]][:, None]
            corner = plan["position"][:, which, :, :, None]
            rows = ((corner[:, :, 0] + np.arange(side)) % size)[..., :, None]
            columns = ((corner[:, :, 1] + np.arange(side)) % size)[..., None, :]
            under = frames[clip, time, rows, columns]
            # Photos are black around the garment.
            frames[clip, time, rows, columns] = np.where(photos > 8, photos >> which, under)
        return frames

    def normalize(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 `(n, F, H, W)` -> float32 `(n, F, C, H, W)`."""
        return ((torch.from_numpy(frames)[:, :, None] / 255) - self.mean) / self.std


def teleported(
    dataset: MovingFashion, frame: int | None = None, tubelet_size: int = 2
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """
    All clips of a dataset, and their twins in which the main garment teleports.

    Args:
        dataset ([`MovingFashion`]): of few clips; all are held in memory.
        frame (`int`, *optional*): when; by default in the middle, where a tubelet starts.
        tubelet_size (`int`): frames per time slot of the model.

    Returns:
        `tuple`: possible and impossible clips, both float32 `(n, F, C, H, W)`, and the time slot that begins with the
        jump, or holds it.
    """
    if frame is None:
        frame = dataset.num_frames // (2 * tubelet_size) * tubelet_size
    if not 0 < frame < dataset.num_frames:
        raise ValueError(f"frame must lie in [1, {dataset.num_frames - 1}], got {frame}.")
    indices = np.arange(len(dataset))
    possible, impossible = (dataset.normalize(dataset.render(indices, at)) for at in (None, frame))
    return possible, impossible, frame // tubelet_size
