"""The pages in a real browser: no sideways scrolling, no errors, readable colours."""

import html
import json
import re
import shutil
import subprocess

import pytest
import report_case

from mixdef.auditing.pages.audit_page import render
from mixdef.auditing.pages.compare_page import render_comparison

BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
  None,
)
pytestmark = pytest.mark.skipif(
  BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the path"
)

# A window cannot be 400 px wide, a frame can. The frames share the origin of the outer
# page, which measures them and writes what it saw into its own document.
MEASURE = """<!doctype html><body><pre id="seen"></pre>
<script>
const parse = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = rgb => {
  const [r, g, b] = rgb.map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const seen = {};
const measure = frame => {
  const inner = frame.contentWindow, root = frame.contentDocument;
  const cells = [...root.querySelectorAll("td")];
  const folded = cells.filter(cell => !cell.checkVisibility()).length;
  root.querySelectorAll("details").forEach(part => part.open = true);
  const cut = [...root.querySelectorAll(".scroll")]
    .filter(part => part.scrollWidth > part.clientWidth + 1)
    .map(part => part.getAttribute("aria-label"));
  const paper = inner.getComputedStyle(root.body).backgroundColor;
  let least = Infinity, palest = "";
  for (const part of root.body.querySelectorAll("*")) {
    const own = [...part.childNodes].some(n => n.nodeType == 3 && n.data.trim());
    if (!own || !part.getClientRects().length) continue;
    const style = inner.getComputedStyle(part);
    const color = part.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const pair = [light(parse(color)), light(parse(paper))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < least) { least = contrast; palest = part.textContent.trim(); }
  }
  const spilled = [...root.querySelectorAll("svg.chart text")].filter(text => {
    const box = text.getBoundingClientRect();
    const around = text.closest("svg").getBoundingClientRect();
    return box.left < around.left - 1 || box.right > around.right + 1
      || box.top < around.top - 1 || box.bottom > around.bottom + 1;
  }).map(text => text.textContent);
  seen[frame.title] = {
    inner: inner.innerWidth, scroll: root.documentElement.scrollWidth,
    paper: parse(paper), least, palest, spilled, cut, folded,
  };
  document.getElementById("seen").textContent = JSON.stringify(seen);
};
</script>"""
FRAME = """<iframe title="{}" srcdoc="{}" width="{}" height="900" style="border:0"
 onload="measure(this)"></iframe>"""
WIDTHS = (400, 1400)
PRINTED = 690  # px, an A4 sheet between its margins


def look(pages, folder, *, dark, widths=WIDTHS):
  """Return what the browser measured by page and width, and its console's lines."""
  outer = folder / "outer.html"
  frames = [
    FRAME.format(f"{name} {width}", html.escape(page), width)
    for name, page in pages.items()
    for width in widths
  ]
  outer.write_text(MEASURE + "".join(frames))
  done = subprocess.run(
    [
      BROWSER,
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--enable-logging=stderr",
      "--virtual-time-budget=5000",
      f"--blink-settings=preferredColorScheme={0 if dark else 1}",
      f"--user-data-dir={folder / 'profile'}",
      "--window-size=1500,1000",
      "--dump-dom",
      outer.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=90,
    check=True,
  )
  seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)[1]
  console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
  return json.loads(html.unescape(seen)), console


@pytest.fixture(scope="module")
def pages():
  report, scores, members, audited, x = report_case.make()
  report["attacks"]["rmia"]["note"] = "unbroken" * 20
  report["setting"]["command"] = "a/very/long/path" * 20
  report["classes"][0]["label"] = "a class with a name that is far too long for a chart"
  names = ("no defense", "adamixup(end=0.1)|weight_decay(0.0005)|label_smoothing(0.1)")
  difference = {"attack": "rmia", "auc_difference": 0.01, "ci": [-0.02, 0.03]}
  return {
    "report": render(report, scores=scores, members=members, audited=audited, x=x),
    "compare": render_comparison(
      dict.fromkeys(names, report),
      [{"first": names[0], "second": names[1], **difference}],
    ),
  }


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_fit_and_read_well(pages, dark, tmp_path):
  everything, console = look(pages, tmp_path, dark=dark)
  assert not console
  assert len(everything) == 4
  for name, seen in everything.items():
    width = int(name.split()[-1])
    assert seen["inner"] == width
    assert seen["scroll"] <= width, name
    assert (sum(seen["paper"]) < 150) == dark
    assert seen["least"] >= 4.5, (name, seen["palest"])
    assert not seen["spilled"], name
    assert not seen["cut"], name
    assert (seen["folded"] > 0) == name.startswith("report")


def test_print_shows_everything(pages, tmp_path):
  page = pages["report"].replace("@media print", "@media all")
  page = page.replace("@media screen and", "@media not all and")
  everything, _ = look({"report": page}, tmp_path, dark=False, widths=[PRINTED])
  (seen,) = everything.values()
  assert seen["folded"] == 0
  assert not seen["cut"]


def test_harness_sees_what_is_wrong(tmp_path):
  page = (
    "<body style='background:#fff'><div style='width:900px;color:#ddd'>pale</div>"
    "<svg class='chart' width='50' height='50'><text x='90'>out</text></svg>"
    "<script>console.error('broken')</script>"
  )
  everything, console = look({"bad": page}, tmp_path, dark=False)
  seen = everything["bad 400"]
  assert seen["scroll"] > 400
  assert seen["least"] < 2
  assert seen["spilled"] == ["out"]
  assert any("broken" in line for line in console)
