"""What a recipe for language models may say."""

from dataclasses import dataclass, field


@dataclass
class LLMModelArguments:
    family: str = field(default="llm_jepa", metadata={"help": "The method."})
    model: str | None = field(default=None, metadata={"help": "Pretrained causal LM (id or path)."})
    decoder: dict | str | None = field(
        default=None, metadata={"help": "YAML mapping with `model_type`: a causal LM of random weights instead."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Id or path; default: the model's. `words`: built from the training rows."}
    )
    dtype: str = field(default="float32", metadata={"help": "Of the weights; the released code trains bfloat16 ones."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flex_attention, ..."})
    licence: str | None = field(default=None, metadata={"help": "Of the weights, for the card."})
    objective: str = field(default="jepa", metadata={"help": "jepa, or stp: semantic tube prediction."})
    jepa_lambda: float = field(default=1.0, metadata={"help": "Weight of the JEPA term; 0 is plain fine-tuning."})
    jepa_gamma: float = field(default=1.0, metadata={"help": "Weight of the next-token loss."})
    num_predictor_tokens: int = field(default=1, metadata={"help": "k."})
    predictor_mode: str = field(default="soft", metadata={"help": "soft, or vocab: rows of the vocabulary."})
    predictor_position: str = field(default="end", metadata={"help": "end or front."})
    predictor_head: str = field(default="none", metadata={"help": "none or linear."})
    direction: str = field(default="text2code", metadata={"help": "text2code or code2text."})
    distance: str = field(default="cosine", metadata={"help": "cosine, l2, mse or infonce."})
    target: str = field(default="shared", metadata={"help": "shared, stop_gradient or ema."})
    regularizer: str = field(default="none", metadata={"help": "none, sigreg, visreg, weak_sigreg or vicreg."})
    lora_rank: int = field(default=0, metadata={"help": "0 trains all weights; the paper's alpha is twice the rank."})
    use_dora: bool = field(default=False, metadata={"help": "DoRA instead of LoRA."})
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: 4-bit base weights (needs bitsandbytes)."})


@dataclass
class PairArguments:
    dataset: str | None = field(default=None, metadata={"help": "JSON lines, a folder of them, or a Hub dataset."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag of a Hub dataset."})
    data_licence: str | None = field(default=None, metadata={"help": "Of the data, for the card."})
    train_split: str = field(default="train", metadata={"help": "Slices such as train[:90%] included."})
    eval_split: str | None = field(default=None, metadata={"help": "Scored at the end."})
    unseen_only: bool = field(
        default=False, metadata={"help": "Leave evaluation rows out whose answer occurs in training."}
    )
    scorer: str = field(default="exact-match", metadata={"help": "A name in hf_jepa.evaluation.SCORERS."})
    format: str = field(default="clean", metadata={"help": "Labels and views: clean, or official as released."})
    layout: str = field(
        default="auto", metadata={"help": "auto, or official: the released code's padded rows, for parity."}
    )
    last_token: int = field(default=-2, metadata={"help": "layout=official: which token is read, from the end."})
    max_length: int = field(default=512, metadata={"help": "Tokens of a conversation."})
    train_on: str | None = field(default=None, metadata={"help": "response, all or text; default: the format's."})
    read_at: str | None = field(default=None, metadata={"help": "content or end_of_turn."})
    text_view: str | None = field(default=None, metadata={"help": "shared, isolated or plain; default: the format's."})
    code_view: str | None = field(default=None, metadata={"help": "assistant_only, plain or chat."})
    chat_template: str | None = field(default=None, metadata={"help": "Jinja; `plain` for contents and separators."})
    enable_thinking: bool | None = field(default=None, metadata={"help": "Qwen3: False keeps thoughts out."})
    system_prompt: str | None = field(default=None, metadata={"help": "For two-column rows."})
    text_column: str = field(default="text", metadata={"help": "Column of the user's content."})
    code_column: str = field(default="code", metadata={"help": "Column of the assistant's content."})
    messages_column: str = field(default="messages", metadata={"help": "Column of chats, where there is one."})
    paraphrases_column: str | None = field(
        default=None, metadata={"help": "Column of lists of paraphrases instead: each predicts the next of its list."}
    )
    text_view_column: str | None = field(default=None, metadata={"help": "Column of the Text view, if not the chat."})
    code_view_column: str | None = field(default=None, metadata={"help": "Column of the Code view, if not the chat."})
