"""Write the outcomes of a protocol to its result files."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdc_keras.data.members import video_bytes
from hdc_keras.data.records import VideoRecord
from hdc_keras.evaluation.context import Asked, Evaluation
from hdc_keras.evaluation.factors_chart import draw_factors
from hdc_keras.evaluation.splits import Splits
from hdc_keras.files import digest as file_digest
from hdc_keras.probes.registry import untrained_classes
from hdc_keras.results.outcomes import Outcome, confusions, summarise
from hdc_keras.results.store import write_result
from hdc_keras.runs.videos import seen_in_pretraining


@dataclass(frozen=True)
class ProtocolOutcomes:
    """The part of a result that depends on the protocol.

    Attributes:
        recipe: `version`, `source`, `settings` and `reduced` of the protocol, as written to the result.
        counts: `asked` (number of requested videos), `decoded` (number of decoded ones) and `failed` (cause by path);
            for fine-tuning also `training_failed`, the failed training and validation videos.
        chance: accuracy of always predicting the most frequent class, by label column.
        outcomes: the answer for each network, split, seed, label column and source.
    """

    recipe: dict[str, Any]
    counts: dict[str, Any]
    chance: dict[str, float]
    outcomes: Sequence[Outcome]


@dataclass(frozen=True)
class Subject:
    """What was judged, and what a result says of it.

    Attributes:
        asked: what was asked of it.
        dataset: path of the videos, or "moving-shapes".
        depends_on: what the figures depend on besides, as JSON values.
        facts: what else is written to the result, as JSON values.
    """

    asked: Asked
    dataset: str
    depends_on: dict[str, Any]
    facts: dict[str, Any]

    @classmethod
    def of_run(cls, evaluation: Evaluation) -> "Subject":
        """The network of a run."""
        experiment, data = evaluation.experiment, evaluation.experiment.data
        supervised, uses_averages = evaluation.supervised, evaluation.networks["metrics"].uses_averages
        depends_on = {
            "architecture": evaluation.networks["metrics"].backbone.name,
            "weights_sha256": evaluation.weights_sha256,
            "supervised_weights_sha256": file_digest(supervised) if supervised else None,
            "precision": experiment.train.precision,
            "clips": experiment.evaluate.clips,
            "views": f"{experiment.evaluate.clips}x{experiment.evaluate.crops}",
            "frames": data.frames,
            "stride": data.stride,
            "decode_size": list(data.decode_size),
            "decoder": data.decoder,
            # Only if it is so, because results of version 0.1.0 lack the keys.
            **({"weights": "ema"} if uses_averages else {}),
            **({"fps": data.fps} if data.fps else {}),
        }
        facts = {
            "seen_in_pretraining": {
                name: seen_in_pretraining(evaluation.checkpoint.parents[1], records)
                for name, records in evaluation.splits.items()
            },
            "checkpoint": evaluation.checkpoint.name,
        }
        return cls(evaluation, data.path or "moving-shapes", depends_on, facts)


def write_outcomes(subject: Subject, protocol: str, found: ProtocolOutcomes) -> dict[str, Any]:
    """Write `results/{protocol}-{data}-{digest}.json` and `.videos.csv`; for `factors`, also a bar chart as `.png`.

    The digest is of everything that the figures depend on: another checkpoint, other videos or settings have another
    file, and the same evaluation replaces its file.

    Returns:
        The content of the JSON file.

    Raises:
        RunError: a file cannot be written.
    """
    asked = subject.asked
    means, deviations, repeats = summarise(found.outcomes)
    first = next(iter(asked.splits.values()))
    depends_on = {
        "protocol": protocol,
        "version": found.recipe["version"],
        "settings": found.recipe["settings"],
        "labels_per_class": asked.experiment.evaluate.labels_per_class,
        "splits": list(asked.splits),
        "videos_sha256": digest_of_videos(asked.splits),
        "seed": asked.experiment.seed,
        "seeds": sorted({outcome.answer.seed for outcome in found.outcomes}),
        **subject.depends_on,
    }
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{protocol}-{Path(subject.dataset).stem}-{digest}"
    result = {
        "name": name,
        **depends_on,
        **found.recipe,
        "dataset": subject.dataset,
        "split": {side: sum(record.split == side for record in first) for side in ("train", "val", "test")},
        **subject.facts,
        "counts": found.counts,
        "chance": found.chance,
        "untrained_classes": _untrained_classes(asked.splits, found.chance),
        **means,
        "deviation": deviations,
        "repeats": repeats,
        "confusions": confusions(found.outcomes),
    }
    write_result(asked.output, name, result, found.outcomes)
    if protocol == "factors":
        asked.output.write_bytes(f"results/{name}.png", draw_factors(result))
    return result


def _untrained_classes(splits: Splits, columns: Iterable[str]) -> dict[str, dict[str, int]]:
    """Number of test videos of each class that has no training videos, by label column, summed over the splits."""
    counts = {
        column: sum((Counter(untrained_classes(records, column)) for records in splits.values()), Counter())
        for column in columns
    }
    return {column: dict(count) for column, count in counts.items() if count}


def digest_of_videos(splits: Splits) -> str:
    """SHA-256 of what an evaluation depends on of its videos: ids, sizes of the files, labels, groups and splits."""
    facts = {
        name: sorted(
            [record.video_id, _bytes(record), sorted(record.labels.items()), record.group or "", record.split or ""]
            + ([record.segment] if record.segment else [])
            for record in records
        )
        for name, records in splits.items()
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _bytes(record: VideoRecord) -> int:
    """Size of a video in bytes; 0 if there is no such file, or if it is not known."""
    if record.stored:
        return record.stored.size
    return video_bytes(record.path) or 0
