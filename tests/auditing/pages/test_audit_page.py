import base64
import dataclasses
import io
import json
import pathlib
import re
from html.parser import HTMLParser

import jsonschema
import numpy as np
import pytest
import report_case
from PIL import Image

from mixdef.auditing.pages.audit_page import render
from mixdef.auditing.pages.charts import class_chart, histogram_chart, roc_chart
from mixdef.auditing.pages.compare_page import render_comparison
from mixdef.auditing.pages.formatting import MISSING
from mixdef.auditing.pages.pictures import record_pictures
from mixdef.auditing.pages.roc_bands import roc_band
from mixdef.data import Column, Schema
from mixdef.metrics import bootstrap_records

SCHEMA = pathlib.Path(__file__).parents[3] / "docs" / "report.schema.json"
_VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
  """Text by section, ids, attributes and balance of a page."""

  def __init__(self, text):
    super().__init__()
    self.sections, self.ids, self.tags, self._open = {"": ""}, [], [], []
    self._section = ""
    self.feed(text)
    assert not self._open
    self.sections = {id: " ".join(text.split()) for id, text in self.sections.items()}

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append((tag, attrs))
    if "id" in attrs:
      self.ids.append(attrs["id"])
    if tag == "section":
      self._section = attrs["id"]
      self.sections[self._section] = ""
    if tag not in _VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in _VOID:
      self.handle_endtag(tag)

  def handle_endtag(self, tag):
    assert self._open.pop() == tag
    if tag == "section":
      self._section = ""

  def handle_data(self, data):
    if not self._open or self._open[-1] not in ("style", "script"):
      self.sections[self._section] += " ".join(data.split()) + " "

  @property
  def text(self):
    return " ".join(self.sections.values())


def written(report, scores, members, audited, x=None):
  return render(report, scores=scores, members=members, audited=audited, x=x)


def words(report, scores, members, audited, x=None):
  """Return the page without the charts of scores, which take a second to draw."""
  return Page(render(report, scores={}, members=members, audited=audited, x=x))


@pytest.fixture(scope="module")
def page():
  return written(*report_case.make())


@pytest.fixture
def case():
  return report_case.make()


def validate(report):
  schema = json.loads(SCHEMA.read_text())
  jsonschema.Draft202012Validator.check_schema(schema)
  jsonschema.validate(report, schema, jsonschema.Draft202012Validator)


def test_example_follows_the_schema(case):
  report = json.loads(json.dumps(case[0], allow_nan=False))
  validate(report)
  report["attacks"]["rmia"]["tpr"]["0.001"]["resolvable"] = "maybe"
  with pytest.raises(jsonschema.ValidationError, match="maybe"):
    validate(report)


def test_every_field_of_the_schema_says_what_it_is():
  schema = json.loads(SCHEMA.read_text())
  for name, field in schema["$defs"]["attack"]["properties"].items():
    assert field["description"], name
  for name, field in schema["properties"]["setting"]["properties"].items():
    assert "description" in field or "$ref" in field, name


def test_page_opens_with_the_verdict_and_keeps_the_order(page):
  parsed = Page(page)
  top = parsed.sections[""]
  assert "Leakage: moderate" in top
  parts = (
    *("finds one in ten", "leaks more than DP-SGD of matched accuracy"),
    *("Who is at risk", "How certain", "What to do"),
  )
  assert sorted(map(top.index, parts)) == [top.index(part) for part in parts]
  assert list(parsed.sections)[1:] == [
    *("records", "baseline", "canaries", "roc", "attacks", "scores", "classes"),
    *("budget", "not-run", "setting", "limits"),
  ]


def test_page_loads_nothing(page):
  for tag, attrs in Page(page).tags:
    assert tag not in ("script", "iframe", "object")
    for name in ("src", "href", "xlink:href", "srcset"):
      assert not attrs.get(name) or attrs[name].startswith(("data:", "#")), attrs
  assert "@import" not in page
  assert set(re.findall(r"url\((.)", page)) == {"#"}
  assert "default-src 'none'" in page


def test_links_inside_the_page_have_one_target(page):
  parsed = Page(page)
  assert len(parsed.ids) == len(set(parsed.ids))
  targets = re.findall(r"url\(#([^)]+)\)", page)
  targets += [a["href"][1:] for _, a in parsed.tags if a.get("href", "")[:1] == "#"]
  assert targets
  assert set(targets) <= set(parsed.ids)


def test_charts_take_the_colours_of_the_page(page):
  charts = re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)
  assert len(charts) == 4
  for chart in charts:
    assert not re.search(r"#[0-9a-f]{6}\b", chart)
    assert "<style" not in chart
    assert "<text" in chart
  for name in set(re.findall(r"var\(--([\w-]+)\)", page)):
    defined = re.findall(rf"--{name}: (#\w+)", page)
    assert len(defined) == 2, name  # one for each colour scheme


def test_all_text_is_escaped(case):
  report, *rest = case
  evil = '<script>alert("x")</script>'
  report["title"] = report["setting"]["dataset"] = evil
  report["not_run"] = {evil: evil}
  report["limits"] = report["verdict"]["who"] = [evil]
  report["classes"][0]["label"] = report["records"]["exposed"][0]["label"] = evil
  for row in report["attacks"].values():
    row["note"] = evil
  report["budget"] = {evil: report["budget"]["rmia"]}
  report["canaries"]["kind"] = report["dp_baseline"]["note"] = evil
  page = written(report, *rest)
  assert not [tag for tag, _ in Page(page).tags if tag == "script"]
  assert Page(page).text.count("alert(") >= 15
  assert render_comparison({evil: report}, []).count("<script") == 0


def test_the_recipe_of_the_baseline_is_named(case):
  report, *rest = case
  found = Page(written(report, *rest)).sections["baseline"]
  assert "the recipe “automatic clipping”, noise multiplier 0.4" in found
  assert "0.2 sgd 0.5" in found
  baseline = report["dp_baseline"]
  del baseline["recipe"], baseline["candidates"][0]["recipe"]  # as in older reports
  found = Page(written(report, *rest)).sections["baseline"]
  assert "the recipe “sgd”, noise multiplier 0.4" in found
  assert "0.2 sgd 0.5" in found


def test_sections_without_content_are_left_out(case):
  report, _, members, audited, _ = case
  report |= {"canaries": None, "budget": {}, "classes": [], "dp_baseline": None}
  del report["records"], report["limits"], report["not_run"]
  parsed = Page(render(report, scores={}, members=members, audited=audited))
  assert list(parsed.sections)[1:] == ["attacks", "setting"]
  links = [attrs["href"] for tag, attrs in parsed.tags if tag == "a"]
  assert links == ["#main", "#attacks", "#setting"]


def test_pitfall_10_missing_metrics_are_dashes(case):
  report, scores, members, audited, x = case
  report["attacks"]["loss"] |= {"auc": None, "auc_ci": None, "ppv": None}
  report["attacks"]["rmia"]["auc_ci"] = [None, None]
  report["setting"] |= {"epsilon": float("nan"), "attack_seconds": float("inf")}
  report["classes"][0] |= {"auc": None, "auc_ci": None}
  report["budget"]["rmia"][0] |= {"auc_ci": None, "tpr": None, "tpr_ci": None}
  report["records"]["exposed"][0]["score"] = None
  scores["loss"][:, ::2] = np.nan
  text = Page(written(report, scores, members, audited, x)).text
  assert not re.search(r"\b(nan|none|inf|infinity|null)\b(?! found)", text, re.I)
  assert "\N{EN DASH}" in text


def test_unresolvable_rates_are_words_not_numbers(case):
  report, *rest = case
  for row in report["attacks"].values():
    row["tpr"]["0.001"] |= {"value": 0.7654, "ci": [0.7, 0.8], "resolvable": False}
    row["tpr"]["0.01"] |= {"value": 0.4321, "ci": [0.4, 0.5], "resolvable": True}
  attacks = words(report, *rest).sections["attacks"]
  assert attacks.count("not resolvable") == len(report["attacks"])
  assert "76.5%" not in attacks
  assert attacks.count("43.2% 40% to 50%") == len(report["attacks"])


def test_pitfall_140_ppv_is_always_printed(page):
  attacks = Page(page).sections["attacks"]
  assert "PPV at 1% FPR at a prior of" in attacks
  assert attacks.count("9.17% 52.6% 90.9%") == 8


def test_pitfall_45_degenerate_attack_is_flagged(page):
  attacks = Page(page).sections["attacks"]
  assert attacks.count("degenerate") == 1
  assert "degenerate One score for nearly all records." in attacks


def test_pitfall_142_auc_below_half_is_printed_as_is(case):
  report, *rest = case
  report["attacks"]["gap"] |= {"auc": 0.321, "auc_ci": [0.3, 0.35]}
  assert "0.321 0.300 to 0.350" in words(report, *rest).sections["attacks"]


def test_pitfall_144_records_have_quantiles(page):
  records = Page(page).sections["records"]
  assert "99% of the records at most 94%" in records
  assert "all records at most 100%" in records


def test_metrics_without_a_common_ppv_rate_say_theirs(case):
  report, *rest = case
  report["attacks"]["rmia"]["ppv_fpr"] = 0.05
  attacks = words(report, *rest).sections["attacks"]
  assert "PPV at a prior of" in attacks
  assert attacks.count("9.17% at 5%") == 1


def test_wide_tables_are_reachable_and_have_headers(page):
  tags = Page(page).tags
  regions = [attrs for _, attrs in tags if attrs.get("class") == "scroll"]
  assert len(regions) == sum(tag == "table" for tag, _ in tags)
  for attrs in regions:
    assert attrs["tabindex"] == "0"
    assert attrs["role"] == "region"
    assert attrs["aria-label"]
  assert all("scope" in attrs for tag, attrs in tags if tag == "th")


def test_pictures_are_the_records(case):
  report, scores, members, audited, x = case
  page = words(report, scores, members, audited, x)
  images = [attrs for tag, attrs in page.tags if tag == "img"]
  assert len(images) == 12
  assert images[0]["alt"] == (
    "Record 20, class 0: rank 1, identified in 100% of the models trained on it"
  )
  data = base64.b64decode(images[0]["src"].split(",")[1])
  pixels = np.asarray(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(pixels, np.rint(255 * x[20, ..., 0]))
  assert images[0]["class"] == "pixelated"


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 70, 300, 3), (4, 8, 8, 4)])
def test_pictures_of_every_kind(shape):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  (picture,) = record_pictures(x, [{"rank": 1, "index": 3, "label": 2, "rate": None}])
  data = base64.b64decode(picture["uri"].split(",")[1])
  image = Image.open(io.BytesIO(data))
  assert max(image.size) == min(max(shape[1:3]), 256)
  assert picture["pixelated"] == (shape[1] < 64 and shape[2] < 64)
  low, high = zip(*image.convert("RGB").getextrema(), strict=True)
  assert max(high) - min(low) > 150


def test_table_rows_are_shown_as_features(case):
  report, scores, members, audited, _ = case
  x = np.zeros((300, 40), np.float32)
  x[20, [3, 17, 39]] = 1
  page = words(report, scores, members, audited, x)
  assert "3 of 40 features are 1: 3, 17, 39" in page.sections["records"]
  assert "0 of 40 features are 1" in page.sections["records"]
  x[20] = np.arange(40) / 4
  page = words(report, scores, members, audited, x)
  assert "0, 0.25, 0.5, 0.75" in page.sections["records"]


def test_table_rows_are_shown_as_columns(case):
  report, _, members, audited, _ = case
  values = {f"mark {i}": Column("numeric", mean=0.0, spread=1.0) for i in range(11)}
  schema = Schema(
    {
      "age": Column("numeric", mean=50.0, spread=20.0, missing=True),
      "id": Column("drop"),
      "sex": Column("categorical", values=("f", "m")),
      **values,
    }
  )
  x = np.zeros((300, 4 + len(values)), np.float32)
  x[20, :4] = 0.2, 0, 0, 1
  x[:20, 1] = x[21:, 1] = 1
  how = {"scores": {}, "members": members, "audited": audited, "x": x}
  records = Page(render(report, **how, schema=schema)).sections["records"]
  marks = ", ".join(f"mark {i}: 0" for i in range(10))
  assert f"age: 54, sex: m, {marks}, …" in records
  assert f"age: {MISSING}, sex: {MISSING}, {marks}, …" in records
  rescaled = dataclasses.replace(schema, rescaled=True)
  assert "age:" not in Page(render(report, **how, schema=rescaled)).sections["records"]


def test_records_outside_x_are_refused(case):
  report, scores, members, audited, x = case
  with pytest.raises(ValueError, match="record 20 is not in x, which has 10 records"):
    render(report, scores=scores, members=members, audited=audited, x=x[:10])


def test_unknown_level_is_refused(case):
  report, *rest = case
  report["verdict"]["level"] = "medium"
  with pytest.raises(ValueError, match="medium"):
    written(report, *rest)


@pytest.mark.slow
def test_rows_not_audited_are_not_drawn(case):
  report, scores, members, audited, _ = case
  scores = {"lira_online": scores["lira_online"]}
  before = written(report, scores, members, audited)
  for rows in scores.values():
    rows[:, ~audited] = 1e6
  assert written(report, scores, members, audited) == before
  assert written(report, scores, members, None) != before


def test_curves_are_faint_where_their_own_pairs_do_not_resolve():
  rng = np.random.default_rng(3)
  members = rng.random((4, 400)) < 0.5
  scores = rng.normal(size=members.shape) + members
  one = np.where(np.arange(4)[:, None] == 0, scores, np.nan)
  starts = {}
  for name, rows in (("all", scores), ("one", one)):
    chart = roc_chart({"all": scores, "it": rows}, members, {"it": 5})
    lines = re.findall(r'<path d="M ([\d.]+) [^>]*?series-6\)([^>]*)>', chart)
    starts[name] = {"opacity: 0.3" in style: float(x) for x, style in lines}
    assert starts[name][True] < starts[name][False]
  assert starts["all"][False] < starts["one"][False]


def test_band_equals_the_bootstrap_of_records():
  rng = np.random.default_rng(1)
  members = rng.random((3, 60)) < 0.5
  scores = np.round(rng.normal(size=members.shape) + members, 1)
  scores[rng.random(members.shape) < 0.2] = np.nan
  scores[:, :4] = np.nan
  rates = (0.0, 0.05, 0.1, 0.5, 1.0)
  low, high = roc_band(scores, members, rates, resamples=50)
  wanted = bootstrap_records(scores, members, fprs=rates, resamples=50)["tpr"]
  np.testing.assert_allclose(
    np.stack([low, high], 1), [wanted[rate] for rate in rates], rtol=1e-12
  )


def test_band_with_few_thresholds_stays_close():
  rng = np.random.default_rng(2)
  members = rng.random((8, 1000)) < 0.5
  scores = rng.normal(size=members.shape) + 1.5 * members
  rates = (0.01, 0.05, 0.2)
  band = np.stack(roc_band(scores, members, rates, resamples=100), 1)
  wanted = bootstrap_records(scores, members, fprs=rates, resamples=100)["tpr"]
  np.testing.assert_allclose(band, [wanted[rate] for rate in rates], atol=0.01)


@pytest.mark.parametrize(
  "rows", [[0.0] * 4, [-np.inf, np.inf, np.inf, 0.0], [np.inf] * 4]
)
def test_histogram_of_constant_and_infinite_scores(rows):
  chart = histogram_chart(
    np.array([rows]), np.array([[True, False, True, False]]), name="h"
  )
  assert "nan" not in chart.lower().replace("font", "")


def test_many_classes_and_foreign_labels_fit():
  classes = [
    {"label": f"<$x^2$> 猫 {label}", "num_records": 5, "auc": 0.6, "auc_ci": [0.5, 0.7]}
    for label in range(100)
  ]
  chart = class_chart(classes)
  assert chart.count("猫") == 24
  assert "&lt;$x^2$&gt; 猫 0" in chart


def test_comparison_says_which_differences_are_real(case):
  report = case[0]
  baseline = {**report["dp_baseline"], "strongest": report["strongest"]}
  report = {**report, "dp_baseline": baseline}
  page = render_comparison(
    {"plain": report, "private": report},
    [
      {
        "first": "plain",
        "second": "private",
        "attack": name,
        "auc_difference": 0.1,
        "ci": [low, 0.2],
      }
      for name, low in (("rmia", 0.01), ("loss", -0.01))
    ],
  )
  sections = Page(page).sections
  assert "rmia +0.100 +0.010 to +0.200 “plain” leaks more" in sections["differences"]
  assert (
    "loss +0.100 \N{MINUS SIGN}0.010 to +0.200 no clear difference"
    in sections["differences"]
  )
  assert "97.1% ± 0.42%" in sections["audits"]
  assert "not resolvable" in sections["audits"]
  labels = re.findall(r">(plain|private|DP-SGD)</text>", page)
  assert sorted(labels) == ["DP-SGD", "DP-SGD", "plain", "private"]


def test_comparison_without_accuracy_has_no_chart(case):
  report = case[0]
  report["setting"] = {"test_accuracy": None}
  parsed = Page(render_comparison({"arrays": report}, []))
  assert list(parsed.sections)[1:] == ["audits"]
  with pytest.raises(ValueError, match="no report"):
    render_comparison({}, [])
