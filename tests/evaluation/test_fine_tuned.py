from hdc_keras.evaluation.fine_tuned import all_changed, merged
from hdc_keras.finetuning.recipes import FINE_TUNING


def test_settings_that_differ_between_trainings_are_recorded_for_each():
    settings = {"split 1": {"batch_size": 8, "epochs": 3}, "split 2": {"batch_size": 6, "epochs": 3}}

    assert merged(settings) == {"batch_size": {"split 1": 8, "split 2": 6}, "epochs": 3}


def test_a_difference_from_the_publication_in_any_training_is_listed():
    vcop = FINE_TUNING["finetune-vcop"]
    recipes = {"split 1": vcop.fitted(7, has_validation=True), "split 2": vcop.fitted(100, has_validation=False)}

    assert all_changed(vcop, recipes) == {
        "batch_size": [8, {"split 1": 7, "split 2": 8}],
        "validation": [vcop.validation, {"split 1": vcop.validation, "split 2": 0.0}],
    }
    assert all_changed(vcop, {"split 1": vcop}) == {}
