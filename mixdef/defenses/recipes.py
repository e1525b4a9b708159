"""Published combinations, each a chain of defenses in the catalogue.

`mixdef.parse` also accepts their names. The text of a recipe is that of its parts.
"""

from mixdef.core.chaining import chain
from mixdef.core.hooks import Defense
from mixdef.core.registry import recipe
from mixdef.defenses.architecture import group_norm, weight_standardization
from mixdef.defenses.augment import random_crop, random_flip
from mixdef.defenses.averaging import ema
from mixdef.defenses.labels import hamp_label
from mixdef.defenses.losses import hamp_entropy
from mixdef.defenses.privacy import dp_sgd
from mixdef.defenses.release import hamp_output


@recipe
def hamp(gamma: float = 0.95, coefficient: float = 0.001) -> Defense:
  """Combine the three parts of HAMP: labels, loss and released outputs.

  ```
  hamp_label(gamma) | hamp_entropy(coefficient, official_scale=True) | hamp_output
  ```

  | data set           | gamma      | coefficient |
  |--------------------|------------|-------------|
  | CIFAR-10           | 0.95       | 0.001       |
  | CIFAR-10, Aerni    | 0.99968377 | 0.005       |
  | CIFAR-100          | 0.5        | 0.005       |
  | Purchase           | 0.8        | 0.01        |
  | Texas              | 0.6        | 0.01        |
  | Location           | 0.5        | 0.001       |

  Args:
    gamma: argument of `hamp_label`, fraction of the largest entropy in [0, 1].
    coefficient: argument of `hamp_entropy`, at least 0, on the published scale: the
      official code's scale is on.

  Returns:
    The chain. Published learning rates belong to that scale: SGD at 1.0 on CIFAR-100;
    Aerni et al. use 0.5 with momentum 0.99, weight decay 1e-5 and batches of 64 for 200
    epochs, with a tenth of the rate at 60, 90 and 150, on CIFAR-10.

  Raises:
    ValueError: for an argument out of range.

  Guarantee: that of `hamp_output`: the label of every record is unchanged.

  Reference: Chen, Pattabiraman, Overconfidence is a Dangerous Thing: Mitigating
    Membership Inference Attacks by Enforcing Less Confident Prediction, 2024, arXiv
    2307.01610; Aerni, Zhang, Tramer, Evaluations of Machine Learning Privacy Defenses
    are Misleading, 2024, arXiv 2404.17399.

  >>> str(hamp(0.8, 0.01)).split("|")[:2]
  ['hamp_label(gamma=0.8)', 'hamp_entropy(coefficient=0.01, official_scale=True)']
  """
  return chain(
    hamp_label(gamma),
    hamp_entropy(coefficient, official_scale=True),
    hamp_output(),
  )


@recipe
def de_et_al(
  noise_multiplier: float = 1.0,
  clip: float = 1.0,
  *,
  epsilon: float | None = None,
  delta: float = 1e-5,
  multiplicity: int = 16,
) -> Defense:
  """Combine the techniques that make DP-SGD accurate on images, after De et al.

  ```
  random_crop(4, fill='reflect') | random_flip | group_norm | weight_standardization
    | dp_sgd(..., multiplicity=16) | ema(0.999)
  ```

  It requires images [H,W] or [H,W,C], and a network with the fields `norm` and
  `weight_standardization`, such as the residual ones of this library.

  Args:
    noise_multiplier: argument of `dp_sgd`, at least 0.
    clip: argument of `dp_sgd`, above 0.
    epsilon: argument of `dp_sgd`; determines the noise, so `noise_multiplier` must be
      omitted.
    delta: argument of `dp_sgd`, in (0, 1).
    multiplicity: argument of `dp_sgd`, number of views of a record that are clipped as
      one.

  Returns:
    The chain. Published for CIFAR-10 at epsilon 1: a wide ResNet-16-4, batches of 4096,
    875 steps of plain SGD at 2.0, noise 10. One step then costs 65,536 rows.

  Raises:
    ValueError: for an argument out of range; at `init`, for a network without one of
      the fields; at the first step, for records that are not images.

  Guarantee: that of `dp_sgd`; the other parts act on each record separately, on no
    record, or after the noise.

  Deviation: the order of normalisation and ReLU is the network's own. De et al. divide
    the clipped gradient by `clip`, which is 1 there: for another value, divide the
    learning rate by it. The noise is the default of `dp_sgd` where the paper does not
    specify it [ours].

  Reference: De, Berrada, Hayes, Smith, Balle, Unlocking High-Accuracy Differentially
    Private Image Classification through Scale, 2022, arXiv 2204.13650.

  >>> str(de_et_al(epsilon=8.0)).split("|")[-2:]
  ['dp_sgd(epsilon=8.0, multiplicity=16)', 'ema']
  """
  private = dp_sgd(
    noise_multiplier, clip, epsilon=epsilon, delta=delta, multiplicity=multiplicity
  )
  return chain(
    random_crop(4, fill="reflect"),
    random_flip(),
    group_norm(),
    weight_standardization(),
    private,
    ema(0.999),
  )
