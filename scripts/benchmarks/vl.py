"""
VL-JEPA's two claims on cost, on this machine: memory of gradient caching, and predicting an embedding against writing.

    python -m scripts.benchmarks.vl                                   # both
    python -m scripts.benchmarks.vl --parts memory --sizes 64 256
    python -m scripts.benchmarks.vl --parts latency --rounds 9 --threads 2

Memory: what one training step adds to the resident memory of a fresh process, at demo width (vision tokens 49 x 384,
a predictor of 2 x 256, a MiniLM-sized Y-encoder of 2 layers), with and without caching in parts of 64 pairs. The
batch itself, which grows with its size, is there before.

Latency: the same decoder layers, bidirectional, predict one embedding from vision and query tokens; or, causal and
with a key-value cache, read the same tokens and write an answer of 4, 16 and 64 tokens. Both take turns; the median of
each round's ratio is shown. Batch 1, random weights, which cost what trained ones do.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, LlamaModel, ViTConfig, ViTModel

from hf_jepa import VLJepaModel
from hf_jepa.models.vl_jepa.components_vl_jepa import take_layers
from hf_jepa.training.vl.gradient_cache import gradient_cached_step
from scripts.benchmarks.image import peak_mib, table, timed

MICRO_BATCH, VISION_TOKENS, QUERY_TOKENS, TARGET_TOKENS = 64, 49, 8, 12
# Llama-3.2-1B's layers at an eighth of its width and 4 of its 8, so that a round takes seconds.
DECODER = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
CONTEXT, ANSWERS = (256, 32), (4, 16, 64)


def demo_model() -> VLJepaModel:
    torch.manual_seed(0)
    vision = ViTConfig(hidden_size=384, num_hidden_layers=1, num_attention_heads=6, intermediate_size=384)
    decoder = LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    )
    text = BertConfig(hidden_size=384, num_hidden_layers=2, num_attention_heads=12, intermediate_size=1536)
    parts = ViTModel(vision), LlamaModel(decoder), BertModel(text)
    return VLJepaModel.from_components(*parts, num_layers=2, projection_dim=384).train()


def step_memory(size: int, cached: bool) -> float:
    """MiB by which a step over `size` pairs raises the peak resident memory of this process."""
    model = demo_model()
    batch = {
        "vision_embeds": torch.randn(size, VISION_TOKENS, 384),
        "query_input_ids": torch.randint(5, 1000, (size, QUERY_TOKENS)),
        "target_input_ids": torch.randint(5, 30000, (size, TARGET_TOKENS)),
    }
    # Gradients of the parameters are there in any step.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    before = peak_mib()
    if cached:
        gradient_cached_step(model, model, batch, MICRO_BATCH, torch.Tensor.backward)
    else:
        model(**batch).loss.backward()
    return peak_mib() - before


def bench_memory(sizes: list[int], plain_up_to: int) -> list[dict]:
    rows = []
    for size in sizes:
        row = {"pairs": size}
        for name, cached in (("cached", True), ("plain", False)):
            if not cached and size > plain_up_to:
                continue
            command = [sys.executable, "-m", __spec__.name, "--child", str(size), name]
            row[f"{name}_mib"] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        rows.append(row)
        print(row, file=sys.stderr)
    return rows


@torch.no_grad()
def bench_latency(rounds: int) -> list[dict]:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32000, **DECODER, eos_token_id=None, bos_token_id=None, pad_token_id=0)
    writer = LlamaForCausalLM(config).eval()
    predictor = take_layers(writer, 0, DECODER["num_hidden_layers"])
    head = torch.nn.Linear(DECODER["hidden_size"], 1536)
    embeds = torch.randn(1, sum(CONTEXT), DECODER["hidden_size"])
    mask = torch.ones(1, sum(CONTEXT), dtype=torch.int64)

    def predict() -> torch.Tensor:
        states = predictor(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        return head(states.mean(dim=1))

    def write(tokens: int) -> torch.Tensor:
        return writer.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )

    rows = []
    for tokens in ANSWERS:
        predict(), write(tokens)
        clock, answer = time.perf_counter, partial(write, tokens)
        pairs = [(timed(predict, clock), timed(answer, clock)) for _ in range(rounds)]
        rows.append(
            {
                "answer_tokens": tokens,
                "predict_ms": 1000 * median(first for first, _ in pairs),
                "write_ms": 1000 * median(second for _, second in pairs),
                "ratio": median(second / first for first, second in pairs),
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def render(results: dict) -> str:
    blocks = []
    if rows := results.get("memory"):
        body = [
            [str(r["pairs"]), f"{r['cached_mib']:.0f}", f"{r['plain_mib']:.0f}" if "plain_mib" in r else "not run"]
            for r in rows
        ]
        title = "Peak memory that one step adds (MiB)"
        blocks.append(table(title, ["pairs per loss", f"cached, parts of {MICRO_BATCH}", "not cached"], body))
    if rows := results.get("latency"):
        body = [
            [str(r["answer_tokens"]), f"{r['predict_ms']:.0f}", f"{r['write_ms']:.0f}", f"{r['ratio']:.1f}"]
            for r in rows
        ]
        header = ["answer tokens", "predict an embedding (ms)", "write the answer (ms)", "ratio"]
        blocks.append(table("The same layers, the same input", header, body))
    return "\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["memory", "latency"], choices=["memory", "latency"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 256, 1024, 4096], help="Pairs per loss.")
    parser.add_argument("--plain-up-to", type=int, default=1024, help="Largest batch measured without caching.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON of the results.")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        print(step_memory(int(args.child[0]), args.child[1] == "cached"))
        return
    results: dict = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    results |= {"threads": args.threads, "cores": os.cpu_count()}
    if "memory" in args.parts:
        results["memory"] = bench_memory(args.sizes, args.plain_up_to)
    if "latency" in args.parts:
        results["latency"] = bench_latency(args.rounds)
    print(render(results))
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
