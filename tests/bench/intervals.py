"""Whether the intervals hold what they say, and how often runs that do not differ are called
different.

`python -m tests.bench intervals` simulates test parts of 8, 12, 31 and 280 dialogues, of MELD's
lengths, with MELD's seven emotions (two of them rare) and with four even ones: an answer is right
with a chance that depends on the emotion and on the dialogue. Coverage is the share of test parts
whose 95 % interval holds the figure of 200,000 dialogues; `plain` is the percentile interval
without widening.

The second part simulates pairs of runs of one and the same setting, each with one to five seeds. A
seed is better or worse in all dialogues by a draw of its own (`seed_sd`), and two runs stumble over
the same utterances. `called` is the share of pairs whose interval of the difference leaves out 0.
With one seed each a seed's own draw is part of what is compared, so that no interval from one test
part can hold it: that row says what a single seed cannot show.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from mer.fusion.measures import intervals, metrics
from mer.fusion.measures.intervals import Sampled

from tests.bench.machine import save

FIGURES = ("wa", "ua", "wf1", "macro_f1")
RESAMPLES = 1000
MELD_LENGTH = (2.6, 8.3)  # shape and mean of a negative binomial: test dialogues have 1 + that
WHOLE = 200_000  # dialogues of which the true figure is taken
SHARED = 0.7  # of the variance of an answer, what is the utterance's and not the run's


@dataclass(frozen=True)
class Corpus:
    """Shares of the emotions, and how often each is recognised."""

    name: str
    share: tuple[float, ...]
    right: tuple[float, ...]


CORPORA = (
    Corpus(
        "seven emotions as in MELD",
        (0.48, 0.154, 0.132, 0.108, 0.08, 0.026, 0.02),
        (0.78, 0.55, 0.45, 0.5, 0.3, 0.15, 0.12),
    ),
    Corpus("four even emotions", (0.31, 0.3, 0.2, 0.19), (0.72, 0.7, 0.65, 0.6)),
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench intervals", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--parts", type=int, default=1000, help="simulated test parts of a kind")
    parser.add_argument("--pairs", type=int, default=400, help="simulated pairs of runs of a kind")
    args = parser.parse_args(argv)
    rows = []
    for corpus in CORPORA:
        for groups in (8, 12, 31, 280):
            rows.append(coverage(corpus, groups, parts=args.parts))
            print(rows[-1], flush=True)
    for groups, seed_sd in ((31, 0.1), (280, 0.1), (280, 0.05)):
        for seeds in (1, 2, 3, 5):
            rows.append(called(CORPORA[1], groups, seeds, seed_sd, pairs=args.pairs))
            print(rows[-1], flush=True)
    command = f"python -m tests.bench intervals --parts {args.parts} --pairs {args.pairs}"
    print(save("intervals", rows, command=command))


def coverage(
    corpus: Corpus, groups: int, *, parts: int, resamples: int = RESAMPLES, whole: int = WHOLE
) -> dict[str, object]:
    """The share of simulated test parts whose interval holds the figure of `whole` dialogues."""
    truth = _figures(corpus, *_test_part(corpus, whole, np.random.default_rng(99))[1:])
    rng = np.random.default_rng(groups)
    held = {kind: dict.fromkeys(FIGURES, 0) for kind in ("coverage", "plain")}
    for part in range(parts):
        group, true, pred = _test_part(corpus, groups, rng)
        count = intervals.effective(group)
        draws = metrics.resampled_classification(
            true, pred, len(corpus.share), group, resamples=resamples, seed=part
        )
        for name in FIGURES:
            low, high = intervals.bounds(draws[name], count)
            held["coverage"][name] += low <= truth[name] <= high
            low, high = np.quantile(draws[name], [0.025, 0.975])
            held["plain"][name] += bool(low <= truth[name] <= high)
    shares = {
        kind: {name: round(n / parts, 3) for name, n in one.items()} for kind, one in held.items()
    }
    return {"what": "coverage", "corpus": corpus.name, "groups": groups, "parts": parts, **shares}


def called(
    corpus: Corpus,
    groups: int,
    seeds: int,
    seed_sd: float,
    *,
    pairs: int,
    resamples: int = RESAMPLES,
) -> dict[str, object]:
    """The share of pairs of runs without a difference that are called different by WF1."""
    rng = np.random.default_rng(groups + seeds)
    calls, spreads = 0, []
    for pair in range(pairs):
        size = _sizes(groups, rng)
        group = np.repeat(np.arange(groups), size)
        true = _labels(corpus, group, rng)
        ability = _ability(corpus, group, true, rng)
        luck = rng.normal(size=len(group))
        runs = []
        for _ in range(2):
            answers = []
            for _ in range(seeds):
                mine = SHARED**0.5 * luck + (1 - SHARED) ** 0.5 * rng.normal(size=len(group))
                better = ability + rng.normal(0, seed_sd)
                hit = _logistic_share(mine) < 1 / (1 + np.exp(-better))
                answers.append(_answers(corpus, true, hit, rng))
            runs.append(_sampled(corpus, group, true, answers, resamples, pair))
        found = intervals.difference(*runs)
        calls += found.low > 0 or found.high < 0
        if seeds > 1:
            spreads.append(np.std(runs[0].values, ddof=1))
    return {
        "what": "called different",
        "corpus": corpus.name,
        "groups": groups,
        "seeds": seeds,
        "seed_sd": seed_sd,
        "sd_of_wf1_over_seeds": round(float(np.mean(spreads)), 4) if spreads else None,
        "pairs": pairs,
        "called": round(calls / pairs, 3),
    }


def _sampled(
    corpus: Corpus,
    group: np.ndarray,
    true: np.ndarray,
    answers: list[np.ndarray],
    resamples: int,
    seed: int,
) -> Sampled:
    """WF1 of every seed, and its draws."""
    values = np.array([_figures(corpus, true, pred)["wf1"] for pred in answers])
    draws = []
    for pred in answers:
        found = metrics.resampled_classification(
            true, pred, len(corpus.share), group, resamples=resamples, seed=seed
        )
        draws.append(found["wf1"])
    return Sampled(values, np.stack(draws, axis=1), intervals.effective(group))


def _test_part(
    corpus: Corpus, groups: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dialogue, emotion, answer) of every utterance."""
    group = np.repeat(np.arange(groups), _sizes(groups, rng))
    true = _labels(corpus, group, rng)
    right = 1 / (1 + np.exp(-_ability(corpus, group, true, rng)))
    return group, true, _answers(corpus, true, rng.random(len(group)) < right, rng)


def _sizes(groups: int, rng: np.random.Generator) -> np.ndarray:
    shape, mean = MELD_LENGTH
    return 1 + rng.negative_binomial(shape, shape / (shape + mean), size=groups)


def _labels(corpus: Corpus, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Emotions that gather in dialogues."""
    share = np.array(corpus.share) / sum(corpus.share)
    mixture = rng.dirichlet(6 * share, size=int(group.max()) + 1).cumsum(1)
    drawn = rng.random(len(group))[:, None]
    return (mixture[group] < drawn).sum(1).clip(0, len(share) - 1)


def _ability(
    corpus: Corpus, group: np.ndarray, true: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The logit of a right answer: by the emotion, and by a draw of the dialogue."""
    right = np.array(corpus.right)
    return np.log(right / (1 - right))[true] + rng.normal(0, 0.6, int(group.max()) + 1)[group]


def _answers(
    corpus: Corpus, true: np.ndarray, hit: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    share = np.array(corpus.share) / sum(corpus.share)
    return np.where(hit, true, rng.choice(len(share), p=share, size=len(true)))


def _logistic_share(normal: np.ndarray) -> np.ndarray:
    """The share of a normal below a value; a logistic curve is within 0.01 of it."""
    return 1 / (1 + np.exp(-1.702 * normal))


def _figures(corpus: Corpus, true: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    return metrics.from_confusion(metrics.confusion(true, pred, len(corpus.share)))
