"""The names of all protocols of `hdc-keras evaluate`: probes of frozen features, and fine-tuning recipes."""

from collections.abc import Sequence

from hdc_keras.errors import ConfigError
from hdc_keras.finetuning.recipes import FINE_TUNING
from hdc_keras.probes.registry import PROBES

PROTOCOLS = (*PROBES, *FINE_TUNING)


def require_known(protocols: Sequence[str]) -> None:
    """Raise `ConfigError` for a name that is not in `PROTOCOLS`."""
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown:
        raise ConfigError(f"unknown protocol `{unknown[0]}`. Known: {', '.join(PROTOCOLS)}.")
