"""What a recipe for VL-JEPA may say."""

from dataclasses import dataclass, field


@dataclass
class VLModelArguments:
    family: str = field(default="vl_jepa", metadata={"help": "The method."})
    checkpoint: str | None = field(default=None, metadata={"help": "A VL-JEPA to go on from: the stage before."})
    vision: str | None = field(default=None, metadata={"help": "X-encoder (id or path)."})
    predictor: dict | str | None = field(
        default=None, metadata={"help": "Id or path of a decoder, or YAML mapping with `model_type`: random weights."}
    )
    y_encoder: str | None = field(default=None, metadata={"help": "Text encoder (id or path)."})
    y_decoder: str | None = field(default=None, metadata={"help": "Causal LM (id or path), for captions."})
    query_tokenizer: str | None = field(default=None, metadata={"help": "Id or path; default: the predictor's."})
    num_layers: int | None = field(
        default=None, metadata={"help": "How many of the predictor's last layers are taken; default: 8."}
    )
    predictor_layers: list[int] | None = field(default=None, metadata={"help": "Start and end of them instead."})
    y_heads: str = field(default="st", metadata={"help": "st: with a sentence-transformers folder's heads; or none."})
    config: dict | str | None = field(default=None, metadata={"help": "YAML mapping: other fields of VLJepaConfig."})
    lora_rank: int = field(default=0, metadata={"help": "0 trains the predictor's weights; else an adapter."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, ..."})
    licence: str | None = field(default=None, metadata={"help": "Of the weights, for the card."})


@dataclass
class VLDataArguments:
    dataset: list[str] = field(
        default_factory=list, metadata={"help": "Manifests, folders, saved or Hub datasets; several are mixed."}
    )
    dataset_weights: list[float] | None = field(default=None, metadata={"help": "Shares of several datasets."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag of a Hub dataset."})
    data_licence: str | None = field(default=None, metadata={"help": "Of the data, for the card."})
    train_split: str = field(default="train", metadata={"help": "Slices such as train[:90%] included."})
    eval_split: str | None = field(default=None, metadata={"help": "Of the first dataset; scored by retrieval."})
    image_column: str = field(default="image", metadata={"help": "Column of images, if there is one."})
    video_column: str = field(default="video", metadata={"help": "Column of videos, if there is one."})
    target_column: str = field(default="text", metadata={"help": "Column of texts (or lists of them)."})
    query_column: str | None = field(default=None, metadata={"help": "Column of questions (or lists of them)."})
    queries: list[str] | None = field(default=None, metadata={"help": "One of these where a row has no question."})
    default_query: str | None = field(default=None, metadata={"help": "Asked where there is neither."})
    target_prompt: str | None = field(default=None, metadata={"help": "Name of a Y-encoder's prompt, as document."})
    num_frames: int = field(default=16, metadata={"help": "Frames of a clip, spread evenly."})
    max_query_length: int = field(default=512, metadata={"help": "Tokens; the paper's."})
    max_target_length: int = field(default=512, metadata={"help": "Tokens; the paper's."})
    max_bad_fraction: float = field(default=0.01, metadata={"help": "Share of unusable rows that ends a run."})


@dataclass
class VLDecoderArguments:
    y_decoder_steps: int = field(default=0, metadata={"help": "Updates of the Y-decoder, after the rest; 0 is none."})
