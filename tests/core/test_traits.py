import itertools

import pytest

from mixdef.core import Defense, Traits, chain, defense
from mixdef.core.traits import turn, union
from mixdef.defenses import CATALOGUE

SOME = (
  Traits(),
  Traits(order="label", couples="records", opaque=True),
  Traits(order="table", couples="batch", needs_auxiliary=True),
  Traits(order="mix", per_example=True, no_guarantee=True, poisson=True),
)


def test_a_misspelt_trait_is_an_error():
  with pytest.raises(TypeError, match="post_procesing"):
    Traits(**{"post_procesing": True})


WRONG = [
  (Traits(order="mx"), "mine: order is 'mx'; choose from 'table', 'augment', 'mix',"),
  (Traits(couples="whole_batch"), "mine: couples is 'whole_batch'; choose from"),
  (Traits(couples=None), "mine: couples is None; choose from"),
  (Traits(critic="yes"), "mine: critic is 'yes'; pass True or False"),
  (frozenset({"mix"}), r"traits is frozenset\({'mix'}\); pass mixdef.Traits\(...\)"),
]


@pytest.mark.parametrize(("traits", "reason"), WRONG)
def test_a_value_that_no_trait_has_is_refused_when_the_part_is_made(traits, reason):
  with pytest.raises(ValueError, match=reason):
    chain(Defense("mine", traits=traits))

  @defense
  def mine():
    return Defense("", traits=traits)

  with pytest.raises(ValueError, match=reason):
    mine()


def test_a_chain_has_all_flags_the_earliest_order_and_the_strongest_coupling():
  assert union(SOME) == Traits(
    order="table",
    couples="batch",
    needs_auxiliary=True,
    per_example=True,
    no_guarantee=True,
    poisson=True,
    opaque=True,
  )
  assert union(SOME[:2]) == SOME[1]
  assert union([]) == Traits()


def test_the_union_is_associative_and_commutative_and_keeps_one():
  for a, b, c in itertools.product(SOME, repeat=3):
    assert union([union([a, b]), c]) == union([a, union([b, c])])
    assert union([a, b]) == union([b, a])
  for one in SOME:
    assert union([one]) == union([one, one]) == union([Traits(), one]) == one


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_a_chain_of_one_part_has_its_traits(name):
  part = CATALOGUE[name]()
  assert chain(part).traits == part.traits
  hash(part.traits)  # a learner keys the cache of programs


def test_every_order_has_a_turn_and_none_is_that_of_augment():
  orders = ("table", "augment", "mix", "label")
  assert [turn(Traits(order=one)) for one in orders] == [0, 1, 2, 3]
  assert turn(Traits()) == 1
