"""
Speed and memory of LLM-JEPA's packed pass against plain fine-tuning and the released code's forms, in one run.

    python -m scripts.benchmarks.llm                                    # everything
    python -m scripts.benchmarks.llm --lengths nl_rx_synth --rounds 9
    python -m scripts.benchmarks.llm --clock wall --threads 2

One step is collation, forward, backward and AdamW on a batch of random tokens with the lengths of a data set, by a
small Llama of random weights in float32. Contestants take turns, so that a slow spell of the machine hits all of them;
each round's own ratio is taken, then the median. The released forms run in this package's model, which computes logits
of labelled tokens only and keeps no float32 copies of all layers' states, so they are cheaper here than they were
released. Peak extra memory is what two steps add to the resident memory of a fresh process. `--clock cpu` counts
processor time: on one thread it is little disturbed by other programs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_jepa import LLMJepaForCausalLM
from hf_jepa.data import TextPairCollator
from hf_jepa.masking import pack_official
from scripts.benchmarks.image import peak_mib, table, timed
from scripts.benchmarks.report import header, write

VOCABULARY, ROW_LENGTH, OFFICIAL_LENGTH = 8192, 1024, 512


def spread(prompt: int, response: int, sigma: float) -> list[tuple[int, int, int]]:
    """32 log-normal lengths with these means, in the order of their sizes; Code is as long as the response."""
    draw = random.Random(0)
    drawn = [[mean * draw.lognormvariate(-(sigma**2) / 2, sigma) for _ in range(32)] for mean in (prompt, response)]
    # To the mean exactly.
    scaled = [
        [round(length * mean * 32 / sum(part)) for length in part]
        for mean, part in zip((prompt, response), drawn, strict=True)
    ]
    return sorted(((t, r, r) for t, r in zip(*scaled, strict=True)), key=sum)


# (prompt up to the last Text token, response, Code view) in tokens.
LENGTHS: dict[str, list[tuple[int, int, int]]] = {
    # Every 62nd of 2,000 rows of NL-RX-SYNTH's training split, in the order of their sizes, in tokens of SmolLM2's BPE
    # under a bare chat template, and 25 more for the date block with which Llama-3.2's template opens every prompt.
    "nl_rx_synth": [
        (52, 15, 11), (52, 17, 13), (51, 19, 15), (51, 20, 16), (53, 20, 16), (49, 23, 19), (50, 23, 19), (59, 19, 15),
        (54, 22, 18), (55, 22, 18), (56, 22, 18), (55, 23, 19), (55, 23, 19), (50, 26, 22), (57, 23, 19), (56, 24, 20),
        (50, 27, 23), (53, 26, 22), (56, 25, 21), (57, 25, 21), (54, 27, 23), (61, 24, 20), (60, 25, 21), (57, 27, 23),
        (55, 29, 25), (58, 28, 24), (51, 32, 28), (55, 31, 27), (51, 34, 30), (51, 35, 31), (57, 34, 30), (64, 33, 29),
    ],
    # Estimated means of GSM8K, spread so that one solution in twenty has more than 170 tokens.
    "gsm8k": spread(97, 99, 0.33),
    # Long prompts that hold a schema, short queries.
    "spider": spread(300, 45, 0.2),
}  # fmt: skip
K = 1
SFT, OURS, DROPOUT, ONE_PASS, MULTI_PASS = (
    "plain SFT, packed", "hf_jepa", "hf_jepa, dropout 0.75", "released one-pass form", "released multi-pass form",
)  # fmt: skip
CONTESTANTS = (SFT, OURS, DROPOUT, ONE_PASS, MULTI_PASS)


def examples(lengths: list[tuple[int, int, int]], size: int, batch: int) -> list[dict[str, Any]]:
    """A batch of random tokens with the lengths of a data set, taken from all of its sizes alike."""
    generator = torch.Generator().manual_seed(batch)
    made = []
    for number in range(size):
        prompt, response, code = lengths[(number * len(lengths) // size + batch) % len(lengths)]
        ids = torch.randint(10, VOCABULARY, (prompt + response,), generator=generator).tolist()
        labels = [-100] * prompt + ids[prompt:]
        code_ids = torch.randint(10, VOCABULARY, (code,), generator=generator).tolist()
        made.append(
            {"input_ids": ids, "labels": labels, "text_length": prompt, "text_ids": None, "code_ids": code_ids}
        )
    return made


def official(rows: list[dict[str, Any]], form: str) -> dict[str, Tensor]:
    """The released rows: all views padded, labels on the whole conversation, a predictor token of the vocabulary."""
    inputs: dict[str, Tensor] = {}
    for name in ("full", "text", "code"):
        ids = torch.zeros(len(rows), OFFICIAL_LENGTH, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(rows):
            text = [*example["input_ids"][: example["text_length"]], 5]
            view = {"full": example["input_ids"], "text": text, "code": example["code_ids"]}[name]
            # Behind what is read stands the end of turn.
            view = torch.tensor([*view, 2] if name != "full" else view)
            ids[row, : len(view)], mask[row, : len(view)] = view, 1
        inputs |= {f"{name}_input_ids": ids, f"{name}_attention_mask": mask}
    labels = inputs["full_input_ids"].masked_fill(inputs["full_attention_mask"] == 0, -100)
    return pack_official(**inputs, full_labels=labels, num_predictor_tokens=K, form=form)


class Contestant:
    """One way to train: a model and how it is fed."""

    def __init__(self, name: str, lengths: list[tuple[int, int, int]], size: int) -> None:
        self.name, self.lengths, self.size, self.batches = name, lengths, size, 0
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
        )
        options: dict[str, Any] = {"num_predictor_tokens": K}
        if name == SFT:
            options = {"num_predictor_tokens": 0, "jepa_lambda": 0.0}
        elif name in (ONE_PASS, MULTI_PASS):
            options |= {"predictor_mode": "vocab", "predictor_token_ids": [5]}
        self.model = LLMJepaForCausalLM.from_decoder(LlamaForCausalLM(config), **options).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        if self.name == ONE_PASS:
            return official(rows, "one_pass")
        if self.name == MULTI_PASS:
            return official(rows, "multi_pass")
        if self.name == DROPOUT:
            # What a share of 0.75 leaves on average, without the luck of a draw.
            rows = [row if number % 4 == 2 else {**row, "code_ids": None} for number, row in enumerate(rows)]
        if self.name == SFT:
            return TextPairCollator(0, "packed", "none", row_length=ROW_LENGTH)(rows)
        return TextPairCollator(K, "shared", row_length=ROW_LENGTH)(rows)

    def step(self) -> None:
        """One update, on the next batch."""
        batch = self.collate(examples(self.lengths, self.size, self.batches))
        self.batches += 1
        self.model(**batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def tokens(self) -> tuple[int, int]:
        """Tokens, and places of them with padding, of the first batch."""
        batch = self.collate(examples(self.lengths, self.size, 0))
        return int((batch["document"] >= 0).sum()), batch["document"].numel()


def extra_memory(name: str, lengths: list[tuple[int, int, int]], size: int) -> float:
    """MiB that two steps add, at their peak, to a process that has imported everything."""
    torch.set_num_threads(1)
    before = peak_mib()
    contestant = Contestant(name, lengths, size)
    contestant.step()
    contestant.step()
    return peak_mib() - before


def bench(name: str, arguments: argparse.Namespace, clock: Callable[[], float]) -> list[dict[str, Any]]:
    lengths, size = LENGTHS[name], arguments.batch_size
    memory = {}
    # One process imports everything; each contestant starts in a fork of it.
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(
        ["hf_jepa.models.llm_jepa", "hf_jepa.data", "transformers.models.llama.modeling_llama"]
    )
    for contestant in CONTESTANTS:
        with fresh.Pool(1) as pool:
            memory[contestant] = pool.apply(extra_memory, (contestant, lengths, size))
    contestants = {contestant: Contestant(contestant, lengths, size) for contestant in CONTESTANTS}
    seconds: dict[str, list[float]] = {contestant: [] for contestant in CONTESTANTS}
    # The first step of each makes the optimizer's state; in the long ones it does not show.
    for contestant in (SFT, OURS, DROPOUT):
        contestants[contestant].step()
    for number in range(arguments.rounds):
        for contestant, runner in contestants.items():
            # Short steps are taken several times, or the clock's own jumps would count.
            repeats = 1 if contestant in (ONE_PASS, MULTI_PASS) else 3
            taken = timed(lambda: [runner.step() for _ in range(repeats)], clock) / repeats  # noqa: B023
            seconds[contestant].append(taken)
        print(f"  {name}: round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    rows = []
    for contestant, runner in contestants.items():
        tokens, places = runner.tokens()

        def ratio(other: str, contestant: str = contestant) -> float:
            return median(s / o for s, o in zip(seconds[contestant], seconds[other], strict=True))

        rows.append(
            {
                "contestant": contestant,
                "tokens": tokens,
                "places": places,
                "seconds": median(seconds[contestant]),
                "time_over_sft": ratio(SFT),
                "tokens_over_sft": tokens / contestants[SFT].tokens()[0],
                "time_over_ours": ratio(OURS),
                "extra_mib": memory[contestant],
                "memory_over_ours": memory[contestant] / memory[OURS],
            }
        )
    return rows


def render(name: str, rows: list[dict[str, Any]]) -> str:
    body = [
        [
            row["contestant"],
            f"{row['tokens']:,}",
            f"{row['places']:,}",
            f"{row['seconds']:.2f}",
            f"{row['tokens_over_sft']:.2f}x",
            f"{row['time_over_sft']:.2f}x",
            f"{row['time_over_ours']:.2f}x",
            f"{row['extra_mib']:.0f}",
            f"{row['memory_over_ours']:.1f}x",
        ]
        for row in rows
    ]
    header = [
        "", "tokens", "with padding", "s per step", "tokens / SFT", "time / SFT", "time / hf_jepa", "peak MiB",
        "memory / hf_jepa",
    ]  # fmt: skip
    return table(f"LLM-JEPA at the lengths of {name}", header, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", choices=list(LENGTHS), default=list(LENGTHS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    results = header(arguments.threads, clock=arguments.clock)
    results["batch_size"] = arguments.batch_size
    results["row_length"] = ROW_LENGTH
    for name in arguments.lengths:
        results[name] = bench(name, arguments, clock)
        print(render(name, results[name]), flush=True)
    write(results, arguments.output)
    if arguments.output:
        print(f"Written: {arguments.output}")


if __name__ == "__main__":
    main()
