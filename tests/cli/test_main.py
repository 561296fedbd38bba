import logging
import subprocess
import sys

import click
import pytest

from graphprune.cli import main
from graphprune.cli import options as shared
from graphprune.errors import BudgetError, DataError, GraphPruneError, UsageError, VerificationError
from graphprune.version import __version__

frame = sys.modules["graphprune.cli.main"]


def install(monkeypatch, function, *decorators):
    """Stand `function` in for the command `demo`."""
    command = click.command("demo")(function)
    for decorate in decorators:
        command = decorate(command)
    module = type(sys)("graphprune.cli.demo")
    module.command = command
    monkeypatch.setitem(sys.modules, "graphprune.cli.demo", module)


def raising(error):
    def run():
        raise error

    return run


def test_help_lists_every_command_and_imports_none():
    code = (
        "import sys\nfrom graphprune.cli import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'rich'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, text in frame.COMMANDS.items():
        assert name in done.stdout
        assert text.split()[0] in done.stdout


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"graphprune {__version__}\n"


def test_without_a_command_help_is_shown_and_the_code_is_2(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "Usage: graphprune" in captured.out + captured.err


@pytest.mark.parametrize("error", [GraphPruneError, DataError, UsageError, VerificationError, BudgetError])
def test_errors_are_one_line_on_stderr_with_their_code(monkeypatch, capsys, error):
    install(monkeypatch, raising(error("the data is bad;\n  give better data")))
    assert main(["demo"]) == error.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: the data is bad; give better data\n"


@pytest.mark.parametrize("arguments", [["--debug", "demo"], ["demo", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, capsys, arguments):
    install(monkeypatch, raising(DataError("bad")))
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "Traceback (most recent call last)" in captured.err
    assert captured.err.endswith("error: bad\n")


def test_a_defect_is_one_line_and_says_how_to_see_more(monkeypatch, capsys):
    install(monkeypatch, raising(ZeroDivisionError("division by zero")))
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == (
        "error: unexpected ZeroDivisionError: division by zero; run again with --debug for the traceback\n"
    )


def test_an_operating_system_error_names_the_file(monkeypatch, capsys, tmp_path):
    install(monkeypatch, lambda: (tmp_path / "none").read_text())
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: No such file or directory\n"


def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys):
    install(monkeypatch, raising(KeyboardInterrupt()))
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "error: No such command 'nonsense'"),
        (["demo", "--nonsense"], "error: No such option"),
        (["demo", "--threads", "0"], "error: Invalid value for '--threads': 0 is not in the range x>=1"),
    ],
)
def test_usage_errors_are_one_line_and_2(monkeypatch, capsys, arguments, message):
    install(monkeypatch, lambda threads: None, shared.threads_option)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert "--help)" in captured.err


def test_a_command_can_choose_its_code_and_its_value_is_no_code(monkeypatch):
    install(monkeypatch, lambda: click.get_current_context().exit(5))
    assert main(["demo"]) == 5
    install(monkeypatch, lambda: "a result")
    assert main(["demo"]) == 0


def test_a_closed_pipe_is_quiet():
    code = (
        "import sys, click\nfrom graphprune.cli import main\n"
        "module = type(sys)('graphprune.cli.demo')\n"
        "module.command = click.Command('demo', callback=lambda: [click.echo('x' * 1000) for _ in range(1000)])\n"
        "sys.modules['graphprune.cli.demo'] = module\n"
        "sys.exit(main(['demo']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize(
    ("flags", "shown"),
    [([], ["more", "warning: odd"]), (["-v"], ["debug: detail", "more", "warning: odd"]), (["-q"], ["warning: odd"])],
)
@pytest.mark.parametrize("after", [True, False])
def test_the_log_goes_to_stderr_and_its_amount_is_chosen(monkeypatch, capsys, flags, shown, after):
    def run():
        logger = logging.getLogger("graphprune")
        logger.debug("detail")
        logger.info("more")
        logger.warning("odd")
        click.echo("result")

    install(monkeypatch, run)
    assert main(["demo", *flags] if after else [*flags, "demo"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "result\n"
    assert captured.err.splitlines() == shown


def test_shared_options_parse_to_what_the_library_takes(monkeypatch):
    seen = {}

    def run(**values):
        seen.update(values)

    install(monkeypatch, run, *shared.data_options(), shared.shape_option, *shared.arch_options, shared.json_option)
    arguments = ["demo", "--mean", "0.5,0.4,0.3", "--std", "1", "--image-size", "48x64", "--shape", "images:1x3x8x8"]
    assert main([*arguments, "--shape", "mask:1x1x8x8", "--arch", "a.b:c", "--trust-pickle", "--json"]) == 0
    assert seen["mean"] == (0.5, 0.4, 0.3)
    assert seen["std"] == (1.0,)
    assert seen["image_size"] == (48, 64)
    assert seen["shapes"] == {"images": (1, 3, 8, 8), "mask": (1, 1, 8, 8)}
    assert (seen["arch"], seen["trust_pickle"], seen["as_json"], seen["data"]) == ("a.b:c", True, True, None)
    assert main(["demo", "--image-size", "32"]) == 0
    assert (seen["image_size"], seen["shapes"]) == (32, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mean", "a,b"], "'a,b' is not a list of numbers"),
        (["--image-size", "big"], "'big' is neither a side"),
        (["--image-size", "1x2x3"], "'1x2x3' is neither a side"),
        (["--image-size", "0"], "'0' is neither a side"),
        (["--shape", "x:1x-3"], "'x:1x-3' is not a shape"),
    ],
)
def test_malformed_values_are_usage_errors(monkeypatch, capsys, arguments, message):
    install(monkeypatch, lambda **values: None, *shared.data_options(), shared.shape_option)
    assert main(["demo", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_data_can_be_required(monkeypatch, capsys):
    install(monkeypatch, lambda **values: None, *shared.data_options(required=True))
    assert main(["demo"]) == 2
    assert "Missing option '--data'" in capsys.readouterr().err


def test_the_log_of_the_command_line_ends_with_it(capsys):
    """Who calls `main` from Python keeps a log of their own."""
    logger = logging.getLogger("graphprune")
    before = list(logger.handlers)
    main(["verify", "no-such-a.onnx", "no-such-b.onnx"])
    capsys.readouterr()
    assert logger.handlers == before


def test_the_help_of_compress_is_in_sections_of_which_the_first_is_what_everybody_needs(capsys):
    assert main(["compress", "--help"]) == 0
    text = capsys.readouterr().out
    titles = [line.rstrip(":") for line in text.splitlines() if line and line[0] != " " and line.endswith(":")]
    assert [title.split(":")[0].split(" (")[0] for title in titles] == [
        *("Budget", "Images", "Output", "Model", "Training", "Widths", "Measuring in onnxruntime", "int8"),
        "Other options",
    ]
    first_screen = "\n".join(text.splitlines()[:24])
    assert all(option in first_screen for option in ("--speedup", "--latency-ms", "--macs", "--params", "--data"))
    other = text.split("Other options:")[1]
    assert sorted(line.split()[0].rstrip(",") for line in other.splitlines() if line.strip().startswith("-")) == [
        *("--debug", "--rules", "-h", "-q", "-v")
    ]
