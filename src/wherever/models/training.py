"""One seeded training loop for all recipes: batches, augmentation, optimiser, schedule, evaluation, history.

`train` builds a network and trains it, both under one seed, so that the same call on the same machine gives the same
numbers. The last epoch is what counts: no epoch is chosen by its test score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from wherever.cli.progress import Steps
from wherever.models.data import Labelled

Model = TypeVar("Model", bound=nn.Module)
Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_WARM_UP = 0.1  # share of the training in which the rate grows to its full size


@dataclass(frozen=True)
class Epoch:
    """One pass over the training examples: its number from 1, mean loss, and test score (None without a test)."""

    number: int
    loss: float
    score: float | None


@dataclass(frozen=True)
class Trained(Generic[Model]):
    """A network after its training, in evaluation mode, what happened in each epoch, and the seconds it took."""

    model: Model
    epochs: list[Epoch]
    seconds: float

    @property
    def score(self) -> float:
        """Test score after the last epoch."""
        score = self.epochs[-1].score
        if score is None:
            raise ValueError("there was no test to give a score")
        return score


def accuracy(output: Tensor, y: Tensor) -> float:
    """Share of examples, or places, whose largest output (N, K, ...) is that of their class y (N, ...)."""
    return float((output.argmax(dim=1) == y).float().mean())


def train(
    build: Callable[[], Model],
    data: Labelled,
    test: Labelled | None = None,
    *,
    epochs: int,
    seed: int = 0,
    batch: int = 50,
    rate: float = 2e-3,
    decay: float = 0.0,
    augment: Augment | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    score: Callable[[Tensor, Tensor], float] = accuracy,
    optimiser: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    after_step: Callable[[Model], None] | None = None,
    name: str | None = None,
) -> Trained[Model]:
    """Build a network and train it.

    Parameters
    ----------
    build : callable
        Makes the network; called under the seed.
    data, test : Labelled
        What is learnt from, and what is scored after each epoch.
    epochs, batch : int
        Passes over the data; examples in a batch.
    rate, decay : float
        Largest learning rate, and weight decay, of AdamW (Loshchilov and Hutter 2019). The rate grows over the first
        tenth of the training, and falls to zero along a cosine.
    augment : callable, optional
        Changes a batch x, y of training examples.
    loss : callable
        Of the network's output and y, averaged over a batch.
    score : callable
        Of all outputs for the test and its y.
    optimiser : callable, optional
        Makes another optimiser for the network; its own rates are what the schedule multiplies.
    after_step : callable, optional
        Called with the network after every step (to keep weights within a norm, for instance).
    name : str, optional
        What a progress bar calls it; without a name there is none.
    """
    begun = time.perf_counter()
    with seeded(seed), Steps(epochs, quiet=name is None) as progress:
        model = build()
        steps = epochs * math.ceil(len(data) / batch)
        used = (
            optimiser(model)
            if optimiser
            else torch.optim.AdamW(model.parameters(), rate, weight_decay=decay, fused=True)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(used, lambda step: _rate(step / steps))
        history: list[Epoch] = []
        for number in range(1, epochs + 1):
            progress.next(_described(name, history))
            model.train()
            total = 0.0
            batches = torch.randperm(len(data)).split(batch)
            for done, chosen in enumerate(batches):
                x, y = data.x[chosen], data.y[chosen]
                if augment is not None:
                    x, y = augment(x, y)
                used.zero_grad()
                error = loss(model(x), y)
                error.backward()
                used.step()
                schedule.step()
                if after_step is not None:
                    after_step(model)
                total += error.item() * len(chosen)
                progress.part(done + 1, len(batches))
            found = None if test is None else score(outputs(model, test.x), test.y)
            history.append(Epoch(number, total / len(data), found))
    return Trained(model.eval(), history, time.perf_counter() - begun)


def outputs(model: nn.Module, x: Tensor, batch: int = 200) -> Tensor:
    """Compute what a network, in evaluation mode, gives for all examples x."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(batch)])


def count_weights(model: nn.Module) -> int:
    """Count the numbers that are learnt."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw PyTorch's random numbers from a seed, and leave its generator as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        yield


def _rate(done: float) -> float:
    return (done + 0.01) / (_WARM_UP + 0.01) if done < _WARM_UP else (1 + math.cos(math.pi * _past(done))) / 2


def _past(done: float) -> float:
    return (done - _WARM_UP) / (1 - _WARM_UP)


def _described(name: str | None, history: list[Epoch]) -> str:
    if not history:
        return f"{name}"
    last = history[-1]
    return f"{name}: loss {last.loss:.3f}" + ("" if last.score is None else f", test {last.score:.1%}")
