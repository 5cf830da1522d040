"""The command line: what commands there are. They are thin; nothing heavy is imported before a command needs it."""

import sys

import typer

from pam_aug.cli import export, folders, learn, make, recipes
from pam_aug.errors import PamAugError

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn hand-object datasets and rollouts into labelled, filtered, exactly mixed training shards.",
)
recipes_app = typer.Typer(no_args_is_help=True, help="List, print and copy the bundled recipes.", rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")
export_app = typer.Typer(no_args_is_help=True, help="Write a build for other estimators.", rich_markup_mode=None)
app.add_typer(export_app, name="export")

_OPEN = {"allow_extra_args": True, "ignore_unknown_options": True}  # a converter's own options

app.command()(make.build)
app.command(context_settings=_OPEN)(make.convert)
app.command(context_settings=_OPEN)(make.screen)
app.command()(make.generate)
app.command("plan")(make.plan_build)
app.command()(make.rollout)
app.command()(folders.inspect)
app.command()(folders.verify)
app.command()(folders.repair)
app.command()(folders.migrate)
app.command()(folders.select)
app.command()(folders.mix)
app.command()(learn.train)
app.command("eval")(learn.evaluate)
export_app.command("simplehand")(export.export_simplehand)
export_app.command("coco")(export.export_coco)
export_app.command("hamer")(export.export_hamer)
app.command("fetch-weights")(learn.fetch_weights)
recipes_app.command("ls")(recipes.recipes_ls)
recipes_app.command("show")(recipes.recipes_show)
recipes_app.command("cp")(recipes.recipes_cp)


def main() -> None:
    """Entry point of `pam-aug`: errors of ours become one message and their exit code, an interrupt 130."""
    try:
        code = app(standalone_mode=False)
    except PamAugError as error:
        _stop(str(error), error.exit_code)
    except typer.Abort:
        _stop("aborted", 130)
    except KeyboardInterrupt:
        _stop("interrupted; the same command resumes", 130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        # A usage error, by its form: some versions of typer carry their own copy of click's classes.
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        error.show()  # type: ignore[attr-defined]
        sys.exit(error.exit_code)  # type: ignore[attr-defined]
    sys.exit(code if isinstance(code, int) else 0)


def _stop(message: str, code: int) -> None:
    print(f"pam-aug: {message}", file=sys.stderr)
    sys.exit(code)
