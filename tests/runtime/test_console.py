"""Tests of terminal output."""

from u2s_jax.runtime import console


def test_live_line_is_replaced_on_a_terminal(monkeypatch, capsys):
  monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
  console.log_live("step 1")
  console.log_live("step 2" + 500 * "x")
  console.log("done")
  out = capsys.readouterr().out
  assert out.startswith("\r\x1b[Kstep 1\r\x1b[Kstep 2x") and out.endswith("\r\x1b[Kdone\n")
  assert out.count("\n") == 1 and out.count("x") < 400
  monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
  console.log_live("step 1")
  assert capsys.readouterr().out == "step 1\n"
