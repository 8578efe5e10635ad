"""The `invsolve` command: its verbs, and how errors become one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback

import typer

from invsolve.cli import acquire, bench, files, look, plugins, prior, sample, train
from invsolve.cli import run as pipelines
from invsolve.cli.common import note

app = typer.Typer(
    name="invsolve",
    help="Reconstruct what an instrument could not measure, with an honest uncertainty.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command()(files.demo)
app.command()(look.inspect)
app.command()(files.simulate)
app.command()(files.reconstruct)
app.command()(acquire.acquire)
app.command()(files.join)
app.command()(files.evaluate)
app.command()(files.report)
app.command()(pipelines.run)
app.command()(train.train)
app.command()(sample.sample)
app.add_typer(prior.app, name="prior")
app.add_typer(bench.app, name="bench")
app.add_typer(plugins.app, name="plugins")


def _version(flag: bool) -> None:
    if flag:
        from invsolve import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def run(arguments: list[str]) -> int:
    """Run the command line; 0 good, 2 the user's mistake, 1 ours, 130 interrupted."""
    from invsolve.errors import UserError, printable

    try:
        code = app(arguments, standalone_mode=False)
    except UserError as error:
        return _fail(f"{' '.join(str(error).split())}", 2)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Typer brings its own copy of click from 0.20 on, so its usage errors have no class we could name.
        if hasattr(error, "format_message"):
            return _fail(error.format_message(), 2)
        from invsolve import engine

        if isinstance(error, engine.Interrupted):
            return _fail(str(error), 130)
        if isinstance(error, engine.NonFinite):
            return _fail(str(error), 1)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _fail(f"{error.filename}: the name is too long for this file system; give a shorter one", 2)
        print(printable(traceback.format_exc()), file=sys.stderr)
        return _fail(f"this is a fault of invsolve, not yours: {type(error).__name__}: {error}", 1)
    return code if isinstance(code, int) else 0


def _fail(text: str, code: int) -> int:
    note(text)
    return code
