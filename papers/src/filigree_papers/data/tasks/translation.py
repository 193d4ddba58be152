"""A small translation task: the target language has another word order, agreement and a richer lexicon."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from filigree_papers.data.tasks.sizes import at_least

ONE, MANY = ("this", "every", "no"), ("these", "two", "three", "four", "many")
BEINGS = ("dog", "cat", "horse", "child", "friend", "teacher", "doctor", "king", "bird", "fish", "bear", "wolf")
THINGS = ("house", "book", "river", "road", "song", "ship", "tree", "stone", "letter", "city", "garden", "bridge")
ADJECTIVES = ("old", "new", "big", "small", "good", "bad", "dark", "light", "quiet", "loud", "strong", "strange")
VERBS = ("see", "know", "love", "leave", "find", "follow", "move", "hold", "meet", "keep", "lose", "touch")
QUANTITIES, NOUNS = ONE + MANY, BEINGS + THINGS

SOURCE_WORDS = ("<pad>", "<begin>", "<end>", *QUANTITIES, *ADJECTIVES, *NOUNS, *VERBS, "and", "because")
TARGET_WORDS = (
    "<pad>", "<begin>", "<end>",
    *(f"{quantity}.{gender}" for quantity in QUANTITIES for gender in "mfn"),
    *(f"{adjective}.{sense}.{gender}.{number}" for adjective in ADJECTIVES for sense in ("being", "thing")
      for gender in "mfn" for number in ("one", "many")),
    *(f"{noun}.{number}" for noun in NOUNS for number in ("one", "many")),
    *(f"{verb}.{sense}.{number}" for verb in VERBS for sense in ("being", "thing") for number in ("one", "many")),
    "and", "therefore",
)  # fmt: skip


class Meaning(NamedTuple):
    """What sentences mean, as indices into the lists above: `(samples, clauses, subject and object)` or as noted."""

    quantity: Tensor
    adjectives: Tensor  # (samples, clauses, subject and object, 2)
    described: Tensor  # which of these are there
    noun: Tensor
    verb: Tensor  # (samples, clauses)
    join: Tensor  # (samples, 1): 0 no second clause, 1 "and", 2 "because"


def translation(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sentences of a tiny grammar and their translations, which follow from them.

    Source: one clause, or two with "and" or "because"; a clause is subject, verb, object; subject and object are a
    quantity, none to two adjectives and a noun. Target: quantity, noun, adjectives in reverse; the verb last; of "A
    because B", B "therefore" A. Its nouns have a gender (their index in `NOUNS` modulo 3), with which quantity and
    adjectives agree, and a number, that of the quantity (`ONE` or `MANY`), with which adjectives agree, and the verb
    with that of the subject. Adjectives have a word for beings and one for things; so have verbs, by their object.

    Returns:
        Source and target `(samples, 21)`, int64 indices into `SOURCE_WORDS` and `TARGET_WORDS`: 1, the words, 2, zeros.
    """
    at_least(1, "translation", samples=samples)
    generator = torch.Generator().manual_seed(seed)

    def draw(kinds: int, *shape: int) -> Tensor:
        return torch.randint(0, kinds, (samples, *shape), generator=generator)

    first = draw(len(ADJECTIVES), 2, 2)
    second = (first + 1 + draw(len(ADJECTIVES) - 1, 2, 2)) % len(ADJECTIVES)  # another one
    meaning = Meaning(
        quantity=draw(len(QUANTITIES), 2, 2),
        adjectives=torch.stack([first, second], dim=-1),
        described=draw(3, 2, 2, 1) > torch.arange(2),
        noun=draw(len(NOUNS), 2, 2),
        verb=draw(len(VERBS), 2),
        join=draw(3, 1),
    )
    return _source(meaning), _target(meaning)


def _source(meaning: Meaning) -> Tensor:
    starts = (SOURCE_WORDS.index(words[0]) for words in (QUANTITIES, ADJECTIVES, NOUNS, VERBS))
    quantity, adjective, noun, verb = starts
    phrases = torch.cat([
        quantity + meaning.quantity[..., None],
        torch.where(meaning.described, adjective + meaning.adjectives, 0),
        noun + meaning.noun[..., None],
    ], dim=-1)  # fmt: skip
    clauses = torch.cat([phrases[:, :, 0], verb + meaning.verb[..., None], phrases[:, :, 1]], dim=-1)
    conjunction = torch.where(meaning.join > 0, SOURCE_WORDS.index("and") - 1 + meaning.join, 0)
    return _sentence(clauses[:, 0], conjunction, clauses[:, 1])


def _target(meaning: Meaning) -> Tensor:
    starts = (TARGET_WORDS.index(word) for word in ("this.m", "old.being.m.one", "dog.one", "see.being.one"))
    quantity, adjective, noun, verb = starts
    gender, thing = meaning.noun % 3, (meaning.noun >= len(BEINGS)).long()
    many = (meaning.quantity >= len(ONE)).long()
    form = 6 * thing + 2 * gender + many
    phrases = torch.cat([
        quantity + (3 * meaning.quantity + gender)[..., None],
        noun + (2 * meaning.noun + many)[..., None],
        torch.where(meaning.described, adjective + 12 * meaning.adjectives + form[..., None], 0).flip(-1),
    ], dim=-1)  # fmt: skip
    verbs = verb + (4 * meaning.verb + 2 * thing[..., 1] + many[..., 0])[..., None]
    clauses = torch.cat([phrases[:, :, 0], phrases[:, :, 1], verbs], dim=-1)
    clauses = torch.where((meaning.join == 2)[..., None], clauses.flip(1), clauses)
    conjunction = torch.where(meaning.join > 0, TARGET_WORDS.index("and") - 1 + meaning.join, 0)
    return _sentence(clauses[:, 0], conjunction, clauses[:, 1])


def _sentence(first: Tensor, conjunction: Tensor, second: Tensor) -> Tensor:
    """Begin and end around the words, 0 for those that are not there moved to the end."""
    begin, end = torch.ones_like(conjunction), torch.full_like(conjunction, 2)
    rows = torch.cat([begin, first, conjunction, second * (conjunction > 0), end], dim=1)
    return rows.gather(1, (rows == 0).int().argsort(dim=1, stable=True))
