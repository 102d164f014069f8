"""Groups of commands whose modules are imported when a command is run, so that help and short commands start at once."""

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """Imports a command's module when the command is run; a module calls its command `command`."""

    def __init__(self, *arguments: Any, modules: Mapping[str, tuple[str, str]], **options: Any) -> None:
        """Make the group.

        Args:
            arguments: click's.
            modules: Module and help line of each command; the line stands there so that help imports nothing.
            options: click's.
        """
        super().__init__(*arguments, **options)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        del ctx
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is none of this name."""
        del ctx
        if cmd_name not in self._modules:
            return None
        command = importlib.import_module(self._modules[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help lines."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._modules.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command that is meant, and help with a name that is mistyped."""
        name = args[0] if args else ""
        if name and name not in self._modules and not name.startswith("-"):
            import difflib  # noqa: PLC0415 - only for a mistyped command

            close = difflib.get_close_matches(name, self._modules, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"No such command {name!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)
