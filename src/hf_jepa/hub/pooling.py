"""What sentence-transformers reads beside a model: where the one vector of an image is."""

import json
from pathlib import Path

_FOLDER = "1_Pooling"
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {
        "idx": 1,
        "name": "1",
        "path": _FOLDER,
        "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    },
]
_IMAGES = {
    "transformer_task": "feature-extraction",
    "modality_config": {"image": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


def save_cls_pooling(folder: Path, width: int) -> None:
    """
    Makes `SentenceTransformer(folder)` take the CLS token; without a word it averages over all tokens, which is right
    for models that were trained so.

    Args:
        folder (`Path`): with the encoder.
        width (`int`): of its tokens.
    """
    (folder / _FOLDER).mkdir()
    pooling = {"embedding_dimension": width, "pooling_mode": "cls"}
    for name, content in (
        ("modules.json", _MODULES),
        ("sentence_bert_config.json", _IMAGES),
        (f"{_FOLDER}/config.json", pooling),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
