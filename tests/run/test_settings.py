"""Tests of values derived from a config, of its checks, and of the saved config."""

import json

import pytest

from configs import default
from tests.memory_run import make_config
from u2s_jax.models import backbones
from u2s_jax.run import saved_config, settings, validation
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import UserError


def check(config, folder, *more):
  validation.check(config, Workdir(folder), *more)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("log_every_steps", 0, "log_every_steps: 0 must be >= 1"),
    ("model.pixel_mean", (0.1, 0.2), "model.pixel_mean: 2 values for the 3 channels of rgb; give"),
    ("model.pixel_std", (0.5,), "model.pixel_std: 1 values, but model.pixel_mean has 3"),
    ("eval.split", "tset", "eval.split: 'tset' is not one of train, validation, test"),
    ("eval.split", "test", "eval.split: 'test' is only for an evaluation"),
    ("init_from", "/no/run", "init_from: /no/run: no such file or directory"),
    ("csm.distance", "l1", "csm.distance: 'l1' is not one of"),
    ("csm.target_accuracy", 85.0, "csm.target_accuracy: 85.0 must be in"),
    ("csm.n", -1, "csm.n: -1 must be >= 0"),
    ("accumulate_steps", 0, "accumulate_steps: 0 must be >= 1"),
    ("csm.selection", "all", "csm.selection: 'all' is not one of"),
    ("csm.guide", "oracle", "csm.guide: 'oracle' is not one of"),
    ("universal.epochs", 0.0, "universal.epochs: 0 requires init_from"),
    ("eval.every_epochs", 0, "eval.every_epochs: 0 must be >= 1"),
    ("model.backbone.name", "vgg", "model.backbone.name: 'vgg' is not one of preact_resnet, "),
    (
      "model.backbone.name",
      "eco_lite",
      "model.backbone.depth: unknown field; eco_lite has no fields",
    ),
    ("model.backbone.depth", 51, "model.backbone.depth: 51 is not one of 14, 18,"),
    ("model.backbone.depth", 18, "model.backbone.temporal: .* 2 convolutions and a projection"),
    ("model.dtype", "float17", "model.dtype: 'float17' is not one of float32, bfloat16"),
    ("model.attention", "x", "model.attention: 'x' is not one of"),
    ("eval.views", "4crop", "eval.views: '4crop' is not one of center, 3crop"),
    ("eval.batch_size", 12, "eval.batch_size: 12 must be a positive multiple of the 8 devices"),
    ("optimizer.momentum", -1.0, r"optimizer.momentum: -1.0 must be in \[0, 1\)"),
    ("optimizer.momentum", 1.0, r"optimizer.momentum: 1.0 must be in \[0, 1\)"),
    ("optimizer.weight_decay", -1e-4, "optimizer.weight_decay: -0.0001 must be >= 0"),
    ("regularizer_weight", float("nan"), "regularizer_weight: nan must be >= 0"),
    ("universal.learning_rate", -1.0, "universal.learning_rate: -1.0 must be a positive"),
    ("joint.patience", 0, "joint.patience: 0 must be >= 1 validation"),
    ("specific.decay_epochs", (0.6, 0.2), "specific.decay_epochs: .* must be positive and inc"),
    ("specific.decay_epochs", (1.0,), "specific.decay_epochs: 1 must be before the stage"),
    (
      "eval.views",
      "10crop",
      "eval.views: '10crop' mirrors views, but training does not mirror clips",
    ),
  ],
)
def test_invalid_config_is_refused(tmp_path, field, value, message):
  with pytest.raises(UserError, match=f"^{message}"):
    check(make_config(**{field: value}), tmp_path)


@pytest.mark.parametrize(
  "fields",
  [
    {"eval.views": "10crop", "data.flip": True},
    {"eval.views": "10crop", "data.flip_label_map": ((0, 1),)},
    {"eval.views": "5crop"},
    {"universal.decay_epochs": (7.0, 12.0), "universal.decay": "plateau"},  # not used by this decay
  ],
)
def test_valid_configs(tmp_path, fields):
  check(make_config(**fields), tmp_path)


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
def test_optical_flow(tmp_path, fields, message):
  flow = {"data.modality": "flow", "model.pixel_mean": (0.5,), "model.pixel_std": (0.2,)}
  config = make_config(**flow | fields)
  if message is None:
    check(config, tmp_path)
  else:
    with pytest.raises(UserError, match=f"^{message}"):
      check(config, tmp_path)
  assert settings.count_channels(config) == 2 * config.data.flow_pairs
  assert settings.count_channels(make_config()) == 3


@pytest.mark.parametrize(
  ("changed", "decays"),
  [
    ({"specific.epochs": 1.0}, ()),
    ({"specific.epochs": 10.0}, (7.0,)),
    ({"specific.epochs": 12.0}, (7.0,)),  # a decay at the end has no effect
    ({"specific.epochs": 13.0}, (7.0, 12.0)),
    ({"specific.epochs": 1.0, "specific.decay_epochs": (7.0, 12.0)}, (7.0, 12.0)),
    ({"universal.epochs": 1.0}, (7.0, 12.0)),  # another stage
  ],
)
def test_drop_late_decays_of_shortened_stages(changed, decays):
  config = default.get_config()
  config.update_from_flattened_dict(changed)
  fitted = settings.drop_late_decays(config, changed)
  assert fitted.specific.decay_epochs == decays
  assert config.specific.decay_epochs == (7.0, 12.0)


def test_differing_config_is_refused(tmp_path):
  saved_config.write(Workdir(tmp_path), make_config())
  with pytest.raises(UserError, match="config.json: this run was started with joint.learning_ra"):
    check(make_config(**{"joint.learning_rate": 0.5}), tmp_path)
  check(make_config(log_every_steps=1), tmp_path)  # does not affect training
  check(make_config(**{"csm.guide": "label"}), tmp_path, settings.EVALUATION_FIELDS)


def fit(config, folder, num_devices, monkeypatch):
  monkeypatch.setattr(settings.jax, "device_count", lambda: num_devices)
  return settings.fit_devices(config, Workdir(folder))


def test_fit_devices_scales_batch_size_and_learning_rates(tmp_path, monkeypatch, capsys):
  config = make_config(batch_size=20, **{"eval.batch_size": 20, "joint.learning_rate": 1e-4})
  fitted = fit(config, tmp_path, 8, monkeypatch)
  assert (fitted.batch_size, fitted.eval.batch_size, config.batch_size) == (24, 24, 20)
  assert fitted.joint.learning_rate == pytest.approx(1.2e-4)
  assert "batch_size: 24 instead of 20" in capsys.readouterr().out
  check(fitted, tmp_path)
  same = fit(config, tmp_path, 4, monkeypatch)
  assert same.to_dict() == config.to_dict() and not capsys.readouterr().out


def test_resumes_with_the_batch_size_of_the_start(tmp_path, monkeypatch):
  config = make_config(batch_size=20)
  first = fit(config, tmp_path, 8, monkeypatch)
  saved_config.write(Workdir(tmp_path), first)
  for count in (8, 4, 24):
    again = fit(config, tmp_path, count, monkeypatch)
    assert again.batch_size == 24
    assert again.universal.learning_rate == first.universal.learning_rate
    check(again, tmp_path)
  other = fit(config, tmp_path, 5, monkeypatch)
  with pytest.raises(UserError, match="batch_size 24 of this run is not divisible by 5 "):
    check(other, tmp_path)
  check(other, tmp_path, settings.EVALUATION_FIELDS)  # does not train
  smaller = fit(make_config(batch_size=8), tmp_path, 8, monkeypatch)
  with pytest.raises(UserError, match="started with batch_size = 24, not 8"):
    check(smaller, tmp_path)


def test_missing_fields_of_an_older_run_have_their_defaults(tmp_path):
  saved_config.write(Workdir(tmp_path), make_config())
  path = tmp_path / "config.json"
  fields = json.loads(path.read_text())
  del fields["accumulate_steps"], fields["model"]["remat"]
  path.write_text(json.dumps(fields))
  check(make_config(), tmp_path)
  assert saved_config.read(Workdir(tmp_path)).accumulate_steps == 1
  with pytest.raises(UserError, match="this run was started with model.remat = False, not True"):
    check(make_config(**{"model.remat": True}), tmp_path)


def test_resumes_a_run_that_a_later_check_would_refuse(tmp_path):
  older = make_config(**{"eval.views": "10crop", "universal.decay_epochs": (7.0, 12.0)})
  saved_config.write(Workdir(tmp_path), older)
  check(older, tmp_path)
  check(
    make_config(**{"eval.views": "5crop", "universal.decay_epochs": (7.0, 12.0)}),
    tmp_path,
    settings.EVALUATION_FIELDS,
  )
  saved_config.write(Workdir(tmp_path), make_config())
  with pytest.raises(UserError, match="eval.views: '10crop' mirrors views"):
    check(make_config(**{"eval.views": "10crop"}), tmp_path, settings.EVALUATION_FIELDS)


def test_round_trip_of_the_saved_config(tmp_path):
  saved_config.write(Workdir(tmp_path), make_config())
  assert saved_config.read(Workdir(tmp_path)).to_dict() == make_config().to_dict()
  assert saved_config.read(Workdir(tmp_path / "none")) is None


def test_find_pretrained_weights_follows_stage_1(tmp_path):
  weights, first, second = (tmp_path / name for name in ("weights.npz", "first", "second"))
  saved_config.write(Workdir(first), make_config(init_from=str(weights)))
  start = {"init_from": f"{first}/checkpoints/universal", "universal.epochs": 0.0}
  saved_config.write(Workdir(second), make_config(**start))
  assert settings.find_pretrained_weights(make_config(init_from=str(weights))) == str(weights)
  for run in (first, second):  # also through a run that did not train stage 1
    config = make_config(init_from=str(run), **{"universal.epochs": 0.0})
    assert settings.find_pretrained_weights(config) == str(weights)
    assert settings.make_schedule(config)[1].init == "pretrained"
  # A run that trains stage 1 itself starts from the other's weights.
  assert settings.find_pretrained_weights(make_config(init_from=str(first))) == str(first)


def test_csn_copies_the_un_without_pretrained_weights(tmp_path):
  config = make_config()
  assert (
    config.model.specific_init == "pretrained" and settings.find_pretrained_weights(config) == ""
  )
  assert settings.make_schedule(config)[1].init == "universal"
  saved_config.write(Workdir(tmp_path), config)
  config = make_config(init_from=str(tmp_path), **{"universal.epochs": 0.0})
  assert settings.make_schedule(config)[1].init == "universal"


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("csm.selection", "evil", "csm.selection: 'evil' is not one of"),
    ("data.modality", "x", "data.modality: 'x' is not one of"),
    ("data.num_frames", "8", "data.num_frames: '8' must be an integer"),
    ("data.num_frames", None, "data.num_frames: None must be an integer"),
    ("data.crop_size", [56], "data.crop_size: .56. must be a single value, not a list"),
    ("model.pixel_mean", 0.5, "model.pixel_mean: 0.5 must be a list"),
    ("model.pixel_mean", ["a", "b", "c"], "model.pixel_mean: 'a' must be a number"),
    (
      "model.backbone.width",
      10**9,
      "width: 1000000000 is too large; the maximum is 4096",
    ),
    ("model.backbone.width", 1e9, "model.backbone.width: 1000000000.0 must be an integer"),
    ("model.backbone", {}, "model.backbone.name: not set"),
    ("model.layers", 3, "model.layers: unknown field"),
    ("csm", 5, "csm: 5 must be a section of fields"),
    ("control", 1, "control: 1 must be true or false"),
    ("regularizer_weight", float("nan"), "regularizer_weight: nan must be finite"),
    ("joint.epochs", {"a": 1}, "joint.epochs: must be a single value"),
  ],
)
def test_untrusted_config_is_refused(field, value, message, tmp_path):
  fields = json.loads(default.get_config().to_json_best_effort())
  *sections, name = field.split(".")
  section = fields
  for key in sections:
    section = section[key]
  section[name] = value
  run = Workdir(tmp_path)
  run.config.write_text(json.dumps(fields))
  with pytest.raises(UserError, match=message) as error:
    validation.check_values(saved_config.read(run))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(backbones.BACKBONES))
def test_config_of_every_backbone_is_read_again(name, tmp_path):
  """A field of the same name may have another type: VideoPrism's `temporal` is a string."""
  config = default.get_config()
  with config.unlocked():
    fields = backbones.get_field_defaults(name)
    if "resnet" in name:  # which have a field without a default
      fields |= {"temporal": config.model.backbone.temporal}
    config.model.backbone = {"name": name, **fields}
  saved_config.write(Workdir(tmp_path), config)
  read = saved_config.read(Workdir(tmp_path))
  assert read.model.backbone.to_dict() == config.model.backbone.to_dict()
  validation.check_values(read)


@pytest.mark.parametrize(
  ("stored", "enlarged"),
  [
    ({"short_edge": 20}, True),
    ({"short_edge": 36}, False),
    ({"short_edge": 240}, False),
    ({}, False),
  ],
)
def test_describe_enlargement(stored, enlarged):
  line = settings.describe_enlargement(make_config(), stored)
  expected = (
    "data.short_edge: frames were prepared with 20 pixels and are upscaled to 36; prepare them with"
    " short_edge=36, or set data.short_edge=20"
  )
  assert line == (expected if enlarged else None)
