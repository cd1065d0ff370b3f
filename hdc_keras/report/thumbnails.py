"""Moving thumbnails: images of a few frames side by side, which CSS shows one after the other."""

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

# Our choice: enough frames to see the motion, and small enough for hundreds of videos in one file.
FRAMES = 8
HEIGHT = 64
_QUALITY = 42


class ThumbnailSheet:
    """All thumbnails of a page. Each is embedded once, as a CSS class that any number of elements can use.

    Attributes:
        classes: CSS class by name of the thumbnail.
        missing: by video id, why a video has no thumbnail.
    """

    def __init__(self) -> None:
        self.classes: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self._rules: list[str] = []

    def add(self, name: str, frames: np.ndarray) -> str:
        """Add a thumbnail.

        Args:
            name: name of the thumbnail.
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
        """Add a thumbnail of each video that has none yet, under its id. It shows the middle clip of the video.

        Videos that cannot be decoded are listed in `missing`.

        Args:
            records: the videos.
            data: length and stride of the clip, proportions of the frames, and the decoder.
            progress: called with (videos done, total videos).
        """
        new = [record for record in records if record.video_id not in self.classes]
        # All thumbnails share the proportions of `decode_size`, to which the network resizes every frame.
        height, width = data.decode_size
        store = FrameStore((HEIGHT, max(1, round(HEIGHT * width / height))), 0.0, data.decoder, data.fps)

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
        """The style rules of all thumbnails."""
        return "\n".join(self._rules)


def encode_strip(frames: np.ndarray) -> bytes:
    """Encode (n, height, width, 3) uint8 frames side by side as one WebP image."""
    strip = np.concatenate(list(frames), axis=1)
    file = io.BytesIO()
    Image.fromarray(strip).save(file, "WEBP", quality=_QUALITY, method=4)
    return file.getvalue()


def middle_frames(frame_count: int, frames: int, stride: int) -> np.ndarray:
    """(`FRAMES`,) frame numbers, evenly spaced over the middle clip of `frames` frames with that stride."""
    span = min(frame_count, (frames - 1) * stride + 1)
    first = (frame_count - span) // 2
    return first + np.linspace(0, span - 1, FRAMES).round().astype(np.int64)
