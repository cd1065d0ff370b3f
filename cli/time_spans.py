"""Lengths of time on the command line: 90s, 30m, 1h30m."""

import re

from hdc_keras.errors import ConfigError

_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_SPAN = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _SECONDS))


def seconds_of(option: str, text: str) -> float:
    """Seconds of a text such as 90s, 30m or 1h30m, which was given to `option`.

    Raises:
        ConfigError: the text is something else, or no time at all.
    """
    found = _SPAN.fullmatch(text.strip().lower())
    seconds = (
        sum(float(n or 0) * unit for n, unit in zip(found.groups(), _SECONDS.values(), strict=True)) if found else 0
    )
    if not seconds:
        raise ConfigError(f"{option} {text}: expected a length of time with its unit, as in 90s, 30m or 1h30m.")
    return seconds
