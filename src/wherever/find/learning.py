"""Training of networks as detectors: examples seen anew, background mined by sweeping, the best state kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from wherever.find.augment import Variety, Views, noisy, redrawn
from wherever.find.boxes import inside
from wherever.find.evaluate import average_precision, matches
from wherever.find.features import Floats
from wherever.find.mining import DRAWN, Miner, Pool
from wherever.find.network import Layer, Member, Network
from wherever.find.sweep import Kernel, Template, candidates, distinct, maps_of
from wherever.find.training import Scene

BATCH = 64
EXAMPLES_SHARE, MINED_SHARE, REFUSED_SHARE = 0.25, 0.45, 0.06  # of a batch
WARM = 30  # steps until the highest rate is reached
SMOOTHING = (0.01, 0.96)  # targets of background and examples
BACKGROUND, MOST_BACKGROUND, MOST_MINED = 1500, 6000, 6000  # windows
MINING_FROM, MINING_SHARE = 0.1, 0.35  # shares of the budget: when mining begins, and what it takes from then on
LOOKS = (0.55, 0.75, 0.9, 1.0)  # shares of the budget at which held-out scenes are looked at
HELD_OUT_FROM, HELD_OUT_SHARE = 6, 0.1  # scenes with examples from which on some are held out, and how many
MOST_MEMBERS = 3
SPREAD_PEAKS, SPREAD_SCENES = 60, 10  # peaks a level, and scenes, from which spreads of scores are taken
WIDTH, HEAD_WIDTH = 16, 24  # channels of the first layer

Clock = Callable[[], float]


@dataclass(frozen=True)
class Round:
    """How far training is: what is reported from time to time.

    Attributes
    ----------
    done
        Share of the budget that is used.
    member, members
        Which network of how many.
    loss
        Mean cross-entropy of the latest steps.
    average_precision
        Of the finds in held-out scenes, centres matched; NaN if none were looked at yet.
    mined
        Windows of background mined so far.
    """

    done: float
    member: int
    members: int
    loss: float
    average_precision: float
    mined: int


Report = Callable[[Round], None]


@dataclass
class Held:
    """Finds in scenes held out of a member's training: their scores, and whether each was right."""

    scores: list[np.ndarray] = field(default_factory=list)
    hits: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """A network and how it is trained.

    Attributes
    ----------
    build
        Makes the untrained network for a template and a number of maps.
    vary
        Makes windows differ in other ways than place, size and direction.
    rate, decay
        Of AdamW: the highest rate, and weight decay.
    seconds
        Of training that are worth a member of its own.
    """

    build: Callable[[Template, int], nn.Sequential]
    vary: Callable[[torch.Tensor, np.random.Generator], torch.Tensor]
    rate: float
    decay: float
    seconds: float


def small_network(template: Template, maps: int, width: int = WIDTH) -> nn.Sequential:
    """Return the untrained network: field 37 x 37, stride 4, batch normalisation and ReLU after all but the last."""

    def stage(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, size, stride, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    w = width
    return nn.Sequential(
        *stage(maps, w, 5, 2),
        *stage(w, 2 * w, 3),
        *stage(2 * w, 2 * w, 3, 2),
        *stage(2 * w, 3 * w, 3),
        *stage(3 * w, 4 * w, 3),
        nn.Dropout2d(0.1),
        *stage(4 * w, 4 * w, 3),
        nn.Conv2d(4 * w, 1, 1),
    )


def small_head(template: Template, maps: int, width: int = HEAD_WIDTH) -> nn.Sequential:
    """Return the untrained head: it looks at the cells of a linear kernel's window in pieces of 5 x 5."""
    first = min(5, template.rows, template.columns)
    rest = (template.rows - first + 1, template.columns - first + 1)
    return nn.Sequential(
        *(nn.Conv2d(maps, width, first), nn.ReLU()),
        *(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Dropout2d(0.2)),
        *(nn.Conv2d(width, width, rest), nn.ReLU()),
        nn.Conv2d(width, 1, 1),
    )


NETWORK = Recipe(small_network, redrawn, rate=3e-3, decay=5e-3, seconds=120.0)
HEAD = Recipe(small_head, noisy, rate=2e-3, decay=2e-2, seconds=20.0)


def as_member(module: nn.Sequential) -> Member:
    """Return a trained network as layers: batch normalisations folded into the convolutions before them."""
    layers: list[Layer] = []
    parts = list(module)
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if not isinstance(part, nn.Conv2d):
            continue
        weights = part.weight.detach().numpy().astype(np.float32)
        bias = np.zeros(len(weights), np.float32) if part.bias is None else part.bias.detach().numpy().copy()
        if isinstance(after, nn.BatchNorm2d):
            assert after.running_var is not None
            assert after.running_mean is not None
            gain = (after.weight / torch.sqrt(after.running_var + after.eps)).detach().numpy()
            bias = (bias - after.running_mean.numpy()) * gain + after.bias.detach().numpy()
            weights = weights * gain[:, None, None, None]
        layers.append(Layer(np.ascontiguousarray(weights), bias.astype(np.float32), part.stride[0]))
    return Member(tuple(layers))


def load_member(module: nn.Sequential, member: Member, windows: torch.Tensor) -> None:
    """Give a network the folded weights of a trained one.

    Batch normalisations are set to the statistics of some windows, so that they change nothing, to start with.
    """
    x, index = windows, 0
    with torch.no_grad():
        for part in module:
            if isinstance(part, nn.Conv2d):
                layer = member.layers[index]
                part.weight.copy_(torch.from_numpy(layer.weights))
                if part.bias is not None:
                    part.bias.copy_(torch.from_numpy(layer.bias))
                x, index = part(x), index + 1
            elif isinstance(part, nn.BatchNorm2d):
                bias = torch.from_numpy(member.layers[index - 1].bias)
                mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
                part.running_mean, part.running_var = mean, variance
                part.weight.copy_(torch.sqrt(variance + part.eps))
                part.bias.copy_(mean + bias)
                x = x + bias[:, None, None]
            elif isinstance(part, nn.ReLU):
                x = part(x)


def fit_network(
    scenes: Sequence[Scene],
    start: Network,
    *,
    recipe: Recipe = NETWORK,
    variety: Variety,
    complete: bool,
    budget: float,
    random: np.random.Generator,
    report: Report | None = None,
    clock: Clock = time.monotonic,
) -> tuple[Network, Held, bool]:
    """Train a network on scenes.

    Parameters
    ----------
    scenes
        Pictures with examples, with what is marked as not the thing, and with regions to ignore.
    start
        Says everything but the members; members that it has are trained further.
    recipe
        The network and how it is trained.
    variety
        How the thing may look.
    complete
        Whether all that is not marked is background, so that what the network finds there is mined.
    budget
        Seconds of the clock.
    random
        Draws everything.
    report
        Called now and then.
    clock
        Tells seconds.

    Returns
    -------
    network, held, interrupted
        The trained network; finds in scenes held out of the training of one of its members; whether Ctrl-C ended the
        training, in which case the network is the best so far.
    """
    # Dropout draws from PyTorch's own generator, which is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.integers(1 << 31)))
        return _fit_members(scenes, start, recipe, variety, complete, budget, random, report, clock)


def _fit_members(
    scenes: Sequence[Scene],
    start: Network,
    recipe: Recipe,
    variety: Variety,
    complete: bool,
    budget: float,
    random: np.random.Generator,
    report: Report | None,
    clock: Clock,
) -> tuple[Network, Held, bool]:
    members = len(start.members) or int(np.clip(budget // recipe.seconds, 1, MOST_MEMBERS))
    order = random.permutation([i for i, scene in enumerate(scenes) if len(scene.boxes)])
    count = round(HELD_OUT_SHARE * len(order)) if complete and len(order) >= HELD_OUT_FROM else 0
    begun, held, made = clock(), Held(), list[Member]()
    interrupted = False
    for number in range(members):
        out = set(order[(np.arange(count) + number * count) % len(order)].tolist())
        ends = begun + budget * (number + 1) / members
        training = _Training(
            [s for i, s in enumerate(scenes) if i not in out],
            [scenes[i] for i in out],
            start,
            recipe=recipe,
            variety=variety,
            complete=complete,
            random=random,
            previous=start.members[number] if start.members else None,
        )

        def tell(share: float, loss: float, precision: float, mined: int, number: int = number) -> None:
            if report is not None:
                report(Round((number + share) / members, number + 1, members, loss, precision, mined))

        try:
            training.run(ends, clock, tell)
        except KeyboardInterrupt:
            interrupted = True
            training.keep()
        if training.best is None:  # not one step was made
            if not made:
                raise KeyboardInterrupt
            break
        made.append(training.best)
        held.scores += training.held.scores
        held.hits += training.held.hits
        if interrupted:
            break
    shared = tuple(replace(member, share=1 / len(made)) for member in made)
    return replace(start, members=shared), held, interrupted


class _Training:
    """The training of one network."""

    def __init__(
        self,
        scenes: Sequence[Scene],
        out: Sequence[Scene],
        start: Network,
        *,
        recipe: Recipe,
        variety: Variety,
        complete: bool,
        random: np.random.Generator,
        previous: Member | None,
    ) -> None:
        self.start, self.out, self.random, self.complete, self.recipe = start, out, random, complete, recipe
        template, eye = start.template, start.eye
        pictures = [s.picture for s in scenes]
        self.examples = Views(pictures, [s.boxes for s in scenes], template, eye, variety)
        self.refused = Views(pictures, [s.negatives for s in scenes], template, eye, variety)
        self.miner = Miner(scenes, start)
        shape = (eye.maps, template.rows, template.columns)
        self.background, self.hard = Pool(shape, MOST_BACKGROUND), Pool(shape, MOST_MINED)
        self.background.add(self.miner.drawn(BACKGROUND, random))
        if not len(self.background):
            raise ValueError(
                "the boxes leave nothing of the images to tell them from; mark a thing that is smaller than its image, "
                "or add an image without it"
            )
        self.module = recipe.build(template, eye.maps)
        _draw_weights(self.module, random)
        if previous is not None:
            windows = torch.cat([self.examples.draw(BATCH, random), self.background.draw(BATCH, random)])
            load_member(self.module, previous, windows)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.best, self.held, self.steps = previous, Held(), 0
        self.precision, self._best_precision = math.nan, -1.0

    def run(self, ends: float, clock: Clock, tell: Callable[[float, float, float, int], None]) -> None:
        """Train until the clock shows `ends`, keeping the best state."""
        begins, losses = clock(), list[float]()
        optimiser = torch.optim.AdamW(self.module.parameters(), lr=self.recipe.rate, weight_decay=self.recipe.decay)
        mining, looks = 0.0, list(LOOKS if self.out else LOOKS[-1:])
        self.module.train()
        # what it costs to look at the held-out scenes is set aside, once it is known
        aside = 0.0
        while True:
            done = (clock() - begins) / max(ends - begins - aside, 1e-9)
            if self.complete and mining < MINING_SHARE * (done - MINING_FROM) * (ends - begins):
                began = clock()
                self.hard.add(self.miner.mined(self._network(), self.random))
                self.background.add(self.miner.drawn(DRAWN, self.random))
                mining += clock() - began
            if self.steps and looks and done >= looks[0]:
                began = clock()
                looks.pop(0)
                self._look()
                aside = clock() - began
                tell(min(done, 1.0), float(np.mean(losses[-50:] or [math.nan])), self.precision, self.hard.seen)
            if done >= 1 and self.steps > 0:
                return
            for group in optimiser.param_groups:
                group["lr"] = (
                    self.recipe.rate * min(1, (self.steps + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * min(done, 1)))
                    + 1e-5
                )
            x, y = self._batch()
            loss = functional.binary_cross_entropy_with_logits(self.module(x)[:, 0, 0, 0], y)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
            self.steps += 1
            if self.steps % 25 == 0:
                tell(min(done, 1.0), float(np.mean(losses[-50:])), self.precision, self.hard.seen)

    def keep(self) -> None:
        """Keep the state as it is, unless an earlier one has proved itself on held-out scenes."""
        if self.steps and self._best_precision < 0:
            self.best = as_member(self.module)

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows and their targets."""
        examples = round(BATCH * EXAMPLES_SHARE)
        hard = round(BATCH * MINED_SHARE) if len(self.hard) >= BATCH else 0
        refused = round(BATCH * REFUSED_SHARE) if len(self.refused) else 0
        parts = [self.examples.draw(examples, self.random)]
        if refused:
            parts.append(self.refused.draw(refused, self.random))
        if hard:
            parts.append(self.hard.draw(hard, self.random))
        parts.append(self.background.draw(BATCH - examples - hard - refused, self.random))
        others = torch.cat(parts[1:])
        if self.examples.variety.mirrored:
            others = others.flip(-1) if self.random.random() < 0.5 else others
        x = self.recipe.vary(torch.cat([parts[0], others]), self.random).contiguous(memory_format=torch.channels_last)
        return x, torch.cat([torch.full((examples,), SMOOTHING[1]), torch.full((len(others),), SMOOTHING[0])])

    def _network(self) -> Network:
        return replace(self.start, members=(as_member(self.module),))

    def _look(self) -> None:
        """Find in the held-out scenes; the state that finds best there is kept, the last of several equal ones."""
        if not self.out:
            self.keep()
            return
        network = self._network()
        found = [distinct(candidates(network, s.picture, maps_of(network, s.picture), most=300), 300) for s in self.out]
        counted = [f[~inside(f.boxes, s.ignored)] for f, s in zip(found, self.out, strict=True)]
        self.precision = average_precision(
            [(f.boxes, f.scores) for f in counted], [s.boxes for s in self.out], match="centre"
        ).ap
        if self.precision >= self._best_precision:
            self._best_precision, self.best = self.precision, network.members[0]
            self.held = Held(
                [f.scores for f in counted],
                [matches(f.boxes, s.boxes, "centre") for f, s in zip(counted, self.out, strict=True)],
            )


def with_head(kernel: Kernel, head: Network, scenes: Sequence[Scene]) -> Network:
    """Return the sum of a linear kernel and the network trained on its windows, each divided by its spread.

    That is the standard deviation of the scores of peaks in the scenes, so that neither drowns the other.
    """
    linear = Member((Layer(kernel.weights[None], np.array([kernel.bias], np.float32)),))
    alone = [replace(head, members=(linear,)), replace(head, members=tuple(head.members))]
    spreads = []
    for network in alone:
        still = replace(network, penalties=(0.0,) * len(network.levels))
        found = [
            candidates(still, s.picture, s.maps_of(still), most=SPREAD_PEAKS).scores for s in scenes[:SPREAD_SCENES]
        ]
        spreads.append(max(float(np.concatenate(found).std()), 1e-6))
    members = [
        replace(member, share=member.share / spread)
        for network, spread in zip(alone, spreads, strict=True)
        for member in network.members
    ]
    # both have their say about sizes
    penalties = tuple(2 * penalty for penalty in kernel.penalties)
    return replace(head, members=tuple(members), penalties=penalties)


def example_windows(scenes: Sequence[Scene], network: Network) -> Floats:
    """Return the windows of the examples as they are, (n, features)."""
    still = Variety(turned=False, mirrored=False, octaves=0.0, shift=0.0)
    views = Views([s.picture for s in scenes], [s.boxes for s in scenes], network.template, network.eye, still)
    windows: Floats = views.plain().flatten(1).numpy()
    return windows


def _draw_weights(module: nn.Module, random: np.random.Generator) -> None:
    """Initialise convolutions as He et al. (2015), from a generator of our own: the same for the same seed.

    The last one begins with the score of something rare.
    """
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    for part in convolutions:
        deviation = math.sqrt(2 / part.weight[0].numel())
        with torch.no_grad():
            part.weight.copy_(torch.from_numpy(random.normal(0, deviation, part.weight.shape).astype(np.float32)))
            if part.bias is not None:
                part.bias.fill_(-2.0 if part is convolutions[-1] else 0.0)
