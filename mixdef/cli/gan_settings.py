"""The settings of the job `gan`, and the learners that they name."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from typing import Any, ClassVar

from etils import epy

from mixdef.cli import papers
from mixdef.cli.settings import HostSettings, about

with epy.lazy_imports():
  import optax

  import mixdef
  from mixdef import auditing, learners, models
  from mixdef.attacks import gan
  from mixdef.cli import texts
  from mixdef.core import files, parsing, reading

_UNDEFENDED = ("wgan_gp", "mlp_wgan_gp", "medgan")
_FOR_TABLES = ("medgan", "mlp_wgan_gp")
# Placeholders for the data, used to check texts before the data are read.
_SOME_PICTURES: Any = types.SimpleNamespace(
  x=types.SimpleNamespace(shape=(2, 32, 32, 3), ndim=4), num_classes=2, name="pictures"
)
_SOME_TABLE: Any = types.SimpleNamespace(
  x=types.SimpleNamespace(shape=(2, 32), ndim=2), num_classes=2, name="a table"
)
_FEW_PIXELS = 256  # images with at most this many pixels use dense networks
_QUICK_RECORDS = 1500
_QUICK_EPOCHS = 300
# Undefended references may differ from the models in these, but share their records.
_RECIPE = ("model", "learner", "defense", "optimizer", "learning_rate")
_RECIPE += ("epochs", "batch_size")


@dataclasses.dataclass(frozen=True)
class GanSettings(HostSettings):
  """Settings of generative models and their evaluation."""

  model: str = "auto"
  learner: str = "wgan_gp"
  optimizer: str = "adam(b1=0.5, b2=0.999)"
  learning_rate: float = 4e-4
  epochs: int = 600
  batch_size: int = 64
  undefended: str = ""
  attacks: str = ""
  attack_targets: int = 4
  attack_records: int = 500
  samples: int = 2048
  classifier: str = "cnn"
  inception: str = ""

  protocols = papers.GANS
  flag_texts: ClassVar[dict[str, str]] = {
    "model": "dense_networks, image_networks or table_networks, as "
    "'image_networks(width=32)', or auto: those that fit the records",
    "learner": "wgan_gp, par_gan, ...: a name in mixdef.learners.GANS "
    "(docs/learners.md), or my_module:name, with arguments as in 'par_gan(critics=5)'",
    "attacks": "separated by commas, as 'logan, monte_carlo(kernel='log')'. "
    "Default: all attacks",
  }

  def __post_init__(self):
    """Check the settings before anything is written."""
    super().__post_init__()
    if self.standardize:
      raise ValueError("--standardize: generators produce values in [0,1]; remove it")
    if self.samples < 100:
      raise ValueError(f"--samples={self.samples}: use at least 100 to measure utility")
    if self.undefended and not self.is_defended:
      raise ValueError(
        f"--undefended={self.undefended}: undefended GANs are their own references; "
        "remove it"
      )
    self.chosen_attacks()
    self.make_classifier(_SOME_PICTURES)

  def check_learner(self) -> None:
    """Check that a learner of images or of tables can be created from the texts."""
    table = _called("model", self.model) == "table_networks"
    table = table or _called("learner", self.learner) in _FOR_TABLES
    self.make_learner(_SOME_TABLE if table else _SOME_PICTURES)

  @property
  def defended_by(self) -> str:
    """The learner, unless it is the default, and the defense."""
    defense = str(self.chain)
    if texts.called(self.learner) in _UNDEFENDED:
      return defense
    return self.learner + ("" if defense == "none" else f"|{defense}")

  def inputs(self) -> dict[str, str]:
    """Return versions, and digests of records, weights and the undefended recipe."""
    found = super().inputs()
    if self.inception:
      how = "see inception_features for how to create it"
      found["content of --inception"] = reading.digest_file(self.inception, fix=how)
    if self.undefended:
      recipe = {name: getattr(self.undefended_run, name) for name in _RECIPE}
      found["content of --undefended"] = json.dumps(recipe)
    return found

  @property
  def without_defense(self) -> GanSettings:
    """The same settings without a defense, used to train undefended references."""
    name = texts.called(self.learner)
    learner = self.learner if name in _UNDEFENDED else "wgan_gp"
    return dataclasses.replace(self, learner=learner, defense="none", undefended="")

  @property
  def undefended_run(self) -> GanSettings:
    """These settings with the recipe of the undefended run that `undefended` names."""
    path = files.path_of(self.undefended, "--undefended") / "config.json"
    if not files.exists(path):
      raise FileNotFoundError(
        f"--undefended={self.undefended}: {path} is missing; pass the run folder of "
        "undefended GANs"
      )
    earlier = reading.read_json(path, fix="run the job there again")
    recipe = {name: earlier[name] for name in _RECIPE if name in earlier}
    try:
      for name, value in recipe.items():
        reading.check_form(value, type(getattr(self, name)), name)
      undefended = dataclasses.replace(self.without_defense, **recipe)
    except ValueError as error:
      raise ValueError(f"--undefended: {path}: {error}") from None
    if undefended.is_defended:
      raise ValueError(
        f"--undefended={self.undefended} holds GANs trained with "
        f"{undefended.defended_by}: pass an undefended run"
      )
    return undefended

  @property
  def is_defended(self) -> bool:
    """Whether the learner or the chain is a defense."""
    return self.without_defense.defended_by != self.defended_by

  @property
  def num_epochs(self) -> int:
    """Number of epochs to train."""
    return min(self.epochs, _QUICK_EPOCHS) if self.quick else self.epochs

  @property
  def budget(self) -> auditing.Budget:
    """Numbers of models and records for the costly attacks."""
    records = min(self.attack_records, 100) if self.quick else self.attack_records
    targets = min(self.attack_targets, 1) if self.quick else self.attack_targets
    return auditing.Budget(targets=targets, records=records)

  def chosen_attacks(self) -> list[str]:
    """Return the attacks named by `attacks`, or all of the catalogue."""
    with about("attacks", self.attacks):
      return gan.ATTACKS.names(self.attacks)

  def records(self) -> mixdef.Dataset:
    """Return the records to train on, with held-out ones."""
    data = self.load()
    if data.test is None:
      data = data.hold_out(0.2, seed=self.seed)
    whole = dataclasses.replace(self, quick=False)
    if self.quick and not self.train_size:
      whole = dataclasses.replace(
        whole, train_size=min(_QUICK_RECORDS, len(data) - self.auxiliary) // 2
      )
    return whole.subsample(data, halves=2)

  def make_learner(
    self, data: mixdef.Dataset, defense: mixdef.Defense | None = None
  ) -> mixdef.Learner:
    """Return the learner.

    Args:
      data: the records to train on.
      defense: the defense; None uses the setting `defense`.
    """
    defense = self.chain if defense is None else defense
    fixed: dict[str, Any] = {"optimizer": self.make_optimizer()}
    name = _called("learner", self.learner)
    found = name in learners.GANS or ":" in name
    made = learners.GANS[name] if found else None
    if made and "defense" in parsing.parameters(made):
      fixed["defense"] = defense
    elif made and defense.parts:
      raise ValueError(
        f"--learner={self.learner} does not accept a defense: remove {defense}"
      )
    with about("learner", self.learner):
      wrap = self._filled(data, defense)
      return texts.parse_call(
        self.learner, learners.GANS, "learner", wrap=wrap, fixed=fixed
      )

  def make_classifier(self, data: mixdef.Dataset) -> mixdef.Learner:
    """Return the undefended classifier that evaluates samples."""
    with about("classifier", self.classifier):
      first, *others = texts.networks(self.classifier, num_classes=data.num_classes)
      if others:
        raise ValueError("pass one network")
    return mixdef.classifier(first, optax.adam(1e-3))

  def _filled(self, data, defense):
    """Return a wrapper that passes networks, or the sizes of a table, to a factory."""

    def filled(make, *args, **options):
      if "networks" in parsing.parameters(make):
        return make(self.networks(data, defense), *args, **options)
      if data.x.ndim != 2:
        raise ValueError(
          f"--learner={self.learner} is for tables, but {data.name} holds images: use "
          "wgan_gp"
        )
      if self.model != "auto":
        raise ValueError(
          f"--learner={self.learner} defines its own networks: remove "
          f"--model={self.model}"
        )
      return make(data.x.shape[1], data.num_classes, *args, **options)

    return lambda make: functools.partial(filled, make)

  def networks(self, data: mixdef.Dataset, defense: Any = None) -> Any:
    """Return the generator and critic named by `model`, or suitable for the records."""
    shape = data.x.shape[1:]
    makers = {
      "dense_networks": functools.partial(models.dense_networks, shape),
      "image_networks": functools.partial(models.image_networks, shape),
      "table_networks": functools.partial(models.table_networks, shape[0]),
    }
    text, options = self.model, dict[str, Any]()
    if text == "auto":
      pictures = "dense" if math.prod(shape[:2]) <= _FEW_PIXELS else "image"
      text = "table_networks" if data.x.ndim == 2 else f"{pictures}_networks"
    if _called("model", text) == "image_networks":
      if self.quick:
        options["width"] = 16
      if defense is not None and defense.traits.per_example:
        options["norm"] = "group"  # per-example clipping excludes batch statistics
    with about("model", text):
      fixed = {"num_classes": data.num_classes}
      return texts.parse_call(text, makers, "model", fixed=fixed, **options)


def _called(flag: str, text: str) -> str:
  with about(flag, text):
    return texts.called(text)
