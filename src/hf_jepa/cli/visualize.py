"""`hf-jepa visualize`."""

import argparse
from pathlib import Path

from ._command import add_command, add_model_options, given

OPTIONS = ("kind", "output", "num_frames", "seed", "revision", "subfolder", "imagenet_statistics")


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "visualize",
        run,
        "draw features, masks or predictions on images or videos",
        "hf-jepa visualize my-release cat.jpg dog.jpg --output pca.png\n"
        "  hf-jepa visualize my-release cat.jpg --kind similarity --subfolder pretraining\n"
        "  hf-jepa visualize my-video-release juggling.mp4 --kind surprise --subfolder pretraining",
    )
    parser.add_argument("repo", help="repository or folder of the model")
    parser.add_argument("files", type=Path, nargs="+", help="images, or videos for a video model")
    parser.add_argument("--kind", choices=["pca", "masks", "similarity", "surprise"], default="pca")
    parser.add_argument("--num-frames", type=int, help="videos: of a clip, spread over the video")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--output", type=Path, help="default: KIND.png")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    from ..visualization.run import visualize

    print(f"wrote {visualize(args.repo, args.files, **given(args, OPTIONS))}")
