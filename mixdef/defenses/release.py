"""Coarser answers at release."""

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.defense import Defense, defense
from mixdef.defenses.validate import check_count, check_number

MASKED = float(np.log(np.finfo(np.float32).tiny))  # about -87.3, the finite log of "no"


@defense
def confidence_masking(top=None, *, decimals=None, temperature=None) -> Defense:
  """Release less of the prediction vector: the label, the top k, rounded or softened.

  ```
  temperature   p <- softmax(log p / temperature)
  top           p_k <- p_k / sum_top p for the `top` largest, 0 for the others
  decimals      p_k <- p_k rounded to `decimals` digits
  ```

  in this order. A released 0 is reported as log-probability -87.3. The label, argmax
  with ties to the first, is the same for every record.

  Args:
    top: number of classes kept, at least 1; 1 releases the label only. It is 1 when no
      argument is given.
    decimals: digits kept, at least 0.
    temperature: above 0; more than 1 flattens, less than 1 sharpens.

  Returns:
    The defense.

  Raises:
    ValueError: for an argument out of range; at `init`, for a `top` above K.

  Guarantee: the label of every record is unchanged, so label-only attacks are exactly
    as strong as without it. Score attacks see less; nothing is proven about them.

  Deviation: the kept classes are renormalised, so that `top=1` hides the confidence
    too. Rounded vectors are not: they may sum to less or more than 1. The label keeps
    at least one unit, 10^-decimals; a class that rounding makes equal to the label is
    released one float below it [ours].

  Reference: Shokri et al., Membership Inference Attacks Against Machine Learning
    Models, 2017, arXiv 1610.05820.

  >>> str(confidence_masking(3, decimals=2))
  'confidence_masking(top=3, decimals=2)'
  """
  if top is None and decimals is None and temperature is None:
    top = 1
  if top is not None:
    check_count("confidence_masking: top", top)
  if decimals is not None and decimals != 0:
    check_count("confidence_masking: decimals", decimals)
  if temperature is not None:
    check_number("confidence_masking: temperature", temperature, above=0)

  def init(key, spec):
    del key
    if top is not None and top > spec.num_classes:
      raise ValueError(
        f"confidence_masking: top is {top}, the data have {spec.num_classes} classes: "
        f"keep at most that many"
      )
    return ()

  def release_output(log_probs, state, ctx, x):
    del state, ctx, x
    classes = log_probs.shape[-1]
    label = jax.nn.one_hot(log_probs.argmax(-1), classes, dtype=bool)
    out = log_probs
    if temperature is not None:
      out = jax.nn.log_softmax(out / temperature)
    if top is not None:
      # Of the original: a temperature may round two log-probabilities to one.
      chosen = jax.lax.top_k(log_probs, top)[1]
      kept = jax.nn.one_hot(chosen, classes, dtype=bool).any(-2)
      out = jax.nn.log_softmax(jnp.where(kept, out, -jnp.inf))
    if decimals is not None:
      rounded = jnp.round(jnp.exp(out), decimals)
      unit = 10.0**-decimals
      rounded = jnp.where(label, jnp.maximum(rounded, unit), rounded)
      out = jnp.log(rounded)
    return _keep_label(jnp.maximum(out, MASKED), label)

  return Defense("", init=init, release_output=release_output)


def _keep_label(log_probs, label):
  """Lower the classes that tie with the label by one float."""
  mine = jnp.where(label, log_probs, -jnp.inf).max(-1, keepdims=True)
  tied = ~label & (log_probs >= mine)
  return jnp.where(tied, jnp.nextafter(mine, -jnp.inf), log_probs)
