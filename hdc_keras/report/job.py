"""From a run directory to its report."""

import csv
import json
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import keras

from hdc_keras.config import Experiment, dump_experiment
from hdc_keras.data.from_experiment import frame_store, load_videos
from hdc_keras.errors import DataError, RunError
from hdc_keras.features.store import FeatureStore
from hdc_keras.model import HDC
from hdc_keras.report.class_tables import class_panels
from hdc_keras.report.curves import draw_curves, duration, read_rows, table_of, tasks_of, training_cost
from hdc_keras.report.embedding_map import HEIGHT, LEAST_VIDEOS, WIDTH, EmbeddingMap, draw_map, features_of
from hdc_keras.report.page import render_page
from hdc_keras.report.result_tables import headline, protocol_rank, result_tables
from hdc_keras.report.retrieval_gallery import retrieval_galleries
from hdc_keras.report.shown_videos import ShownVideos, find_videos
from hdc_keras.report.thumbnails import ThumbnailSheet
from hdc_keras.report.view_strips import draw_views
from hdc_keras.results.store import SavedResult, read_results
from hdc_keras.runs.directory import RunDirectory
from hdc_keras.version import __version__

Progress = Callable[[str, int, int], None]


def build_report(run: RunDirectory, progress: Progress | None = None) -> str:
    """Gather what a run has, and make a page of it.

    What is not there is named on the page, with the command that makes it: results, checkpoints, the videos themselves.

    Args:
        run: the run.
        progress: called with (what is being done, done, in all).

    Returns:
        HTML that needs no other file.

    Raises:
        RunError: there is no run, or what is there cannot be read.
    """
    experiment = run.experiment()
    results = sorted(read_results(run.path), key=lambda result: protocol_rank(result.protocol))
    rows = read_rows(run.read_metrics())
    model, checkpoint, no_model = _load_model(run)
    sheet = ThumbnailSheet()
    videos = find_videos(experiment, results, _reporter(progress, "rendering moving shapes"))
    of_set = [result for result in results if result.dataset == (videos.experiment.data.path or "moving-shapes")]
    galleries = retrieval_galleries(of_set, videos.by_id())
    views, no_views = _views(experiment, videos, sheet)
    embedding_map, no_map = _map(run, model, no_model, videos, of_set, progress)
    shown = {record.video_id: record for record in embedding_map.records} if embedding_map else {}
    by_id = videos.by_id()
    shown |= {name: by_id[name] for gallery in galleries for name in sorted(gallery.video_ids) if name in by_id}
    sheet.add_videos(list(shown.values()), videos.experiment.data, _reporter(progress, "thumbnails"))
    tables = result_tables(results)
    environment = _read_json(run, "environment.json")
    return render_page(
        {
            "name": experiment.name,
            "run": str(run.path),
            "quoted_run": shlex.quote(str(run.path)),
            "made": datetime.now().astimezone().strftime("%-d %B %Y, %H:%M"),
            "version": __version__,
            "lead": _lead(experiment, environment, rows, videos),
            "experiment": experiment,
            "config": dump_experiment(experiment),
            "environment": environment,
            "tables": tables,
            "headline": headline(tables),
            "panels": class_panels(results),
            "galleries": galleries,
            "videos": videos,
            "by_id": by_id,
            "map": embedding_map,
            "no_map": no_map,
            "map_size": (WIDTH, HEIGHT),
            "charts": draw_curves(rows) if rows else [],
            "tasks": tasks_of(rows),
            "metrics_table": table_of(rows) if rows else None,
            "views": views,
            "no_views": no_views,
            "cost": _cost(experiment, environment, rows, model, checkpoint),
            "failures": _failures(run),
            "sheet": sheet,
            "frame_shape": videos.experiment.data.decode_size,
        }
    )


def _reporter(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total) if progress else None


def _load_model(run: RunDirectory) -> tuple[HDC | None, Any, str]:
    """The newest checkpoint's model and file, or why there is none."""
    try:
        model, checkpoint = run.checkpoints.load()
    except RunError as error:
        return None, None, str(error)
    return model, checkpoint, ""


def _views(experiment: Experiment, videos: ShownVideos, sheet: ThumbnailSheet) -> tuple[Any, str]:
    """Views of the run's own videos, which are others than those judged where `--data` was given."""
    own = videos.experiment.data == experiment.data
    try:
        if own and videos.problem:
            return None, videos.problem
        records = videos.records if own else load_videos(experiment).records
        views = draw_views(experiment, records, frame_store(experiment), sheet)
    except DataError as error:
        return None, f"The videos that the run was trained on cannot be read: {error}"
    return views, "" if views else "None of the videos that the run was trained on can be decoded."


def _map(
    run: RunDirectory,
    model: HDC | None,
    no_model: str,
    videos: ShownVideos,
    results: Sequence[SavedResult],
    progress: Progress | None,
) -> tuple[EmbeddingMap | None, str]:
    """The map, or why there is none."""
    if model is None:
        return None, no_model
    if videos.problem:
        return None, videos.problem
    experiment = _as_judged(videos.experiment, results)
    try:
        features = features_of(
            model,
            videos.tested,
            videos.records,
            experiment,
            frame_store(experiment),
            FeatureStore(run.feature_folder),
            _reporter(progress, "features"),
        )
    except DataError as error:
        return None, str(error)
    if len(features.records) < LEAST_VIDEOS:
        return None, f"A map needs {LEAST_VIDEOS} videos or more; here are {len(features.records)}."
    return draw_map(features, model.contrast_config.used_levels, model.objective.pairs, _reporter(progress, "maps")), ""


def _as_judged(experiment: Experiment, results: Sequence[SavedResult]) -> Experiment:
    """With as many views of a video as the results were made with, whose features are kept."""
    views = next((result.values["views"] for result in results if result.values.get("views")), None)
    if not views:
        return experiment
    clips, _, crops = str(views).partition("x")
    changes = {"clips": int(clips), "crops": int(crops or 1)}
    return experiment.model_copy(update={"evaluate": experiment.evaluate.model_copy(update=changes)})


def _lead(experiment: Experiment, environment: dict[str, Any], rows: Sequence[Any], videos: ShownVideos) -> str:
    """What was done, in one sentence."""
    data = "moving shapes" if experiment.data.path is None else experiment.data.path
    task = {"decoupled": "the decoupled task (HDC)", "coupled": "the coupled task"}.get(
        experiment.contrast.task, f"the {experiment.contrast.task} task alone"
    )
    sentence = f"{experiment.model.backbone}, pretrained without labels on {data} with {task}"
    if not rows:
        return f"{sentence}; no epoch is finished."
    devices = ", ".join(environment.get("devices") or []) or "an unknown device"
    epochs = f"{len(rows)} of {experiment.train.epochs}" if len(rows) < experiment.train.epochs else f"{len(rows)}"
    return f"{sentence}: {epochs} epochs, {duration(sum(row['seconds'] for row in rows))} on {devices}."


def _cost(
    experiment: Experiment, environment: dict[str, Any], rows: Sequence[Any], model: HDC | None, checkpoint: Any
) -> dict[str, str]:
    cost = training_cost(rows) if rows else {}
    cost["Videos a step"] = f"{experiment.train.batch_size:,}"
    if environment:
        cost["Device"] = f"{', '.join(environment.get('devices') or [])}; {environment.get('cores')} processor cores"
    cost["Precision"] = experiment.train.precision
    if model is not None:
        heads = sum(head.count_params() for head in model.objective.heads.values())
        cost["Parameters"] = f"{model.backbone.count_params():,} in {model.backbone.name}, {heads:,} in the heads"
        cost["Checkpoint"] = f"{checkpoint.name}, {checkpoint.stat().st_size / 1e6:,.1f} MB"
    cost["Backend"] = f"{keras.backend.backend()} (of this report)" if not environment else environment["backend"]
    return cost


def _failures(run: RunDirectory) -> list[dict[str, str]]:
    """The lines of `failures.csv`."""
    file = run.path / "failures.csv"
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _read_json(run: RunDirectory, name: str) -> dict[str, Any]:
    """A JSON file of the run; empty where it is not there."""
    file = run.path / name
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise RunError(f"{file} cannot be read as JSON ({error}). Put back the one that the run wrote.") from error
