"""InfoNCE between two views of each video (van den Oord et al. 2018, arXiv 1807.03748)."""

from typing import Any, NamedTuple

from keras import ops

Tensor = Any


class ContrastResult(NamedTuple):
    """Scalars, float32."""

    loss: Tensor
    accuracy: Tensor


def info_nce(
    anchor: Tensor,
    positive: Tensor,
    temperature: float,
    negatives: Tensor | None = None,
    negative_weight: float = 1.0,
) -> ContrastResult:
    """Symmetric InfoNCE: each embedding must find its partner among the other videos of the batch.

    `loss = (H(anchor -> positive) + H(positive -> anchor)) / 2`, where H is the mean cross-entropy of the softmax over
    `similarity / temperature`.

    Temporal negatives join where the positive looks for the anchor: they carry the anchor's own spatial augmentation,
    so that all candidates of one video there look alike and differ in time only. (Our choice: where the anchor looks
    for the positive, they would be wrong yet most alike in appearance, which punishes invariance to augmentation.)

    Args:
        anchor: (batch, dim) float32, L2-normalised.
        positive: (batch, dim) float32, L2-normalised; row i is the partner of the anchor's row i.
        temperature: softmax temperature.
        negatives: (kinds, batch, dim) float32, L2-normalised: for each video its own further negatives, or `None`.
        negative_weight: how many negatives each of those counts for.

    Returns:
        loss, and accuracy: the share of embeddings whose partner is the nearest candidate.
    """
    logits = ops.matmul(anchor, ops.transpose(positive)) / temperature  # (anchors, positives)
    backward_logits = ops.transpose(logits)
    if negatives is not None:
        own = ops.transpose(ops.sum(positive[None] * negatives, axis=-1)) / temperature  # (batch, kinds)
        backward_logits = ops.concatenate([backward_logits, own + ops.log(negative_weight)], axis=1)
    forward, backward = _cross_entropy(logits), _cross_entropy(backward_logits)
    return ContrastResult((forward.loss + backward.loss) / 2, (forward.accuracy + backward.accuracy) / 2)


def _cross_entropy(logits: Tensor) -> ContrastResult:
    """Row i's right column is column i."""
    right = ops.diagonal(logits)
    loss = ops.mean(ops.logsumexp(logits, axis=1) - right)
    accuracy = ops.mean(ops.cast(right >= ops.max(logits, axis=1), "float32"))
    return ContrastResult(loss, accuracy)
