"""A confidence interval of a share of right answers, for videos that may belong together."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

_Z = float(stats.norm.ppf(0.975))


def share_interval(is_right: Sequence[bool], groups: Sequence[str]) -> tuple[float, float]:
    """95 % confidence interval of the share of right answers: Wilson's (1927), for as many videos as groups are worth.

    Videos of one group, such as those of one person, are right or wrong together more often than others. The number of
    videos is divided by the design effect (Kish 1965), the variance of the share over groups, relative to that of
    independent videos. As this is estimated from few groups, the number is also divided by the squared ratio of the
    quantiles of t and of the normal distribution (Korn and Graubard 1998).

    Args:
        is_right: whether each answer is right.
        groups: group of each video.

    Returns:
        Lower and upper bound, in [0, 1]; (0, 1) if all videos are of one group, which says nothing of another one.
    """
    right = np.asarray(is_right, float)
    names, rows = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) == 1 and len(right) > 1:
        return 0.0, 1.0
    share, videos = float(right.mean()), _effective_videos(right, rows, len(names))
    centre = (share + _Z**2 / (2 * videos)) / (1 + _Z**2 / videos)
    half = _Z / (1 + _Z**2 / videos) * math.sqrt(share * (1 - share) / videos + _Z**2 / (4 * videos**2))
    # Rounding must not leave the share itself outside, or the bounds outside of [0, 1].
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _effective_videos(right: np.ndarray, rows: np.ndarray, count: int) -> float:
    """How many independent videos say as much."""
    videos, share = len(right), float(right.mean())
    if count == videos:
        return videos
    if share in (0.0, 1.0):  # nothing can be estimated, so each group counts once
        return count
    gaps = np.bincount(rows, right - share, count)
    variance = count / (count - 1) * float((gaps**2).sum()) / videos**2
    design_effect = max(1.0, variance / (share * (1 - share) / videos))
    few = _Z / float(stats.t.ppf(0.975, count - 1))
    return max(1.0, videos / design_effect * few**2)
