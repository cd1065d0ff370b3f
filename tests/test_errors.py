"""Errors cross the border between processes."""

import pickle

import pytest

from hdc_keras.errors import DataError, StoppedError, VideoDecodeError


@pytest.mark.parametrize(
    "error", [DataError("no videos"), VideoDecodeError("a.mp4", "is damaged"), StoppedError("stopped", signal=15)]
)
def test_an_error_is_the_same_in_another_process(error):
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)
