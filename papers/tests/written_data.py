"""Small files of a user's own, in the formats of Europarl and Flickr8k."""

import numpy as np

NUMBERS = {"one": "un", "two": "deux", "three": "trois", "four": "quatre", "red": "rouge", "blue": "bleu"}


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_europarl(root, sentences=40, **changes):
    """Words, translated one by one; `changes` are lines by name of a file, `train_en`."""
    draw = np.random.default_rng(0)
    for part, count in (("train", sentences), ("valid", 10), ("test", 10)):
        english = [draw.choice([*NUMBERS], draw.integers(1, 7)) for _ in range(count)]
        for language, lines in (("en", english), ("fr", [[NUMBERS[word] for word in line] for line in english])):
            text = changes.get(f"{part}_{language}", [" ".join(line) for line in lines])
            write_lines(root / "europarl" / f"{part}.{language}", text)


def write_flickr8k(root, regions=4, dims=3, **changes):
    """An image has a colour in one of its regions, and two captions that name it."""
    folder, draw = root / "flickr8k", np.random.default_rng(0)
    arrays, lines = {}, ["9.jpg.1#0\tAn image of no part ."]
    for part, numbers in (("train", range(12)), ("dev", range(12, 15)), ("test", range(15, 18))):
        for number in numbers:
            image, colour = f"{number}.jpg", number % dims
            arrays[image] = draw.normal(0, 0.1, (regions, dims)).astype(np.float32)
            arrays[image][draw.integers(regions), colour] += 3
            name = ("Red", "Blue", "Green")[colour]
            lines += [f"{image}#0\t{name} dog .", f"{image}#1\tA {name.lower()} dog runs ."]
        write_lines(folder / f"Flickr_8k.{part}Images.txt", changes.get(part, [f"{number}.jpg" for number in numbers]))
    write_lines(folder / "Flickr8k.token.txt", changes.get("tokens", lines))
    np.savez(folder / "features.npz", **{**arrays, **changes.get("arrays", {})})
