"""Audit a run of DP-SGD by the canaries that were trained with it."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mixdef.defenses import accounting
from mixdef.defenses.clipping import gradient_noise
from mixdef.defenses.gradient_canaries import Canaries
from mixdef.metrics.canary_audit import CanaryAudit, audit_canaries
from mixdef.training import Run


def self_audit(run: Run, *, significance: float = 0.05) -> CanaryAudit:
  """Compare what the canaries of a run show with the epsilon that it states.

  Args:
    run: trained with `dp_sgd(canaries=m)`.
    significance: of each lower bound of epsilon, in (0, 1).

  Returns:
    The claim, its exact test, three lower bounds and the moments of the noise; its
    `failures` are the reasons why the claim is refuted, and empty if it stands.

  Raises:
    ValueError: for a run without canaries, and for observations that are not finite.

  Guarantee: `audit_canaries` says what each number means. The observations that it
    reads are not private: with the model, they reveal the gradients of the records at
    the canaries' coordinates. They stay in the state of the run and its folder. Publish
    the bounds of a run whose model is thrown away, or keep them with the trainer.
  """
  state = _audited(run)
  if state is None:
    raise ValueError(
      "the run has no canaries: train it with dp_sgd(canaries=1000) or another number"
    )
  canaries = Canaries(*map(np.asarray, state["canaries"]))
  training = {
    "sampling_probability": float(state["sampling_probability"]),
    "steps": int(state["steps"]),
  }
  noise = own = float(state["noise_multiplier"])
  if "clip" in state:  # a part of the noise is that of the count
    own = float(gradient_noise(noise, float(state["batch_size"])))
  return audit_canaries(
    canaries.observed,
    canaries.members,
    canaries.leaves,
    noise_multiplier=own,
    sampling_probability=training["sampling_probability"],
    steps_per_epoch=run.plan.steps_per_epoch,
    epsilon=float(state["epsilon"]),
    advantage=accounting.largest_advantage(noise, **training),
    delta=float(state["delta"]),
    significance=significance,
  )


def self_audit_facts(run: Run | None) -> dict[str, Any] | None:
  """Return the self-audit of a run as JSON values, or None if it has no canaries."""
  if run is None or _audited(run) is None:
    return None
  return self_audit(run).to_json()


def contradiction(facts: Mapping[str, Any] | None) -> str:
  """Return how a self-audit contradicts the stated epsilon, or "" if it does not."""
  if facts is None or not facts["failures"]:
    return ""
  return (
    f"The {facts['canaries']:,} canaries of this run contradict its epsilon: "
    f"{'; '.join(facts['failures'])}. The guarantee does not hold as stated."
  )


def summary(facts: Mapping[str, Any]) -> str:
  """Return a self-audit in one sentence."""
  claimed = math.inf if facts["claimed"] is None else facts["claimed"]
  return contradiction(facts) or (
    f"The {facts['canaries']:,} canaries of this run show that epsilon is at least "
    f"{facts['epsilon_one_run']:.3g}, or {facts['epsilon_order_statistics']:.3g} if "
    f"they are independent and Gaussian; {claimed:.3g} is stated, and nothing "
    f"contradicts it (exact test: p = {facts['p']:.2g})."
  )


def _audited(run):
  """Return the state of the part that has canaries, or None."""
  for state in run.state.defense.values():
    if isinstance(state, dict) and "canaries" in state:
      critics = state["canaries"].members.ndim - 1  # a GAN has one, on a leading axis
      return jax.tree.map(lambda leaf: leaf[0], state) if critics else state
  return None
