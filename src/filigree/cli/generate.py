"""`filigree generate`."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from filigree.cli.options import Model
from filigree.cli.output import tell
from filigree.cli.trained import load_trained
from filigree.data.vocabulary import vocabulary_of
from filigree.models.gpt import GPT
from filigree.recipes import RecipeError


def generate(
    model: Model,
    text: Annotated[str, typer.Argument(help="How the text begins.")] = "\n",
    tokens: Annotated[int, typer.Option(min=1, help="How many characters or words are drawn.")] = 300,
    temperature: Annotated[
        float, typer.Option(min=0, help="Below 1 likelier tokens are preferred; 0 takes the likeliest.")
    ] = 0.8,
    top: Annotated[int | None, typer.Option(min=1, help="Draw only from so many of the likeliest tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Go on with a text, token by token, by a language model that `train gpt-shakespeare` or `gpt-ptb` left."""
    network, command = load_trained(model), f"generate {model}"
    vocabulary = vocabulary_of(network)
    if not isinstance(network, GPT) or vocabulary is None:
        raise RecipeError(
            f"{command}: a language model that knows its tokens is needed, as `train gpt-shakespeare` leaves."
        )
    try:
        begin = vocabulary.encode(text)
    except ValueError as error:
        raise RecipeError(f"{command}: {error}") from None
    if not len(begin):
        raise RecipeError(f"{command}: the text must hold one token at least. Got {text!r}.")
    draw = torch.Generator().manual_seed(seed)
    whole = network.generate(begin[None], tokens, temperature=temperature, top=top, generator=draw)
    tell(vocabulary.decode(whole[0]))
