import numpy as np
import optax
import pytest

import mixdef
from mixdef import auditing
from mixdef.auditing import sweep_tables
from mixdef.data.synthetic import synthetic_memorize


def swept(folder, defenses, **options):
  data = synthetic_memorize().select(np.arange(60))

  def learner(defense):
    return mixdef.classifier(
      mixdef.models.mlp(4, num_classes=4), optax.adam(1e-2), defense
    )

  given = {"attacks": "gap, loss_threshold", "strategy": "vmap", "epochs": 1}
  members = mixdef.subsets(data, 2, seed=0)
  return auditing.sweep_defenses(
    learner, data, defenses, members, out=folder, **{**given, **options}
  )


@pytest.mark.slow
@pytest.mark.slow
def test_a_sweep_without_the_command_line(tmp_path):
  first = swept(tmp_path, "none; label_smoothing([0.2, 0.6])", noted={"by": "me"})
  assert [cell["defense"] for cell in first] == [
    *("none", "label_smoothing(epsilon=0.2)", "label_smoothing(epsilon=0.6)")
  ]
  for cell in first:
    assert set(cell["attacks"]) == {"gap", "loss_threshold"}
    assert (cell["num_shadows"], cell["seed"], cell["by"]) == (2, 0, "me")
  assert sweep_tables.markdown(first) == (tmp_path / "sweep.md").read_text()
  more = swept(tmp_path, "l1; none", strategy="scan")
  assert [cell["defense"] for cell in more[:2]] == ["l1", "none"]
  assert len(more) == 4
  assert more[1]["seconds"] == first[0]["seconds"]
  with pytest.raises(ValueError, match="epochs was 1, now 2"):
    swept(tmp_path, "none", epochs=2)
  with pytest.raises(ValueError, match="attacks was"):
    swept(tmp_path, "none", attacks="gap")


def test_defenses_and_attacks_are_checked_before_anything_is_written(tmp_path):
  with pytest.raises(ValueError, match="contains no defense"):
    swept(tmp_path / "run", " ; ")
  with pytest.raises(ValueError, match="there is no attack 'gapp'"):
    swept(tmp_path / "run", "none", attacks="gapp")
  assert not (tmp_path / "run").exists()
