from .chat_views import official_views, plain_chat_template
from .clip_sampling import ClipSampler, clip_indices, frame_step_for_fps
from .collators import MaskCollator, MultiViewCollator
from .dataset import SeededImageDataset, TooManyBadImagesError
from .decoding import decode_image
from .labels import fit_and_score
from .latent_cache import CachedLatents
from .loading import load_image_dataset, load_text_dataset, load_video_dataset, load_vision_text_dataset
from .pair_collator import OfficialPairCollator, TextPairCollator
from .processing import processor_transform
from .recording import make_environment, record_episodes
from .sampler import CountedSampler
from .seeding import forked_rng, mix_seed
from .streams import SeededImageStream, SeededStream, SeededVideoStream
from .text_pairs import PairFormat, TextPairDataset, encode_pair, paraphrase_rows
from .trajectories import ActionStatistics, ArrayTrajectories, Trajectories, action_statistics
from .trajectory_droid import DroidTrajectories
from .trajectory_lerobot import LeRobotTrajectories
from .trajectory_windows import TooManyBadEpisodesError, TrajectoryWindows, collate_windows
from .transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform, train_transform
from .video_collator import VideoMaskCollator
from .video_dataset import MixedVideoDataset, SeededVideoDataset, TooManyBadVideosError
from .video_decoding import decode_frames, open_video, probe_video, video_backend
from .video_readers import VideoDecodeError, VideoInfo, VideoReader
from .video_transforms import resize_as_cv2, video_eval_transform, video_train_transform
from .views import MultiViewTransform, ViewAugmentation
from .vl_pairs import TooManyBadPairsError, VisionTextCollator, VisionTextDataset

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ActionStatistics",
    "ArrayTrajectories",
    "CachedLatents",
    "ClipSampler",
    "CountedSampler",
    "DroidTrajectories",
    "LeRobotTrajectories",
    "MaskCollator",
    "MixedVideoDataset",
    "MultiViewCollator",
    "MultiViewTransform",
    "OfficialPairCollator",
    "PairFormat",
    "SeededImageDataset",
    "SeededImageStream",
    "SeededStream",
    "SeededVideoDataset",
    "SeededVideoStream",
    "TextPairCollator",
    "TextPairDataset",
    "TooManyBadEpisodesError",
    "TooManyBadImagesError",
    "TooManyBadPairsError",
    "TooManyBadVideosError",
    "Trajectories",
    "TrajectoryWindows",
    "VideoDecodeError",
    "VideoInfo",
    "VideoMaskCollator",
    "VideoReader",
    "ViewAugmentation",
    "VisionTextCollator",
    "VisionTextDataset",
    "action_statistics",
    "clip_indices",
    "collate_windows",
    "decode_frames",
    "decode_image",
    "encode_pair",
    "eval_transform",
    "fit_and_score",
    "forked_rng",
    "frame_step_for_fps",
    "load_image_dataset",
    "load_text_dataset",
    "load_video_dataset",
    "load_vision_text_dataset",
    "make_environment",
    "mix_seed",
    "official_views",
    "open_video",
    "paraphrase_rows",
    "plain_chat_template",
    "probe_video",
    "processor_transform",
    "record_episodes",
    "resize_as_cv2",
    "train_transform",
    "video_backend",
    "video_eval_transform",
    "video_train_transform",
]
