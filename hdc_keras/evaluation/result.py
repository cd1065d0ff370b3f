"""Write the outcomes of a protocol to its result files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdc_keras.evaluation.context import Evaluation
from hdc_keras.evaluation.factors_chart import draw_factors
from hdc_keras.files import digest
from hdc_keras.results.outcomes import Outcome, summarise
from hdc_keras.results.store import write_result


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


def write_outcomes(evaluation: Evaluation, protocol: str, found: ProtocolOutcomes) -> dict[str, Any]:
    """Write `results/{protocol}-{data}.json` and `.videos.csv`; for `factors`, also a bar chart as `.png`.

    Returns:
        The content of the JSON file.

    Raises:
        RunError: a file cannot be written.
    """
    experiment = evaluation.experiment
    means, deviations, repeats = summarise(found.outcomes)
    first = next(iter(evaluation.splits.values()))
    result = {
        "protocol": protocol,
        **found.recipe,
        "dataset": experiment.data.path or "moving-shapes",
        "splits": list(evaluation.splits),
        "split": {side: sum(record.split == side for record in first) for side in ("train", "val", "test")},
        "architecture": evaluation.networks["metrics"].backbone.name,
        "checkpoint": evaluation.checkpoint.name,
        "weights_sha256": digest(evaluation.checkpoint),
        "seed": experiment.seed,
        "seeds": sorted({outcome.answer.seed for outcome in found.outcomes}),
        "clips": experiment.evaluate.clips,
        "views": f"{experiment.evaluate.clips}x{experiment.evaluate.crops}",
        "counts": found.counts,
        "chance": found.chance,
        **means,
        "deviation": deviations,
        "repeats": repeats,
    }
    name = f"{protocol}-{Path(str(result['dataset'])).stem}"
    write_result(evaluation.run, name, result, found.outcomes)
    if protocol == "factors":
        evaluation.run.write_bytes(f"results/{name}.png", draw_factors(result))
    return result
