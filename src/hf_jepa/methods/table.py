"""The methods of this package; to add one, write its entry here (or call `register_method` from outside)."""

from .method import COMPOSITE, Converter, Method, ModelClass

_SIZES = ("num_attention_heads", "predictor_num_attention_heads", "image_size")


def _classes(
    room: str, config: str, model: str, auto_classes: tuple[str, ...] = COMPOSITE, processor: str | None = None
) -> ModelClass:
    home = f".models.{room}:"
    return ModelClass(home + config, home + model, auto_classes, processor and home + processor)


TABLE = (
    Method(
        "ijepa",
        "I-JEPA",
        "I-JEPA learns image features without labels: from the visible patches of an image, a predictor must "
        "tell what an exponential moving average of the encoder makes of hidden blocks of the same image.",
        """@inproceedings{assran2023ijepa,
  title     = {Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture},
  author    = {Assran, Mahmoud and Duval, Quentin and Misra, Ishan and Bojanowski, Piotr and Vincent, Pascal and
               Rabbat, Michael and LeCun, Yann and Ballas, Nicolas},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2023},
  note      = {arXiv:2301.08243}
}""",
        _classes("ijepa", "IJepaPreTrainingConfig", "IJepaForPreTraining"),
        batches="masks",
        converters=(Converter("ijepa", _SIZES),),
    ),
    Method(
        "cjepa",
        "C-JEPA",
        "C-JEPA is I-JEPA with VICReg's variance, covariance and invariance terms on the predicted blocks. No "
        "official code exists; this is a reading of the paper, not a port.",
        """@inproceedings{mo2024cjepa,
  title     = {Connecting Joint-Embedding Predictive Architecture with Contrastive Self-supervised Learning},
  author    = {Mo, Shentong and Tong, Shengbang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2410.19560}
}""",
        _classes("ijepa", "CJepaPreTrainingConfig", "CJepaForPreTraining"),
        batches="masks",
    ),
    Method(
        "data2vec_vision",
        "data2vec",
        "data2vec learns image features without labels: from an image whose masked patches are replaced by a "
        "mask token, a student regresses what its own moving average, seeing the whole image, represents "
        "there in its top blocks.",
        """@inproceedings{baevski2022data2vec,
  title     = {data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language},
  author    = {Baevski, Alexei and Hsu, Wei-Ning and Xu, Qiantong and Babu, Arun and Gu, Jiatao and Auli, Michael},
  booktitle = {International Conference on Machine Learning},
  year      = {2022},
  note      = {arXiv:2202.03555}
}""",
        _classes("data2vec_vision", "Data2VecVisionPreTrainingConfig", "Data2VecVisionForPreTraining"),
        batches="masks",
        build_model=".programs.image_models:build_data2vec_model",
        transform=".data.image_batches:jittered_crop_transform",
        collator=".data.image_batches:blockwise_collator",
        pictures=".programs.image_pictures:draw_data2vec_pictures",
        converters=(Converter("data2vec_vision", ("target_layers",)),),
    ),
    Method(
        "lejepa",
        "LeJEPA",
        "LeJEPA learns image features without labels: the embeddings of an image's views are pulled together, "
        "and a statistical test along random directions (SIGReg) keeps their distribution an isotropic "
        "Gaussian.",
        """@article{balestriero2025lejepa,
  title   = {LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics},
  author  = {Balestriero, Randall and LeCun, Yann},
  journal = {arXiv:2511.08544},
  year    = {2025}
}""",
        _classes("joint_embedding", "LeJepaPreTrainingConfig", "LeJepaForPreTraining"),
        batches="views",
    ),
    Method(
        "rectified_lpjepa",
        "Rectified LpJEPA",
        "Rectified LpJEPA learns image features without labels: the embeddings of an image's views are pulled "
        "together, and their distribution is matched with a rectified generalized Gaussian (RDMReg), which "
        "makes them sparse.",
        """@article{rectifiedlpjepa2026,
  title   = {Rectified LpJEPA},
  journal = {arXiv:2602.01456},
  year    = {2026}
}""",
        _classes("joint_embedding", "RectifiedLpJepaPreTrainingConfig", "RectifiedLpJepaForPreTraining"),
        batches="views",
    ),
    Method(
        "simsiam",
        "SimSiam",
        "SimSiam learns image features without labels: from one view of an image, a predictor must tell the "
        "embedding of the other, which gets no gradient.",
        """@inproceedings{chen2021simsiam,
  title     = {Exploring Simple Siamese Representation Learning},
  author    = {Chen, Xinlei and He, Kaiming},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2021},
  note      = {arXiv:2011.10566}
}""",
        _classes("joint_embedding", "SimSiamPreTrainingConfig", "SimSiamForPreTraining"),
        batches="views",
    ),
    Method(
        "vicreg",
        "VICReg",
        "VICReg learns image features without labels: the embeddings of an image's two views are pulled "
        "together, while every dimension keeps its variance and dimensions are decorrelated.",
        """@inproceedings{bardes2022vicreg,
  title     = {VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning},
  author    = {Bardes, Adrien and Ponce, Jean and LeCun, Yann},
  booktitle = {International Conference on Learning Representations},
  year      = {2022},
  note      = {arXiv:2105.04906}
}""",
        _classes("joint_embedding", "VICRegPreTrainingConfig", "VICRegForPreTraining"),
        batches="views",
    ),
    Method(
        "llm_jepa",
        "LLM-JEPA",
        "LLM-JEPA fine-tunes a language model with a second loss beside next-token prediction: from its "
        "embedding of a text, its embedding of the code that the text describes must be predicted.",
        """@article{huang2025llmjepa,
  title   = {LLM-JEPA: Large Language Models Meet Joint Embedding Predictive Architectures},
  author  = {Huang, Hai and LeCun, Yann and Balestriero, Randall},
  journal = {arXiv preprint arXiv:2509.14252},
  year    = {2025}
}""",
        _classes("llm_jepa", "LLMJepaConfig", "LLMJepaForCausalLM"),
        batches="pairs",
        program=".programs.finetune_llm:main",
    ),
    Method(
        "vjepa",
        "V-JEPA",
        "V-JEPA learns video features without labels: from the visible patches of a clip, a predictor must "
        "tell what an exponential moving average of the encoder makes of blocks hidden through the whole "
        "clip.",
        """@article{bardes2024vjepa,
  title   = {Revisiting Feature Prediction for Learning Visual Representations from Video},
  author  = {Bardes, Adrien and Garrido, Quentin and Ponce, Jean and Chen, Xinlei and Rabbat, Michael and
             LeCun, Yann and Assran, Mahmoud and Ballas, Nicolas},
  journal = {arXiv:2404.08471},
  year    = {2024}
}""",
        _classes("vjepa", "VJepaPreTrainingConfig", "VJepaForPreTraining"),
        parts=(
            _classes("vjepa", "VJepaConfig", "VJepaModel", ("AutoModel",)),
            _classes("vjepa", "VJepaConfig", "VJepaForVideoClassification", ("AutoModelForVideoClassification",)),
            _classes("vjepa", "VJepaActionAnticipationConfig", "VJepaForActionAnticipation", ("AutoModel",)),
        ),
        batches="clips",
        converters=(Converter("vjepa", (*_SIZES, "num_frames", "encoder")),),
    ),
    Method(
        "vjepa2",
        "V-JEPA 2",
        "V-JEPA 2 learns video features without labels, as V-JEPA does, with rotary positions and at scale: "
        "from the visible patches of a clip, a predictor must tell what an exponential moving average of the "
        "encoder makes of the hidden ones.",
        """@article{assran2025vjepa2,
  title   = {V-JEPA 2: Self-Supervised Video Models Enable Understanding, Prediction and Planning},
  author  = {Assran, Mahmoud and Bardes, Adrien and Fan, David and Garrido, Quentin and others},
  journal = {arXiv:2506.09985},
  year    = {2025}
}""",
        _classes("vjepa", "VJepa2PreTrainingConfig", "VJepa2ForPreTraining"),
        batches="clips",
        converters=(Converter("vjepa2", (*_SIZES, "num_frames", "encoder", "generation", "hierarchical_layers")),),
    ),
    Method(
        "vjepa2_ac",
        "V-JEPA 2-AC",
        "V-JEPA 2-AC learns what a robot's actions do to the features of a frozen V-JEPA 2 encoder: from frames, "
        "poses and actions so far, a predictor must tell the features of the next frame; planners search actions "
        "whose imagined frames are near a goal.",
        """@article{assran2025vjepa2,
  title   = {V-JEPA 2: Self-Supervised Video Models Enable Understanding, Prediction and Planning},
  author  = {Assran, Mahmoud and Bardes, Adrien and Fan, David and Garrido, Quentin and others},
  journal = {arXiv:2506.09985},
  year    = {2025}
}""",
        _classes("vjepa2_ac", "VJepa2ACConfig", "VJepa2ACModel"),
        batches="actions",
        converters=(Converter("vjepa2_ac", _SIZES),),
    ),
    Method(
        "vjepa2_1",
        "V-JEPA 2.1",
        "V-JEPA 2.1 learns dense features of videos and images without labels: a predictor must tell what an "
        "exponential moving average of the encoder makes of the hidden and of the visible patches, at several "
        "depths.",
        """@article{murlabadia2026vjepa21,
  title   = {V-JEPA 2.1: Unlocking Dense Features in Video Self-Supervised Learning},
  author  = {Mur-Labadia, Lorenzo and Muckley, Matthew and Bar, Amir and Assran, Mido and Sinha, Koustuv and
             Rabbat, Mike and LeCun, Yann and Ballas, Nicolas and Bardes, Adrien},
  journal = {arXiv:2603.14482},
  year    = {2026}
}""",
        batches="clips",
    ),
    Method(
        "vl_jepa",
        "VL-JEPA",
        "VL-JEPA predicts, from an image or video and a question about it, the embedding of the answer's "
        "text: it classifies, retrieves and answers by comparing embeddings, and writes only where text is "
        "wanted.",
        """@article{vljepa2025,
  title   = {VL-JEPA: Joint Embedding Predictive Architecture for Vision-language},
  journal = {arXiv:2512.10942},
  year    = {2025}
}""",
        _classes("vl_jepa", "VLJepaConfig", "VLJepaModel", processor="VLJepaProcessor"),
        batches="pairs",
        program=".programs.train_vl_jepa:main",
    ),
    Method(
        "latent_world_model",
        "Latent world model",
        "A latent world model learns, end to end from pixels, an encoder and a predictor of the next frame's "
        "embedding under an action; planners search actions whose predicted embedding is near the goal's.",
        composite=_classes("latent_world_model", "LatentWorldModelConfig", "LatentWorldModel"),
        parts=(_classes("latent_world_model", "ConvEncoderConfig", "ConvEncoderModel", ("AutoModel",)),),
        batches="actions",
        converters=(Converter("lewm", ("num_attention_heads", "predictor_num_attention_heads", "statistics")),),
    ),
    Method(
        "vit_mae",
        "MAE",
        "MAE is a baseline, not a JEPA: it reconstructs the pixels of hidden patches.",
        r"""@inproceedings{he2022mae,
  title     = {Masked Autoencoders Are Scalable Vision Learners},
  author    = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\'a}r, Piotr and
               Girshick, Ross},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  note      = {arXiv:2111.06377}
}""",
        batches="masks",
        build_model=".programs.image_models:build_mae_model",
        collator=".programs.mae_baseline:noise_collator",
        pictures=".programs.image_pictures:draw_mae_pictures",
    ),
)
