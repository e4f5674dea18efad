"""What a config can mean, what it cannot, and whether it is the run's."""

import json

import pytest

from configs import default
from tests.memory_run import config_of
from u2s_jax import saved_config, settings
from u2s_jax.errors import UserError
from u2s_jax.workdir import Workdir


def check(config, folder, *more):
  settings.check(config, Workdir(folder), *more)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("log_every_steps", 0, "log_every_steps: 0 is not at least 1"),
    ("model.pixel_mean", (0.1, 0.2), "model.pixel_mean: 2 values for the 3 channels of rgb; give"),
    ("model.pixel_std", (0.5,), "model.pixel_std: 1 values, but model.pixel_mean has 3"),
    ("eval.split", "tset", "eval.split: 'tset' is not one of train, validation, test"),
    ("eval.split", "test", "eval.split: 'test' is for --mode=eval only"),
    ("init_from", "/no/run", "init_from: /no/run: no such file or folder"),
    ("csm.distance", "l1", "csm.distance: 'l1' is not one of"),
    ("csm.target_accuracy", 85.0, "csm.target_accuracy: 85.0 is no fraction"),
    ("csm.n", -1, "csm.n: -1 is negative"),
    ("accumulate_steps", 0, "accumulate_steps: 0 is not at least 1"),
    ("csm.selection", "all", "csm.selection: 'all' is not one of"),
    ("csm.guide", "oracle", "csm.guide: 'oracle' is not one of"),
    ("universal.epochs", 0.0, "universal.epochs: 0, but there is no init_from"),
    ("eval.every_epochs", 0, "eval.every_epochs: 0 is not at least 1"),
    ("model.backbone.name", "vgg", "model.backbone.name: 'vgg' is not one of preact_resnet, "),
    ("model.backbone.name", "eco_lite", "model.backbone.depth: eco_lite has no such field"),
    ("model.backbone.depth", 51, "model.backbone.depth: 51 is not one of 14, 18,"),
    ("model.backbone.depth", 18, "model.backbone.temporal: .* 2 convolutions and a projection"),
    ("model.dtype", "float17", "model.dtype: 'float17' is not one of float32, bfloat16"),
    ("model.attention", "x", "model.attention: 'x' is not one of"),
    ("eval.views", "4crop", "eval.views: '4crop' is not one of center, 3crop"),
    ("eval.batch_size", 12, "eval.batch_size: 12 is not a positive multiple of the 8 devices"),
    ("optimizer.momentum", -1.0, r"optimizer.momentum: -1.0 is not in \[0, 1\)"),
    ("optimizer.momentum", 1.0, r"optimizer.momentum: 1.0 is not in \[0, 1\)"),
    ("optimizer.weight_decay", -1e-4, "optimizer.weight_decay: -0.0001 is no number of at least 0"),
    ("regularizer_weight", float("nan"), "regularizer_weight: nan is no number of at least 0"),
    ("universal.learning_rate", -1.0, "universal.learning_rate: -1.0 is no positive number"),
    ("joint.patience", 0, "joint.patience: 0 is not at least 1 epoch"),
    ("specific.decay_epochs", (0.6, 0.2), "specific.decay_epochs: .* are not positive and rising"),
    ("specific.decay_epochs", (1.0,), "specific.decay_epochs: 1 is not before the stage's end"),
    ("eval.views", "10crop", "eval.views: '10crop' mirrors views, but the network never sees a"),
  ],
)
def test_a_config_that_cannot_work_is_found_at_once(tmp_path, field, value, message):
  with pytest.raises(UserError, match=f"^{message}"):
    check(config_of(**{field: value}), tmp_path)


@pytest.mark.parametrize(
  "fields",
  [
    {"eval.views": "10crop", "data.flip": True},
    {"eval.views": "10crop", "data.flip_label_map": ((0, 1),)},
    {"eval.views": "5crop"},
    {"universal.decay_epochs": (7.0, 12.0), "universal.decay": "plateau"},  # not looked at
  ],
)
def test_configs_that_work(tmp_path, fields):
  check(config_of(**fields), tmp_path)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({}, None),
    ({"model.pixel_mean": (0.5,) * 10, "model.pixel_std": (0.2,) * 10}, None),
    (
      {"data.flow_pairs": 3, "model.pixel_mean": (0.5,) * 10},
      "model.pixel_mean: 10 values for the 6",
    ),
    ({"model.pixel_std": (0.2,) * 3}, "model.pixel_std: 3 values for the 10 channels of flow"),
  ],
)
def test_fields_of_optical_flow(tmp_path, fields, message):
  flow = {"data.modality": "flow", "model.pixel_mean": (0.5,), "model.pixel_std": (0.2,)}
  config = config_of(**flow | fields)
  if message is None:
    check(config, tmp_path)
  else:
    with pytest.raises(UserError, match=f"^{message}"):
      check(config, tmp_path)
  assert settings.input_channels(config) == 2 * config.data.flow_pairs
  assert settings.input_channels(config_of()) == 3


def test_another_config_is_refused_with_the_field(tmp_path):
  saved_config.write(Workdir(tmp_path), config_of())
  with pytest.raises(UserError, match=r"config.json: this run began with joint.learning_rate = "):
    check(config_of(**{"joint.learning_rate": 0.5}), tmp_path)
  check(config_of(log_every_steps=1), tmp_path)  # changes nothing in training
  check(config_of(**{"csm.guide": "label"}), tmp_path, settings.FREE_IN_EVALUATION)


def fit(config, folder, count, monkeypatch):
  monkeypatch.setattr(settings.jax, "device_count", lambda: count)
  return settings.fit_devices(config, Workdir(folder))


def test_a_batch_that_the_devices_do_not_divide_grows_with_the_learning_rates(
  tmp_path, monkeypatch, capsys
):
  config = config_of(batch_size=20, **{"eval.batch_size": 20, "joint.learning_rate": 1e-4})
  fitted = fit(config, tmp_path, 8, monkeypatch)
  assert (fitted.batch_size, fitted.eval.batch_size, config.batch_size) == (24, 24, 20)
  assert fitted.joint.learning_rate == pytest.approx(1.2e-4)
  assert "24 clips in place of 20" in capsys.readouterr().out
  check(fitted, tmp_path)
  same = fit(config, tmp_path, 4, monkeypatch)
  assert same.to_dict() == config.to_dict() and not capsys.readouterr().out


def test_a_run_goes_on_with_the_batch_that_it_began_with(tmp_path, monkeypatch):
  config = config_of(batch_size=20)
  began = fit(config, tmp_path, 8, monkeypatch)
  saved_config.write(Workdir(tmp_path), began)
  for count in (8, 4, 24):
    again = fit(config, tmp_path, count, monkeypatch)
    assert again.batch_size == 24
    assert again.universal.learning_rate == began.universal.learning_rate
    check(again, tmp_path)
  other = fit(config, tmp_path, 5, monkeypatch)
  with pytest.raises(UserError, match="began with batch_size = 24, which 5 .* do not divide"):
    check(other, tmp_path)
  check(other, tmp_path, settings.FREE_IN_EVALUATION)  # which trains nothing
  smaller = fit(config_of(batch_size=8), tmp_path, 8, monkeypatch)
  with pytest.raises(UserError, match="began with batch_size = 24, not 8"):
    check(smaller, tmp_path)


def test_a_field_that_an_older_run_did_not_know_counts_as_its_default(tmp_path):
  saved_config.write(Workdir(tmp_path), config_of())
  path = tmp_path / "config.json"
  fields = json.loads(path.read_text())
  del fields["accumulate_steps"], fields["model"]["remat"]
  path.write_text(json.dumps(fields))
  check(config_of(), tmp_path)
  assert saved_config.read(Workdir(tmp_path)).accumulate_steps == 1
  with pytest.raises(UserError, match="this run began with model.remat = False, not True"):
    check(config_of(**{"model.remat": True}), tmp_path)


def test_a_run_that_began_before_a_check_goes_on(tmp_path):
  older = config_of(**{"eval.views": "10crop", "universal.decay_epochs": (7.0, 12.0)})
  saved_config.write(Workdir(tmp_path), older)
  check(older, tmp_path)
  check(
    config_of(**{"eval.views": "5crop", "universal.decay_epochs": (7.0, 12.0)}),
    tmp_path,
    settings.FREE_IN_EVALUATION,
  )
  saved_config.write(Workdir(tmp_path), config_of())
  with pytest.raises(UserError, match="eval.views: '10crop' mirrors views"):
    check(config_of(**{"eval.views": "10crop"}), tmp_path, settings.FREE_IN_EVALUATION)


def test_the_config_of_a_run_comes_back_as_it_was(tmp_path):
  saved_config.write(Workdir(tmp_path), config_of())
  assert saved_config.read(Workdir(tmp_path)).to_dict() == config_of().to_dict()
  assert saved_config.read(Workdir(tmp_path / "none")) is None


def test_pretrained_weights_are_those_that_stage_1_started_from(tmp_path):
  weights, first, second = (tmp_path / name for name in ("weights.npz", "first", "second"))
  saved_config.write(Workdir(first), config_of(init_from=str(weights)))
  start = {"init_from": f"{first}/checkpoints/universal", "universal.epochs": 0.0}
  saved_config.write(Workdir(second), config_of(**start))
  assert settings.pretrained_weights(config_of(init_from=str(weights))) == str(weights)
  for run in (first, second):  # and through a run that took stage 1 as it was
    config = config_of(init_from=str(run), **{"universal.epochs": 0.0})
    assert settings.pretrained_weights(config) == str(weights)
    assert settings.schedule(config)[1].init == "pretrained"
  # A run that trains stage 1 itself starts from the other's weights.
  assert settings.pretrained_weights(config_of(init_from=str(first))) == str(first)


def test_without_pretrained_weights_the_csn_copies_the_un(tmp_path):
  config = config_of()
  assert config.model.specific_init == "pretrained" and settings.pretrained_weights(config) == ""
  assert settings.schedule(config)[1].init == "universal"
  saved_config.write(Workdir(tmp_path), config)
  config = config_of(init_from=str(tmp_path), **{"universal.epochs": 0.0})
  assert settings.schedule(config)[1].init == "universal"


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("csm.selection", "evil", "csm.selection: 'evil' is not one of"),
    ("data.modality", "x", "data.modality: 'x' is not one of"),
    ("data.num_frames", "8", "data.num_frames: '8' is no whole number"),
    ("data.num_frames", None, "data.num_frames: None is no whole number"),
    ("data.crop_size", [56], "data.crop_size: .56. is a list and should be one value"),
    ("model.pixel_mean", 0.5, "model.pixel_mean: 0.5 is no list"),
    ("model.pixel_mean", ["a", "b", "c"], "model.pixel_mean: 'a' is no number"),
    ("model.backbone.width", 10**9, "model.backbone.width: 1000000000 is more than 4096"),
    ("model.backbone.width", 1e9, "model.backbone.width: 1000000000.0 is no whole number"),
    ("model.backbone", {}, "model.backbone.name: not set"),
    ("model.layers", 3, "model.layers: no such field"),
    ("csm", 5, "csm: 5 is no section of fields"),
    ("control", 1, "control: 1 is no true or false"),
    ("regularizer_weight", float("nan"), "regularizer_weight: nan is no finite number"),
    ("joint.epochs", {"a": 1}, "joint.epochs: .* is a section of fields"),
  ],
)
def test_a_strangers_config_is_checked_like_ones_own(field, value, message, tmp_path):
  fields = json.loads(default.get_config().to_json_best_effort())
  *sections, name = field.split(".")
  section = fields
  for key in sections:
    section = section[key]
  section[name] = value
  run = Workdir(tmp_path)
  run.write_config(fields)
  with pytest.raises(UserError, match=message) as error:
    settings.check_values(saved_config.read(run))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("stored", "enlarged"),
  [
    ({"short_edge": 20}, True),
    ({"short_edge": 36}, False),
    ({"short_edge": 99}, False),
    ({}, False),
  ],
)
def test_data_prepared_smaller_than_they_are_used_are_told(stored, enlarged):
  line = settings.enlargement(config_of(), stored)
  expected = (
    "data.short_edge: the data were prepared with 20 pixels, so frames are enlarged to 36; prepare"
    " them with short_edge=36, or set data.short_edge=20"
  )
  assert line == (expected if enlarged else None)
