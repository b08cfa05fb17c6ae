from .chat_views import official_views, plain_chat_template
from .collators import MaskCollator, MultiViewCollator
from .dataset import SeededImageDataset, SeededImageStream, TooManyBadImagesError
from .decoding import decode_image
from .loading import load_image_dataset
from .pair_collator import OfficialPairCollator, TextPairCollator
from .sampler import CountedSampler
from .seeding import forked_rng, mix_seed
from .text_loading import load_text_dataset
from .text_pairs import PairFormat, TextPairDataset, encode_pair, paraphrase_rows
from .transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform, train_transform
from .video_collator import VideoMaskCollator
from .views import MultiViewTransform, ViewAugmentation

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "CountedSampler",
    "MaskCollator",
    "MultiViewCollator",
    "MultiViewTransform",
    "OfficialPairCollator",
    "PairFormat",
    "SeededImageDataset",
    "SeededImageStream",
    "TextPairCollator",
    "TextPairDataset",
    "TooManyBadImagesError",
    "VideoMaskCollator",
    "ViewAugmentation",
    "decode_image",
    "encode_pair",
    "eval_transform",
    "forked_rng",
    "load_image_dataset",
    "load_text_dataset",
    "mix_seed",
    "official_views",
    "paraphrase_rows",
    "plain_chat_template",
    "train_transform",
]
