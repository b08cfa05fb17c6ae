"""
Throughput of the input pipeline, as ratios in one run: images and clips that are seeded, guarded against broken files
and read through `datasets`, against the same files decoded and transformed by plain torchvision, and for clips by
torchcodec (where it finds FFmpeg) or a plain PyAV loop.

    python -m scripts.benchmarks.input_pipeline
    python -m scripts.benchmarks.input_pipeline --rounds 15 --output elsewhere.json

Contestants take turns, in one process without workers; medians of each round's ratio of processor time are reported.
The frames of clips are compared before anything is timed; images go through the same transform.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from hf_jepa.data import ClipSampler, SeededImageDataset, SeededVideoDataset, load_image_dataset, train_transform
from hf_jepa.data.video_decoding import torchcodec_works
from scripts.benchmarks.image import table
from scripts.benchmarks.report import header, write
from scripts.benchmarks.video import take_turns

IMAGES, IMAGE_SIDE, CROP = 64, (375, 500), 224
CLIPS, FRAMES, CLIP_FRAMES, STEP, CLIP_SIDE = 4, 120, 16, 4, (256, 340)


def _smooth(height: int, width: int, seed: int) -> np.ndarray:
    """Pixels that compress as photographs do: noise of 1/8 the size, made larger."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def write_images(folder: Path) -> Path:
    (folder / "one class").mkdir(parents=True)
    for number in range(IMAGES):
        Image.fromarray(_smooth(*IMAGE_SIDE, number)).save(folder / "one class" / f"{number}.jpg", quality=90)
    return folder


def write_videos(folder: Path) -> list[Path]:
    import av

    folder.mkdir()
    paths = [folder / f"{number}.mp4" for number in range(CLIPS)]
    for number, path in enumerate(paths):
        picture = _smooth(*CLIP_SIDE, number)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.height, stream.width, stream.pix_fmt = *CLIP_SIDE, "yuv420p"
            for shift in range(FRAMES):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, shift, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return paths


def bench_images(folder: Path, rounds: int) -> list[dict]:
    transform = train_transform(CROP)
    rows = load_image_dataset(folder)
    ours, plain = SeededImageDataset(rows, transform), ImageFolder(str(folder), transform)
    contestants = {
        "hf_jepa": lambda: ours.__getitems__([(index, index) for index in range(IMAGES)]),
        "torchvision ImageFolder": lambda: [plain[index] for index in range(IMAGES)],
    }
    return _measured(contestants, IMAGES, "images", rounds)


def plain_clip(path: Path) -> torch.Tensor:
    """Every frame from the start, of which the wanted ones are kept."""
    import av

    wanted = range(0, CLIP_FRAMES * STEP, STEP)
    with av.open(str(path)) as container:
        kept = []
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
            if number >= wanted[-1]:
                break
    return torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2)


def torchcodec_clip(path: Path) -> torch.Tensor:
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(str(path)).get_frames_at(list(range(0, CLIP_FRAMES * STEP, STEP))).data


def bench_videos(paths: list[Path], rounds: int) -> list[dict]:
    from datasets import Dataset

    sampler = ClipSampler(CLIP_FRAMES, frame_step=STEP, random_start=False)
    rows = Dataset.from_dict({"video": [str(path) for path in paths]})
    ours = SeededVideoDataset(rows, sampler, lambda frames: frames)
    plain = {"plain PyAV": plain_clip, **({"torchcodec": torchcodec_clip} if torchcodec_works() else {})}
    expected = ours[0]["pixel_values_videos"]
    for name, decode in plain.items():
        if (decode(paths[0])[0].float() - expected[0].float()).abs().max() > 4:
            raise ValueError(f"{name} gives other frames.")
    contestants: dict[str, Callable[[], object]] = {
        "hf_jepa": lambda: [ours[index] for index in range(CLIPS)],
        **{name: lambda decode=decode: [decode(path) for path in paths] for name, decode in plain.items()},
    }
    return _measured(contestants, CLIPS, "clips", rounds)


def _measured(contestants: dict[str, Callable[[], object]], count: int, what: str, rounds: int) -> list[dict]:
    times = take_turns(contestants, rounds, clock=time.process_time)
    return [{"contestant": name, f"{what}_per_second": count / t["seconds"], **t} for name, t in times.items()]


def render(results: dict) -> str:
    blocks = []
    for part, what in (("images", f"images to {CROP} px"), ("clips", f"{CLIP_FRAMES} frames of {CLIP_SIDE[1]} px")):
        body = [
            [r["contestant"], f"{r[f'{part}_per_second']:.1f}", f"{r['time_over_ours']:.2f}x"] for r in results[part]
        ]
        blocks.append(table(f"Input pipeline, {what}, one core", ["contestant", f"{part}/s", "time / ours"], body))
    return "\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("model_cards/comparisons/benchmark_input_pipeline.json"))
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    results = header(1, torchcodec=torchcodec_works())
    with tempfile.TemporaryDirectory() as folder:
        results["images"] = bench_images(write_images(Path(folder, "images")), arguments.rounds)
        results["clips"] = bench_videos(write_videos(Path(folder, "videos")), arguments.rounds)
    write(results, arguments.output)
    print(render(results))
    print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
