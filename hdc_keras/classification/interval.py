"""A confidence interval of a share of right answers, for videos that may belong together."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

# The 97.5 % quantile of the normal distribution.
_Z = 1.959964


def share_interval(is_right: Sequence[bool], groups: Sequence[str]) -> tuple[float, float]:
    """95 % confidence interval of the share of right answers (Wilson 1927).

    Videos of one group, such as those of one person, are right or wrong together more often than others. The number of
    videos is therefore divided by the design effect (Kish 1965), 1 + (size of a group - 1) * correlation within groups,
    with the correlation estimated by an analysis of variance and cut to [0, 1].

    Args:
        is_right: whether each answer is right.
        groups: group of each video.

    Returns:
        Lower and upper bound, in [0, 1].
    """
    share = float(np.mean(is_right))
    videos = len(is_right) / _design_effect(np.asarray(is_right, float), groups)
    centre = (share + _Z**2 / (2 * videos)) / (1 + _Z**2 / videos)
    half = _Z / (1 + _Z**2 / videos) * math.sqrt(share * (1 - share) / videos + _Z**2 / (4 * videos**2))
    # Rounding must not leave the share itself outside, or the bounds outside of [0, 1].
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _design_effect(is_right: np.ndarray, groups: Sequence[str]) -> float:
    sizes = Counter(groups)
    count, videos = len(sizes), len(is_right)
    if not 1 < count < videos or is_right.min() == is_right.max():
        return 1.0
    means = {name: is_right[[one == name for one in groups]].mean() for name in sizes}
    within = sum((right - means[name]) ** 2 for right, name in zip(is_right, groups, strict=True)) / (videos - count)
    between = sum(size * (means[name] - is_right.mean()) ** 2 for name, size in sizes.items()) / (count - 1)
    squares = sum(size**2 for size in sizes.values()) / videos
    typical = (videos - squares) / (count - 1)
    correlation = (between - within) / (between + (typical - 1) * within)
    return 1.0 + (squares - 1.0) * min(1.0, max(0.0, float(correlation)))
