"""What a trained VL-JEPA is used for: embeddings, classification, answers, retrieval, captions, streams."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from transformers import AutoModel

from ..models.vl_jepa.modeling_vl_jepa import VLJepaModel
from ..models.vl_jepa.processing_vl_jepa import VLJepaProcessor
from ..parts import load_auto
from ..streaming import DecodeFrom, ShiftTrigger, decode_offline, decode_online
from .vl_streams import Stream, StreamText, video_windows


class Ranked(NamedTuple):
    """A candidate and its cosine similarity; `index` is its place among the candidates."""

    text: str
    score: float
    index: int


class VLJepaPipeline:
    """
    Uses of a [`VLJepaModel`] (VL-JEPA §3, §4). Images and videos are whatever [`VLJepaProcessor`] takes; all
    embeddings are L2-normalised, so that a dot product is a cosine.

    Args:
        model ([`VLJepaModel`]): put into eval mode.
        processor ([`VLJepaProcessor`]).
        device (`str` or `torch.device`, *optional*): where the model is by default.
        batch_size (`int`): images, clips or texts at a time.

    Example:

    ```python
    >>> from hf_jepa import VLJepaPipeline
    >>> vl_jepa = VLJepaPipeline.from_pretrained("my-vl-jepa")
    >>> vl_jepa.zero_shot_classify(videos=["surf.mp4"], labels=["surfing", "cooking"])
    >>> vl_jepa.answer("How many dogs are there?", ["one", "two"], images="dogs.jpg")
    ```
    """

    def __init__(
        self,
        model: VLJepaModel,
        processor: VLJepaProcessor,
        device: str | torch.device | None = None,
        batch_size: int = 16,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.model = model.eval() if device is None else model.to(device).eval()
        self.processor, self.batch_size = processor, batch_size

    @classmethod
    def from_pretrained(
        cls, repo_or_path: str, device: str | torch.device | None = None, batch_size: int = 16, **options: Any
    ) -> "VLJepaPipeline":
        """
        Loads model and processor.

        Args:
            repo_or_path (`str`): Hub repository or local folder of both.
            device, batch_size: as for the class.
            options: for `from_pretrained`, such as `revision` and `dtype`.

        Raises:
            `ValueError`: if there is no VL-JEPA, or it cannot be loaded.
        """
        place = {key: options[key] for key in ("revision", "subfolder") if options.get(key)}
        try:
            model = load_auto(AutoModel, repo_or_path, **options)
            if not isinstance(model, VLJepaModel):
                raise ValueError(f"it is a {type(model).__name__}, not a VLJepaModel.")
            processor = VLJepaProcessor.from_pretrained(repo_or_path, **place)
        except (OSError, ValueError) as error:
            raise ValueError(f"Cannot load a VL-JEPA from {str(repo_or_path)!r}: {error}") from error
        return cls(model, processor, device, batch_size)

    # ---- Embeddings ----

    @torch.no_grad()
    def encode(
        self,
        videos: Any = None,
        query: str | Sequence[str] | None = None,
        images: Any = None,
        vision_embeds: torch.Tensor | None = None,
        vision_attention_mask: torch.Tensor | None = None,
    ) -> torch.FloatTensor:
        """
        Predicted embeddings of images and clips under queries.

        Args:
            videos, images (*optional*): one or a list.
            query (`str` or a list of them, *optional*): one for all, or one per image and then clip; the processor's
                default where there is none.
            vision_embeds, vision_attention_mask (`torch.Tensor` of shape `(n, tokens, width)` and `(n, tokens)`,
                *optional*): instead of pixels, what `encode_vision` made of them.

        Returns:
            `torch.FloatTensor` of shape `(images + clips, projection_dim)`, normalised, on the CPU.

        Raises:
            `ValueError`: for neither images nor videos, media that cannot be read, and queries of another number.
        """
        from ..data.vl_media import as_clips, as_images

        images, videos = as_images(images), as_clips(videos)
        given = [("images", image) for image in images] + [("videos", video) for video in videos]
        total = len(given) if vision_embeds is None else len(vision_embeds)
        if not total or (given and vision_embeds is not None):
            raise ValueError("Pass images, videos, or `vision_embeds` made of them.")
        query = self.processor.default_query if query is None else query
        queries = [query] * total if query is None or isinstance(query, str) else list(query)
        if len(queries) != total:
            raise ValueError(f"There are {total} images and clips, but {len(queries)} queries; give one for each.")
        parts = []
        for start in range(0, total, self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch: dict[str, Any] = {}
            if vision_embeds is not None:
                batch["vision_embeds"] = vision_embeds[rows]
                if vision_attention_mask is not None:
                    batch["vision_attention_mask"] = vision_attention_mask[rows]
                if queries[0] is not None:
                    batch |= self.processor.tokenize(queries[rows], "query")
            else:
                media = {kind: [medium for k, medium in given[rows] if k == kind] for kind in ("images", "videos")}
                batch |= self.processor(**media, query=None if queries[0] is None else queries[rows])
            embeds = self.model.get_pred_embeds(**{name: part.to(self.model.device) for name, part in batch.items()})
            parts.append(F.normalize(embeds.float(), dim=1).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str], prompt: str | None = None) -> torch.FloatTensor:
        """
        The Y-encoder's embeddings of texts.

        Args:
            texts (`str` or a list of them): at least one, none of them empty.
            prompt (`str`, *optional*): name of a prompt of the processor, instead of its default.

        Returns:
            `torch.FloatTensor` of shape `(texts, projection_dim)`, normalised, on the CPU.

        Raises:
            `ValueError`: for no text, an empty one, one that is too long, or an unknown prompt.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("There is no text to encode.")
        parts = []
        for start in range(0, len(texts), self.batch_size):
            batch = self.processor(target=texts[start : start + self.batch_size], target_prompt=prompt)
            embeds = self.model.get_target_embeds(**{name: part.to(self.model.device) for name, part in batch.items()})
            parts.append(F.normalize(embeds.float(), dim=1).cpu())
        return torch.cat(parts)

    # ---- Classification, answers, retrieval ----

    def zero_shot_classify(
        self,
        labels: Sequence[str],
        images: Any = None,
        videos: Any = None,
        query: str | None = None,
        template: str = "{}",
        top_k: int | None = None,
    ) -> list[list[Ranked]]:
        """
        Open-vocabulary classification: the labels nearest to the prediction.

        Args:
            labels (`Sequence[str]`): names of classes.
            images, videos (*optional*): one or a list.
            query (`str`, *optional*): as for `encode`; the paper classifies under a captioning query.
            template (`str`): what is encoded of a label, such as `"a photo of a {}"`.
            top_k (`int`, *optional*): how many labels to give; all by default.

        Returns:
            `list`: per image and then clip, its labels as [`Ranked`], best first.

        Raises:
            `ValueError`: for no labels, a template without `{}`, and as `encode`.
        """
        if "{}" not in template:
            raise ValueError(f'`template` must hold "{{}}", where the label stands, got {template!r}.')
        labels = self._candidates(labels, "label")
        texts = self.encode_text([template.format(label) for label in labels])
        return rank(self.encode(videos, query, images), texts, labels, top_k)

    def answer(
        self, query: str | Sequence[str], candidates: Sequence[str], images: Any = None, videos: Any = None
    ) -> list[list[Ranked]]:
        """
        Discriminative visual question answering: the candidates nearest to the answer's predicted embedding.

        Args:
            query (`str` or a list of them): the question.
            candidates (`Sequence[str]`): answers to choose from.
            images, videos (*optional*): one or a list.

        Returns:
            `list`: per image and then clip, the candidates as [`Ranked`], best first.

        Raises:
            `ValueError`: for no candidates, and as `encode`.
        """
        candidates = self._candidates(candidates, "candidate")
        return rank(self.encode(videos, query, images), self.encode_text(candidates), candidates)

    def retrieve_texts(
        self,
        texts: Sequence[str],
        images: Any = None,
        videos: Any = None,
        query: str | None = None,
        top_k: int | None = 10,
    ) -> list[list[Ranked]]:
        """Video-to-text retrieval: the texts nearest to each image and clip; arguments as in `zero_shot_classify`."""
        texts = self._candidates(texts, "text")
        return rank(self.encode(videos, query, images), self.encode_text(texts), texts, top_k)

    def retrieve_media(
        self, texts: str | Sequence[str], media_embeds: torch.Tensor, top_k: int | None = 10
    ) -> list[list[tuple[int, float]]]:
        """
        Text-to-video retrieval.

        Args:
            texts (`str` or a list of them): what is looked for.
            media_embeds (`torch.FloatTensor` of shape `(n, projection_dim)`): of `encode`, under a captioning query.
            top_k (`int`, *optional*): how many to give; all by default.

        Returns:
            `list`: per text, indices of media and cosines, best first.

        Raises:
            `ValueError`: for no text, or embeddings of another shape.
        """
        return [
            [(place, score) for _, score, place in row]
            for row in rank(self.encode_text(texts), media_embeds, [""] * len(media_embeds), top_k)
        ]

    @staticmethod
    def index(embeds: torch.Tensor, columns: dict[str, Sequence[Any]] | None = None, faiss: bool = True) -> Any:
        """
        Embeddings as a `datasets.Dataset`, with a FAISS index of inner products over its column `embeds`: search by
        `get_nearest_examples("embeds", query.numpy(), k)`; `save_faiss_index` keeps it.

        Args:
            embeds (`torch.FloatTensor` of shape `(n, width)`): of `encode` or `encode_text`.
            columns (`dict`, *optional*): what else belongs to each row.
            faiss (`bool`): `False` makes the dataset alone.

        Raises:
            `ValueError`: for columns of another length.
            `ImportError`: without the package `faiss-cpu` (or another build of it).
        """
        import datasets

        wrong = {name: len(values) for name, values in (columns or {}).items() if len(values) != len(embeds)}
        if wrong:
            raise ValueError(f"There are {len(embeds)} embeddings, but columns of lengths {wrong}.")
        table = datasets.Dataset.from_dict({**(columns or {}), "embeds": embeds.float().numpy()})
        if faiss:
            try:
                from faiss import METRIC_INNER_PRODUCT
            except ImportError as error:
                raise ImportError("A FAISS index needs `pip install faiss-cpu`; or pass `faiss=False`.") from error
            table.add_faiss_index("embeds", metric_type=METRIC_INNER_PRODUCT)
        return table

    # ---- Text ----

    def decode(
        self, embeds: torch.Tensor, bank: Sequence[str] | None = None, max_new_tokens: int = 32, **options: Any
    ) -> list[str]:
        """
        Texts of embeddings: by the Y-decoder, or the nearest of a bank of captions, which takes no training.

        Args:
            embeds (`torch.FloatTensor` of shape `(n, projection_dim)`).
            bank (`Sequence[str]`, *optional*): captions to choose from.
            max_new_tokens (`int`), options: for the Y-decoder's `generate`.

        Raises:
            `ValueError`: for an empty bank, or neither a bank nor a Y-decoder.
        """
        if bank is not None:
            bank = self._candidates(bank, "caption")
            return [row[0].text for row in rank(embeds, self.encode_text(bank), bank, top_k=1)]
        tokenizer = self.processor.decoder_tokenizer
        if self.model.y_decoder is None or tokenizer is None:
            raise ValueError("There is no Y-decoder with a tokenizer; pass a `bank` of captions to choose from.")
        parts = []
        for batch in embeds.split(self.batch_size):
            options = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, **options}
            tokens = self.model.generate_text(batch.to(self.model.device), max_new_tokens=max_new_tokens, **options)
            parts += tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in parts]

    def caption(
        self,
        images: Any = None,
        videos: Any = None,
        query: str | Sequence[str] | None = None,
        bank: Sequence[str] | None = None,
        **options: Any,
    ) -> list[str]:
        """Captions, or answers to queries, one per image and then clip; see `encode` and `decode`."""
        return self.decode(self.encode(videos, query, images), bank, **options)

    # ---- Streams ----

    def stream_embeds(
        self, video: Any, query: str | None = None, window: int = 16, stride: int | None = None
    ) -> Iterator[tuple[float, torch.FloatTensor]]:
        """
        Embeddings of a window that slides over a video, one by one. Frames are read as they are needed.

        Args:
            video: one video; of frames without a file, a second is one frame.
            query (`str`, *optional*): as for `encode`.
            window (`int`): frames; the processor takes its `num_frames` of them. A video may be shorter.
            stride (`int`, *optional*): frames from one window to the next; the window by default.

        Yields:
            `tuple`: the second of the window's middle, and a `(projection_dim,)` embedding.

        Raises:
            `ValueError`: for a video that cannot be read, or windows that are out of range.
        """
        stride = window if stride is None else stride
        if window < 1 or stride < 1:
            raise ValueError(f"`window` and `stride` must be at least 1, got {window} and {stride}.")
        for seconds, clips in video_windows(video, window, stride, self.batch_size):
            yield from zip(seconds, self.encode(clips, query), strict=True)

    def stream(
        self,
        video: Any,
        query: str | None = None,
        bank: Sequence[str] | None = None,
        window: int = 16,
        stride: int | None = None,
        policy: Literal["ward", "online"] = "ward",
        num_segments: int | None = None,
        threshold: float | None = None,
        decode: DecodeFrom = "mean",
        trigger: ShiftTrigger | None = None,
        **options: Any,
    ) -> Stream:
        """
        Text along a video, made only where its embeddings shift (§4.6).

        Args:
            video, query, window, stride: as in `stream_embeds`.
            bank (`Sequence[str]`, *optional*): as in `decode`.
            policy (`"ward"` or `"online"`): the paper's clustering of the whole stream, or a trigger.
            num_segments (`int`, *optional*), threshold (`float`, *optional*), decode (`str`): of
                [`~hf_jepa.streaming.decode_offline`]; by default as many segments as there are 20 windows.
            trigger ([`~hf_jepa.streaming.ShiftTrigger`], *optional*): for `"online"`.
            options: for `decode`.

        Returns:
            [`Stream`].

        Raises:
            `ValueError`: as `stream_embeds`, `decode` and `decode_offline`.
        """
        if policy not in ("ward", "online"):
            raise ValueError(f'`policy` must be "ward" or "online", got {policy!r}.')
        if bank is not None:
            bank = self._candidates(bank, "caption")
        seconds, embeds = zip(*self.stream_embeds(video, query, window, stride), strict=True)
        seconds, embeds = torch.tensor(seconds), torch.stack(embeds)
        if policy == "online":
            decoding = decode_online(embeds, trigger)
        else:
            if num_segments is None and threshold is None:
                num_segments = max(1, len(embeds) // 20)
            decoding = decode_offline(embeds, num_segments, threshold, decode)
        texts = self.decode(decoding.embeds, bank, **options)
        ends = [*seconds[decoding.starts[1:]].tolist(), seconds[-1].item()]
        found = zip(texts, seconds[decoding.positions].tolist(), seconds[decoding.starts].tolist(), ends, strict=True)
        return Stream([StreamText(*entry) for entry in found], decoding, embeds, seconds)

    @staticmethod
    def _candidates(texts: Sequence[str], kind: str) -> list[str]:
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError(f"There is no {kind} to choose from: pass at least one.")
        empty = [place for place, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
        if empty:
            raise ValueError(f"{kind.capitalize()} {empty[0]} is empty: {texts[empty[0]]!r}.")
        return texts


def rank(
    embeds: torch.Tensor, candidate_embeds: torch.Tensor, texts: Sequence[str], top_k: int | None = None
) -> list[list[Ranked]]:
    """
    Candidates by cosine, best first; equal ones in their order.

    Args:
        embeds (`torch.FloatTensor` of shape `(n, width)`), candidate_embeds (`(candidates, width)`).
        texts (`Sequence[str]`): of the candidates.
        top_k (`int`, *optional*): how many to give.

    Raises:
        `ValueError`: for no candidates, widths that differ, or `top_k` below 1.
    """
    if not len(candidate_embeds):
        raise ValueError("There is nothing to choose from: pass at least one candidate.")
    if embeds.ndim != 2 or candidate_embeds.ndim != 2 or embeds.shape[1] != candidate_embeds.shape[1]:
        raise ValueError(
            f"Embeddings {tuple(embeds.shape)} and candidates {tuple(candidate_embeds.shape)} must be matrices of one "
            "width."
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
    similarity = F.normalize(embeds, dim=1) @ F.normalize(candidate_embeds, dim=1).T
    scores, order = similarity.sort(dim=1, descending=True, stable=True)
    return [
        [Ranked(texts[place], score, place) for score, place in zip(row[:top_k], places[:top_k], strict=True)]
        for row, places in zip(scores.tolist(), order.tolist(), strict=True)
    ]
