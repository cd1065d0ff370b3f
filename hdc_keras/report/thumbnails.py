"""Thumbnails that move without being videos: strips of a few frames, which CSS shows one after the other."""

import base64
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from hdc_keras.config import DataConfig
from hdc_keras.data.loading import FrameStore
from hdc_keras.data.records import VideoRecord
from hdc_keras.errors import VideoDecodeError

# Our choice: enough to see the motion, few enough for hundreds of videos in one file.
FRAMES = 8
HEIGHT = 64
_QUALITY = 42


class ThumbnailSheet:
    """All strips of a page. Each is embedded once, as a CSS class that any number of elements can have.

    Attributes:
        classes: CSS class by name of the picture.
        missing: why a video has no picture, by its id.
    """

    def __init__(self) -> None:
        self.classes: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self._rules: list[str] = []

    def add(self, name: str, frames: np.ndarray) -> str:
        """Add a strip.

        Args:
            name: of the picture.
            frames: (`FRAMES`, height, width, 3) uint8.

        Returns:
            Its CSS class.
        """
        css_class = f"t{len(self.classes)}"
        self.classes[name] = css_class
        encoded = base64.b64encode(encode_strip(frames)).decode()
        self._rules.append(f".{css_class}{{background-image:url(data:image/webp;base64,{encoded})}}")
        return css_class

    def add_videos(
        self, records: Sequence[VideoRecord], data: DataConfig, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Add a strip of each video, by its id, unless it is there: the middle window, as the network sees it.

        Videos that cannot be decoded go to `missing`.
        """
        new = [record for record in records if record.video_id not in self.classes]
        # Frames are squeezed to `decode_size` for the network; its proportions are the best that is known of them all.
        height, width = data.decode_size
        store = FrameStore((HEIGHT, max(1, round(HEIGHT * width / height))), 0.0, data.decoder)

        def load(record: VideoRecord) -> np.ndarray | str:
            try:
                return store.clips(record, middle_frames(store.count(record), data.frames, data.stride))
            except VideoDecodeError as error:
                return error.cause

        with ThreadPoolExecutor(data.workers or 4) as threads:
            for done, (record, loaded) in enumerate(zip(new, threads.map(load, new), strict=True), 1):
                if isinstance(loaded, str):
                    self.missing[record.video_id] = loaded
                else:
                    self.add(record.video_id, loaded)
                if progress:
                    progress(done, len(new))

    def css(self) -> str:
        """The style rules of all strips."""
        return "\n".join(self._rules)


def encode_strip(frames: np.ndarray) -> bytes:
    """(n, height, width, 3) uint8 frames side by side, as WebP."""
    strip = np.concatenate(list(frames), axis=1)
    file = io.BytesIO()
    Image.fromarray(strip).save(file, "WEBP", quality=_QUALITY, method=4)
    return file.getvalue()


def middle_frames(frame_count: int, frames: int, stride: int) -> np.ndarray:
    """(FRAMES,) frames spread over the middle window of a video, of `frames` frames that are `stride` apart."""
    span = min(frame_count, (frames - 1) * stride + 1)
    first = (frame_count - span) // 2
    return first + np.linspace(0, span - 1, FRAMES).round().astype(np.int64)
