import pytest

from hdc_keras import HDC, R3D
from hdc_keras.config import PRESETS, Experiment, dump_experiment, load_experiment, preset, validate
from hdc_keras.errors import ConfigError


def load(tmp_path, text="", *overrides):
    (tmp_path / "e.yaml").write_text(text)
    return load_experiment(tmp_path / "e.yaml", list(overrides))


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load(tmp_path) == Experiment()


def test_a_dump_loads_to_the_same_experiment(tmp_path):
    experiment = load(tmp_path, "seed: 3\nviews: {temporal_negatives: [frozen]}\ndata: {decode_size: [40, 60]}")

    assert load(tmp_path, dump_experiment(experiment)) == experiment


def test_overrides_win_and_are_parsed_as_yaml(tmp_path):
    experiment = load(
        tmp_path,
        "train: {epochs: 3}",
        "train.epochs=7",
        "contrast.levels.spatial=[P5, P3]",
        "data.path=null",
        "views.blur=0",
    )

    assert (experiment.train.epochs, experiment.contrast.levels.spatial, experiment.data.path) == (
        7,
        ("P3", "P5"),
        None,
    )


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("trian: {epochs: 3}", None, r"unknown key `trian`. Did you mean `train`\?"),
        ("train: {epoch: 3}", None, r"unknown key `train.epoch`. Did you mean `train.epochs`\?"),
        ("train: {epochs: many}", None, r"`train.epochs`: input should be a valid integer.*Received: 'many'"),
        ("train: {epochs: 0}", None, r"`train.epochs`: input should be greater than or equal to 1"),
        ("contrast: {task: both}", None, r"`contrast.task`.*'decoupled', 'coupled', 'spatial' or 'temporal'"),
        ("contrast: {levels: {temporal: []}}", None, r"`contrast.levels.temporal`"),
        ("contrast: {levels: {spatial: [P5, P5]}}", None, "each level may be given once"),
        ("contrast: {weighting: fixed, fixed_weights: {P2: 1}}", None, "fixed_weights needs a number for P3, P4, P5"),
        (
            "contrast: {levels: [P5]}",
            None,
            r"a section with the keys contrast.levels.spatial, contrast.levels.temporal",
        ),
        ("contrast: {levels: {spatial: P5}}", None, r"`contrast.levels.spatial`: expected a list, as in \[1, 2\]"),
        ("contrast: {levels: {spatail: [P5]}}", None, r"Did you mean `contrast.levels.spatial`"),
        ("train: {path: x}", None, r"unknown key `train.path`. Did you mean `data.path`\?"),
        ("batch_size: 3", None, r"Did you mean `train.batch_size` or `evaluate.batch_size`\?"),
        ("evaluate: {seed: 3}", None, r"Did you mean `evaluate.seeds` or `seed`\?"),
        ("temprature: 3", None, r"Did you mean `contrast.temperature`\?"),
        ("train: {lr: 3}", None, r"unknown key `train.lr`. `hdc-keras configs show` lists all keys"),
        ("train: {precision: float16}", None, r"Did you mean `mixed_float16`\?"),
        ("data: {decode_size: [128]}", None, r"`data.decode_size`: expected more values. Received: \[128\]"),
        ("train: {learning_rate: .inf}", None, "`train.learning_rate`: input should be a finite number"),
        ("seed: 4294967295\nevaluate: {seeds: 3}", None, "last of the consecutive seeds is 4294967297"),
        ("seed: 2026-02-30", None, "not valid YAML"),
        ("views: {crop_area: [1.0, 0.2]}", None, "first number must not be greater"),
        ("views: {temporal_negatives: [backwards]}", None, "temporal_negatives"),
        ("[1, 2]", None, "expected `key: value` lines"),
        ("a: [", None, "not valid YAML"),
        ("", "train.epochs", r"expected section.key=value"),
        ("", "seed.x=1", r"unknown key|valid integer"),
        ("seed: 1", "seed.x=1", "`seed` is a value, not a section"),
        ("train: {epochs: 3}", "train.epochs.x=1", "`train.epochs` is a value, not a section"),
        ("", "seed=" + "[" * 2000, "--set seed=.*not valid YAML"),
    ],
)
def test_an_invalid_config_is_refused_with_the_key_and_the_reason(tmp_path, text, override, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text, *([override] if override else []))


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("train: {epochs: 3}", ["train.epochs=ten"], r"^--set train.epochs=ten:\n  `train.epochs`: input.*'ten'$"),
        ("", ["trian.epochs=3"], r"^--set trian.epochs=3:\n  unknown key `trian`"),
        ("", ["train={epochs: ten}"], r"^--set train={epochs: ten}:\n  `train.epochs`"),
        ("train: {epochs: ten}", ["train.batch_size=8"], r"e.yaml:\n  `train.epochs`"),
        (
            "train: {epochs: ten}",
            ["seed=-1"],
            r"--set seed=-1:\n  `seed`: [^\n]*\n[^\n]*e.yaml:\n  `train.epochs`",
        ),
        (
            "train: {batch_size: 16}",
            ["seed=3", "train.micro_batches=3"],
            r"e.yaml with --set train.micro_batches=3:\n  `train`: batch_size \(16\) must be a multiple",
        ),
        ("", ["contrast.levels.spatial=[P9]"], r"^--set contrast.levels.spatial=\[P9\]:\n  [^\n]*P5'. Received: 'P9'$"),
    ],
)
def test_the_source_of_a_wrong_value_is_named(tmp_path, text, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text, *overrides)


@pytest.mark.parametrize("value", ["on", "off", "auto"])
def test_on_and_off_are_not_booleans(tmp_path, value):
    assert load(tmp_path, f"train: {{jit: {value}}}") == load(tmp_path, "", f"train.jit={value}")
    assert load(tmp_path, "train: {rematerialise: true}").train.rematerialise


def test_a_file_that_is_not_text_is_refused_with_its_name(tmp_path):
    (tmp_path / "e.yaml").write_bytes(b"seed: \xff")

    with pytest.raises(ConfigError, match=r"e.yaml: is not a text file in UTF-8 \(invalid start byte at byte 6\)"):
        load_experiment(tmp_path / "e.yaml")


def test_a_section_that_is_not_a_section_is_refused_with_the_keys_that_it_takes():
    with pytest.raises(ConfigError, match=r"HDC\(views=...\):\n  expected a section with the keys size, .*min_gap"):
        HDC(R3D([2, 2, 2, 2], [1, 1, 1, 1]), views="small")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_changes_only_the_method_and_overrides_win(tmp_path, name):
    (tmp_path / "e.yaml").write_text("train: {epochs: 3}\ncontrast: {temperature: 0.2, weighting: fixed}")

    experiment = load_experiment(tmp_path / "e.yaml", ["contrast.gamma=2"], name)

    assert (experiment.train.epochs, experiment.contrast.temperature, experiment.contrast.gamma) == (3, 0.2, 2)
    assert experiment.contrast.weighting == PRESETS[name]["contrast"]["weighting"]
    assert HDC(R3D([2, 2, 2, 2], [1, 1, 1, 1]), **preset(name)).contrast_config.task == experiment.contrast.task


def test_an_unknown_preset_suggests_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean `coupled`"):
        preset("coupld")


def test_all_problems_are_reported_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, "train: {epochs: x, batch: 3}\nviews: {flip: 2}")

    assert all(key in str(error.value) for key in ("train.epochs", "train.batch", "views.flip"))


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere.yaml: cannot be read"):
        load_experiment("nowhere.yaml")


def test_literals_are_not_parsed_and_overrides_win_over_them(tmp_path):
    (tmp_path / "e.yaml").write_text("data: {path: old}")
    literals = {"data.path": "clips #1: [x]", "data.limit": None, "model.init_from": "true"}

    experiment = load_experiment(tmp_path / "e.yaml", ["model.init_from=other"], literals=literals)

    assert (experiment.data.path, experiment.model.init_from) == ("clips #1: [x]", "other")


@pytest.mark.parametrize("length", [0, "many", {}, {"P2_spatial": 0}, True])
def test_a_queue_length_is_a_number_or_one_for_each_level_and_task(length):
    with pytest.raises(
        ConfigError, match=r"`contrast\.queue_length`: expected a whole number of 1 or more, or one for"
    ):
        validate(Experiment, {"contrast": {"queue_length": length}}, "test")


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        ({"data": {"frames": 4}}, r"data.frames \(4\): s3d_tiny needs 5 or more"),
        ({"views": {"size": 16}}, r"views.size \(16\): s3d_tiny needs 17 or more"),
    ],
)
def test_clips_that_are_too_small_for_the_network_are_refused(clip, said):
    with pytest.raises(ConfigError, match=said):
        validate(Experiment, {"model": {"backbone": "s3d_tiny"}, **clip}, "here")
