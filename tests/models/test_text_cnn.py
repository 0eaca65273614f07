"""Text CNN: sentences of a line do not see each other; windows learn negation that is near, and none that is far."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rich")
pytest.importorskip("PIL")

from wherever.models.recipe import Options  # noqa: E402
from wherever.models.text_cnn import (  # noqa: E402
    BLANK,
    TextCNN,
    Vocabulary,
    asked,
    bounded,
    denied,
    fit,
    folds,
    gapped,
    positive,
    recipe,
    shuffled,
    swapped,
)
from wherever.models.training import outputs, seeded  # noqa: E402


def test_words_that_occur_once_are_one_word():
    words = Vocabulary(["a film , a good film", "good ?"])
    assert len(words) == 2 + 3
    assert words.encode(["good a dull film", "a"]).tolist() == [[4, 2, 1, 3], [2, 0, 0, 0]]


def test_sentences_of_a_line_do_not_see_each_other():
    model = TextCNN(50, 8, maps=6)
    x = torch.randint(1, 50, (7, 12))
    for n, length in enumerate((12, 1, 5, 2, 9, 1, 12)):
        x[n, length:] = BLANK
    together = outputs(model, x)
    alone = torch.cat([outputs(model, row[row != BLANK][None]) for row in x])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_largest_value_does_not_see_where():
    model = TextCNN(50, 8, windows=(3,), maps=6)
    # What three words say does not depend on what comes before, if that is unknown and says nothing.
    with torch.no_grad():
        model.embedding.weight[1] = 0
    x = torch.full((2, 12), 1)
    x[0, 3:6] = x[1, 7:10] = torch.tensor([5, 6, 7])
    first, second = outputs(model, x)
    assert torch.allclose(first, second, atol=1e-6)


def test_weights_of_a_class_are_bounded_and_words_hidden():
    model = TextCNN(50, 8)
    with torch.no_grad():
        model.linear.weight[0] *= 100
    other = model.linear.weight[1].clone()
    bounded(model)
    assert model.linear.weight[0].norm().item() == pytest.approx(3, rel=1e-4)
    assert torch.equal(model.linear.weight[1], other)
    x = torch.randint(2, 50, (40, 50))
    x[:, 30:] = BLANK
    with seeded(0):
        hidden, _ = gapped(x, torch.zeros(40), 0.2)
    assert (hidden[:, 30:] == BLANK).all()
    assert 0.15 < (hidden[:, :30] == 1).float().mean() < 0.25


def test_folds_have_as_much_of_each_class():
    y = (torch.arange(103) < 40).long()
    dealt = folds(y, 10, 0)
    assert dealt.bincount().tolist() == [11, 11, 11, 10, 10, 10, 10, 10, 10, 10]
    assert dealt[y == 1].bincount().tolist() == [4] * 10


def test_changed_sentences_and_what_they_have():
    text = "not a very good film"
    assert sorted(shuffled(text).split()) == sorted(text.split())
    assert swapped(text) == "very good film not a"
    found = asked(["it isn't good", "good but long", "one " * 31, "notable"])
    assert [part.tolist() for part in found.values()] == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
    ]


def reviews(n, seed):
    """Words drawn at random with "good" or "bad" among them, which "not" before them turns over."""
    rng = torch.Generator().manual_seed(seed)
    texts, y = [], []
    for _ in range(n):
        good, denies, place = (int(torch.randint(k, (), generator=rng)) for k in (2, 2, 8))
        words = [f"w{k}" for k in torch.randint(40, (9,), generator=rng).tolist()]
        words[place + denies] = "good" if good else "bad"
        if denies:
            words[place] = "not"
        texts.append(" ".join(words))
        y.append(good ^ denies)
    return texts, torch.tensor(y)


def test_it_learns_that_not_turns_the_next_word_over():
    words, run = fit(*reviews(1000, 0), epochs=12, size=32)
    texts, y = reviews(200, 1)
    assert (positive(words, run.model, texts) == y).float().mean() > 0.9
    alone = [" ".join(word for word in text.split() if word != "not") for text in texts]
    assert (positive(words, run.model, alone) == y).float().mean() < 0.7
    assert [denied(words, run.model, ["good"], 1, distance) for distance in (0, 8)] == [1, 0]


def test_its_recipe(data):
    report = recipe(Options(data, epochs=1, sample=40))
    assert "40 sentences about films, 10-fold" in report.title()
    assert [len(rows) for _, rows in report.tables()] == [1, 6, 2]
    assert len(report.panels) == 2
