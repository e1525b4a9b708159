"""A report with every section, made of random numbers instead of trained models."""

import copy
import functools

import numpy as np

from mixdef.auditing.levels import strongest
from mixdef.metrics import summarize

_FAMILIES = {
  "lira_online": ("reference", 1.4),
  "lira_offline": ("reference", 1.1),
  "rmia": ("reference", 1.3),
  "loss": ("threshold", 0.45),
  "modified_entropy": ("threshold", 0.5),
  "nn_top3": ("trained", 0.4),
  "gap": ("label_only", 0.15),
  "gradient_norm": ("white_box", 0.55),
}


def make(models=16, records=300, seed=0):
  """Return report, scores by name [S, N], members [S, N], audited [N], x [N, 8, 8, 1].

  Whoever asks may change what is returned: it is a copy of what was computed once.
  """
  return copy.deepcopy(_made(models, records, seed))


@functools.cache
def _made(models, records, seed):
  rng = np.random.default_rng(seed)
  members = rng.random((models, records)) < 0.5
  audited = np.arange(records) >= 20
  exposure = rng.gamma(1.0, 1.0, records)
  shared = rng.normal(size=members.shape)
  scores, attacks = {}, {}
  for name, (family, strength) in _FAMILIES.items():
    noise = 0.8 * shared + 0.6 * rng.normal(size=members.shape)
    scores[name] = noise + strength * exposure * members
    attacks[name] = attack(family, scores[name], members, audited)
  scores["gap"] = np.round(scores["gap"])
  scores["gradient_norm"][1:] = np.nan
  attacks["gradient_norm"] = attack(
    "white_box", scores["gradient_norm"][:1], members[:1], audited
  )
  attacks["gap"] |= {"degenerate": True, "note": "One score for nearly all records."}
  return (
    _report(attacks, audited),
    scores,
    members,
    audited,
    rng.random((records, 8, 8, 1)),
  )


def attack(family, scores, members, audited):
  metrics = summarize(scores, members, audited, resamples=20)
  several = len(scores) > 1
  calibrated = {"0.01": {"tpr": 0.11, "fpr": 0.012, "fpr_spread": 0.004}}
  return metrics.to_json() | {
    "family": family,
    "about": "Score a record by what this attack reads.",
    "num_targets": len(scores),
    "positive_rate": 0.41 if several else None,
    "degenerate": False,
    "calibrated": calibrated if several else None,
    "ppv": {"0.01": 0.0917, "0.1": 0.526, "0.5": 0.909},
    "ppv_fpr": 0.01,
    "seconds": 0.7,
    "note": "",
  }


def _point(models, auc):
  return {
    "num_models": models,
    "auc": auc,
    "auc_ci": [auc - 0.02, auc + 0.02],
    "tpr": auc - 0.5,
    "tpr_ci": [auc - 0.55, auc - 0.45],
    "resolvable": models > 4,
    "fpr": 0.01,
  }


def _report(attacks, audited):
  references = {name: attacks[name] for name in ("lira_online", "rmia")}
  quantiles = {"0.5": 0.02, "0.9": 0.31, "0.99": 0.94, "1": 1.0}
  canaries = {
    "kind": "mislabelled",
    "count": 30,
    "num_always": 0,
    "attacks": references,
    "strongest": strongest(references),
    "exposed_fpr": 0.02,
    "exposed_quantiles": quantiles,
    "epsilon": {
      "attack": "lira_online",
      "lower_bound": 1.234,
      "ceiling": 3.465,
      "guesses": 6,
      "delta": 1e-5,
      "confidence": 0.95,
    },
  }
  weaker = {
    name: row | {"auc": 0.53, "auc_ci": [0.51, 0.55]}
    for name, row in references.items()
  }
  return {
    "schema": 1,
    "title": "digits, adamixup",
    "verdict": {
      "level": "moderate",
      "headline": (
        "An attacker who trains similar models finds one in ten training records with "
        "one false positive per hundred."
      ),
      "who": [
        "One record in a hundred is found in 94% of the models trained on it.",
        "Classes 8 and 1 leak most.",
      ],
      "how_sure": [
        "16 models, 280 audited records, leave-one-out.",
        "0.1% false alarms cannot be resolved with so few non-members.",
      ],
      "compared": [
        "On the audited records this model leaks more than DP-SGD of matched accuracy."
      ],
      "what_to_do": [
        "Do not publish the confidences of this model.",
        "Train with dp_sgd where the exposed records must not be found.",
      ],
    },
    "target": {
      "model": None,
      "num_members": None,
      "num_nonmembers": None,
      "num_references": None,
      "text": "the recipe, all 16 models pooled: not one model",
    },
    "setting": {
      "dataset": "digits",
      "defense": "adamixup(end=0.1)|weight_decay(0.0005)",
      "model": "cnn",
      "optimizer": "adam",
      "learning_rate": 1e-3,
      "epochs": 50,
      "batch_size": 128,
      "seed": 0,
      "num_records": len(audited),
      "num_audited": int(audited.sum()),
      "num_population": 200,
      "num_models": 16,
      "design": "bernoulli",
      "queries": 1,
      "train_accuracy": 0.998,
      "test_accuracy": 0.9713,
      "test_accuracy_std": 0.0042,
      "gap_attack": 0.513,
      "epsilon": None,
      "delta": None,
      "strategy": "vmap",
      "training_seconds": 71.2,
      "attack_seconds": 9.4,
      "versions": {"jax": "0.10.2", "mixdef": "0.1.0"},
      "devices": ["cpu"],
      "commit": "0123abcd",
      "command": "mixdef audit --dataset=digits --defense=adamixup",
    },
    "attacks": attacks,
    "strongest": strongest(attacks),
    "not_run": {
      "quantile_regression": "no population records; pass population=500",
      "augmentation": "the records are not pictures",
    },
    "budget": {
      "lira_online": [_point(4, 0.6), _point(8, 0.66), _point(16, 0.7)],
      "rmia": [_point(4, 0.63), _point(8, 0.65), _point(16, 0.68)],
    },
    "records": {
      "fpr": 0.01,
      "attack": "lira_online",
      "quantiles": quantiles,
      "exposed": [
        {
          "rank": rank + 1,
          "index": 20 + 7 * rank,
          "id": 1020 + 7 * rank,
          "label": rank % 10,
          "rate": 1 - rank / 40,
          "score": 9.5 - rank / 3,
          "times": 8,
        }
        for rank in range(12)
      ],
    },
    "classes": [
      {
        "label": str(label),
        "num_records": 28,
        "auc": 0.6 + label / 60,
        "auc_ci": [0.55 + label / 60, 0.65 + label / 60],
      }
      for label in range(10)
    ],
    "canaries": canaries,
    "dp_baseline": {
      "recipe": "automatic_clipping",
      "noise_multiplier": 0.4,
      "epsilon": 31.7,
      "delta": 1e-4,
      "learning_rate": 0.5,
      "test_accuracy": 0.942,
      "defense_test_accuracy": 0.9713,
      "candidates": [
        {
          "recipe": recipe,
          "noise_multiplier": noise,
          "learning_rate": 0.5,
          "test_accuracy": 0.95 - noise / 50,
          "epsilon": 12.7 / noise,
        }
        for recipe, noise in (("sgd", 0.2), ("automatic_clipping", 0.4))
      ],
      "attacks": weaker,
      "canaries": None,
      "paired": [
        {
          "records": "audited",
          "attack": "lira_online",
          "auc": 0.71,
          "dp_attack": "rmia",
          "dp_auc": 0.53,
          "difference": 0.18,
          "ci": [0.15, 0.21],
        }
      ],
      "note": "Chosen for its accuracy, not for its epsilon.",
    },
    "limits": [
      "An attacker with more models than 16 may find more.",
      "It says nothing about records outside this data set.",
    ],
  }
