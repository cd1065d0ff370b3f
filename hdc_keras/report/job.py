"""The report job: from a run directory to one HTML page."""

import csv
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hdc_keras.config import Experiment, dump_experiment
from hdc_keras.data.from_experiment import frame_store, load_videos
from hdc_keras.errors import DataError, RunError
from hdc_keras.features.encoder import ClipEncoder
from hdc_keras.features.extraction import extract_features
from hdc_keras.features.store import FeatureStore
from hdc_keras.model import HDC
from hdc_keras.report.class_tables import class_panels
from hdc_keras.report.cost import duration, run_cost
from hdc_keras.report.curves import Row, draw_curves, read_rows, table_of, tasks_of
from hdc_keras.report.embedding_map import HEIGHT, MIN_VIDEOS, WIDTH, EmbeddingMap, draw_map
from hdc_keras.report.page import render_page
from hdc_keras.report.result_tables import headline, protocol_rank, result_tables
from hdc_keras.report.retrieval_gallery import retrieval_galleries
from hdc_keras.report.shown_videos import ShownVideos, find_videos
from hdc_keras.report.thumbnails import ThumbnailSheet
from hdc_keras.report.view_strips import ViewStrips, draw_views
from hdc_keras.results.store import SavedResult, newest, read_results
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.version import __version__

Progress = Callable[[str, int, int], None]
# Values by the names that the templates use.
Content = dict[str, Any]


@dataclass(frozen=True)
class _Checkpoint:
    """The newest checkpoint of a run, or the reason why there is none."""

    model: HDC | None = None
    file: Path | None = None
    size: int = 0
    problem: str = ""


def build_report(run: RunDirectory, progress: Progress | None = None) -> str:
    """Build the report of a run.

    A section whose content is missing (results, checkpoints, the videos themselves) says so, with the command that
    creates it.

    Args:
        run: the run.
        progress: called with (description of the current task, items done, total items).

    Returns:
        A self-contained HTML page.

    Raises:
        RunError: the folder holds no run, or one of its files cannot be read.
    """
    experiment = run.experiment()
    results = sorted(read_results(run.path), key=lambda result: protocol_rank(result.protocol))
    metrics = read_rows(run.read_metrics())
    environment = _read_json(run.path / "environment.json")
    checkpoint = _load_checkpoint(run)
    videos = find_videos(experiment, results, _named(progress, "rendering moving shapes"), run)
    sheet = ThumbnailSheet()
    return render_page(
        _header(run, experiment, environment, metrics)
        | _result_sections(results)
        | _views_section(experiment, videos, sheet)
        | _video_sections(run, checkpoint, videos, results, sheet, progress)
        | _training_section(metrics)
        | {
            "cost": run_cost(experiment, environment, metrics, checkpoint.model, checkpoint.file, checkpoint.size),
            "failures": _read_failures(run),
            "environment": environment,
            "config": dump_experiment(experiment),
            "sheet": sheet,
            "frame_shape": videos.experiment.data.decode_size,
        }
    )


def _header(run: RunDirectory, experiment: Experiment, environment: dict[str, Any], metrics: Sequence[Row]) -> Content:
    now = datetime.now().astimezone()
    return {
        "name": experiment.name,
        "run": str(run.path),
        "quoted_run": shlex.quote(str(run.path)),
        "made": f"{now.day} {now:%B %Y, %H:%M}",
        "version": __version__,
        "lead": _summary(experiment, environment, metrics),
    }


def _summary(experiment: Experiment, environment: dict[str, Any], metrics: Sequence[Row]) -> str:
    """What was trained on what, for how long, in one sentence."""
    data = "moving shapes" if experiment.data.path is None else experiment.data.path
    task = {"decoupled": "the decoupled task (HDC)", "coupled": "the coupled task"}.get(
        experiment.contrast.task, f"only the {experiment.contrast.task} task"
    )
    sentence = f"{experiment.model.backbone}, pretrained without labels on {data} with {task}"
    if not metrics:
        return f"{sentence}; no epoch has finished yet."
    devices = ", ".join(environment.get("devices") or []) or "an unknown device"
    train, done = experiment.train, metrics[-1]
    steps = (
        f"{done['step']:,.0f} of {train.steps:,}"
        if train.steps and done["step"] < train.steps
        else f"{done['step']:,.0f}"
    )
    epochs = f"{len(metrics)} of {train.epochs}" if train.epochs and len(metrics) < train.epochs else f"{len(metrics)}"
    return (
        f"{sentence}: {steps} steps ({epochs} epochs), {duration(sum(row['seconds'] for row in metrics))} on {devices}."
    )


def _result_sections(results: Sequence[SavedResult]) -> Content:
    tables = result_tables(results)
    latest = newest(results)
    shown = [table for table, result in zip(tables, results, strict=True) if result in latest]
    return {
        "tables": tables,
        "headline": headline(shown),
        "panels": class_panels(latest),
        "over": ", over all seeds and splits",
    }


def _training_section(metrics: Sequence[Row]) -> Content:
    return {
        "charts": draw_curves(metrics) if metrics else [],
        "tasks": tasks_of(metrics),
        "metrics_table": table_of(metrics) if metrics else None,
    }


def _views_section(experiment: Experiment, videos: ShownVideos, sheet: ThumbnailSheet) -> Content:
    views, problem = _draw_views(experiment, videos, sheet)
    return {"views": views, "no_views": problem}


def _draw_views(experiment: Experiment, videos: ShownVideos, sheet: ThumbnailSheet) -> tuple[ViewStrips | None, str]:
    """Views of the run's training videos, or why there are none."""
    # With `evaluate --data`, the results are about videos that the run was not trained on.
    is_training_set = videos.experiment.data == experiment.data
    if is_training_set and videos.problem:
        return None, videos.problem
    try:
        records = videos.records if is_training_set else load_videos(experiment).records
        views = draw_views(experiment, records, frame_store(experiment), sheet)
    except DataError as error:
        return None, f"The videos that the run was trained on cannot be read: {error}"
    return views, "" if views else "None of the videos that the run was trained on can be decoded."


def _video_sections(
    run: RunDirectory,
    checkpoint: _Checkpoint,
    videos: ShownVideos,
    results: Sequence[SavedResult],
    sheet: ThumbnailSheet,
    progress: Progress | None,
) -> Content:
    """The retrieval gallery and the map. Thumbnails of the videos that they show are added to `sheet`."""
    results = newest(result for result in results if result.dataset == videos.dataset)
    by_id = videos.by_id()
    galleries = retrieval_galleries(results, by_id)
    embedding_map, problem = _draw_map(run, checkpoint, videos, results, progress)
    shown = {record.video_id: record for record in embedding_map.records} if embedding_map else {}
    shown |= {name: by_id[name] for gallery in galleries for name in sorted(gallery.video_ids) if name in by_id}
    sheet.add_videos(list(shown.values()), videos.experiment.data, _named(progress, "thumbnails"))
    return {
        "videos": videos,
        "galleries": galleries,
        "map": embedding_map,
        "no_map": problem,
        "map_size": (WIDTH, HEIGHT),
    }


def _draw_map(
    run: RunDirectory,
    checkpoint: _Checkpoint,
    videos: ShownVideos,
    results: Sequence[SavedResult],
    progress: Progress | None,
) -> tuple[EmbeddingMap | None, str]:
    """The map of embeddings, or why there is none."""
    model, problem = checkpoint.model, checkpoint.problem or videos.problem
    if model is None or problem:
        return None, problem
    experiment = _as_evaluated(videos.experiment, results)
    try:
        encoder = ClipEncoder(model, experiment.data.decode_size, experiment.evaluate.crops)
        store = FeatureStore(run.feature_folder, encoder, experiment)
        frames = frame_store(experiment)
        features = extract_features(encoder, videos.on_map, experiment, frames, _named(progress, "features"), store)
    except DataError as error:
        return None, str(error)
    if len(features.records) < MIN_VIDEOS:
        return None, f"A map needs at least {MIN_VIDEOS} videos; there are {len(features.records)}."
    return draw_map(features, model.contrast_config.used_levels, model.objective.pairs, _named(progress, "maps")), ""


def _as_evaluated(experiment: Experiment, results: Sequence[SavedResult]) -> Experiment:
    """The experiment with the clips and crops per video of the results, so that their cached features are found."""
    views = next((result.values["views"] for result in results if result.values.get("views")), None)
    if not views:
        return experiment
    clips, _, crops = str(views).partition("x")
    changes = {"clips": int(clips), "crops": int(crops or 1)}
    return experiment.model_copy(update={"evaluate": experiment.evaluate.model_copy(update=changes)})


def _load_checkpoint(run: RunDirectory) -> _Checkpoint:
    try:
        model, file = run.checkpoints.load(weights="auto")
        return _Checkpoint(model, file, file.stat().st_size)
    except RunError as error:
        return _Checkpoint(problem=str(error))


def _read_failures(run: RunDirectory) -> list[dict[str, str]]:
    """The rows of `failures.csv`: training videos that could not be decoded."""
    file = run.path / "failures.csv"
    if not file.exists():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{file} cannot be read as CSV ({error}). Restore the file that the run wrote.") from error


def _read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it does not exist."""
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if not isinstance(values, dict):
            raise ValueError("expected an object")
        return values
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read as JSON ({error}). Restore the file that the run wrote.") from error


def _named(progress: Progress | None, task: str) -> Callable[[int, int], None]:
    """Report progress under the name of a task."""
    return lambda done, total: progress(task, done, total) if progress else None
