"""From decoded frames to the pixels of a clip: V-JEPA's training augmentation and its two evaluation resamplers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .seeding import forked_rng
from .transforms import IMAGENET_MEAN, IMAGENET_STD, _channel_statistics, _size_pair, random_resized_crop_box

# uint8 frames (F, C, H, W) -> float32 pixels (F, C, height, width), or (views, F, C, height, width)
VideoTransform = Callable[[torch.Tensor], torch.Tensor]

# OpenCV resizes 8-bit images in fixed point: weights have 11 bits.
_CV2_ONE = 2048


def _normalize(pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    # In the released code's order of operations: 255 goes into the statistics, not into the pixels.
    return pixels.sub_(255 * mean).div_(255 * std)


# As in transforms.py, partials of module-level functions: spawned data workers must pickle them.
def _train(
    frames: torch.Tensor,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    hflip: bool,
    mean: torch.Tensor,
    std: torch.Tensor,
    augment: Callable[[Image.Image], Image.Image] | None,
    erase: Callable[[torch.Tensor], torch.Tensor] | None,
) -> torch.Tensor:
    if augment is not None:
        frames = _same_for_all_frames(frames, augment)
    left, top, right, bottom = random_resized_crop_box(*frames.shape[-2:], scale, ratio)
    flip = hflip and torch.rand(1).item() < 0.5
    pixels = torch.empty(*frames.shape[:2], height, width)
    # Frame by frame: what is at work stays in the processor's cache, and a clip of large frames in memory.
    for place, frame in enumerate(frames[:, :, top:bottom, left:right]):
        resized = F.interpolate(frame[None].float(), (height, width), mode="bilinear", align_corners=False)[0]
        pixels[place] = resized.flip(-1) if flip else resized
    pixels = _normalize(pixels, mean, std)
    return pixels if erase is None else erase(pixels)


def _same_for_all_frames(frames: torch.Tensor, augment: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    seed = int(torch.randint(2**32, (1,)))
    augmented = []
    for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
        with forked_rng(seed):
            augmented.append(np.array(augment(Image.fromarray(frame))))
    return torch.from_numpy(np.stack(augmented)).permute(0, 3, 1, 2)


def video_train_transform(
    image_size: int | Sequence[int],
    crop_scale: tuple[float, float] = (0.3, 1.0),
    crop_ratio: tuple[float, float] = (0.75, 1.35),
    hflip: bool = True,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    auto_augment: str | None = None,
    erase_probability: float = 0.0,
) -> VideoTransform:
    """
    V-JEPA's pretraining augmentation (all generations, released code): one random resized crop for all frames
    (bilinear, without antialiasing; after ten tries that do not fit, the centre within the range of aspect ratios),
    mirrored half of the time, normalised. With `auto_augment="rand-m7-n4-mstd0.5-inc1"`, `crop_scale=(0.08, 1.0)`,
    `crop_ratio=(0.75, 4 / 3)`, `hflip=False` and `erase_probability=0.25` it is the augmentation of the probes.

    Args:
        image_size (`int` or `(int, int)`): output side, or `(height, width)`, in pixels.
        crop_scale (`tuple[float, float]`): range of the crop's area as a share of the frame's. Above 1 no try fits and
            the centre is taken always, which is how V-JEPA 2-AC reads DROID.
        crop_ratio (`tuple[float, float]`): range of width / height, drawn log-uniformly.
        hflip (`bool`): mirror half of the clips.
        mean (`Sequence[float]`): channel means in [0, 1], as many as the frames have channels.
        std (`Sequence[float]`): channel standard deviations.
        auto_augment (`str`, *optional*): timm's RandAugment, by its configuration string, the same for all frames.
        erase_probability (`float`): share of clips in which a box is replaced by noise, the same in all frames.

    Returns:
        `Callable`: uint8 `(F, C, H, W)` -> float32 `(F, C, height, width)`. Random numbers come from torch's global
        CPU generator, which [`SeededVideoDataset`] seeds for each draw.

    Raises:
        ValueError: for sizes, scales, ratios, probabilities or statistics out of range.
    """
    height, width = _size_pair(image_size)
    for name, (low, high) in (("crop_scale", crop_scale), ("crop_ratio", crop_ratio)):
        if not 0 < low <= high:
            raise ValueError(f"{name} must satisfy 0 < low <= high, got {(low, high)}.")
    if not 0 <= erase_probability <= 1:
        raise ValueError(f"erase_probability must lie in [0, 1], got {erase_probability}.")
    mean_tensor, std_tensor = _channel_statistics(mean, std)
    augment = erase = None
    if auto_augment is not None:
        from timm.data.auto_augment import rand_augment_transform

        fill = tuple(round(255 * value) for value in mean)
        options = {"translate_const": int(0.45 * min(height, width)), "img_mean": fill}
        augment = rand_augment_transform(auto_augment, {**options, "interpolation": Image.Resampling.BICUBIC})
    if erase_probability:
        from torchvision.transforms.v2 import RandomErasing

        erase = RandomErasing(erase_probability, value="random")
    transform = partial(
        _train,
        height=height,
        width=width,
        scale=(float(crop_scale[0]), float(crop_scale[1])),
        ratio=(float(crop_ratio[0]), float(crop_ratio[1])),
        hflip=hflip,
        mean=mean_tensor,
        std=std_tensor,
        augment=augment,
        erase=erase,
    )
    transform.draws_from_torch_only = True
    return transform


def _evaluate(
    frames: torch.Tensor,
    image_size: int,
    num_views: int,
    resample_backend: str,
    mean: torch.Tensor,
    std: torch.Tensor,
) -> torch.Tensor:
    height, width = frames.shape[-2:]
    short = image_size if num_views > 1 else int(image_size * 256 / 224)
    size = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    if num_views > 1:
        stride = (max(size) - short) // (num_views - 1)
        places = [(0, view * stride) if height <= width else (view * stride, 0) for view in range(num_views)]
    else:
        # An odd margin: the released code rounds half a pixel to even, the processor in transformers always down.
        halve = round if resample_backend == "cv2" else int
        places = [tuple(halve((length - image_size) / 2) for length in size)]
    if resample_backend == "cv2":
        views = [resize_as_cv2(frames, size, (*place, image_size, image_size)) for place in places]
    else:
        from torchvision.transforms.v2.functional import resize

        resized = resize(frames, list(size), antialias=True)
        views = [resized[..., top : top + image_size, left : left + image_size] for top, left in places]
    pixels = torch.stack([_normalize(view.float().contiguous(), mean, std) for view in views])
    return pixels if num_views > 1 else pixels[0]


def video_eval_transform(
    image_size: int,
    resample_backend: Literal["cv2", "antialias"] = "cv2",
    num_views: int = 1,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> VideoTransform:
    """
    Deterministic transform of the evaluations of V-JEPA: the short side is resized to `int(image_size * 256 / 224)`
    and the centre cut out; with several views the short side becomes `image_size`, and crops lie along the long side.

    Args:
        image_size (`int`): output side in pixels.
        resample_backend (`str`): `"cv2"` resizes as OpenCV's `INTER_LINEAR` does, bit for bit, without antialiasing:
            what the released evaluations ran on. `"antialias"` is torchvision's resize and equals
            `VJEPA2VideoProcessor`, with which published `vjepa2` models are used.
        num_views (`int`): crops per clip; the evaluations take 3, or 1.
        mean (`Sequence[float]`): channel means in [0, 1], as many as the frames have channels.
        std (`Sequence[float]`): channel standard deviations.

    Returns:
        `Callable`: uint8 `(F, C, H, W)` -> float32 `(F, C, image_size, image_size)`, with several views
        `(num_views, F, C, image_size, image_size)`.

    Raises:
        ValueError: for sizes, numbers or statistics out of range, or another backend.
    """
    _size_pair(image_size)
    if num_views < 1:
        raise ValueError(f"num_views must be at least 1, got {num_views}.")
    if resample_backend not in ("cv2", "antialias"):
        raise ValueError(f'resample_backend must be "cv2" or "antialias", got {resample_backend!r}.')
    mean_tensor, std_tensor = _channel_statistics(mean, std)
    transform = partial(
        _evaluate,
        image_size=image_size,
        num_views=num_views,
        resample_backend=resample_backend,
        mean=mean_tensor,
        std=std_tensor,
    )
    transform.draws_from_torch_only = True
    return transform


def resize_as_cv2(
    frames: torch.Tensor, size: tuple[int, int], crop: tuple[int, int, int, int] | None = None
) -> torch.Tensor:
    """
    Bilinear resize without antialiasing, equal bit for bit to `cv2.resize(frame, interpolation=cv2.INTER_LINEAR)` of
    8-bit frames (OpenCV 4.10 and 5.0 on x86), whose fixed-point arithmetic it repeats.

    Args:
        frames (`torch.Tensor` of shape `(F, C, H, W)`, uint8): the frames.
        size (`(int, int)`): height and width to resize to, in pixels.
        crop (`(int, int, int, int)`, *optional*): `(top, left, height, width)` of the part of the result to compute.

    Returns:
        `torch.Tensor` of shape `(F, C, height, width)`, uint8.
    """
    top, left, height, width = crop or (0, 0, *size)
    rows, row_weights = _cv2_axis(frames.shape[-2], size[0], top, height)
    columns, column_weights = _cv2_axis(frames.shape[-1], size[1], left, width)
    # Outside the outermost columns OpenCV gives one all the weight; rows there keep two shares of the same row.
    column_weights[:, columns[0] == columns[1]] = torch.tensor([[_CV2_ONE], [0]], dtype=torch.int32)
    needed, (upper, lower) = rows.unique(return_inverse=True)
    upper_weights, lower_weights = row_weights[:, :, None, None]
    resized = torch.empty(len(frames), height, width, frames.shape[1], dtype=torch.uint8)
    # Channels last, as decoders give them, and frame by frame: twice as fast as all at once.
    for place, frame in enumerate(frames.permute(0, 2, 3, 1)):
        taken = frame.index_select(0, needed)
        mixed = taken.index_select(1, columns[0]).int().mul_(column_weights[0, :, None])
        mixed += taken.index_select(1, columns[1]).int().mul_(column_weights[1, :, None])
        mixed >>= 4
        above = mixed.index_select(0, upper).mul_(upper_weights).bitwise_right_shift_(16)
        below = mixed.index_select(0, lower).mul_(lower_weights).bitwise_right_shift_(16)
        resized[place] = above.add_(below).add_(2).bitwise_right_shift_(2)
    return resized.permute(0, 3, 1, 2)


def _cv2_axis(length: int, new_length: int, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both neighbours, int64 `(2, count)`, and their 11-bit weights, int32 `(2, count)`, of each output pixel."""
    centres = (torch.arange(start, start + count, dtype=torch.float64) + 0.5) * (length / new_length) - 0.5
    # OpenCV keeps the coordinate in single precision.
    centres = centres.float()
    first = centres.floor()
    fraction = centres - first
    weights = torch.stack([1 - fraction, fraction]).mul(_CV2_ONE).round().int()
    neighbours = torch.stack([first, first + 1]).long().clamp(0, length - 1)
    return neighbours, weights
