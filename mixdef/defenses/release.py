"""Defenses that release less informative outputs."""

import jax
import jax.numpy as jnp
import numpy as np

from mixdef.core.check import check_count, check_number
from mixdef.core.hooks import Defense, defense
from mixdef.core.randomness import hash_rows, row_keys
from mixdef.core.traits import Traits

MASKED = float(np.log(np.finfo(np.float32).tiny))  # about -87.3, a finite log of 0


@defense(neutral="confidence_masking(temperature=1.0)")
def confidence_masking(top=None, *, decimals=None, temperature=None) -> Defense:
  """Release less of the prediction vector: the label, the top k, rounded or softened.

  ```
  temperature   p <- softmax(log p / temperature)
  top           p_k <- p_k / sum_top p for the `top` largest, 0 for the others
  decimals      p_k <- p_k rounded to `decimals` digits
  ```

  in this order. A released 0 is reported as log-probability -87.3. The label, which is
  the argmax with ties going to the first class, is unchanged for every record.

  Args:
    top: number of classes kept, at least 1; 1 releases only the label. It is 1 if no
      argument is given.
    decimals: number of digits kept, at least 0.
    temperature: above 0; more than 1 flattens, less than 1 sharpens.

  Returns:
    The defense.

  Raises:
    ValueError: for an argument out of range; at `init`, for a `top` above K.

  Guarantee: the label of every record is unchanged, so label-only attacks are exactly
    as strong as without it. Score-based attacks have less information, without a formal
    bound.

  Deviation: the kept classes are renormalized, so that `top=1` also hides the
    confidence. Rounded vectors are not renormalized: they may sum to less or more than
    1. The label keeps at least one unit, 10^-decimals; a class that rounding makes
    equal to the label is released one float below it [ours].

  Reference: Shokri et al., Membership Inference Attacks Against Machine Learning
    Models, 2017, arXiv 1610.05820.

  >>> str(confidence_masking(3, decimals=2))
  'confidence_masking(top=3, decimals=2)'
  """
  if top is None and decimals is None and temperature is None:
    top = 1
  if top is not None:
    check_count("confidence_masking: top", top)
  if decimals is not None:
    check_count("confidence_masking: decimals", decimals, 0, 30)
  if temperature is not None:
    check_number("confidence_masking: temperature", temperature, above=0)

  def init(key, spec):
    del key
    if top is not None and top > spec.num_classes:
      raise ValueError(
        f"confidence_masking: top is {top}, but the data have {spec.num_classes} "
        "classes: pass at most that many"
      )
    return ()

  def release_output(log_probs, state, ctx):
    del state, ctx
    classes = log_probs.shape[-1]
    label = jax.nn.one_hot(log_probs.argmax(-1), classes, dtype=bool)
    out = log_probs
    if temperature is not None:
      out = jax.nn.log_softmax(out / temperature)
    if top is not None:
      # Use the original: a temperature may round two log-probabilities to the same
      # value.
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


@defense
def hamp_output(pool=1000) -> Defense:
  """Release the ranking of the classes and nothing else of the prediction vector.

  ```
  log p_(j)  <-  the j-th largest log-probability of the model's answer to a random r
  ```

  where (j) is the class at rank j of the query. r is uniform over {0..254}/255 for
  images and Bernoulli(0.5) bits for flat records.

  Args:
    pool: number of random inputs for which outputs are computed once, after training; a
      record's output is replaced by that of one of them, selected by the model's key
      and a hash of the record. At least 1.

  Returns:
    The defense. Its state is the pool's outputs [pool,K], sorted.

  Raises:
    ValueError: for a `pool` out of range.

  Guarantee: the label of every record is unchanged, so label-only attacks are exactly
    as strong as without it. Apart from the ranking of the classes, a released vector
    depends only on the model, not on the record.

  Deviation: the official code uses a new random input for each query; here it is one of
    `pool`, and a repeated query has the same output [ours]. Equal log-probabilities are
    ranked by class, whereas the official code overwrites one with the other; a class
    that would be equal to the label is released one float below it. Any flat record is
    treated as bits, including standardized ones [ours].

  Reference: Chen, Pattabiraman, Overconfidence is a Dangerous Thing: Mitigating
    Membership Inference Attacks by Enforcing Less Confident Prediction, 2024, arXiv
    2307.01610.

  >>> str(hamp_output(100))
  'hamp_output(pool=100)'
  """
  check_count("hamp_output: pool", pool)

  def init(key, spec):
    del key
    return jnp.full((pool, spec.num_classes), -np.log(spec.num_classes))

  def finish(state, ctx):
    del state
    shape = (pool, *ctx.data.x.shape[1:])
    if len(shape) > 2:
      inputs = jax.random.randint(ctx.key, shape, 0, 255) / 255
    else:
      inputs = jax.random.bernoulli(ctx.key, 0.5, shape).astype(jnp.float32)
    return -jnp.sort(-ctx.predict(inputs))

  def release_output(log_probs, state, ctx):
    draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, pool))
    chosen = state[draw(row_keys(ctx.key, hash_rows(ctx.queries)))]
    rank = jnp.argsort(jnp.argsort(-log_probs))  # of equal classes, the first leads
    out = jnp.take_along_axis(chosen, rank, -1)
    label = jax.nn.one_hot(log_probs.argmax(-1), log_probs.shape[-1], dtype=bool)
    return _keep_label(out, label)

  return Defense(
    "",
    init=init,
    finish=finish,
    release_output=release_output,
    traits=Traits(post_processing=True),
  )


def _keep_label(log_probs, label):
  """Lower the classes that tie with the label by one float."""
  mine = jnp.where(label, log_probs, -jnp.inf).max(-1, keepdims=True)
  tied = ~label & (log_probs >= mine)
  return jnp.where(tied, jnp.nextafter(mine, -jnp.inf), log_probs)
