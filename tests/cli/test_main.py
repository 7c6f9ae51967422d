"""Exit codes, and errors that are one clear line."""

import json
import os
import subprocess
import sys
import types

import pytest
import typer
from typer.testing import CliRunner

from robustcore.cli import main as cli
from robustcore.cli.output import CommandError


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.delenv("ROBUSTCORE_DEBUG", raising=False)

    def call(*arguments):
        code = cli.run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def is_one_line(text):
    return text.startswith("robustcore: ") and text.count("\n") == 1 and "Traceback" not in text


def test_help_names_every_command(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in ("info", "selftest", "bench", "demo"))


def test_without_a_command_there_is_help(run):
    code, out, _ = run()
    assert code == 0
    assert "Usage: robustcore" in out


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out.split()[0] == "robustcore"
    assert out.split()[1][0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense",), "nonsense"),
        (("bench", "--bogus"), "--bogus"),
        (("bench", "loses"), "family must be one of losses, merging, pcr, got 'loses'"),
        (("bench", "losses", "gated"), "operator must be one of aldr_kl_loss, "),
        (("bench", "losses", "x", "y"), "unexpected extra argument"),
        (("bench", "--device", "tpu"), "--device must be cpu or cuda, got 'tpu'"),
        (("bench", "--json"), "--json"),
        (("bench", "losses", "--quick", "--plot", "plot.txt"), ".svg"),
        (("selftest", "loses"), "family must be one of losses, merging, pcr, got 'loses'"),
        (("selftest", "losses", "--dtype", "int8"), "--dtype must be one of bfloat16, float16,"),
        (("selftest", "losses", "gated"), "gated_cross_entropy"),
        (("selftest", "--device", "tpu"), "--device must be cpu or cuda, got 'tpu'"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(run, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert says in err
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_told_before_anything_is_measured(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("bench", "losses", "--json", str(tmp_path / "file" / "report.json"))
    assert code == 2
    assert is_one_line(err)
    assert "cannot write" in err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (CommandError("no such thing"), 2, "robustcore: no such thing"),
        (RuntimeError("two\nlines"), 2, "unexpected RuntimeError: two lines"),
        (ValueError(), 2, "unexpected ValueError"),
        (KeyboardInterrupt(), 130, "robustcore: interrupted"),
        (typer.Exit(1), 1, ""),
    ],
)
def test_errors_inside_a_command(run, monkeypatch, error, code, says):
    monkeypatch.setattr("robustcore.cli.info.collect", lambda: raises(error))
    got, out, err = run("info")
    assert (got, out) == (code, "")
    assert says in err
    assert err == "" or is_one_line(err)


def raises(error):
    raise error


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_debug_shows_the_traceback(run, monkeypatch, how):
    monkeypatch.setattr("robustcore.cli.info.collect", lambda: raises(RuntimeError("deep")))
    if how == "environment":
        monkeypatch.setenv("ROBUSTCORE_DEBUG", "1")
    code, _, err = run("info", *(["--debug"] if how == "flag" else []))
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("robustcore: unexpected RuntimeError: deep")


def test_the_demo_gets_its_options(run, monkeypatch, tmp_path):
    calls = []
    fake = types.ModuleType("robustcore.demo")
    fake.run_demo = lambda **options: calls.append(options)
    monkeypatch.setitem(sys.modules, "robustcore.demo", fake)
    code, _, _ = run("demo", "--quick", "--output", str(tmp_path), "--json", str(tmp_path / "n"))
    assert code == 0
    assert calls == [{"output_dir": tmp_path, "quick": True, "json_path": tmp_path / "n"}]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ModuleNotFoundError("No module named 'sklearn'", name="sklearn"),
            "the demo needs sklearn: pip install 'robustcore[demo]'",
        ),
        (ModuleNotFoundError("install this"), "install this"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "cannot write a/b: Not a directory"),
    ],
)
def test_what_the_demo_lacks_is_one_line(run, monkeypatch, error, says):
    def missing(**_):
        raise error

    fake = types.ModuleType("robustcore.demo")
    fake.run_demo = missing
    monkeypatch.setitem(sys.modules, "robustcore.demo", fake)
    code, _, err = run("demo")
    assert code == 2
    assert err == f"robustcore: {says}\n"


def test_the_typer_app_works_on_its_own():
    result = CliRunner().invoke(cli.app, ["info", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["devices"][0]["device"] == "cpu"


def command(*arguments):
    return [sys.executable, "-m", "robustcore.cli", *arguments]


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX pipe")
def test_a_closed_pipe_is_no_error():
    process = subprocess.Popen(
        command("info", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(120) == 141


def test_the_process_exits_with_the_code():
    done = subprocess.run(command("bench", "nope"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert is_one_line(done.stderr)
