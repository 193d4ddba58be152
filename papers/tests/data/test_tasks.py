"""Each label is found again from its sample alone, in plain Python."""

import contextlib
import io
import itertools
import re

import pytest
import torch
from torch.distributions import Normal

from filigree_papers.data import tasks
from filigree_papers.data.tasks.gaussians import DEVIATIONS, MEANS

MAKERS = {
    "parity": lambda seed: tasks.parity(50, seed=seed),
    "unique_elements": lambda seed: tasks.unique_elements(50, seed=seed),
    "gaussians": lambda seed: tasks.gaussians(50, seed=seed),
    "associative_recall": lambda seed: tasks.associative_recall(50, 4, seed=seed),
    "pentomino": lambda seed: tasks.pentomino(50, seed=seed),
    "programs": lambda seed: tasks.encode(tasks.programs(50, seed=seed)),
    "translation": lambda seed: tasks.translation(50, seed=seed),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_data_are_those_of_the_seed(make):
    before = torch.get_rng_state()
    one, again, other = make(3), make(3), make(4)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    assert all(part.shape[0] == 50 for part in one)


@pytest.mark.parametrize("bits", [1, 7, 40])
def test_parity(bits):
    x, y = tasks.parity(300, bits, seed=1)
    assert (x.shape, x.dtype, y.dtype) == ((300, bits), torch.float32, torch.int64)
    assert set(x.flatten().tolist()) == {-1, 1}
    assert y.tolist() == [row.count(1) % 2 for row in x.tolist()]


@pytest.mark.parametrize(("length", "values"), [(1, 11), (26, 11), (5, 1), (8, 3)])
def test_unique_elements(length, values):
    x, y = tasks.unique_elements(300, length, values, seed=1)
    assert (x.shape, x.dtype, y.dtype) == ((300, length), torch.int64, torch.int64)
    assert set(x.flatten().tolist()) == set(range(values))
    assert y.tolist() == [len(set(row)) for row in x.tolist()]


def test_the_most_frequent_number_of_unique_elements():
    _, y = tasks.unique_elements(50_000)
    assert y.mode().values == 10
    assert (y == 10).float().mean() == pytest.approx(0.44, abs=0.01)


def test_gaussians():
    x, y = tasks.gaussians(60_000, seed=1)
    assert (x.shape, x.dtype, y.dtype) == ((60_000, 1), torch.float32, torch.int64)
    for label, (mean, deviation) in enumerate(zip(MEANS, DEVIATIONS, strict=True)):
        mine = x[y == label, 0]
        assert len(mine) == pytest.approx(20_000, rel=0.03)
        assert mine.mean() == pytest.approx(mean, abs=0.05)
        assert mine.std() == pytest.approx(deviation, rel=0.03)
    guess = Normal(torch.tensor(MEANS), torch.tensor(DEVIATIONS)).log_prob(x).argmax(1)
    assert (guess == y).float().mean() == pytest.approx(0.983, abs=0.002)


@pytest.mark.parametrize(("items", "length", "bits"), [(2, 3, 6), (16, 3, 6), (4, 1, 2), (3, 4, 1)])
def test_associative_recall(items, length, bits):
    x, y, mask = tasks.associative_recall(200, items, length, bits, seed=1)
    time = items * (length + 1) + 2 * length + 2
    assert (x.shape, y.shape, mask.shape) == ((200, time, bits + 2), (200, time, bits), (200, time))
    queried = set()
    for steps, target, counts in zip(x.tolist(), y.tolist(), mask.tolist(), strict=True):
        shown, query, marks = [], [], 0
        for step in steps[: time - length]:
            *vector, item_follows, query_bound = step
            assert item_follows + query_bound <= 1
            marks += int(query_bound)
            if item_follows:
                shown.append([])
            elif not query_bound:
                (query if marks else shown[-1]).append(vector)
            if item_follows or query_bound:
                assert not any(vector)
        assert marks == 2
        assert [len(item) for item in shown] == [length] * items
        assert shown.count(query) == 1
        queried.add(shown.index(query))
        assert target == [[0] * bits] * (time - length) + shown[shown.index(query) + 1]
        assert not any(map(any, steps[time - length :]))
        assert counts == [0] * (time - length) + [1] * length
    assert queried == set(range(items - 1))


def shapes_in(image):
    """Of each patch that is not empty: its place, its shape up to rotation, and its scale."""
    patches = {}
    for row, column in itertools.product(range(64), range(64)):
        if image[row][column]:
            patches.setdefault((row // 8, column // 8), set()).add((row % 8, column % 8))
    for place, pixels in patches.items():
        scale = {5: 1, 20: 2}[len(pixels)]
        cells = {(row // scale, column // scale) for row, column in pixels}
        assert len(cells) == 5
        assert (min(row for row, _ in cells), min(column for _, column in cells)) == (0, 0)
        turned = []
        for _ in range(4):
            bottom = max(row for row, _ in cells)
            cells = {(column, bottom - row) for row, column in cells}
            turned.append(tuple(sorted(cells)))
        yield place, min(turned), scale


def test_pentomino():
    x, y = tasks.pentomino(301, seed=1)
    assert (x.shape, x.dtype, y.dtype) == ((301, 1, 64, 64), torch.float32, torch.int64)
    assert set(x.flatten().tolist()) == {0, 1}
    assert y.bincount().tolist() == [151, 150]
    images = [list(shapes_in(image[0])) for image in x.tolist()]
    assert all(len(three) == 3 for three in images)  # in three patches
    assert y.tolist() == [int(len({shape for _, shape, _ in three}) == 1) for three in images]
    assert max(len({shape for _, shape, _ in three}) for three in images) == 2  # one differs
    assert len({shape for three in images for _, shape, _ in three}) == 10
    assert len({place for three in images for place, _, _ in three}) == 64
    assert {scale for three in images for _, _, scale in three} == {1, 2}
    patches = x.view(301, 8, 8, 8, 8).transpose(2, 3).reshape(-1, 64)
    assert len(patches[patches.any(1)].unique(dim=0)) == 80  # shapes, turns and scales


CURRICULA = ["baseline", "naive", "mix", "combined"]


def printed(program):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(program, {})
    return out.getvalue()


@pytest.mark.parametrize("curriculum", CURRICULA)
@pytest.mark.parametrize(("length", "nesting", "progress"), [(6, 3, 0.6), (1, 1, 0), (3, 7, 1)])
def test_programs_print_their_target(curriculum, length, nesting, progress):
    pairs = tasks.programs(100, length, nesting, curriculum, progress, seed=1)
    assert [printed(program) for program, _ in pairs] == [f"{target}\n" for _, target in pairs]
    numbers = [int(number) for program, _ in pairs for number in re.findall(r"\d+", program)]
    assert max(numbers) < max(10**length, 4 * length + 1)


def operations(program):
    """Sums, products, loops and choices; an assignment comes with a sum or a loop."""
    return len(re.findall(r"(?<=[\w)])[-+](?!=)|\*|for| if ", program))


def test_how_hard_a_curriculum_is():
    def hardness(curriculum, progress):
        pairs = tasks.programs(400, 4, 3, curriculum, progress, seed=1)
        digits = [max(map(len, re.findall(r"\d+", program))) for program, _ in pairs]
        return digits, [operations(program) for program, _ in pairs]

    for curriculum in ("baseline", "mix"):
        assert hardness(curriculum, 0) == hardness(curriculum, 1)
    digits, done = hardness("baseline", 0)
    assert set(done) == {3}
    assert max(digits) == 4
    assert set(hardness("mix", 0)[1]) == {1, 2, 3}
    for step, (nesting, most) in enumerate(itertools.product(range(1, 4), range(1, 5))):
        digits, done = hardness("naive", (step + 0.5) / 12)
        assert max(digits) == max(most, len(str(4 * most)))
        assert set(done) == {nesting}
    assert hardness("naive", 1) == hardness("baseline", 0)
    easy = sum(number == 1 for number in hardness("combined", 0)[1])
    assert easy == pytest.approx(400 * (1 / 2 + 1 / 6), abs=40)  # naive ones, and a third of the mixed ones


def test_encoded_programs():
    pairs = tasks.programs(60, seed=1)
    x, y, mask = tasks.encode(pairs)
    assert x.shape == y.shape == mask.shape
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert x.shape[1] == max(len(program + target) for program, target in pairs)
    for (program, target), before, after, counts in zip(pairs, x.tolist(), y.tolist(), mask.tolist(), strict=True):
        text = "".join(tasks.CHARACTERS[code] for code in [before[0], *after])
        assert text == f"{program}{target}."
        counted = [tasks.CHARACTERS[code] for code, counted in zip(after, counts, strict=True) if counted]
        assert "".join(counted) == f"{target}."


def phrase(words):
    """A phrase of the source: its translation, whether it is of many, and its sense."""
    quantity, *adjectives, noun = words
    number = "many" if quantity in {"these", "two", "three", "four", "many"} else "one"
    beings = ["dog", "cat", "horse", "child", "friend", "teacher", "doctor", "king", "bird", "fish", "bear", "wolf"]
    things = ["house", "book", "river", "road", "song", "ship", "tree", "stone", "letter", "city", "garden", "bridge"]
    gender = "mfn"[(beings + things).index(noun) % 3]
    sense = "being" if noun in beings else "thing"
    described = [f"{adjective}.{sense}.{gender}.{number}" for adjective in reversed(adjectives)]
    return [f"{quantity}.{gender}", f"{noun}.{number}", *described], number, sense


def clause(words):
    verbs = ["see", "know", "love", "leave", "find", "follow", "move", "hold", "meet", "keep", "lose", "touch"]
    (place,) = (number for number, word in enumerate(words) if word in verbs)
    (subject, number, _), (thing, _, sense) = phrase(words[:place]), phrase(words[place + 1 :])
    return [*subject, *thing, f"{words[place]}.{sense}.{number}"]


def translated(words):
    if "because" in words:
        place = words.index("because")
        return [*clause(words[place + 1 :]), "therefore", *clause(words[:place])]
    if "and" in words:
        place = words.index("and")
        return [*clause(words[:place]), "and", *clause(words[place + 1 :])]
    return clause(words)


def test_translation():
    source, target = tasks.translation(3000, seed=1)
    assert source.shape == target.shape == (3000, 21)
    assert source.dtype == target.dtype == torch.int64
    for vocabulary in (tasks.SOURCE_WORDS, tasks.TARGET_WORDS):
        assert len(set(vocabulary)) == len(vocabulary)
    assert (len(tasks.SOURCE_WORDS), len(tasks.TARGET_WORDS)) == (61, 269)
    assert source.unique().tolist() == list(range(61))
    assert target.unique().tolist() == list(range(269))
    for given, expected in zip(source.tolist(), target.tolist(), strict=True):
        words = [tasks.SOURCE_WORDS[place] for place in given]
        end = words.index("<end>")
        assert words[0] == "<begin>"
        assert set(words[end + 1 :]) <= {"<pad>"}
        result = ["<begin>", *translated(words[1:end]), "<end>"]
        assert [tasks.TARGET_WORDS[place] for place in expected] == result + ["<pad>"] * (21 - len(result))
    assert ((source == 60).any(1).float().mean(), (source == 59).any(1).float().mean()) == pytest.approx(
        (1 / 3, 1 / 3), abs=0.03
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tasks.parity(0), "parity: samples must be at least 1. Got 0"),
        (lambda: tasks.parity(1, bits=-1), "parity: bits must be at least 1. Got -1"),
        (lambda: tasks.unique_elements(1, length=0), "unique_elements: length must be at least 1. Got 0"),
        (lambda: tasks.unique_elements(1, values=0), "unique_elements: values must be at least 1. Got 0"),
        (lambda: tasks.gaussians(0), "gaussians: samples must be at least 1. Got 0"),
        (lambda: tasks.associative_recall(1, 1), "associative_recall: items must be at least 2. Got 1"),
        (lambda: tasks.associative_recall(1, 5, 2, 1), "items must be at most 4, as many as there are of 2 times 1 bi"),
        (lambda: tasks.pentomino(0), "pentomino: samples must be at least 1. Got 0"),
        (lambda: tasks.programs(1, length=0), "programs: length must be at least 1. Got 0"),
        (lambda: tasks.programs(1, nesting=26), "programs: nesting must be at most 25, one variable each. Got 26"),
        (lambda: tasks.programs(1, curriculum="hard"), "curriculum must be one of baseline, naive, mix, combined. Got"),
        (lambda: tasks.programs(1, progress=1.5), r"programs: progress must be in \[0, 1\]. Got 1.5"),
        (lambda: tasks.encode([]), "encode: at least one program is expected. Got none"),
        (lambda: tasks.encode([("print(7%2)\n", "1")]), "encode: programs must be of CHARACTERS. Got '%'"),
        (lambda: tasks.translation(0), "translation: samples must be at least 1. Got 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
