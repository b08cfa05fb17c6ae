"""From images, clips, queries and texts to what VL-JEPA takes."""

import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoTokenizer, AutoVideoProcessor, BatchFeature, ProcessorMixin
from transformers.utils.hub import cached_file

from ...parts import load_auto

_VISUAL = ("image_processor", "video_processor")
_TOKENIZERS = ("query_tokenizer", "target_tokenizer", "decoder_tokenizer")
_SETTINGS = (
    "num_frames",
    "max_query_length",
    "max_target_length",
    "default_query",
    "prompts",
    "target_prompt",
)


class VLJepaProcessor(ProcessorMixin):
    """
    The processor of [`VLJepaModel`]. One of image and video processor suffices: the former then sees clips frame by
    frame, the latter images as clips of one frame.

    Args:
        image_processor (`BaseImageProcessor`, *optional*), video_processor (`BaseVideoProcessor`, *optional*): of the
            X-encoder.
        query_tokenizer (`PreTrainedTokenizerBase`): of the predictor. Without a padding token it pads by its
            end-of-text token.
        target_tokenizer (`PreTrainedTokenizerBase`): of the Y-encoder.
        decoder_tokenizer (`PreTrainedTokenizerBase`, *optional*): of the Y-decoder.
        num_frames (`int`, *optional*): frames of a clip, spread evenly over a video; the paper trains 16 (v1), or 8
            and then 32 (v2). `None` keeps the frames that are given.
        max_query_length (`int`, defaults to 512), max_target_length (`int`, defaults to 512): in tokens; the paper's.
            Longer texts are refused, or cut with `truncation=True`.
        default_query (`str`, *optional*): what is asked where no query is given. The paper does not state what stands
            for the query in query-free pretraining; `None`, the default, is no query token at all.
        prompts (`dict[str, str]`, *optional*): by name, what sentence-transformers puts before a text.
        target_prompt (`str`, *optional*): name of the prompt before targets. Not stated in the paper; none by default.

    Raises:
        `ValueError`: without a visual processor or a tokenizer, for an unknown prompt, or lengths below 1.
    """

    def __init__(
        self,
        image_processor: Any = None,
        video_processor: Any = None,
        query_tokenizer: Any = None,
        target_tokenizer: Any = None,
        decoder_tokenizer: Any = None,
        num_frames: int | None = 16,
        max_query_length: int = 512,
        max_target_length: int = 512,
        default_query: str | None = None,
        prompts: dict[str, str] | None = None,
        target_prompt: str | None = None,
    ) -> None:
        if image_processor is None and video_processor is None:
            raise ValueError("VLJepaProcessor needs an `image_processor` or a `video_processor`.")
        if query_tokenizer is None or target_tokenizer is None:
            raise ValueError("VLJepaProcessor needs a `query_tokenizer` and a `target_tokenizer`.")
        for name, value in (
            ("num_frames", 1 if num_frames is None else num_frames),
            ("max_query_length", max_query_length),
            ("max_target_length", max_target_length),
        ):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.image_processor, self.video_processor = image_processor, video_processor
        self.query_tokenizer, self.target_tokenizer = query_tokenizer, target_tokenizer
        self.decoder_tokenizer = decoder_tokenizer
        for tokenizer in filter(None, (query_tokenizer, target_tokenizer, decoder_tokenizer)):
            if tokenizer.pad_token is None:
                if tokenizer.eos_token is None:
                    raise ValueError(f"{type(tokenizer).__name__} has neither a padding nor an end-of-text token.")
                # Masks, not ids, tell padding from text.
                tokenizer.pad_token = tokenizer.eos_token
        self.num_frames = num_frames
        self.max_query_length, self.max_target_length = max_query_length, max_target_length
        self.default_query = default_query
        self.prompts, self.target_prompt = dict(prompts or {}), target_prompt
        self.chat_template = None
        self.prompt_text(target_prompt)

    @classmethod
    def from_components(
        cls, vision: str, predictor: str, y_encoder: str, y_decoder: str | None = None, **settings: Any
    ) -> "VLJepaProcessor":
        """
        The processor of parts that [`VLJepaModel.from_components`] puts together. Prompts are those of a
        sentence-transformers folder.

        Args:
            vision, predictor, y_encoder, y_decoder (`str`): model ids or folders.
            settings: the other arguments of the class.
        """
        is_video = cached_file(vision, "video_preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        if is_video:
            settings.setdefault("video_processor", load_auto(AutoVideoProcessor, vision))
        else:
            settings.setdefault("image_processor", load_auto(AutoImageProcessor, vision))
        prompts = cached_file(
            y_encoder, "config_sentence_transformers.json", _raise_exceptions_for_missing_entries=False
        )
        if prompts:
            with open(prompts, encoding="utf-8") as stream:
                settings.setdefault("prompts", json.load(stream).get("prompts"))
        names = {"query_tokenizer": predictor, "target_tokenizer": y_encoder, "decoder_tokenizer": y_decoder}
        for name, source in names.items():
            if source is not None:
                settings.setdefault(name, load_auto(AutoTokenizer, source))
        return cls(**settings)

    @property
    def tokenizer(self) -> Any:
        """The query's tokenizer, where one is asked for."""
        return self.query_tokenizer

    def prompt_text(self, name: str | None) -> str:
        """
        What stands before a text under a prompt's name; nothing for `None`.

        Raises:
            `ValueError`: for an unknown name.
        """
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(f"There is no prompt {name!r}; known are {sorted(self.prompts)}.")
        return self.prompts[name] or ""

    def __call__(
        self,
        images: Any = None,
        videos: Any = None,
        query: str | Sequence[str] | None = None,
        target: str | Sequence[str] | None = None,
        target_prompt: str | None = None,
        truncation: bool = False,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """
        Args:
            images (an image or a list of them, *optional*): PIL, `(H, W, 3)` uint8 arrays, paths, bytes, or cells of a
                `datasets` image column.
            videos (a clip or a list of them, *optional*): `(frames, H, W, 3)` uint8 arrays, `(frames, 3, H, W)` uint8
                tensors, lists of images, paths, bytes, or cells of a `datasets` video column.
            query (`str` or a list of them, *optional*): one per image and clip, images first, or one for all.
            target (`str` or a list of them, *optional*): texts for the Y-encoder.
            target_prompt (`str`, *optional*): name of a prompt, instead of the processor's.
            truncation (`bool`): cut texts that are too long instead of refusing them.
            return_tensors (`str`): `"pt"`.

        Returns:
            `BatchFeature` with those of `pixel_values` `(images, 3, H, W)`, `pixel_values_videos` `(clips, frames, 3,
            H, W)`, `query_input_ids`, `query_attention_mask`, `target_input_ids`, `target_attention_mask` that were
            asked for. Texts are padded to the longest of the batch only.

        Raises:
            `ValueError`: for media that cannot be read, clips of different lengths with `num_frames=None`, as many
                queries as fit neither, texts that are empty or too long, or nothing at all.
        """
        if return_tensors != "pt":
            raise ValueError(f'`return_tensors` must be "pt", got {return_tensors!r}.')
        from ...data.vl_media import as_clips, as_images, read_clip, read_image

        images, videos = as_images(images), as_clips(videos)
        count = len(images) + len(videos)
        data: dict[str, Any] = {}
        if images:
            stills = [read_image(image, place)[None] for place, image in enumerate(images)]
            data["pixel_values"] = self._pixels(stills, by_image=self.image_processor is not None).squeeze(1)
        if videos:
            clips = [read_clip(video, self.num_frames, place) for place, video in enumerate(videos)]
            lengths = [len(clip) for clip in clips]
            if len(set(lengths)) > 1:
                raise ValueError(f"Clips have {lengths} frames; set `num_frames` to make them one.")
            data["pixel_values_videos"] = self._pixels(clips, by_image=self.video_processor is None)
        query = self.default_query if query is None else query
        if query is not None:
            queries = [query] * max(count, 1) if isinstance(query, str) else list(query)
            if count and len(queries) != count:
                raise ValueError(f"There are {count} images and clips, but {len(queries)} queries; give one for each.")
            data |= self.tokenize(queries, "query", truncation)
        if target is not None:
            prompt = self.prompt_text(self.target_prompt if target_prompt is None else target_prompt)
            targets = [target] if isinstance(target, str) else list(target)
            empty = [place for place, text in enumerate(targets) if isinstance(text, str) and not text.strip()]
            if empty:
                raise ValueError(f"Target {empty[0]} is empty; every image or clip needs a text.")
            targets = [prompt + text if isinstance(text, str) else text for text in targets]
            data |= self.tokenize(targets, "target", truncation)
        if not data:
            raise ValueError("Pass images, videos, a query or a target.")
        return BatchFeature(data)

    def tokenize(self, texts: list[str], kind: str, truncation: bool = False) -> dict[str, torch.Tensor]:
        """
        Token ids and mask of texts, padded to the longest.

        Args:
            texts (`list[str]`).
            kind (`str`): `"query"` or `"target"`.
            truncation (`bool`): cut what is too long.

        Returns:
            `dict`: `{kind}_input_ids` and `{kind}_attention_mask`, int64 of shape `(texts, length)`; nothing where no
            text has a token.

        Raises:
            `ValueError`: for what is no text, or too long a one.
        """
        wrong = [type(text).__name__ for text in texts if not isinstance(text, str)]
        if wrong or not texts:
            raise ValueError(f"A {kind} must be a string, got {wrong[0]}." if wrong else f"There is no {kind}.")
        tokenizer = self.query_tokenizer if kind == "query" else self.target_tokenizer
        limit = self.max_query_length if kind == "query" else self.max_target_length
        options = {"truncation": True, "max_length": limit} if truncation else {"truncation": False}
        tokens = tokenizer(list(texts), padding=True, return_tensors="pt", **options)
        lengths = tokens["attention_mask"].sum(dim=1)
        if lengths.max() > limit:
            place = int(lengths.argmax())
            raise ValueError(
                f"{kind.capitalize()} {place} has {int(lengths[place])} tokens, more than "
                f"`max_{kind}_length={limit}`; shorten it, raise the limit, or pass `truncation=True`."
            )
        if not lengths.max():
            return {}
        return {f"{kind}_{name}": tokens[name].long() for name in ("input_ids", "attention_mask")}

    def _pixels(self, clips: list[torch.Tensor], by_image: bool) -> torch.Tensor:
        """uint8 clips `(frames, 3, H, W)` of one length, of any sizes, as `(clips, frames, 3, height, width)`."""
        if not by_image:
            options = {"do_sample_frames": False, "return_tensors": "pt"}
            return self.video_processor(clips, **options)["pixel_values_videos"]
        frames = [frame for clip in clips for frame in clip]
        pixels = self.image_processor(frames, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
        return pixels.unflatten(0, (len(clips), -1))

    # Parts may be absent, which ProcessorMixin's own saving and loading does not allow for.

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """
        Writes visual processors to the root of a folder, each tokenizer to a folder of its name, and settings to
        `processor_config.json`.
        """
        if push_to_hub:
            raise ValueError("Save the processor beside its model, and push that folder with `hf-jepa push`.")
        os.makedirs(save_directory, exist_ok=True)
        parts = [name for name in (*_VISUAL, *_TOKENIZERS) if getattr(self, name) is not None]
        for name in parts:
            folder = save_directory if name in _VISUAL else os.path.join(save_directory, name)
            getattr(self, name).save_pretrained(folder)
        content = {"processor_class": type(self).__name__, "parts": parts}
        content |= {name: getattr(self, name) for name in _SETTINGS}
        with open(os.path.join(save_directory, "processor_config.json"), "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=2)
            stream.write("\n")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, subfolder: str = "", **kwargs: Any
    ) -> "VLJepaProcessor":
        """
        Loads what `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path (`str` or `PathLike`): a model id or a folder.
            subfolder (`str`): of it.
            kwargs: settings to change (`num_frames`, ...); others, such as `revision`, go to `from_pretrained` of the
                parts.

        Raises:
            `OSError`: if there is no processor.
        """
        name = str(pretrained_model_name_or_path)
        settings = {key: kwargs.pop(key) for key in _SETTINGS if key in kwargs}
        for ignored in ("_from_auto", "trust_remote_code", "processor_class"):
            kwargs.pop(ignored, None)
        with open(cached_file(name, "processor_config.json", subfolder=subfolder, **kwargs), encoding="utf-8") as file:
            content = json.load(file)
        loaded = {}
        for part in content["parts"]:
            auto_class = {"image_processor": AutoImageProcessor, "video_processor": AutoVideoProcessor}.get(part)
            folder = subfolder if auto_class is not None else os.path.join(subfolder, part)
            loaded[part] = load_auto(auto_class or AutoTokenizer, name, subfolder=folder, **kwargs)
        return cls(**loaded, **{key: content[key] for key in _SETTINGS} | settings)
