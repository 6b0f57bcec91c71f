"""Random texts of mixed length, with what real ones have: capitals, accents, other scripts, emoji, line breaks."""

import random

PIECES = (
    "the tea was not good never bad room Zürich café 東京 спасибо 😀 ok! don't 3.50€ <b>x</b> שלום \t \n very".split(
        " "
    )
)


def random_texts(count: int, seed: int = 0, longest: int = 25) -> list[str]:
    """Between one and `longest` words each; every text differs."""
    rng = random.Random(seed)
    texts = []
    for i in range(count):
        words = rng.choices(PIECES, k=rng.randint(1, longest))
        texts.append(f"{' '.join(words).strip()} n{i}")
    return texts
