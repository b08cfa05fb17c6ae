"""What an evaluation sees of a video: how many clips, of which frames, in which crops."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoVideoProcessor, PreTrainedModel

from ..data.clip_sampling import ClipSampler
from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ..data.video_dataset import SeededVideoDataset
from ..data.video_transforms import VideoTransform, video_eval_transform
from ..encoders import is_video_encoder
from ..parts import load_auto


@dataclass(frozen=True)
class ClipProtocol:
    """
    The clips of an evaluation, in V-JEPA's words "16x4, 2x3": 16 frames with a step of 4, 2 segments, 3 views.

    Args:
        num_frames (`int`): frames of a clip.
        frame_step (`int`, *optional*): frames of the video per frame of the clip; 4 if neither is given.
        frames_per_second (`int`, *optional*): frames of the clip per second, instead.
        segments (`int`): clips per video, evenly spread; their tokens are pooled together.
        views (`int`): crops of each test clip along its long side; predictions are averaged.

    Raises:
        ValueError: For numbers below 1, and if both `frame_step` and `frames_per_second` are given.
    """

    num_frames: int
    frame_step: int | None = None
    frames_per_second: int | None = None
    segments: int = 1
    views: int = 1

    def __post_init__(self) -> None:
        if self.frame_step is None and self.frames_per_second is None:
            object.__setattr__(self, "frame_step", 4)
        self.sampler()
        if self.views < 1:
            raise ValueError(f"views must be at least 1, got {self.views}.")

    def sampler(self) -> ClipSampler:
        """The frames of each segment, from its start, the same in every run."""
        return ClipSampler(
            num_frames=self.num_frames,
            frame_step=self.frame_step,
            fps=self.frames_per_second,
            num_clips=self.segments,
            allow_overlap=True,
            random_start=False,
        )

    def description(self) -> dict[str, int]:
        """What was asked for, for the record."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def clip_dataset(
    rows: Any, protocol: ClipProtocol, transform: VideoTransform, video_column: str, label_column: str | None
) -> SeededVideoDataset:
    """
    Clips of an evaluation.

    Args:
        rows (`datasets.Dataset`): From [`~hf_jepa.data.load_video_dataset`].
        protocol (`ClipProtocol`): Which clips.
        transform (`Callable`): From [`clip_transform`].
        video_column (`str`): Column of videos, or of images, which become still clips.
        label_column (`str`, *optional*): Column of integer labels.

    Returns:
        [`~hf_jepa.data.SeededVideoDataset`].
    """
    return SeededVideoDataset(rows, protocol.sampler(), transform, video_column, label_column)


def clip_transform(
    repo_or_path: str | Path,
    model: PreTrainedModel,
    views: int,
    revision: str | None = None,
    imagenet_statistics: bool = False,
) -> VideoTransform:
    """
    The transform of V-JEPA's evaluations ([`~hf_jepa.data.video_eval_transform`], OpenCV's resampling) with the size
    and the statistics of a checkpoint's own processor.

    Args:
        repo_or_path (`str` or `Path`): Hub repository or local folder.
        model (`PreTrainedModel`): Its model: tells encoders of videos from encoders of images.
        views (`int`): Crops per clip.
        revision (`str`, *optional*): Revision of the repository.
        imagenet_statistics (`bool`): Use ImageNet's mean and std instead of the processor's.

    Returns:
        `Callable`: uint8 `(F, C, H, W)` -> float32 `([views,] F, C, height, width)`.

    Raises:
        ValueError: If the checkpoint has no processor, or one whose frames are not square.
    """
    auto_class = AutoVideoProcessor if is_video_encoder(model) else AutoImageProcessor
    try:
        processor = load_auto(auto_class, repo_or_path, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(repo_or_path)!r} has no usable processor: {error}") from error
    size = getattr(processor, "crop_size", None) or processor.size
    height, width = (size.get(name) or size.get("shortest_edge") for name in ("height", "width"))
    if not height or height != width:
        raise ValueError(
            f"The processor of {str(repo_or_path)!r} makes frames of {height}x{width} pixels; clips are evaluated on "
            "square crops."
        )
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet_statistics else (processor.image_mean, processor.image_std)
    return video_eval_transform(height, num_views=views, mean=mean or IMAGENET_MEAN, std=std or IMAGENET_STD)
