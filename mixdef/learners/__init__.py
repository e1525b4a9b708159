"""Learners whose defense is their structure: several networks on disjoint members.

`CATALOGUE` maps canonical names to factories. `model_stacking` takes two networks,
`ban_mpr` one; both take the optimizer next.
"""

from mixdef.learners.born_again import ban_mpr
from mixdef.learners.stacking import model_stacking

CATALOGUE = {factory.__name__: factory for factory in (ban_mpr, model_stacking)}

__all__ = ["CATALOGUE", "ban_mpr", "model_stacking"]
