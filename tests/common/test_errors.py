"""Errors as users meet them: an exit code, one sentence, the nearest valid name."""

from pemt_jax.common.errors import PemtError, UsageError, nearest


def test_a_wrong_command_exits_with_2_and_any_other_failure_with_1():
    assert (PemtError.exit_code, UsageError.exit_code) == (1, 2)
    assert issubclass(UsageError, PemtError)


def test_nearest_is_the_most_alike_name():
    assert nearest("pemt_targt", ["pemt_source", "pemt_target", "full"]) == (
        " (nearest: 'pemt_target')"
    )


def test_nearest_is_silent_when_nothing_is_alike():
    assert nearest("zzz", ["pemt_source", "full"]) == ""
    assert nearest("full", []) == ""


def test_nearest_takes_any_iterable_and_any_value():
    assert nearest(32, {"32": None, "64": None}) == " (nearest: '32')"
    assert nearest("lor", (name for name in ["lora"])) == " (nearest: 'lora')"
