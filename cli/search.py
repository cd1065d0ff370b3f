"""`hdc-keras search`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    import numpy as np

    from hdc_keras.config import DataConfig
    from hdc_keras.data.records import VideoRecord
    from hdc_keras.features.vector_table import VectorTable
    from hdc_keras.search.found import Group

# Groups of almost equal videos that are printed, and that the page shows.
_GROUPS_PRINTED, _GROUPS_SHOWN = 10, 200
# Names like those of --like are looked for among this many.
_IDS_SUGGESTED = 10_000
_ALIKE_IN = {"spatial": "appearance", "temporal": "motion", "both": "appearance and motion"}


def search(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="Parquet file that `hdc-keras embed` wrote.", show_default=False)
    ],
    like: Annotated[
        list[str] | None,
        typer.Option(help="Find videos like this one: a video_id of the table, or a video file. Repeatable."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="spatial (what looks alike), temporal (what moves alike) or both. Repeatable.", show_default="all"
        ),
    ] = None,
    nearest: Annotated[int, typer.Option(min=1, help="Number of videos to find.")] = 10,
    duplicates: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Instead: group videos that are almost the same, with a cosine similarity of this or more, as in "
            "0.98. --out writes them as a manifest with a column `group`, for --data.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Run that embeds a video file of --like.", show_default="the run that made the table"),
    ] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Search in an index, which is built once and kept beside the table: faster for millions of videos.",
        ),
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page with moving thumbnails.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write what was found to a CSV file.")] = None,
) -> None:
    """Search your videos: what looks like a video, what moves like it, and which are almost the same.

    The table holds embeddings of both tasks, so that you choose in what videos are alike.

    Examples:
      hdc-keras embed --run runs/mine --data path/to/videos --out videos.parquet
      hdc-keras search videos.parquet --like path/to/video.mp4 --by temporal
      hdc-keras search videos.parquet --like walk/03.mp4 --html found.html
      hdc-keras search videos.parquet --duplicates 0.98 --out grouped.csv
    """
    from hdc_keras.errors import ConfigError, RunError
    from hdc_keras.features.vector_table import read_vector_table
    from hdc_keras.files import require_creatable, write_requested

    from .console import NamedBars, print_parts, progress_bar

    if bool(like) == (duplicates is not None):
        raise ConfigError("search needs either --like VIDEO or --duplicates COSINE.")
    if duplicates is not None and (approximate or run):
        raise ConfigError("--duplicates compares all videos of the table: leave out --approximate and --run.")
    if out and out.exists():
        raise RunError(f"--out {out} exists and is not overwritten. Choose another file.")
    for option, file, suffixes in (("--html", html, (".html", ".htm")), ("--out", out, (".csv",))):
        if file and file.suffix.lower() not in suffixes:
            raise ConfigError(f"{option} {file}: expected a file that ends in {suffixes[0]}.")
        if file and file.is_dir():
            raise RunError(f"{option} {file}: is a folder. Choose another name.")
        try:
            if file:
                require_creatable(file)
        except OSError as error:
            raise RunError(f"{option} {file}: cannot be written ({error.strerror or error}).") from error
    read = read_vector_table(table)
    with progress_bar() as bar:
        bars = NamedBars(bar)
        if like:
            found = _find_like(read, like, by, nearest, run, approximate, bars)
        else:
            found = _find_duplicates(read, by, duplicates or 0.0, bars)
        page = _page(read, found, bars).encode() if html else b""
    for text in found.lines:
        _print(text)
    if out:
        write_requested(out, found.csv.encode())
        print_parts("Wrote ", (str(out), "bold"))
    if html:
        write_requested(html, page)
        print_parts("Wrote ", (str(html), "bold"), f", {len(page) / 1e6:.1f} MB")


class _Found(NamedTuple):
    """What was found: lines to print (or tables of rich), a CSV, and what the page shows."""

    lines: Sequence[Any]
    csv: str
    title: str
    lead: str
    groups: "Sequence[Group]"
    shown: "Sequence[VideoRecord]"


def _find_like(
    read: "VectorTable",
    like: list[str],
    by: list[str] | None,
    count: int,
    run: Path | None,
    approximate: bool,
    bars: Any,
) -> _Found:
    import csv
    import io
    from functools import partial

    import numpy as np

    from hdc_keras.data.records import VideoRecord
    from hdc_keras.search.found import FoundVideo, Group, Row
    from hdc_keras.search.space import SearchSpace, tasks_of

    rows = {record.video_id: row for row, record in enumerate(read.records)}
    files = [text for text in like if text not in rows]
    arrays: dict[str, np.ndarray] = _embedded(read, files, run) if files else {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["query", "by", "rank", "cosine", "video_id", "path", "label"])
    lines: list[Any] = []
    of_query: dict[str, list[Row]] = {query: [] for query in like}
    kept: dict[str, VideoRecord] = {
        query: read.records[rows[query]] if query in rows else VideoRecord(query, query) for query in like
    }
    for name in by or list(tasks_of(read)):
        space = SearchSpace(read, name)
        index: Any = space
        if approximate:
            from hdc_keras.search.approximate import ApproximateIndex

            index = ApproximateIndex(space, read.file, partial(bars, f"index by {name}"))
        of_files = dict(zip(files, space.vectors_of(arrays), strict=True)) if files else {}
        vectors = np.stack([space.vectors[rows[query]] if query in rows else of_files[query] for query in like])
        # One more, because a video of the table is nearest to itself.
        neighbours = index.nearest(vectors, count + 1)
        for query, found_rows, cosines in zip(like, *neighbours, strict=True):
            pairs = [(row, cosine) for row, cosine in zip(found_rows, cosines, strict=True) if row >= 0]
            pairs = [(row, cosine) for row, cosine in pairs if row != rows.get(query)][:count]
            videos = [(read.records[row], float(cosine)) for row, cosine in pairs]
            for rank, (record, cosine) in enumerate(videos, 1):
                writer.writerow([query, name, rank, f"{cosine:.4f}", record.video_id, record.path, record.label or ""])
                kept[record.video_id] = record
            lines.append(_listed(query, name, videos))
            alike = [FoundVideo(record.video_id, record.label or "", cosine) for record, cosine in videos]
            of_query[query].append(Row(f"Alike in {_ALIKE_IN.get(name, name)}", query, alike))
    groups = [Group(query, found) for query, found in of_query.items()]
    title = like[0] if len(like) == 1 else f"{len(like)} videos"
    lead = f"The nearest of {len(read.records):,} videos, with their cosine similarity, nearest first."
    return _Found(lines, text.getvalue(), f"Videos like {title}", lead, groups, list(kept.values()))


def _embedded(read: "VectorTable", files: list[str], run: Path | None) -> "dict[str, np.ndarray]":
    """The embeddings of video files, computed as those of the table."""
    from hdc_keras.data.members import file_of
    from hdc_keras.errors import ConfigError, DataError, did_you_mean
    from hdc_keras.runs.directory import RunDirectory

    from .console import console, start_backend

    for file in files:
        if not Path(file_of(file)).is_file():
            ids = [record.video_id for record in read.records[:_IDS_SUGGESTED]]
            raise DataError(
                f"--like {file}: no video of the table has this id, and there is no such file.{did_you_mean(file, ids)}"
            )
    made_by = run or read.made_from.get("run")
    if made_by is None or "weights_sha256" not in read.made_from:
        raise ConfigError(
            f"--like {files[0]}: {read.file} does not say how its vectors were made, so a video file cannot be "
            "compared with them. Give the id of a video of the table."
        )
    directory = RunDirectory(Path(made_by))
    directory.experiment()
    start_backend()
    from hdc_keras.features.embed_job import embed_files

    with console.status("embedding the query"):
        return embed_files(directory, read.made_from, [Path(file) for file in files])


def _find_duplicates(read: "VectorTable", by: list[str] | None, cosine: float, bars: Any) -> _Found:
    from functools import partial

    from hdc_keras.data.records import counted
    from hdc_keras.errors import ConfigError
    from hdc_keras.search.duplicates import manifest_of, near_duplicates
    from hdc_keras.search.found import FoundVideo, Group, Row
    from hdc_keras.search.space import BOTH, SearchSpace

    if by and len(by) > 1:
        raise ConfigError("--duplicates takes one --by: spatial, temporal or both.")
    space: SearchSpace = SearchSpace(read, by[0] if by else BOTH)
    groups = near_duplicates(space, cosine, partial(bars, "comparing videos"))
    groups.sort(key=lambda rows: (-len(rows), rows))
    members = [[read.records[row] for row in rows] for rows in groups]
    count = sum(map(len, groups))
    lines = [
        f"{count} of {len(read.records)} videos are in {counted(groups, 'group')} of videos that are almost the same."
    ]
    for records in members[:_GROUPS_PRINTED]:
        more = f" and {len(records) - 4} more" if len(records) > 4 else ""
        lines.append(f"  {len(records)}: {', '.join(record.video_id for record in records[:4])}{more}")
    if len(groups) > _GROUPS_PRINTED:
        lines.append(f"  and {len(groups) - _GROUPS_PRINTED} more groups")
    shown = members[:_GROUPS_SHOWN]
    sections = [
        Group(
            f"{len(records)} videos",
            [Row("", "", [FoundVideo(record.video_id, record.label or "", None) for record in records])],
        )
        for records in shown
    ]
    lead = f"{lines[0]} Their cosine similarity with another one of the group is {cosine:g} or more."
    lead += f" Shown are the {_GROUPS_SHOWN} largest." if len(groups) > _GROUPS_SHOWN else ""
    manifest = manifest_of(read.records, groups)
    return _Found(lines, manifest, "Almost the same", lead, sections, [record for one in shown for record in one])


def _page(read: "VectorTable", found: _Found, bars: Any) -> str:
    from functools import partial

    from .console import start_backend

    start_backend()  # the reader of videos imports one
    from hdc_keras.report.search_page import build_search_page

    return build_search_page(
        read.file, found.title, found.lead, found.groups, found.shown, _clips_of(read), partial(bars, "thumbnails")
    )


def _clips_of(read: "VectorTable") -> "DataConfig":
    """The clips that the table was made from, for the thumbnails."""
    from hdc_keras.config import DataConfig

    names = ("frames", "stride", "decode_size", "decoder", "fps")
    return DataConfig.model_validate({name: read.made_from[name] for name in names if name in read.made_from})


def _listed(query: str, by: str, videos: "Sequence[tuple[VideoRecord, float]]") -> Any:
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"Nearest to {query} by {_ALIKE_IN.get(by, by)}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("cosine", justify="right")
    table.add_column("video", overflow="fold")
    table.add_column("label", overflow="fold")
    for record, cosine in videos:
        table.add_row(f"{cosine:.3f}", record.video_id, record.label or "")
    return table


def _print(text: Any) -> None:
    from .console import console

    console.print(text, markup=False, soft_wrap=isinstance(text, str))
