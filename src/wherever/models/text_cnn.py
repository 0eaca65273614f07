"""Text CNN (Kim 2014) on sentences about films: a window of words is a patch, and what goes wrong with language.

*Convolutional neural networks for sentence classification*, EMNLP, the model CNN-rand: a word is a vector of learnt
numbers, a sentence a line of them, X[c, t]. Maps d look at windows of h = 3, 4 and 5 words,

    H[d, t] = max(0, u[d] + Σ_c Σ_a V[d, c, a] X[c, t+a]),    h values of a,

their largest value over all places t says whether what they look for is *anywhere*, and a linear layer under dropout
tells from these whether the sentence is positive. As in the paper the last layer's weights of a class have a norm of at
most 3. Other than in the paper: the optimiser is AdamW, and no epoch is chosen; words seen once in training are one
word, which at random stands for others too, so that unseen words have a meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from wherever.check.words import percent
from wherever.models.data import Labelled, sentences
from wherever.models.recipe import Options, Report, curves, main
from wherever.models.training import Trained, count_weights, outputs, seeded, train
from wherever.torch import Conv1d

FOLDS = 10
BLANK, UNKNOWN = 0, 1  # numbers of no word, and of all words that are not in a vocabulary


class Vocabulary:
    """The words that are told apart: those which occur twice or more, by number.

    Parameters
    ----------
    texts : iterable of str
        Words are what lies between spaces.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        counts = Counter(word for text in texts for word in text.split())
        self.numbers = {word: n for n, word in enumerate((w for w, count in counts.items() if count > 1), UNKNOWN + 1)}

    def __len__(self) -> int:
        return UNKNOWN + 1 + len(self.numbers)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Write texts as numbers of words, (N, L) int64, with blanks behind."""
        lines = [torch.tensor([self.numbers.get(word, UNKNOWN) for word in text.split()]) for text in texts]
        return nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=BLANK)


class TextCNN(nn.Module):
    """Words (N, L) int64, with blanks behind, to scores of two classes (N, 2).

    Parameters
    ----------
    words : int
        Size of the vocabulary.
    size : int
        Numbers that a word is.
    windows : tuple of int
        How many words a map sees.
    maps : int
        Maps of each window.
    """

    def __init__(
        self, words: int, size: int = 128, windows: tuple[int, ...] = (3, 4, 5), maps: int = 100, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size, padding_idx=BLANK)
        with torch.no_grad():
            self.embedding.weight.mul_(0.1)  # of numbers around 1 a window has too many for the first steps
        self.gap = max(windows) - 1
        self.convolutions = nn.ModuleList(Conv1d(size, maps, window) for window in windows)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(maps * len(windows), 2)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the scores. All sentences are one line, with blanks before each: no window sees two of them."""
        x = nn.functional.pad(x, (self.gap, 0))
        spans = self.gap + (x != BLANK).sum(dim=1)
        line = x[torch.arange(x.shape[1]) < spans[:, None]]
        # A convolution is planned for each length of a line, so that there should be few of them.
        whole = nn.functional.pad(line, (0, self.gap + -(len(line) + self.gap) % 256))
        words = self.embedding(whole).T[None]  # (1, size, words)
        maps = torch.cat([convolution(words)[0, :, : len(line)] for convolution in self.convolutions])
        strongest = torch.segment_reduce(maps.T.contiguous(), "max", lengths=spans)  # (N, maps)
        return self.linear(self.dropout(strongest.relu()))


# ------------------------------------------------------------------------------------------------------------ training


def bounded(model: TextCNN, norm: float = 3) -> None:
    """Shorten the last layer's weights of a class where they are longer than `norm`, as the paper does."""
    with torch.no_grad():
        model.linear.weight.copy_(model.linear.weight.renorm(2, 0, norm))


def gapped(x: Tensor, y: Tensor, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Make a share of the words unknown, at random."""
    hidden = (x != BLANK) & (torch.rand(x.shape) < share)
    return x.masked_fill(hidden, UNKNOWN), y


def fit(
    texts: Sequence[str], y: Tensor, *, epochs: int, seed: int = 0, size: int = 128, name: str | None = None
) -> tuple[Vocabulary, Trained[TextCNN]]:
    """Make a vocabulary of texts, and train on them as the recipe does."""
    words = Vocabulary(texts)
    run = train(
        lambda: TextCNN(len(words), size), Labelled(words.encode(texts), y), epochs=epochs, seed=seed,
        augment=gapped, optimiser=_optimiser, after_step=bounded, name=name,
    )  # fmt: skip
    return words, run


def _optimiser(model: nn.Module) -> torch.optim.Optimizer:
    """Make AdamW that takes larger steps with words, since a batch holds few of them."""
    words = [weight for name, weight in model.named_parameters() if name.startswith("embedding")]
    others = [weight for name, weight in model.named_parameters() if not name.startswith("embedding")]
    rates = [{"params": words, "lr": 4e-3}, {"params": others, "lr": 1e-3}]
    return torch.optim.AdamW(rates, weight_decay=0, fused=True)


def positive(words: Vocabulary, model: TextCNN, texts: Sequence[str]) -> Tensor:
    """Predict whether texts are positive: (N,), 0 or 1."""
    return outputs(model, words.encode(texts)).argmax(dim=1)


def folds(y: Tensor, n: int, seed: int) -> Tensor:
    """Deal examples into n folds at random, each class evenly: the number of each one's fold, (N,)."""
    dealt = torch.empty_like(y)
    with seeded(seed):
        for k in y.unique():
            mine = (y == k).nonzero()[:, 0]
            dealt[mine[torch.randperm(len(mine))]] = torch.arange(len(mine)) % n
    return dealt


# ---------------------------------------------------------------------------------------- what goes wrong with language

NEGATIONS = {"not", "no", "never", "nothing", "neither", "nor", "without", "hardly", "cannot"}
TURNS = {"but", "although", "though", "yet", "despite", "however", "while"}
PRAISE = ["good", "great", "wonderful", "funny", "moving", "beautiful", "brilliant", "enjoyable", "fresh", "touching"]
BLAME = ["bad", "dull", "boring", "awful", "stupid", "tedious", "predictable", "silly", "lame", "pointless"]
BETWEEN = ["by", "any", "stretch", "of", "the", "imagination", "or", "by", "the", "standards", "of", "our", "time"]
DISTANCES = (0, 1, 2, 3, 4, 6, 8, 12)  # words between "not" and what it negates


def shuffled(text: str) -> str:
    """Put the words of a text in any order."""
    words = text.split()
    return " ".join(words[n] for n in torch.randperm(len(words)).tolist())


def swapped(text: str) -> str:
    """Put the second half of a text first."""
    words = text.split()
    half = len(words) // 2
    return " ".join(words[half:] + words[:half])


def denied(words: Vocabulary, model: TextCNN, adjectives: Sequence[str], truth: int, distance: int) -> float:
    """Measure how often "not" turns the answer over, so many words before an adjective that is understood without.

    "the film is (not) by any stretch of good .": the words between are in both.
    """
    between = " ".join(BETWEEN[:distance])
    plain, turned = (
        positive(words, model, [f"the film is {start} {between} {word} ." for word in adjectives])
        for start in ("", "not")
    )
    right = plain == truth
    return float((turned != truth)[right].float().mean()) if right.any() else float("nan")


CHANGES: dict[str, Callable[[str], str]] = {"as they are": str, "shuffled": shuffled, "halves swapped": swapped}


def asked(texts: Sequence[str]) -> dict[str, Tensor]:
    """Ask which texts (N,) have what language does with words that are far from each other."""
    words = [text.split() for text in texts]
    return {
        "with a negation (not, n't, never, ...)": torch.tensor(
            [any(word in NEGATIONS or word.endswith("n't") for word in text) for text in words]
        ),
        "with a turn (but, although, yet, ...)": torch.tensor([not TURNS.isdisjoint(text) for text in words]),
        "of more than 30 words": torch.tensor([len(text) > 30 for text in words]),
    }


# -------------------------------------------------------------------------------------------------------------- recipe


def recipe(options: Options) -> Report:
    """Train on nine tenths and test on the last, ten times; change the tested sentences, and ask what they have."""
    texts, y = _sampled(*sentences(options.data), options.sample)
    fold = folds(y, FOLDS, options.seed)
    right = {name: torch.zeros(len(y), dtype=torch.bool) for name in CHANGES}
    flips = torch.zeros(2, FOLDS, len(DISTANCES))
    runs = []
    for n in range(FOLDS):
        data, test = ((fold == n) == tested for tested in (False, True))
        called = f"fold {n + 1} of {FOLDS}"
        words, run = fit(_at(texts, data), y[data], epochs=options.epochs, seed=options.seed + n, name=called)
        with seeded(options.seed):
            for name, change in CHANGES.items():
                right[name][test] = positive(words, run.model, [change(text) for text in _at(texts, test)]) == y[test]
        for row, (adjectives, truth) in enumerate(((PRAISE, 1), (BLAME, 0))):
            flips[row, n] = torch.tensor([denied(words, run.model, adjectives, truth, by) for by in DISTANCES])
        runs.append(run)
    scores = torch.stack([right["as they are"][fold == n].float().mean() for n in range(FOLDS)])
    sizes = [count_weights(run.model) for run in runs]
    cells = [f"{sum(sizes) / FOLDS:,.0f}", percent(float(scores.mean())), f"{100 * float(scores.std()):.1f} %"]
    praise, blame = flips.nanmean(dim=1).tolist()
    told = right["as they are"].float()
    kinds = [[name, f"{int(some.sum()):,}", percent(float(told[some].mean()))] for name, some in asked(texts).items()]
    return Report(
        f"Text CNN on {len(y):,} sentences about films, {FOLDS}-fold",
        [
            (
                ("network", "weights", "accuracy", "spread of folds", "training"),
                [["CNN-rand", *cells, f"{sum(run.seconds for run in runs):.0f} s"]],
            ),
            (
                ("tested sentences", "how many", "accuracy"),
                [[name, f"{len(y):,}", percent(float(some.float().mean()))] for name, some in right.items()] + kinds,
            ),
            (
                ('"not" turns over, so many words before', *map(str, DISTANCES)),
                [['"good" and the like', *map(percent, praise)], ['"bad" and the like', *map(percent, blame)]],
            ),
        ],
        f"It tells {percent(float(scores.mean()))} of the sentences right, and with their words in any order "
        f"{percent(float(right['shuffled'].float().mean()))}.",
        [
            curves(
                "training",
                "epoch",
                "loss, mean of the folds",
                {"CNN-rand": _mean_loss(runs)},
                markers=False,
            ),
            curves(
                "negation",
                'words between "not" and the adjective',
                "answers turned over",
                {'"good" and the like': (DISTANCES, praise), '"bad" and the like': (DISTANCES, blame)},
            ),
        ],
    )


def _sampled(texts: list[str], y: Tensor, n: int | None) -> tuple[list[str], Tensor]:
    chosen = Labelled(torch.arange(len(y)), y).sample(n)
    return [texts[k] for k in chosen.x.tolist()], chosen.y


def _at(texts: Sequence[str], where: Tensor) -> list[str]:
    return [text for text, wanted in zip(texts, where.tolist(), strict=True) if wanted]


def _mean_loss(runs: Sequence[Trained[TextCNN]]) -> tuple[list[int], list[float]]:
    epochs = [run.epochs for run in runs]
    return [e.number for e in epochs[0]], [sum(e.loss for e in same) / len(same) for same in zip(*epochs, strict=True)]


if __name__ == "__main__":
    main(recipe, __doc__, epochs=4)
