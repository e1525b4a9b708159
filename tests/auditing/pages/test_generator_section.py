import base64
import dataclasses
import html
import io
import json
import pathlib
import re

import jsonschema
import numpy as np
import pytest
import report_case
from PIL import Image

from mixdef.auditing import Mosaic
from mixdef.auditing.pages.audit_page import render
from mixdef.auditing.pages.compare_page import render_comparison
from mixdef.auditing.pages.formatting import MISSING
from mixdef.auditing.pages.generator_section import scatter_chart
from mixdef.auditing.side_by_side import accuracy_of
from mixdef.contrib.mixup_theory.report import theory_report

SCHEMA = pathlib.Path(__file__).parents[3] / "docs" / "report.schema.json"
COLUMNS = 7


def theory():
  """Compare made-up losses: members' are lower, and mixup raises them."""
  rng = np.random.default_rng(0)
  members = rng.random((8, 60)) < 0.5
  undefended = rng.normal(size=members.shape) - 2 * members
  few = {"fixed": True, "resamples": 20, "permutations": 5}
  return theory_report(undefended, members, undefended + 1.5 * members, **few)


def utility():
  rows = [("fd_classifier", 31.41592, 0.25, 1.5), ("downstream_accuracy", 0.9, 0.02, 1)]
  return [
    {"name": name, "value": value, "spread": spread, "real": real, "note": "a remark"}
    for name, value, spread, real in rows
  ]


def columns():
  rng = np.random.default_rng(0)
  found = {}
  for name in ("dwp", "dwpre"):
    real, synthetic = rng.random((2, COLUMNS)).tolist()
    found[name] = {"real": real, "synthetic": synthetic}
    found[name] |= {"correlation": 0.912, "rmse": 0.034}
  return found


def cell(metrics, query, references):
  return metrics | {"query": query, "references": references, "num_targets": 16}


def a_mosaic():
  x = np.linspace(0, 1, 6).reshape(2, 3)
  return Mosaic("samples", "Samples", "How to read it.", x, scale=4)


@pytest.fixture
def case():
  """A report on generators, the rest of what a page needs, and one picture."""
  report, _, members, audited, _ = report_case.make()
  report |= {"classes": [], "budget": {}}  # charts that another test looks at
  names = ("lira_online", "lira_offline", "rmia", "loss")
  pairs = [(q, r) for q in ("single", "mixed") for r in ("natural", "mixup")]
  report["generator"] = {
    "utility": utility(),
    "columns": {},
    "adaptive": [
      cell(report["attacks"][name], *pair)
      for name, pair in zip(names, pairs, strict=True)
    ],
    "theory": theory(),
  }
  return report, members, audited


def written(report, members, audited, pictures=()):
  """Return the page without the charts of scores, which take a second to draw."""
  return render(report, scores={}, members=members, audited=audited, pictures=pictures)


def section(page, name):
  return re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)[1]


def text(part):
  return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", part)).split())


def lines(part):
  """Return the cells of every row of the bodies of the tables."""
  found = []
  for body in re.findall(r"<tbody>(.*?)</tbody>", part, re.DOTALL):
    for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL):
      cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
      found.append([text(cell) for cell in cells])
  return found


def test_the_example_follows_the_schema(case):
  case[0]["generator"]["columns"] = columns()
  report = json.loads(json.dumps(case[0], allow_nan=False))
  schema = json.loads(SCHEMA.read_text())
  jsonschema.validate(report, schema, jsonschema.Draft202012Validator)
  report["generator"]["adaptive"][0]["query"] = "shouted"
  with pytest.raises(jsonschema.ValidationError, match="shouted"):
    jsonschema.validate(report, schema, jsonschema.Draft202012Validator)


def test_utility_stands_beside_that_of_real_records(case):
  rows = lines(section(written(*case), "samples"))
  assert rows == [
    ["fd classifier", "31.42 ±0.25", "1.5", "a remark"],
    ["downstream accuracy", "0.9 ±0.02", "1", "a remark"],
  ]


def test_pictures_are_in_the_page(case):
  page = section(written(*case, pictures=[a_mosaic()]), "samples")
  (uri,) = re.findall(r'<img src="([^"]+)"', page)
  assert "Samples. How to read it." in text(page)
  kind, _, data = uri.partition(",")
  assert kind == "data:image/png;base64"
  seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
  np.testing.assert_array_equal(
    seen, np.rint(255 * a_mosaic().x.repeat(4, 0).repeat(4, 1))
  )


def test_every_adaptive_attack_is_a_row(case):
  report = case[0]
  report["generator"]["adaptive"][3]["tpr"]["0.001"]["resolvable"] = False
  rows = lines(section(written(*case), "adaptive"))
  assert [row[:2] for row in rows] == [
    ["the record", "undefended"],
    ["the record", "trained with the target's defense"],
    ["mixtures of two records", "undefended"],
    ["mixtures of two records", "trained with the target's defense"],
  ]
  for row, given in zip(rows, report["generator"]["adaptive"], strict=True):
    low, high = given["auc_ci"]
    assert row[2] == f"{given['auc']:.3f} {low:.3f} to {high:.3f}"
    members, others = given["num_members"], given["num_nonmembers"]
    assert row[5:] == [f"{members:,} / {others:,}", "16"]
  assert rows[3][3] == "not resolvable"


def test_the_theory_names_the_measured_auc_beside_its_bound(case):
  given = case[0]["generator"]["theory"]
  part = section(written(*case), "theory")
  rows = lines(part)
  assert [row[0] for row in rows] == ["Without the defense", "With the defense"]
  for row, name in zip(rows, ("natural", "mixup"), strict=True):
    side = given[name]
    assert row[3] == f"{side['total_variation']['threshold']:.3f}"
    assert row[4] == f"{side['auc_bound']['threshold']:.3f}"
    assert row[5].startswith(f"{side['auc']:.3f} ")
    assert float(row[5].split()[0]) <= float(row[4])
  falls = [f"{100 * side['share']:.3g}%" for side in given["proposition_1"].values()]
  assert f"lowers Λ for {falls[0]} of the members" in text(part)
  assert f"and for {falls[1]} of the non-members" in text(part)


def test_columns_of_a_table_are_dots_on_two_charts(case):
  case[0]["generator"]["columns"] = columns()
  part = section(written(*case), "samples")
  charts = re.findall(r'<svg class="chart".*?</svg>', part, re.DOTALL)
  assert ["real: share of ones" in chart for chart in charts] == [True, False]
  ids = re.findall(r'\bid="([^"]+)"', part)
  assert len(ids) == len(set(ids))
  assert text(part).count("Correlation 0.912, root mean square error 0.034") == 2


def test_every_column_is_a_dot():
  one = scatter_chart([0.5], [0.5], axis="share", name="few")
  three = scatter_chart([0.5, 0.4, 0.3], [0.5, 0.1, 0.3], axis="share", name="few")
  assert three.count("<use") - one.count("<use") == 2
  assert "synthetic: share" in one


def test_all_text_is_escaped(case):
  report, *rest = case
  evil = '<script>alert("x")</script>'
  for row in report["generator"]["utility"]:
    row |= {"name": evil, "note": evil}
  picture = dataclasses.replace(a_mosaic(), title=evil, caption=evil)
  page = written(report, *rest, pictures=[picture])
  assert "<script" not in page
  assert text(section(page, "samples")).count("alert(") == 6


def present(page):
  return set(re.findall(r'<section id="([^"]+)"', page))


@pytest.mark.parametrize(
  ("left", "shown"),
  [
    ((), set()),
    (("utility",), {"samples"}),
    (("adaptive",), {"adaptive"}),
    (("theory",), {"theory"}),
  ],
)
def test_sections_without_content_are_left_out(case, left, shown):
  report, *rest = case
  empty = {"utility": [], "columns": {}, "adaptive": [], "theory": None}
  kept = {name: report["generator"][name] for name in left}
  report["generator"] = {**empty, **kept}
  page = written(report, *rest)
  ours = {"samples", "adaptive", "theory"}
  assert present(page) & ours == shown
  assert set(re.findall('<a href="#([^"]+)"', page)) & ours == shown
  if not left:
    assert present(written(report, *rest, pictures=[a_mosaic()])) & ours == {"samples"}


def test_a_report_on_classifiers_has_no_part_on_generators(case):
  report, *rest = case
  report["generator"] = None
  without = written(report, *rest)
  assert not present(without) & {"samples", "adaptive", "theory"}
  del report["generator"]  # as reports were before there were any
  assert written(report, *rest) == without


def test_missing_metrics_are_dashes(case):
  report, *rest = case
  part = report["generator"]
  for row in part["utility"]:
    row |= {"value": None, "spread": None, "real": None}
  for row in part["adaptive"]:
    row |= {"auc": None, "auc_ci": None}
  part["columns"] = {"dwp": columns()["dwp"] | {"correlation": None, "rmse": None}}
  for side in ("natural", "mixup"):
    part["theory"][side] |= {"auc": None, "auc_ci": [None, None]}
  part["theory"]["proposition_1"]["members"] |= {"share": None, "ci": None}
  page = written(report, *rest)
  assert lines(section(page, "samples"))[0] == [
    "fd classifier",
    MISSING,
    MISSING,
    "a remark",
  ]
  assert {row[2] for row in lines(section(page, "adaptive"))} == {MISSING}
  assert {row[5] for row in lines(section(page, "theory"))} == {MISSING}
  everything = " ".join(
    text(section(page, name)) for name in ("samples", "adaptive", "theory")
  )
  assert not re.search(r"\b(nan|none|null)\b", everything, re.I)
  assert f"Correlation {MISSING}" in everything


def test_generators_are_compared_by_what_their_samples_teach(case):
  report = case[0]
  report["setting"].pop("test_accuracy")
  report["dp_baseline"] = None
  assert accuracy_of(report) == (0.9, 0.02)
  report["attacks"] = {
    "lira_gan_discriminator": report["attacks"]["lira_online"] | {"auc": 0.789}
  }
  page = render_comparison({"gan": report, "other": report}, [])
  assert "90%<small>± 2%" in page
  assert "0.789" in lines(section(page, "audits"))[0][3]
  assert 'id="trade-off"' in page
  # A table's generators are compared without an accuracy, so without a chart of it.
  report["generator"]["utility"] = []
  assert accuracy_of(report) == (None, None)
  page = render_comparison({"gan": report}, [])
  assert 'id="trade-off"' not in page
  assert lines(section(page, "audits"))[0][1] == MISSING


def test_the_accuracy_of_a_classifier_is_its_own(case):
  report = case[0]
  assert report["generator"]["utility"][1]["value"] == 0.9
  assert accuracy_of(report) == (0.9713, 0.0042)
  assert accuracy_of({"setting": {}}) == (None, None)
