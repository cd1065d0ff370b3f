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
    """Symmetric InfoNCE: each embedding must identify its partner, from the same video, among those of the whole batch.

    `loss = (H(anchor -> positive) + H(positive -> anchor)) / 2`, where H is the mean cross-entropy of the softmax over
    `similarity / temperature`.

    Additional (temporal) negatives are candidates only in the direction positive -> anchor (our choice). They share the
    anchor's spatial augmentation, so in this direction all candidates from one video look alike and differ only in
    time. In the direction anchor -> positive, they would look more like the anchor than the positive does, and the loss
    would punish invariance to augmentation.

    Args:
        anchor: (batch, dim) float32, L2-normalised.
        positive: (batch, dim) float32, L2-normalised; row i is the partner of the anchor's row i.
        temperature: softmax temperature.
        negatives: (kinds, batch, dim) float32, L2-normalised: additional negatives for each video, or `None`.
        negative_weight: each additional negative counts as this many ordinary ones.

    Returns:
        The loss, and the accuracy: the share of embeddings whose partner is nearer than any other
        candidate. A tie does not count, so the accuracy of equal embeddings is 0.
    """
    logits = ops.matmul(anchor, ops.transpose(positive)) / temperature  # (anchors, positives)
    backward_logits = ops.transpose(logits)
    if negatives is not None:
        negative_logits = ops.transpose(ops.sum(positive[None] * negatives, axis=-1)) / temperature  # (batch, kinds)
        backward_logits = ops.concatenate([backward_logits, negative_logits + ops.log(negative_weight)], axis=1)
    forward, backward = _cross_entropy(logits), _cross_entropy(backward_logits)
    return ContrastResult((forward.loss + backward.loss) / 2, (forward.accuracy + backward.accuracy) / 2)


def info_nce_with_queue(anchor: Tensor, key: Tensor, queue: Tensor, temperature: float) -> ContrastResult:
    """InfoNCE of MoCo (He et al. 2020, arXiv 1911.05722, algorithm 1): each anchor must identify its key among a queue.

    Args:
        anchor: (batch, dim) float32, L2-normalised.
        key: (batch, dim) float32, L2-normalised, without a gradient; row i is the positive of the anchor's row i.
        queue: (length, dim) float32, L2-normalised, without a gradient: the negatives of every anchor.
        temperature: softmax temperature.

    Returns:
        The loss, and the share of anchors whose key is nearer than any negative.
    """
    correct = ops.sum(anchor * key, axis=-1, keepdims=True)
    logits = ops.concatenate([correct, ops.matmul(anchor, ops.transpose(queue))], axis=1) / temperature
    loss = ops.mean(ops.logsumexp(logits, axis=1) - logits[:, 0])
    accuracy = ops.mean(ops.cast(ops.all(logits[:, 1:] < logits[:, :1], axis=1), "float32"))
    return ContrastResult(loss, accuracy)


def _cross_entropy(logits: Tensor) -> ContrastResult:
    """Softmax cross-entropy and accuracy of (rows, candidates) logits; candidate i is the correct one for row i."""
    correct = ops.diagonal(logits)
    loss = ops.mean(ops.logsumexp(logits, axis=1) - correct)
    at_least = ops.sum(ops.cast(logits >= correct[:, None], "int32"), axis=1)  # the correct candidate is one of them
    accuracy = ops.mean(ops.cast(at_least == 1, "float32"))
    return ContrastResult(loss, accuracy)
