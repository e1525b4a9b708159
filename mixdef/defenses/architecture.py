"""Defenses that set fields of the network."""

from mixdef.core.check import check_number, is_static
from mixdef.core.hooks import Defense, defense


@defense(neutral="dropout(0.0)")
def dropout(rate=0.5) -> Defense:
  """Drop units at random in training, by setting the module's field `dropout`.

  ```
  h' = h m / (1 - rate),   m ~ Bernoulli(1 - rate) a unit
  ```

  Args:
    rate: fraction dropped, in [0, 1); 0.5 as in AdaMixup's comparison. Sweep 0.05..0.8.

  Returns:
    The defense. `classifier` rejects a module without the field. Masks differ per step
    and per model; inference drops nothing.

  Guarantee: none.

  Reference: Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting, 2014; Salem et al., ML-Leaks, 2019, arXiv 1806.01246.

  >>> dropout(0.3).model
  {'dropout': 0.3}
  """
  _check_rate("dropout", rate)
  return Defense("", model={"dropout": rate})


@defense(neutral="spatial_dropout(0.0)")
def spatial_dropout(rate=0.1) -> Defense:
  """Drop whole channels in training, by setting the module's field `spatial_dropout`.

  ```
  h'[:, :, c] = h[:, :, c] m_c / (1 - rate),   m_c ~ Bernoulli(1 - rate) a channel
  ```

  Args:
    rate: fraction dropped, in [0, 1). The default is mild [ours]. Sweep 0.05..0.8.

  Returns:
    The defense. `classifier` rejects a module without the field.

  Guarantee: none.

  Deviation: the rates of the paper that evaluates it as a defense are not known.

  Reference: Tompson et al., Efficient Object Localization Using Convolutional Networks,
    2015, arXiv 1411.4280; Kaya, Hong, Dumitras, 2020, arXiv 2006.05336.

  >>> spatial_dropout().model
  {'spatial_dropout': 0.1}
  """
  _check_rate("spatial_dropout", rate)
  return Defense("", model={"spatial_dropout": rate})


@defense
def group_norm() -> Defense:
  """Normalize within each record, by setting the module's field `norm` to "group".

  ```
  h' = scale (h - mean_g) / sqrt(var_g + 1e-6) + bias      a group g of channels
  ```

  The mean and variance are those of one record over the map and the channels of the
  group, so no record affects another, unlike with batch statistics. The residual and
  dense networks of this library already use it. Networks built with another norm need
  this change for per-example clipping and vmapped shadow models.

  Returns:
    The defense. `classifier` rejects a module without the field.

  Guarantee: none by itself.

  Deviation: the groups are the largest divisor of the channels up to 16, so 16 where it
    divides, as De et al. have.

  Reference: Wu, He, Group Normalization, 2018, arXiv 1803.08494; De, Berrada, Hayes,
    Smith, Balle, Unlocking High-Accuracy Differentially Private Image Classification
    through Scale, 2022, arXiv 2204.13650.

  >>> group_norm().model
  {'norm': 'group'}
  """
  return Defense("", model={"norm": "group"})


@defense
def weight_standardization() -> Defense:
  """Standardize convolution kernels, by setting the field `weight_standardization`.

  ```
  w' = (w - mean w) / sqrt(max(I var w, 1e-4))     for each output channel, I inputs
  ```

  Training updates w, but only w' is used. It is a function of parameters alone, so
  per-example clipping bounds a record's influence as before.

  Returns:
    The defense. `classifier` rejects a module without the field.

  Guarantee: none by itself.

  Deviation: the scaled form, without a learned gain: `mixdef.kernels.standardized`. The
    order of normalisation and ReLU stays the network's own, where De et al. put ReLU
    first.

  Reference: Qiao, Wang, Liu, Shen, Yuille, Micro-Batch Training with Batch-Channel
    Normalization and Weight Standardization, 2019, arXiv 1903.10520; De, Berrada,
    Hayes, Smith, Balle, Unlocking High-Accuracy Differentially Private Image
    Classification through Scale, 2022, arXiv 2204.13650.

  >>> weight_standardization().model
  {'weight_standardization': True}
  """
  return Defense("", model={"weight_standardization": True})


def _check_rate(name, rate):
  check_number(f"{name}: rate", rate, 0, 1)
  if not is_static(rate):
    raise ValueError(
      f"{name}: rate is traced, but a network is built before tracing; pass a plain "
      "number"
    )
  if rate == 1:
    raise ValueError(f"{name}: rate is 1, which drops all units; pass less than 1")
