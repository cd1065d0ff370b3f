"""Published figures on UCF101 and HMDB51, to compare with."""

from dataclasses import dataclass

_PCL_LIST = "list of PCL's authors (github.com/BestJuly/Pretext-Contrastive-Learning)"
_PCL = "Tao et al. 2020 (arXiv 2010.15464); " + _PCL_LIST
_HDC = "third-party list of the figures in Zhang and Crandall, WACV 2022 (arXiv 2011.11261)"
_DPC = "Han et al. 2019 (arXiv 1909.04656), in the " + _PCL_LIST
_VIDEO_MOCO = "Pan et al., CVPR 2021 (arXiv 2103.05905)"
_RSPNET = "Chen et al., AAAI 2021 (arXiv 2011.07949)"
_TCLR = "Dave et al., CVIU 2022 (arXiv 2101.07974)"
_PACE = "Wang et al., ECCV 2020 (arXiv 2008.05861), in the " + _PCL_LIST

CAVEATS = (
    "Every paper uses a different fine-tuning recipe, and few say which splits they report: split 1 and the mean of "
    "three splits differ by more than a point.",
    "Clips have 16 frames of 112 x 112 unless noted. HDC's figures come from a third party, and which R3D they are for "
    "is not verified.",
    "R3D in the papers that follow VCOP has one block per stage, so it is not R3D-18.",
    "PCL's code trains on frame differences by default.",
    "Retrieval in these papers follows VCOP: compare it with `retrieval-vcop`, not with our `retrieval`.",
    "Figures on UCF101 are not comparable between networks pretrained on UCF101 and networks pretrained on "
    "Kinetics-400.",
)


@dataclass(frozen=True)
class PublishedFigure:
    """One figure of a paper.

    Attributes:
        method: name of the method.
        pretrained_on: "K400" (Kinetics-400), "UCF101", or "nothing" for random weights.
        network: network, as named in the paper.
        task: "fine-tuning" or "retrieval".
        dataset: "UCF101" or "HMDB51".
        metric: "top1", "R@1", "R@5" ...
        percent: the figure, in per cent.
        source: publication or list that the figure was read from.
        note: a difference from the other figures, such as a larger clip; usually empty.
    """

    method: str
    pretrained_on: str
    network: str
    task: str
    dataset: str
    metric: str
    percent: float
    source: str
    note: str = ""


def _fine_tuned(
    method: str, pretrained_on: str, source: str, figures: dict[str, tuple[float, float]], note: str = ""
) -> list[PublishedFigure]:
    """Make figures of top-1 accuracy from (UCF101, HMDB51) by network."""
    return [
        PublishedFigure(method, pretrained_on, network, "fine-tuning", dataset, "top1", percent, source, note)
        for network, percents in figures.items()
        for dataset, percent in zip(("UCF101", "HMDB51"), percents, strict=True)
    ]


def _retrieved(method: str, pretrained_on: str, source: str, recalls: tuple[float, ...]) -> list[PublishedFigure]:
    """Make figures of R@1, 5, 10, 20 and 50 on split 1 of UCF101; trailing ones may be missing."""
    return [
        PublishedFigure(method, pretrained_on, "R3D-18", "retrieval", "UCF101", f"R@{k}", percent, source)
        for k, percent in zip((1, 5, 10, 20, 50), recalls, strict=False)
    ]


PUBLISHED: tuple[PublishedFigure, ...] = (
    *_fine_tuned(
        "HDC",
        "K400",
        _HDC,
        {"R3D-18": (68.5, 38.1), "C3D": (72.3, 39.3), "R(2+1)D-18": (76.2, 39.8)},
        "R3D variant unverified",
    ),
    *_fine_tuned("DPC", "K400", _DPC, {"R3D-18": (68.2, 34.5)}, "128 x 128"),
    *_fine_tuned("VideoMoCo", "K400", _VIDEO_MOCO, {"R3D-18": (74.1, 43.6), "R(2+1)D-18": (78.7, 49.2)}),
    *_fine_tuned("RSPNet", "K400", _RSPNET, {"R3D-18": (74.3, 41.8), "C3D": (76.7, 44.6), "R(2+1)D-18": (81.1, 44.6)}),
    *_fine_tuned("TCLR", "K400", _TCLR, {"R3D-18": (84.1, 53.6), "R(2+1)D-18": (84.3, 54.2)}),
    *_fine_tuned(
        "PCL (VCP)", "UCF101", _PCL, {"R3D-18": (83.4, 48.8), "C3D": (81.4, 45.2), "R(2+1)D-18": (79.9, 45.6)}
    ),
    *_retrieved("random weights", "nothing", _PCL_LIST, (15.3, 25.1, 32.1, 40.8, 53.7)),
    *_retrieved("Pace", "UCF101", _PACE, (23.8, 38.1, 46.4, 56.6, 69.8)),
    *_retrieved("PCL (VCP)", "UCF101", _PCL, (55.1, 71.2, 78.9, 85.5, 92.3)),
    *_retrieved("TCLR", "UCF101", _TCLR, (56.1,)),
)
