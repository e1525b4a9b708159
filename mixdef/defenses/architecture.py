"""Defenses that are settings of the network."""

from mixdef.defense import Defense, defense
from mixdef.defenses.validate import check_number, is_static


@defense
def dropout(rate=0.5) -> Defense:
  """Drop units at random in training: sets the module's field `dropout`.

  ```
  h' = h m / (1 - rate),   m ~ Bernoulli(1 - rate) a unit
  ```

  Args:
    rate: share dropped, in [0, 1); 0.5 as in AdaMixup's comparison. Sweep 0.05..0.8.

  Returns:
    The defense. `classifier` refuses a module without the field. Masks differ per step
    and per model; inference drops nothing.

  Guarantee: none.

  Reference: Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting, 2014; Salem et al., ML-Leaks, 2019, arXiv 1806.01246.

  >>> dropout(0.3).model
  {'dropout': 0.3}
  """
  _check_rate("dropout", rate)
  return Defense("", model={"dropout": rate})


@defense
def spatial_dropout(rate=0.1) -> Defense:
  """Drop whole channels in training: sets the module's field `spatial_dropout`.

  ```
  h'[:, :, c] = h[:, :, c] m_c / (1 - rate),   m_c ~ Bernoulli(1 - rate) a channel
  ```

  Args:
    rate: share dropped, in [0, 1). The default is mild [ours]. Sweep 0.05..0.8.

  Returns:
    The defense. `classifier` refuses a module without the field.

  Guarantee: none.

  Deviation: the rates of the paper that evaluates it as a defense are not known.

  Reference: Tompson et al., Efficient Object Localization Using Convolutional Networks,
    2015, arXiv 1411.4280; Kaya, Hong, Dumitras, 2020, arXiv 2006.05336.

  >>> spatial_dropout().model
  {'spatial_dropout': 0.1}
  """
  _check_rate("spatial_dropout", rate)
  return Defense("", model={"spatial_dropout": rate})


def _check_rate(name, rate):
  check_number(f"{name}: rate", rate, 0, 1)
  if not is_static(rate):
    raise ValueError(f"{name}: rate is traced; a network is built with a plain number")
  if rate == 1:
    raise ValueError(f"{name}: rate is 1, which drops everything; give less than 1")
