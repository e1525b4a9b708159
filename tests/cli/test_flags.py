"""The jobs as a user starts them. All processes run at once: starting is what costs."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

import mixdef
from mixdef.cli import __main__ as cli
from mixdef.cli import (
  audit,
  bench,
  compare,
  flags,
  gan,
  lira,
  release,
  settings,
  sweep,
  train,
)
from mixdef.cli import job as jobs
from mixdef.training.programs import STRATEGIES

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
JOBS = {
  one.JOB.name: one.JOB
  for one in (train, lira, audit, release, sweep, compare, gan, bench)
}
TEXT = 'it is "é" | \u202e'  # what a terminal of ASCII cannot show
GOOD = (
  *("--protocol=adamixup", "--dataset=digits", "--train_size=200"),
  *("--model=mlp(8)", "--epochs=1"),
)
LAZY = """
import runpy, sys
try:
  runpy.run_path(sys.argv[1], run_name="__main__")
finally:
  heavy = ("jax", "numpy", "optax", "mixdef.data")
  print([name for name in heavy if name in sys.modules])
"""


def start(folder, *command, environment=(), **options):
  bare = {name: value for name, value in os.environ.items() if name != "MIXDEF_DATA"}
  pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
  return subprocess.Popen(
    [sys.executable, *command],
    cwd=folder,
    env={**bare, "JAX_PLATFORMS": "cpu", **dict(environment)},
    stderr=subprocess.PIPE,
    **{**pipes, **options},
  )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  """Status, output and errors of every process, and the folder they ran in."""
  folder = tmp_path_factory.mktemp("jobs \u00fc")
  script = EXPERIMENTS / "train.py"
  ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
  mistake = "--dataset=mnist"
  modules = {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
  homeless = {"HOME": "/nonexistent", "JAX_COMPILATION_CACHE_DIR": ""}
  plain = tmp_path_factory.mktemp("plain")
  rc = plain / "matplotlibrc"
  rc.write_text("text.usetex: True\naxes.grid: maybe\n", encoding="utf-8")
  odd = {"MATPLOTLIBRC": str(rc), "MPLBACKEND": "TkAgg", **ascii_only}
  started = {
    "mistake": start(folder, script, mistake),
    "module": start(folder, "-m", "mixdef.cli", "train", mistake, environment=modules),
    "good": start(folder, script, *GOOD, "--out=run", environment=homeless),
    "lira": start(
      plain,
      *(EXPERIMENTS / "lira.py", *GOOD, "--num_shadows=2", "--out=run"),
      environment=odd,
    ),
    **{
      f"{job} --help": start(folder, "-c", LAZY, EXPERIMENTS / f"{job}.py", "--help")
      for job in ("audit", "gan")
    },
  }
  done = {}
  for name, process in started.items():
    out, errors = process.communicate(timeout=600)
    done[name] = process.returncode, out.decode(), errors.decode()
  return folder, plain, done


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mistake", "module"])
def test_a_mistake_is_one_line_that_says_how_to_fix_it(outcomes, how):
  status, _, errors = outcomes[2][how]
  assert status == 2, errors
  assert "Traceback" not in errors
  ours = [line for line in errors.splitlines() if line.startswith("train: ")]
  assert ours == errors.splitlines()[-1:]
  assert "train-images-idx3-ubyte" in ours[0]


@pytest.mark.slow
def test_a_flag_beside_a_protocol_wins_and_a_missing_home_is_survived(outcomes):
  folder, _, done = outcomes
  status, out, errors = done["good"]
  assert status == 0, errors
  assert "test_accuracy" in out
  config = json.loads((folder / "run" / "config.json").read_text(encoding="utf-8"))
  assert config["train_size"] == 200
  assert config["model"] == "mlp(8)"
  assert config["standardize"] is True
  assert errors.splitlines()[-1].endswith("run/result.json")


@pytest.mark.slow
def test_reports_are_drawn_whatever_the_surroundings(outcomes):
  _, plain, done = outcomes
  status, out, errors = done["lira"]
  assert status == 0, errors
  assert "AUC" in out
  assert (plain / "run" / "roc.png").stat().st_size > 10_000


def test_a_folder_that_the_locale_cannot_read_is_refused(tmp_path):
  with pytest.raises(ValueError, match="in this locale: set PYTHONUTF8=1"):
    jobs.execute(settings.Settings(), tmp_path / "\udcc3", None)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["audit", "gan"])
def test_help_answers_before_anything_heavy_is_imported(outcomes, job):
  status, out, errors = outcomes[2][f"{job} --help"]
  assert status == 0, errors
  assert out.splitlines()[-1] == "[]"
  assert out.startswith(JOBS[job].text.strip())


def said(capsys, job, *given):
  """Status, output and errors of a command line that does not become settings."""
  with pytest.raises(SystemExit) as left:
    jobs.main(JOBS[job], given)
  out, errors = capsys.readouterr()
  return left.value.code, out, errors


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull", "--helpshort"])
def test_help_lists_every_flag_in_groups(capsys, job, flag):
  status, out, errors = said(capsys, job, "--seed=1", flag)
  assert (status, errors) == (0, "")
  groups = [line[:-1] for line in out.splitlines() if line in HEADINGS]
  assert groups[0] == "run"
  assert len(groups) == len(set(groups))
  shown = {line.strip().partition("=")[0] for line in out.splitlines()}
  fields = dataclasses.fields(JOBS[job].settings)
  assert {f"--{field.name}" for field in fields} <= shown
  assert max(map(len, out.splitlines())) <= 100


HEADINGS = {f"{group}:" for group in flags.GROUPS}


@pytest.mark.parametrize("job", JOBS)
def test_help_opens_with_the_text_of_the_job(capsys, job):
  _, out, _ = said(capsys, job, "--help")
  summary, example = out.split("\n\n")[:2]
  assert len(summary) <= 88
  assert summary.endswith(".")
  assert example.startswith(f"  mixdef {job} --")
  script = (EXPERIMENTS / f"{job}.py").read_text().splitlines()
  assert script[0] == f'"""{summary}'
  assert len(script) <= 40
  assert any(line.startswith(f"  python experiments/{job}.py --") for line in script)


def test_choices_are_those_of_the_library():
  assert set(flags.FLAGS["views"].choices) == set(mixdef.attacks.VIEWS)
  strategies = {"auto", "processes", *STRATEGIES}
  assert set(flags.FLAGS["strategy"].choices) == strategies


@pytest.mark.parametrize("given", [[], ["--help"], ["-h"]])
def test_the_command_alone_lists_the_jobs(capsys, given):
  cli.main(given)
  out = capsys.readouterr().out
  assert set(cli.JOBS) == set(JOBS)
  for name, job in JOBS.items():
    assert f"  {name:9}{job.text.splitlines()[0]}\n" in out


def test_the_command_has_a_version(capsys):
  cli.main(["--version"])
  assert capsys.readouterr().out == f"mixdef {flags.version('mixdef')}\n"


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("trian", "'trian' is not a job; did you mean train?"),
    ("--seed=1", "'--seed=1' is not a job; choose from train, lira, audit"),
    ("zzz", "'zzz' is not a job; choose from train"),
  ],
)
def test_another_word_than_a_job_is_one_line_and_status_2(capsys, name, message):
  with pytest.raises(SystemExit) as left:
    cli.main([name, "--seed=1"])
  errors = capsys.readouterr().err
  assert left.value.code == 2
  assert errors.startswith(f"mixdef: {message}")
  assert errors.count("\n") == 1


def test_the_command_runs_a_job(capsys):
  with pytest.raises(SystemExit) as left:
    cli.main(["train", "--epochs=0"])
  assert left.value.code == 2
  assert capsys.readouterr().err == "train: --epochs=0 must be at least 1\n"


def test_version(capsys):
  status, out, errors = said(capsys, "train", "--version")
  assert (status, errors) == (0, "")
  assert out.startswith("mixdef ")
  assert out.count("\n") == 1


MISTAKES = [
  ("train", "--epoch=3", "--epoch is not a flag; did you mean --epochs?"),
  ("train", "--zzz", "--zzz is not a flag; see --help"),
  ("train", "data", "'data' is not a flag: write --name=value"),
  ("train", "--seed", "Missing value for flag --seed"),
  ("train", "--quick=maybe", "--quick=maybe: pass true or false"),
  ("train", "--epochs=1e3", "--epochs=1e3: pass a whole number"),
  ("train", "--learning_rate=x", "--learning_rate=x: pass a number"),
  ("train", "--dataset=hf:", "hf: is followed by the name of a data set"),
  ("train", "--dataset=tfds:", "tfds: is followed by the name of a data set"),
  ("train", "--model=collections:OrderedDict", "wrap it in a function"),
  ("gan", "--classifier=cnn(8)", "for argument 'num_classes'; pass arguments by name"),
  ("train", "--flagfile=/nowhere", "/nowhere"),
  ("train", "--protocol=x", "--protocol=x: value should be one of <adamixup>"),
  ("train", "--seed=-1", "--seed=-1 must be 0 or more"),
  ("train", f"--seed={2**63}", f"--seed={2**63} must be at most"),
  ("train", "--seed=1.5", "--seed=1.5"),
  ("train", "--epochs=0", "--epochs=0 must be at least 1"),
  ("train", "--epochs=1000000000000", "must be at most"),
  ("train", "--batch_size=-3", "--batch_size=-3 must be at least 1"),
  ("train", f"--batch_size={2**31}", "must be at most"),
  ("train", "--train_size=-1", "--train_size=-1 must be 0 or more"),
  ("train", "--auxiliary=-1", "--auxiliary=-1 must be 0 or more"),
  ("train", "--microbatch=-1", "--microbatch=-1 must be 0 or more"),
  ("train", "--learning_rate=nan", "--learning_rate=nan must be positive"),
  ("train", "--learning_rate=inf", "--learning_rate=inf must be at most"),
  ("train", "--learning_rate=1e300", "--learning_rate=1e+300 must be at most"),
  ("lira", "--num_shadows=1", "use at least 2 models, and 16 for meaningful results"),
  ("lira", "--num_shadows=100000000", "must be at most"),
  ("lira", "--memory_gb=-1", "--memory_gb=-1.0 must be 0 or more"),
  ("lira", "--memory_gb=nan", "--memory_gb=nan must be 0 or more"),
  ("lira", "--strategy=fast", "--strategy='fast'; choose from auto, vmap"),
  ("lira", "--process_id=-1", "--process_id=-1 must be 0 or more"),
  ("lira", "--process_id=1", "only used with --coordinator=host:port"),
  ("audit", "--num_processes=2", "only used with --coordinator=host:port"),
  ("audit", "--attack_records=0", "--attack_records=0 must be at least 1"),
  ("audit", "--attack_targets=-4", "--attack_targets=-4 must be at least 1"),
  ("sweep", "--seeds=0", "--seeds=0 must be at least 1"),
  ("gan", "--samples=-1", "--samples=-1 must be at least 1"),
  ("bench", "--repeats=0", "--repeats=0 must be at least 1"),
  ("bench", "--suite=x", "--suite='x'; choose from cpu, gpu"),
  ("bench", "--model=mpl", "did you mean mlp"),
  ("bench", "--defense=mixup({})", "--defense=mixup({})"),
]


@pytest.mark.parametrize(("job", "flag", "message"), MISTAKES)
def test_a_wrong_flag_is_one_line_and_status_2(capsys, job, flag, message):
  status, out, errors = said(capsys, job, flag)
  assert (status, out) == (2, "")
  assert errors.startswith(f"{job}: ")
  assert errors.count("\n") == 1
  assert message in errors


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"run": "mine", "model": "cnn"}, "--model=cnn is not used with --run=mine"),
    ({"run": "mine", "epochs": 3}, "--epochs=3 is not used with --run=mine"),
    ({"arrays": "a.npz", "test": "b"}, "--test=b is not used with --arrays=a.npz"),
    ({"arrays": "a.npz", "views": "mirror"}, "--views=mirror is not used with --arr"),
    ({"arrays": "a.npz", "epochs": 3}, "--epochs=3 is not used with --arrays=a.npz"),
    ({"run": "mine", "prior": 1.0}, "--prior=1.0 must be below 1"),
    ({"run": "mine", "budget": "shadows:999999"}, "at most 100,000 models"),
    ({"run": "mine", "budget": "cascade:9x99999"}, "at most 100,000 models"),
  ],
)
def test_a_release_refuses_what_it_would_ignore_or_fail_on(given, message):
  with pytest.raises(ValueError, match=message):
    release.ReleaseSettings(**given)


def test_the_models_of_other_jobs_are_no_release(tmp_path):
  for name in ("config", "result"):
    (tmp_path / f"{name}.json").write_text('{"mirror": false}')
  with pytest.raises(ValueError, match="holds no finished run of mixdef train"):
    release.ReleaseSettings(run=str(tmp_path))


# Wrong whatever the grammar of the flag: each is tried in every flag of a text.
TEXTS = ["({})", "x(", "name=5", "(" * 300, "mixup(" * 300, "a|" * 3000 + "a", "\0"]
TEXTS += [
  "|",
  ",",
  "a,,b",
  ";",
  "1",
  "'mixup'",
  "None",
  "[]",
  "()",
  "(None,)",
  "lambda",
]
TEXTS += [
  "x if y else z",
  "é",
  TEXT,
  "\udc80",
  "mixup\nema",
  "*",
  "**x",
  "f'{x}'",
  "...",
]
TEXTS += [
  "9" * 5000,
  "mlp(x=" + "9" * 5000 + ")",
  "a.b",
  "a[0]",
  "a()()",
  "not a",
  "a:=1",
]
# Names that are right with arguments that no factory takes.
CALLS = ["{name}({{}})", "{name}([[]])", "{name}(name=5, name=6)", "{name}(**{{}})"]
CALLS += ["{name}(*())", "{name}(zzz=1)", "{name}({{1: []}}, {{[]: 1}})", "{name}(1j)"]
CALLS += ["{name}(b'x')", "{name}(...)", "{name}(nan)", "{name}(x)", "{name}(-inf)"]
CALLS += ["{name}('x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x')", "{name}()()"]
CALLS += [
  "{name}({{*()}})",
  "{name}(print)",
  "{name}(1 + x)",
  "{name}(1 < 2)",
  "{name}|",
]
PLACES = [
  *(("train", "defense", name) for name in ("mixup", "dp_sgd", "hamp")),
  *(("train", "model", name) for name in ("mlp", "cnn")),
  *(("train", "optimizer", name) for name in ("adam", "sgd")),
  *(("train", "learner", name) for name in ("ban_mpr", "classifier")),
  *(("audit", "attacks", name) for name in ("rmia", "gap", "lira_online")),
  ("audit", "canaries", "blank"),
  ("audit", "views", "mirror"),
  ("audit", "dataset", "digits"),
  ("audit", "transfer", "digits"),
  ("audit", "canary_source", "digits"),
  ("sweep", "defenses", "l1"),
  ("sweep", "datasets", "digits"),
  ("sweep", "attacks", "gap"),
  ("sweep", "study", "kaya"),
  ("gan", "model", "image_networks"),
  *(("gan", "learner", name) for name in ("wgan_gp", "medgan", "mixup_gan")),
  ("gan", "classifier", "cnn"),
  *(("gan", "attacks", name) for name in ("logan", "gan_leaks_calibrated")),
  ("gan", "defense", "mixup"),
  ("gan", "optimizer", "adam"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("job", "flag", "name"), PLACES)
def test_whatever_a_text_does_is_one_line_that_names_the_flag(job, flag, name):
  swept = job == "sweep" and flag not in ("defenses", "study")
  others = {"defenses": "none"} if swept else {}
  for text in (*TEXTS, *(call.format(name=name) for call in CALLS)):
    with pytest.raises(ValueError, match=f"--{flag}=") as raised:
      JOBS[job].settings(**{**others, flag: text})
    assert "\n" not in str(raised.value).replace(text, "")
    assert len(str(raised.value)) < 1000 + 2 * len(text)
