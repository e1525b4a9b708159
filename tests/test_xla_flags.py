import xla_flags


def test_only_flags_that_the_installed_xla_knows_are_set():
  assert xla_flags.known("--xla_backend_optimization_level=0")
  assert not xla_flags.known("--xla_of_no_version=true")
  for flag in xla_flags.quick_compile("").split():
    assert xla_flags.known(flag)


def test_flags_that_are_given_are_kept_and_win():
  given = "--xla_backend_optimization_level=2 --xla_dump_max_hlo_modules=1"
  flags = xla_flags.quick_compile(given).split()
  assert flags[:2] == given.split()
  assert sum(flag.startswith("--xla_backend_optimization_level") for flag in flags) == 1
