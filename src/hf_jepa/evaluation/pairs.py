"""How Text and Code embeddings lie to each other: is it pairing, or has everything become one direction?"""

import torch
import torch.nn.functional as F

from .diagnostics import effective_rank, rankme


def pair_report(text: torch.Tensor, predicted: torch.Tensor, code: torch.Tensor) -> dict[str, float]:
    """
    Diagnostics of paired embeddings. A low JEPA loss says only that `cos_paired` is high; where `cos_unpaired` is as
    high, the pairing itself has collapsed.

    Args:
        text (`torch.FloatTensor` of shape `(n, d)`): Enc(Text), at least 2 rows of different examples.
        predicted (`torch.FloatTensor` of shape `(n, d)`): Pred(Enc(Text)).
        code (`torch.FloatTensor` of shape `(n, d)`): Enc(Code).

    Returns:
        `dict[str, float]`: `cos_paired` and `cos_unpaired` (mean cosine of prediction and code, of the same and of
        different rows), `margin` (their difference), `retrieval_at_1` (share of predictions whose nearest code is
        their own; equal codes count as one), `rankme_text`, `rankme_code` ([`rankme`]), and `displacement_rank`
        (effective rank of `code - text`: how many directions the map from Text to Code moves along, LLM-JEPA §5).

    Raises:
        ValueError: for fewer than 2 rows, shapes that differ, or values that are not finite.
    """
    if not text.shape == predicted.shape == code.shape or text.ndim != 2 or len(text) < 2:
        shapes = ", ".join(str(tuple(part.shape)) for part in (text, predicted, code))
        raise ValueError(f"Embeddings must be three (n >= 2, d) matrices of one shape, got {shapes}.")
    similarity = F.normalize(predicted.double(), dim=1) @ F.normalize(code.double(), dim=1).T
    count = len(similarity)
    paired = similarity.diagonal()
    unpaired = (similarity.sum() - paired.sum()) / (count * (count - 1))
    # Rounding must not decide between examples whose codes are the same.
    found = paired >= similarity.amax(dim=1) - 1e-9
    return {
        "cos_paired": paired.mean().item(),
        "cos_unpaired": unpaired.item(),
        "margin": (paired.mean() - unpaired).item(),
        "retrieval_at_1": found.double().mean().item(),
        "rankme_text": rankme(text),
        "rankme_code": rankme(code),
        "displacement_rank": effective_rank(code - text),
    }


def displacement_spectrum(text: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """
    Singular values of `text - code`, largest first: where they fall fast, Code is nearly a fixed linear function of
    Text (LLM-JEPA figure 5 plots them).

    Args:
        text (`torch.FloatTensor` of shape `(n, d)`): Enc(Text).
        code (`torch.FloatTensor` of shape `(n, d)`): Enc(Code).

    Returns:
        `torch.FloatTensor` of shape `(min(n, d),)`, float64.
    """
    return torch.linalg.svdvals(text.double() - code.double())


def linear_map_error(text: torch.Tensor, code: torch.Tensor) -> float:
    """
    `min_X ||Enc(Text) X - Enc(Code)||_F / ||Enc(Code)||_F`: 0 if Code is a linear function of Text. The paper gives
    the numerator alone, which a smaller scale of the embeddings lowers too.

    Args:
        text (`torch.FloatTensor` of shape `(n, d)`): Enc(Text); more rows than columns, or the map fits anything.
        code (`torch.FloatTensor` of shape `(n, d)`): Enc(Code).

    Returns:
        `float`: in [0, 1].

    Raises:
        ValueError: for no more rows than columns.
    """
    if len(text) <= text.shape[1]:
        raise ValueError(
            f"{len(text)} pairs of width {text.shape[1]} are fitted by some map exactly; give more pairs."
        )
    text, code = text.double(), code.double()
    # "gelsd" copes with the rank-deficient matrices that collapse makes.
    solution = torch.linalg.lstsq(text.cpu(), code.cpu(), driver="gelsd").solution
    return (torch.linalg.norm(text.cpu() @ solution - code.cpu()) / torch.linalg.norm(code)).item()
