from .collators import MaskCollator
from .dataset import SeededImageDataset, SeededImageStream, TooManyBadImagesError
from .decoding import decode_image
from .loading import load_image_dataset
from .sampler import CountedSampler
from .seeding import forked_rng, mix_seed
from .transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform, train_transform

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "CountedSampler",
    "MaskCollator",
    "SeededImageDataset",
    "SeededImageStream",
    "TooManyBadImagesError",
    "decode_image",
    "eval_transform",
    "forked_rng",
    "load_image_dataset",
    "mix_seed",
    "train_transform",
]
