"""
Trains a causal LM with LLM-JEPA, semantic tube prediction, or the next-token loss alone, from a recipe:

    hf-jepa train nl_rx_synth_tiny --dataset my_data/ --output_dir run
    hf-jepa train recipe.yaml --accelerate_config ddp

Flags override the recipe.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..data import OfficialPairCollator, PairFormat, load_text_dataset, paraphrase_rows, plain_chat_template
from ..data.chat_views import as_messages
from ..data.lexer import lexer_tokenizer
from ..evaluation import generate_responses, score_responses
from ..models.llm_jepa import LLMJepaForCausalLM
from ..parts import load_auto
from ..training import LLMJepaTrainer, LLMJepaTrainingArguments
from .facts import licence_of, method_for, origin_of
from .image_models import mapping
from .llm_arguments import LLMModelArguments, PairArguments
from .program import Program
from .run import run

METHOD_FIELDS = (
    "objective", "jepa_lambda", "jepa_gamma", "num_predictor_tokens", "predictor_mode", "predictor_position",
    "predictor_head", "direction", "distance", "target", "regularizer",
)  # fmt: skip


def build_format(args: PairArguments) -> PairFormat:
    """How rows become tokens, labels and views."""
    template = plain_chat_template() if args.chat_template == "plain" else args.chat_template
    options: dict[str, Any] = {"max_length": args.max_length, "chat_template": template}
    for name in ("train_on", "read_at", "text_view", "code_view", "system_prompt"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    columns = ("text_column", "code_column", "messages_column", "text_view_column", "code_view_column")
    options |= {name: getattr(args, name) for name in columns}
    if args.enable_thinking is not None:
        options["template_options"] = {"enable_thinking": args.enable_thinking}
    if args.format not in ("clean", "official"):
        raise ValueError(f"`format` is {args.format!r}; choose 'clean' or 'official'.")
    return PairFormat.official(**options) if args.format == "official" else PairFormat(**options)


@dataclass
class PairData:
    """The rows of a run, and the tokenizer once there is one: the model may add tokens of its own to it."""

    train: Any
    scored: Any = None
    tokenizer: Any = None


def load_rows(args: PairArguments, pair_format: PairFormat) -> PairData:
    """The training rows, and those that are scored (None without a split)."""
    if args.dataset is None:
        raise ValueError("The recipe names no `dataset`; give --dataset NAME_OR_PATH.")
    if args.paraphrases_column is not None and (args.train_on != "text" or args.unseen_only):
        raise ValueError("Paraphrases are pretrained on: set `train_on: text`, and leave `unseen_only` out.")

    def load(split: str) -> Any:
        rows = load_text_dataset(args.dataset, split, args.dataset_config, args.dataset_revision)
        column = args.paraphrases_column
        if column is None:
            return rows
        if column not in rows.column_names:
            raise ValueError(
                f"`paraphrases_column` is {column!r}, but the columns are {', '.join(rows.column_names)}."
            )
        return paraphrase_rows(rows[column])

    train = load(args.train_split)
    if args.eval_split is None:
        return PairData(train)
    scored = load(args.eval_split)
    if args.unseen_only:
        known = {answer_of(row, pair_format) for row in train}
        scored = scored.select([place for place, row in enumerate(scored) if answer_of(row, pair_format) not in known])
    return PairData(train, scored)


def chat_of(row: dict[str, Any], fmt: PairFormat) -> list[dict[str, str]]:
    """A row as a conversation."""
    return as_messages(row, fmt.messages_column, fmt.text_column, fmt.code_column, fmt.system_prompt)


def answer_of(row: dict[str, Any], fmt: PairFormat) -> str:
    """What the assistant says in a row."""
    return chat_of(row, fmt)[-1]["content"].strip()


def build_tokenizer(args: LLMModelArguments, train: Any, pair_format: PairFormat) -> Any:
    """The model's tokenizer, or one made of the training rows' words and symbols."""
    if args.tokenizer == "words":
        tokenizer = lexer_tokenizer([turn["content"] for row in train for turn in chat_of(row, pair_format)[-2:]])
        if pair_format.ignore_pad_labels:
            # The released setup pads Llama, whose tokenizer has no pad token, with the end of turn.
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer
    source = args.tokenizer or args.model
    if source is None:
        raise ValueError("A model of random weights needs `tokenizer`: an id, a path, or `words`.")
    tokenizer = load_auto(AutoTokenizer, source)
    if tokenizer.pad_token is None:
        # Labels are made from lengths, so that an end of turn is trained although it pads.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_model(args: LLMModelArguments, tokenizer: Any, seed: int) -> LLMJepaForCausalLM:
    """The decoder a recipe describes, in its LLM-JEPA wrapper."""
    if (args.model is None) == (args.decoder is None):
        raise ValueError("Give either `model`, a pretrained one, or `decoder`, the sizes of one of random weights.")
    options = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    options["dtype"] = getattr(torch, args.dtype)
    torch.manual_seed(seed)
    if args.model is not None:
        if args.load_in_4bit:
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
            )
        decoder = load_auto(AutoModelForCausalLM, args.model, **options)
    else:
        sizes = mapping(args.decoder, "decoder")
        if "model_type" not in sizes:
            raise ValueError("`decoder` must be a mapping with `model_type`, such as {model_type: llama, ...}.")
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **ids, **sizes})
        decoder = AutoModelForCausalLM.from_config(config, **options)
    fields = {name: getattr(args, name) for name in METHOD_FIELDS}
    return LLMJepaForCausalLM.from_decoder(decoder, tokenizer, **fields)


def build_adapter(args: LLMModelArguments) -> Any:
    """The adapter a recipe asks for, as the released code's, on every linear layer; or None."""
    if not args.lora_rank:
        if args.load_in_4bit or args.use_dora:
            raise ValueError("`load_in_4bit` and `use_dora` need `lora_rank`.")
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=args.lora_rank,
        lora_alpha=2 * args.lora_rank,
        lora_dropout=0.1,
        use_dora=args.use_dora,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def build_trainer(
    model_args: LLMModelArguments,
    pair_args: PairArguments,
    args: LLMJepaTrainingArguments,
    rows: PairData | None = None,
    model: LLMJepaForCausalLM | None = None,
) -> LLMJepaTrainer:
    """Everything a recipe describes, ready to train."""
    pair_format = build_format(pair_args)
    rows = load_rows(pair_args, pair_format) if rows is None else rows
    model = build_from(model_args, pair_args, args, rows) if model is None else model
    tokenizer = rows.tokenizer
    collator = None
    if pair_args.layout == "official":
        k = model_args.num_predictor_tokens
        if model_args.predictor_mode != "vocab" and k:
            raise ValueError("layout='official' has predictor tokens of the vocabulary; set predictor_mode='vocab'.")
        front = model_args.predictor_position == "front"
        collator = OfficialPairCollator(
            tokenizer,
            tuple(f"<|predictor_{number}|>" for number in (range(1, k + 1) if front else range(k, 0, -1))),
            pair_format,
            pair_args.last_token,
            predictor_position=model_args.predictor_position,
            direction=model_args.direction,
        )
    elif pair_args.layout != "auto":
        raise ValueError(f"`layout` is {pair_args.layout!r}; choose 'auto' or 'official'.")
    return LLMJepaTrainer(
        model,
        args,
        train_dataset=rows.train,
        eval_dataset=rows.scored,
        processing_class=tokenizer,
        pair_format=pair_format,
        data_collator=collator,
        peft_config=build_adapter(model_args),
    )


def answer(
    trainer: LLMJepaTrainer, model_args: LLMModelArguments, pair_args: PairArguments, *_: Any
) -> list[dict[str, Any]]:
    """All evaluation rows answered by generation, as entries of `results.json`, with some of the answers printed."""
    if trainer.eval_dataset is None or trainer.pair_format.train_on == "text":
        return []
    scorer = pair_args.scorer
    rows, fmt = trainer.eval_dataset, trainer.pair_format
    rows = getattr(rows, "rows", rows)
    chats = [chat_of(row, fmt) for row in rows]
    answers = generate_responses(
        trainer.model.causal_lm,
        trainer.processing_class,
        [chat[:-1] for chat in chats],
        trainer.args.generate_max_new_tokens,
        trainer.args.per_device_eval_batch_size,
        fmt.chat_template,
        progress=not trainer.args.disable_tqdm,
        **fmt.template_options,
    )
    truths = [chat[-1]["content"] for chat in chats]
    for chat, answer in list(zip(chats, answers, strict=True))[:5]:
        print(f"{chat[-2]['content']}\n  answer: {answer}\n  right:  {chat[-1]['content']}")
    # A right answer that does not end fails the first and passes the second.
    scorers = ("exact-match", "startswith") if scorer == "exact-match" else (scorer,)
    common = {"task": "generation", "num_examples": len(rows), "features": None, "seed": trainer.args.seed}
    return [{**common, "metric": name, "value": score_responses(answers, truths, name)} for name in scorers]


def count_tokens(trainer: LLMJepaTrainer, *_: Any) -> dict[str, float]:
    """Tokens of a conversation and of a Code view, over the first rows."""
    data = trainer.train_dataset
    sample = [data[index] for index in range(min(len(data), 64))]
    if "input_ids" not in sample[0]:
        return {}
    codes = [len(row["code_ids"] or ()) for row in sample]
    return {
        "tokens_per_conversation": round(sum(len(row["input_ids"]) for row in sample) / len(sample), 1),
        "tokens_per_code_view": round(sum(codes) / len(sample), 1),
    }


def score(trainer: LLMJepaTrainer, *_: Any) -> None:
    """The trainer's losses; every row is answered once, in [`answer`]."""
    if trainer.eval_dataset is not None:
        trainer.args.generate_examples = 0
        trainer.evaluate()


def load(model_args: LLMModelArguments, pair_args: PairArguments, args: LLMJepaTrainingArguments) -> PairData:
    """The rows of a recipe."""
    return load_rows(pair_args, build_format(pair_args))


def stand_in_rows(model_args: LLMModelArguments, pair_args: PairArguments, args: LLMJepaTrainingArguments) -> PairData:
    """A few pairs, in the columns that the recipe names."""
    from datasets import Dataset

    if pair_args.paraphrases_column is not None:
        rows = paraphrase_rows([[f"{start} line" for start in ("a", "the", "one", "some", "every")]] * 2)
    else:
        names = ("text_column", "code_column", "text_view_column", "code_view_column")
        columns = [getattr(pair_args, name) for name in names if getattr(pair_args, name) is not None]
        rows = Dataset.from_dict({name: [f"{name} of row {row}" for row in range(8)] for name in columns})
    return PairData(rows, None if pair_args.eval_split is None else rows)


def build_from(
    model_args: LLMModelArguments, pair_args: PairArguments, args: LLMJepaTrainingArguments, rows: PairData
) -> LLMJepaForCausalLM:
    """The model of a recipe, for its rows."""
    rows.tokenizer = build_tokenizer(model_args, rows.train, build_format(pair_args))
    return build_model(model_args, rows.tokenizer, args.seed)


def describe(
    model_args: LLMModelArguments, pair_args: PairArguments, args: LLMJepaTrainingArguments
) -> dict[str, Any]:
    """Licence, data, and what is scored."""
    method_for(model_args, __name__)
    data = origin_of(*([pair_args.dataset] if pair_args.dataset else []), licence=pair_args.data_licence)
    split = f"{pair_args.eval_split}{', unseen answers' if pair_args.unseen_only else ''}"
    return {
        "licence": licence_of(model_args.licence, model_args.model),
        "data": {**data, "split": pair_args.train_split},
        "scored": {"dataset": data["name"], "split": split},
    }


PROGRAM = Program(
    argument_types=(LLMModelArguments, PairArguments, LLMJepaTrainingArguments),
    load_rows=load,
    stand_in_rows=stand_in_rows,
    build_model=build_from,
    build_trainer=build_trainer,
    describe=describe,
    score=score,
    answer=answer,
    count=count_tokens,
)


def main(argv: list[str]) -> None:
    """Fine-tunes a language model."""
    run(PROGRAM, argv)
