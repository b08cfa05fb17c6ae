"""Tiny releases that stand in for published ones: a second together to make, nothing learned."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTImageProcessor,
)

from hf_jepa import (
    IJepaForPreTraining,
    IJepaPreTrainingConfig,
    LatentWorldModel,
    LatentWorldModelConfig,
    VJepa2ForPreTraining,
    VJepa2PreTrainingConfig,
    VLJepaModel,
    VLJepaPipeline,
    VLJepaProcessor,
)
from hf_jepa.hub.release import save_release
from hf_jepa.models.latent_world_model import ConvEncoderConfig
from trainers.worlds import nl_regex

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WORDS = ("cat", "dog", "bird", "a")
_RESULTS = {"licence": "apache-2.0", "model": {"name": "tiny"}, "data": {"name": "noise", "num_examples": 8}}
_WIDE = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}


def save_photos(folder: Path, count: int = 8, side: int = 40) -> Path:
    """Coloured noise, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def save_ijepa(folder: Path, num_channels: int = 3) -> Path:
    """An I-JEPA of images of 16 pixels, of two floors."""
    config = IJepaPreTrainingConfig(
        encoder_config={
            "model_type": "ijepa",
            "image_size": 16,
            "patch_size": 4,
            "num_channels": num_channels,
            **SIZES,
        },
        predictor_hidden_size=8,
        predictor_num_hidden_layers=1,
    )
    return save_release(IJepaForPreTraining(config), folder, results=_RESULTS)


def save_vjepa2(folder: Path) -> Path:
    """A V-JEPA 2 of clips of 4 frames of 16 pixels, of two floors."""
    encoder = {
        "model_type": "vjepa",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 4,
        "crop_size": 16,
        "frames_per_clip": 4,
        "mlp_ratio": 1.0,
        "pred_hidden_size": 12,
        "pred_num_hidden_layers": 1,
        "pred_num_attention_heads": 1,
    }
    config = VJepa2PreTrainingConfig(encoder_config=encoder)
    return save_release(VJepa2ForPreTraining(config), folder, results=_RESULTS)


def save_llm(folder: Path) -> Path:
    """A Llama with the tokenizer of a grammar of regular expressions."""
    tokenizer = nl_regex.build_tokenizer()
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {**SIZES, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    LlamaForCausalLM(LlamaConfig(**sizes, **special)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def vl_pipeline() -> VLJepaPipeline:
    """A VL-JEPA of images of 16 pixels that knows four words."""
    language = {"vocab_size": 20, "max_position_embeddings": 60, "initializer_range": 0.3, **_WIDE}
    model = VLJepaModel.from_components(
        AutoModel.from_config(AutoConfig.for_model("vit", image_size=16, patch_size=4, **_WIDE)),
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **language)),
        AutoModel.from_config(AutoConfig.for_model("bert", **language)),
        num_layers=1,
        projection_dim=16,
    )
    words = {"[PAD]": 0, **{word: place + 3 for place, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    processor = VLJepaProcessor(
        ViTImageProcessor(size={"height": 16, "width": 16}), None, tokenizer, tokenizer, num_frames=2
    )
    return VLJepaPipeline(model, processor)


def save_vl(folder: Path) -> Path:
    """What [`vl_pipeline`] holds."""
    pipeline = vl_pipeline()
    pipeline.model.save_pretrained(folder)
    pipeline.processor.save_pretrained(folder)
    return folder


def save_world_model(folder: Path) -> Path:
    """A world model of images of 16 pixels and two actions, of two floors."""
    config = LatentWorldModelConfig(
        encoder_config=ConvEncoderConfig(image_size=16, hidden_sizes=[4, 8], hidden_size=8).to_dict(),
        action_dim=2,
        action_mean=[0.0, 0.0],
        action_std=[0.1, 0.1],
        action_low=[-0.2, -0.2],
        action_high=[0.2, 0.2],
        image_mean=[0.1, 0.1, 0.1],
        image_std=[0.2, 0.2, 0.2],
        predictor_hidden_size=16,
    )
    torch.manual_seed(0)
    return save_release(LatentWorldModel(config), folder, results=_RESULTS)
