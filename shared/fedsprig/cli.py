"""The command `fedsprig`: a table of commands, each imported when it is called and not before.

``fedsprig --help`` therefore knows nothing of torch. An error that a user can mend is one line on
stderr and the exit code of its class.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import click
import typer
from typer.core import TyperGroup

from fedsprig import __version__
from fedsprig.errors import FedsprigError


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command lives (``module:typer app``) and its line in the help."""

    target: str
    help: str


COMMANDS: dict[str, Command] = {
    "demo": Command("fedsprig_sim.commands:demo", "Run the main job on embedded data."),
    "simulate": Command("fedsprig_sim.commands:simulate", "Run a scenario file."),
    "report": Command("fedsprig_sim.commands:report", "Show a finished run again."),
    "library": Command("fedsprig_server.commands:library", "Look into a library and check it."),
    "base": Command("fedsprig_server.base_commands:base", "Make base models ready."),
    "bench": Command("fedsprig_sim.bench_commands:bench", "Measure parts of the system."),
    "doctor": Command("fedsprig.cli:doctor", "Show what is installed and what is amiss."),
}

INTERRUPTED = 130

doctor = typer.Typer(add_completion=False)


class LazyGroup(TyperGroup):
    """Lists its commands by name and help line; loads the one that is called."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Put the real command in the place of the line that stands for it."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        module, _, app = COMMANDS[name].target.partition(":")
        return name, typer.main.get_command(getattr(importlib.import_module(module), app)), rest


def root() -> click.Group:
    """The command `fedsprig` with all its commands, none of them loaded."""
    return LazyGroup(
        name="fedsprig",
        help="One pretrained vision model, specialised for many devices.",
        commands={n: click.Command(n, help=e.help) for n, e in COMMANDS.items()},
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_version,
                help="Show the version.",
            )
        ],
        no_args_is_help=True,
        suggest_commands=False,  # click has suggestions of its own
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: Sequence[str]) -> int:
    """Run a command line.

    Returns:
        The exit code: 0, that of a named error, 2 for a wrong command line, 130 when interrupted.
    """
    try:
        code = root().main(list(args), prog_name="fedsprig", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        return _fail(error.format_message().rstrip(".") + hint, error.exit_code)
    except FedsprigError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("fedsprig"):
            raise
        return _fail(f"{package} is not installed: pip install 'fedsprig[sim]'", 1)
    if code == INTERRUPTED:  # typer has turned Ctrl-C into this
        return _fail(
            "interrupted: say the same command again, a run with --resume, to go on where it stood",
            INTERRUPTED,
        )
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"fedsprig {__version__}")
        ctx.exit()


@doctor.command()
def _doctor(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the findings to this file.")
    ] = None,
) -> None:
    """Show the machine, what is installed, which files are readable, and how to mend the rest."""
    from fedsprig.doctor import diagnose

    findings = diagnose()
    width = max(len(finding.name) for finding in findings)
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            click.echo(click.style(area, bold=True))
        sign = click.style("!!", fg="red") if finding.mend else "  "
        click.echo(f"{sign} {finding.name:<{width}} {finding.value}")
        if finding.mend:
            click.echo(f"   {'':<{width}} mend: {finding.mend}")
    problems = sum(bool(finding.mend) for finding in findings)
    click.echo(f"{problems} problem{'s' * (problems != 1)} found" if problems else "all is well")
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(f) for f in findings], indent=1) + "\n")
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
