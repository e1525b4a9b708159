"""Maps of the label rows."""

from mixdef.defense import Defense, defense
from mixdef.defenses.validate import check_number


@defense
def label_smoothing(epsilon=0.1) -> Defense:
  """Mix every label row with the uniform distribution.

  ```
  y' = (1 - epsilon) y + epsilon / K
  ```

  Args:
    epsilon: share of the uniform distribution in [0, 1]; 0 changes nothing. 0.1 is the
      usual value; Kaya and Dumitras sweep 0.01..0.995.

  Returns:
    The defense. It acts after mixing, with which it commutes.

  Guarantee: none; smoothing can make membership easier to infer.

  Reference: Szegedy et al., Rethinking the Inception Architecture for Computer Vision,
    2016, arXiv 1512.00567; Kaya, Dumitras, When Does Data Augmentation Help With
    Membership Inference Attacks?, 2021.

  >>> str(label_smoothing(0.2))
  'label_smoothing(epsilon=0.2)'
  """
  check_number("label_smoothing: epsilon", epsilon, 0, 1)

  def batch(batch, state, ctx):
    del state, ctx
    smooth = (1 - epsilon) * batch.y + epsilon / batch.y.shape[-1]
    return batch._replace(y=smooth)

  return Defense("", batch=batch, traits=frozenset({"label"}))
