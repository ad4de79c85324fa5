"""The commands `train`, `alae` and `sweep`: recipes, each loaded when it is run; with them all commands are there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fractal_streams.cli import Commands, examples
from fractal_streams.cli_kaleidoscope import app as app
from fractal_streams.errors import missing_extra, unknown_name

try:
    import typer
    from typer.core import TyperCommand
except ImportError as error:
    raise missing_extra(error.name or "typer", "cli") from None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run of `fractal_streams.recipes`: the module whose `app` is its command, or has it, and what it does."""

    module: str
    line: str
    command: str = ""


RECIPES = {
    "vit": Recipe(module="vit", line="A vision transformer learns the classes of a stream."),
    "resnet": Recipe(module="resnet", line="A residual network learns the classes of a stream."),
    "vae": Recipe(module="vae", line="A variational autoencoder: rate, distortion, and what its latents know."),
    "diffusion": Recipe(module="diffusion", line="A diffusion model draws pictures of each class."),
    "alae": Recipe(module="alae.train", line="An adversarial latent autoencoder, with slots for terms of the loss."),
    "transfer": Recipe(module="transfer", line="Pretrain on fractals, fine-tune on pictures of your own."),
    "finite-vs-endless": Recipe(module="finite_vs_endless", line="The same training on finite sets and without end."),
    "scaling": Recipe(module="scaling_table", line="Loss against compute for several widths, with the fit."),
    "difficulty": Recipe(module="difficulty", line="How hard the presets are, by fixed baselines."),
}
ALAE = {
    name: Recipe(module="alae.commands", line=line, command=name)
    for name, line in {
        "encode": "Codes of pictures, or of a stream's samples with their classes and parameters.",
        "decode": "Pictures of codes, or of fresh draws.",
        "interpolate": "The straight way between codes: a board, and a film.",
        "project": "The code whose picture is nearest to a given one, by optimisation.",
    }.items()
}
"""What is done with a trained one."""
PANEL = "Training"
SWEEP = Recipe(module="sweep", line="Train at every width, learning rate and seed; the best rate of each width.")


class RecipeCommand(TyperCommand):
    """A command that is a line of help until it is asked for: then its module is loaded, and it is that one's."""

    recipe: Recipe

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        # else torch's threads spin between two operations, on the cores that render
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        module = import_module(f"fractal_streams.recipes.{self.recipe.module}")
        found: Any = typer.main.get_command(module.app)
        own = found.commands[self.recipe.command] if self.recipe.command else found
        return own.make_context(info_name, args, parent, **extra)


class Recipes(Commands):
    """The commands of `train`; a name that is none is told the nearest, and underscores stand for hyphens."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0].replace("_", "-")
        if name not in RECIPES and not name.startswith("-"):
            raise unknown_name("recipe", args[0], RECIPES)
        return super().resolve_command(ctx, [name, *args[1:]])


def add(group: typer.Typer, name: str, recipe: Recipe, **page: Any) -> None:
    """Makes a recipe a command of a group without loading it."""
    kind = type("RecipeCommand", (RecipeCommand,), {"recipe": recipe})
    group.command(name, cls=kind, help=recipe.line, **page)(lambda: None)


train = typer.Typer(cls=Recipes, add_completion=False, epilog=examples(
    "train vit --help", "train vit --num-steps 3000 --batch-size 256", "sweep --help",
))  # fmt: skip


@train.callback(invoke_without_command=True)
def training(context: typer.Context) -> None:
    """Train a model on a stream: recipes, each with options of its own."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


alae = typer.Typer(cls=Commands, add_completion=False, epilog=examples(
    "alae encode outputs/alae photos", "alae decode outputs/alae --count 64", "alae project --help",
))  # fmt: skip


@alae.callback(invoke_without_command=True)
def trained_alae(context: typer.Context) -> None:
    """Use an adversarial latent autoencoder that `train alae` made: codes, pictures, what lies between."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for known, its_recipe in RECIPES.items():
    add(train, known, its_recipe)
app.add_typer(train, name="train", rich_help_panel=PANEL)
for known, its_recipe in ALAE.items():
    add(alae, known, its_recipe)
app.add_typer(alae, name="alae", rich_help_panel=PANEL)
add(app, "sweep", SWEEP, rich_help_panel=PANEL)
