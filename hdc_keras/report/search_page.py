"""The page of `hdc-keras search`: what was found, as moving thumbnails."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from hdc_keras.config import DataConfig
from hdc_keras.data.records import VideoRecord
from hdc_keras.report.page import render_page
from hdc_keras.report.thumbnails import ThumbnailSheet
from hdc_keras.search.found import Group
from hdc_keras.version import __version__


def build_search_page(
    table: Path,
    title: str,
    lead: str,
    groups: Sequence[Group],
    records: Sequence[VideoRecord],
    data: DataConfig,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Build the page as one HTML file that needs no network.

    Args:
        table: the table that was searched, which the page names.
        title: heading of the page.
        lead: what the page shows, in a sentence.
        groups: its sections.
        records: every video on the page. A video that cannot be decoded has no picture.
        data: length and stride of the clips that thumbnails show, proportions of the frames, and the decoder.
        progress: called with (videos decoded, total videos).
    """
    sheet = ThumbnailSheet()
    sheet.add_videos(records, data, progress)
    content = {
        "table": str(table),
        "title": title,
        "lead": lead,
        "groups": groups,
        "sheet": sheet,
        "frame_shape": data.decode_size,
        "made": datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        "version": __version__,
    }
    return render_page(content, "search.html")
