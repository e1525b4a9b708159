import dataclasses
import json

import numpy as np
import optax
import pytest

import mixdef
from mixdef.cli import papers
from mixdef.cli.flags import FLAGS
from mixdef.cli.gan_settings import GanSettings
from mixdef.data import Dataset

NETWORKS = "dense_networks(hidden=8, latent=3)"


def picture_data(shape=(8, 8, 1), classes=10):
  x = np.zeros((20, *shape), np.uint8)
  return Dataset.from_arrays(x, np.arange(20) % classes, num_classes=classes)


@pytest.mark.parametrize(
  ("learner", "defense", "defended_by"),
  [
    ("wgan_gp", "none", "none"),
    ("wgan_gp", "mixup|relaxloss_gan(2.0)", "mixup|relaxloss_gan(threshold=2.0)"),
    ("par_gan(critics=2)", "none", "par_gan(critics=2)"),
    ("mixup_gan", "none", "mixup_gan"),
  ],
)
def test_learners_are_named_by_text(learner, defense, defended_by):
  settings = GanSettings(learner=learner, defense=defense, model=NETWORKS)
  assert settings.defended_by == defended_by
  assert settings.make_learner(picture_data()).latent == 3
  assert settings.is_defended == (defended_by != "none")
  undefended = settings.without_defense
  assert (undefended.learner, undefended.defended_by) == ("wgan_gp", "none")
  assert not undefended.is_defended


def test_networks_follow_from_the_records():
  chosen = GanSettings().networks(picture_data())
  assert type(chosen.generator).__name__ == "DenseGenerator"
  large = picture_data((28, 28, 1))
  assert type(GanSettings().networks(large).generator).__name__ != "DenseGenerator"
  table = Dataset.from_arrays(np.zeros((4, 9), np.float32), [0, 1, 0, 1])
  assert GanSettings().networks(table).shape == (9,)
  sizes = GanSettings(model=NETWORKS).networks(table)
  assert (sizes.latent, sizes.shape) == (3, (9,))


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"standardize": True}, r"--standardize: generators produce values in \[0,1\]"),
    ({"num_shadows": 1}, "--num_shadows=1: an attack needs a target and references"),
    ({"samples": 10}, "--samples=10: use at least 100"),
    ({"attacks": "logn"}, "there is no attack 'logn'; did you mean logan"),
    ({"attacks": "logan(x=1)"}, r"logan\(x=1\)"),
    (
      {"undefended": "runs/none"},
      "--undefended=runs/none: .*their own references",
    ),
    ({"defense": "mixupp"}, "--defense=mixupp: there is no defense 'mixupp'"),
    ({"learner": "wgan"}, "there is no learner 'wgan'; did you mean wgan_gp"),
    (
      {"learner": "mixup_gan", "defense": "mixup"},
      "does not accept a defense: remove mixup",
    ),
    ({"learner": "wgan_gp(critics=0)"}, "--learner=.*critics is 0"),
    ({"learner": "wgan_gp(defense='mixup')"}, "defense cannot be set here"),
    ({"model": "dense_network"}, "there is no model 'dense_network'"),
    ({"model": "image_networks(latent=0)"}, "latent is 0; pass an integer"),
    ({"model": "image_networks(num_classes=3)"}, "num_classes cannot be set here"),
    (
      {"classifier": "cn"},
      "--classifier=cn: .* did you mean cnn",
    ),
    ({"classifier": "cnn, mlp"}, "--classifier=cnn, mlp: pass one network"),
    ({"optimizer": "adam(learning_rate=1)"}, "pass the rate with --learning_rate"),
    (
      {"learner": "medgan", "model": NETWORKS},
      "its own networks: remove --model=dense",
    ),
  ],
)
def test_mistakes_are_one_line_before_anything_is_written(wrong, message):
  with pytest.raises(ValueError, match=message) as raised:
    GanSettings(**wrong)
  assert "\n" not in str(raised.value)


def test_medgan_is_no_defense():
  table = Dataset.from_arrays(np.zeros((4, 9), np.float32), [0, 1, 0, 1])
  settings = GanSettings(learner="medgan")
  assert settings.make_learner(table).latent == 128
  assert not settings.is_defended


@pytest.mark.parametrize(
  ("name", "shape", "latent"),
  [
    ("mixup_gan_celeba", (64, 64, 3), 256),
    ("mixup_gan_cifar10", (32, 32, 3), 100),
  ],
)
def test_every_protocol_builds_at_its_own_size(name, shape, latent):
  settings = GanSettings(**papers.GANS[name])
  learner = settings.make_learner(picture_data(shape, classes=2))
  assert learner.latent == latent
  assert settings.num_shadows == 128
  assert settings.networks(picture_data(shape)).shape == shape
  assert set(papers.GANS) == {"mixup_gan_celeba", "mixup_gan_cifar10"}


def test_a_quick_run_is_small():
  quick = GanSettings(quick=True, num_shadows=128, epochs=10_000)
  assert (quick.shadows, quick.num_epochs) == (8, 300)
  assert (quick.budget.targets, quick.budget.records) == (1, 100)
  assert len(quick.records()) <= 1500
  assert quick.records().test is not None


def test_the_classifier_that_judges_is_undefended():
  learner = GanSettings(defense="mixup", classifier="mlp(8)").make_classifier(
    picture_data()
  )
  network = mixdef.models.mlp(8, num_classes=10)
  assert learner.text == mixdef.classifier(network, optax.adam(1e-3)).text


def test_every_flag_has_a_help_text():
  names = {field.name for field in dataclasses.fields(GanSettings)}
  assert names <= set(FLAGS)


def test_undefended_references_keep_the_recipe_of_their_run(tmp_path):
  recipe = {"epochs": 7, "batch_size": 5, "learner": "wgan_gp", "defense": "none"}
  (tmp_path / "config.json").write_text(json.dumps(recipe | {"seed": 3}))
  ours = GanSettings(learner="par_gan", epochs=9, seed=1, undefended=str(tmp_path))
  undefended = ours.undefended_run
  assert (undefended.epochs, undefended.batch_size, undefended.learner) == (
    7,
    5,
    "wgan_gp",
  )
  assert undefended.seed == 1  # records and subsets are those of this run
  (tmp_path / "config.json").write_text(json.dumps(recipe | {"defense": "mixup"}))
  with pytest.raises(ValueError, match="holds GANs trained with mixup"):
    _ = ours.undefended_run
