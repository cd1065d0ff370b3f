"""Whatever differs from a publication is listed, printed and shown."""

import pytest
from hdc_keras_cli.console import console
from hdc_keras_cli.evaluate import _print_result

from hdc_keras import Experiment
from hdc_keras.finetuning.recipes import FINE_TUNING, PUBLICATIONS
from hdc_keras.probes.publication import Publication
from hdc_keras.probes.registry import PROBES

RESULT = {
    "protocol": "linear-severe",
    "version": 2,
    "source": "SEVERE [its code]",
    "dataset": "videos",
    "split": {"test": 8},
    "views": "10x1",
    "metrics": {"shape": {"features": {"top1": 0.5, "mean_class_accuracy": 0.25}}},
    "random_weights": {"shape": {"features": {"top1": 0.3, "mean_class_accuracy": 0.125}}},
    "deviation": {},
    "chance": {"shape": 0.25},
    "splits": ["1"],
    "seeds": [0],
    "seen_in_pretraining": {"1": {"test_videos": 0, "of": 4}},
    "reduced": {"size": [112, 64], "pixels": ["of ImageNet", "of Kinetics"]},
    "untrained_classes": {"shape": {"square": 2, "circle": 1}},
    "counts": {"decoded": 8, "asked": 8, "failed": {}},
}


@pytest.mark.parametrize("protocol", PROBES)
def test_a_protocol_is_our_choice_or_names_its_differences_from_the_publication(protocol):
    probe = PROBES[protocol]

    assert probe.source.startswith("our choice") == (probe.publication == Publication())


def test_every_recipe_names_its_differences_from_the_publication():
    assert set(PUBLICATIONS) == set(FINE_TUNING)
    assert all(publication.differences for publication in PUBLICATIONS.values())


def test_clips_are_a_difference_only_if_they_are_not_those_of_the_publication():
    publication = Publication({"frames": 16, "size": 112, "views": "10x3"}, {"pixels": ("a", "b")})
    experiment = Experiment.model_validate({"data": {"frames": 16}, "views": {"size": 64}, "evaluate": {"crops": 3}})

    assert publication.reduced(experiment) == {"size": [112, 64], "pixels": ["a", "b"]}
    few = experiment.model_copy(update={"evaluate": experiment.evaluate.model_copy(update={"labels_per_class": 5})})
    assert publication.reduced(few)["labels_per_class"] == ["all", 5]


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_differences_mean_class_accuracy_and_classes_without_training_videos_are_printed(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)

    _print_result(RESULT, all_sources=False)

    printed = capsys.readouterr().out
    assert "Source: SEVERE [its code]" in printed
    assert "Differs from the published protocol: size 64 instead of 112; pixels of Kinetics instead of of" in printed
    assert "mean class accuracy, shape from features: 0.250 (0.125)" in printed
    assert (
        "Classes of shape without training videos, which no protocol can predict (test videos): square (2), circle (1)"
        in printed
    )


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("all_sources", [False, True])
def test_no_figure_or_name_is_cut_in_a_narrow_terminal(monkeypatch, capsys, columns, all_sources):
    monkeypatch.setattr(console, "width", columns)
    names = [f"R@{k}" for k in (1, 5, 10, 20, 50)]
    sources = ["features", "P2", "P4", "P5", "temporal embeddings", "all embeddings"]
    scores = {source: {name: 0.1234 + number / 10 for name in names} for number, source in enumerate(sources)}
    networks = {name: {"label_of_a_long_name": scores} for name in ("metrics", "random_weights", "supervised")}
    deviations = {
        name: {"label_of_a_long_name": {s: dict.fromkeys(names, 0.0123) for s in sources}} for name in networks
    }
    result = RESULT | networks | {"deviation": deviations, "chance": {"label_of_a_long_name": 0.1}, "seeds": [0, 1, 2]}

    _print_result(result | {"protocol": "retrieval", "dataset": "/a/very/long/path/to/" + "videos" * 10}, all_sources)

    printed = capsys.readouterr().out
    assert "…" not in printed and "..." not in printed
    table = printed.partition("mean ±")[0]
    assert max(map(len, table.splitlines())) <= columns
    figures = [0.1234, 0.4234] if not all_sources else [0.1234 + number / 10 for number in range(6)]
    assert "".join(table.split()).count("±0.012") == 3 * 5 * len(figures)
    assert all(table.count(f"{value:.3f}") == 3 * 5 for value in figures)
    assert ("--all shows every" in " ".join(printed.split())) == (not all_sources)


@pytest.mark.parametrize(
    ("protocol", "features"), [("linear", "all levels joined"), ("retrieval-vcop", "the last level")]
)
def test_the_text_below_a_table_says_what_features_are(capsys, protocol, features):
    scores = {source: {"top1": 0.5} for source in ("features", "P4", "P5")}

    _print_result(RESULT | {"protocol": protocol, "metrics": {"shape": scores}}, all_sources=False)

    assert f"Shown are features ({features}) and the best level." in " ".join(capsys.readouterr().out.split())
