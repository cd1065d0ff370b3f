import numpy as np
import pytest
from keras import ops

from hdc_keras.step.record import StepRecord


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c"]])
def test_the_record_of_a_version_with_fewer_names_is_read(names):
    old, new, saved = StepRecord(["a", "b"]), StepRecord(names), {}
    old.update(ops.convert_to_tensor(True), ops.convert_to_tensor([1.0, 1.0]))
    old.update(ops.convert_to_tensor(False), ops.convert_to_tensor([1.0, np.nan]))
    old.save_own_variables(saved)

    new.load_own_variables({name: ops.convert_to_numpy(value) for name, value in saved.items()})

    assert new.first_non_finite() == "step 2: b" and (new.count("steps"), new.count("skipped")) == (2, 1)
