"""Hidden-part retrieval: what a masked predictor is made for. Predict a hidden block, find it among other images'."""

import torch
import torch.nn.functional as F

from ..modeling_jepa import JepaPreTrainedModel


def _order(predicted: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Candidates from best to worst for each prediction, by cosine after removing the candidates' mean."""
    mean = candidates.mean(dim=0)
    similarity = F.normalize(predicted - mean, dim=1) @ F.normalize(candidates - mean, dim=1).T
    return similarity.argsort(dim=1, descending=True, stable=True)


def rank_of_truth(order: torch.LongTensor) -> torch.LongTensor:
    """
    Where the true block stands in each row of [`hidden_part_retrieval`]'s result: `(n,)` int64, 0 is first.
    """
    return (order == torch.arange(len(order))[:, None]).int().argmax(dim=1)


def _check(images: torch.Tensor, num_candidates: int) -> None:
    if num_candidates < 2 or len(images) < num_candidates:
        raise ValueError(
            f"Retrieval among {num_candidates} candidates needs at least 2 candidates and as many images, got "
            f"{len(images)} images."
        )


@torch.no_grad()
def hidden_part_retrieval(
    model: JepaPreTrainedModel,
    images: torch.FloatTensor,
    context_mask: torch.LongTensor,
    target_mask: torch.LongTensor,
    num_candidates: int = 100,
) -> torch.LongTensor:
    """
    From the visible context of each image, predicts the target features of a hidden block and ranks the same block of
    `num_candidates` images (its own among them) by cosine similarity, after removing the candidates' mean. Images are
    taken in groups of `num_candidates`; an incomplete last group is left out. Chance for rank 0
    is `1 / num_candidates`.

    Args:
        model ([`JepaPreTrainedModel`]): its predictor and target encoder are used.
        images (`torch.FloatTensor` of shape `(n, channels, height, width)`).
        context_mask (int64 tensor of shape `(kept,)`): the visible tokens, the same in all images.
        target_mask (int64 tensor of shape `(kept,)`): the hidden block.
        num_candidates (`int`): images to choose from.

    Returns:
        int64 tensor of shape `(n // num_candidates * num_candidates, num_candidates)`: indices into `images`, best
        first.

    Raises:
        `ValueError`: for fewer images than candidates.
    """
    _check(images, num_candidates)
    was_training = model.training
    model.eval()
    orders = []
    for index, group in enumerate(images.split(num_candidates)[: len(images) // num_candidates]):
        output = model(
            group.to(model.device),
            [context_mask.to(model.device).expand(len(group), -1)],
            [target_mask.to(model.device).expand(len(group), -1)],
        )
        order = _order(output.predictions[0].float().flatten(1), output.targets[0].flatten(1))
        orders.append(order.cpu() + index * num_candidates)
    model.train(was_training)
    return torch.cat(orders)


def pixel_retrieval(
    bank: torch.FloatTensor,
    images: torch.FloatTensor,
    context_mask: torch.LongTensor,
    target_mask: torch.LongTensor,
    patch_size: int,
    num_candidates: int = 100,
    penalty: float = 0.03,
) -> dict[str, torch.LongTensor]:
    """
    The same task solved in pixels, as baselines: the hidden block is predicted by (`"nearest_neighbour"`) the block of
    the training image whose visible pixels are nearest, or (`"ridge"`) a ridge regression from visible to hidden
    pixels, fitted for this mask.

    Args:
        bank (`torch.FloatTensor` of shape `(m, channels, height, width)`): training images.
        images, context_mask, target_mask, num_candidates: as in [`hidden_part_retrieval`].
        patch_size (`int`): in pixels.
        penalty (`float`): of the ridge, per training image.

    Returns:
        `dict`: the result of [`hidden_part_retrieval`] by baseline.

    Raises:
        `ValueError`: for fewer images than candidates.
    """
    _check(images, num_candidates)

    def part(pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        patches = F.unfold(pixels, patch_size, stride=patch_size).transpose(1, 2)
        return patches[:, mask].flatten(1)

    images = images[: len(images) // num_candidates * num_candidates]
    visible, hidden = part(bank, context_mask), part(bank, target_mask)
    query, truth = part(images, context_mask), part(images, target_mask)
    mean, hidden_mean = visible.mean(dim=0), hidden.mean(dim=0)
    centred = visible - mean
    gram = centred.T @ centred + penalty * len(bank) * torch.eye(centred.shape[1])
    weights = torch.linalg.solve(gram, centred.T @ (hidden - hidden_mean))
    predictions = {
        "nearest_neighbour": hidden[torch.cdist(query, visible).argmin(dim=1)],
        "ridge": (query - mean) @ weights + hidden_mean,
    }
    groups = range(0, len(images), num_candidates)
    return {
        name: torch.cat([_order(block[i : i + num_candidates], truth[i : i + num_candidates]) + i for i in groups])
        for name, block in predictions.items()
    }
