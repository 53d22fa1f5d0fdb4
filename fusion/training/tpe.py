"""The tree-structured Parzen estimator (TPE, Bergstra et al. 2011) of `mer tune --search tpe`, by
Optuna.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mer.fusion.runtime import typed
from mer.fusion.training.space import Between, Choice, Settings, Space
from mer.pipeline.errors import DependencyError


def optuna_package() -> Any:
    """Optuna, quiet.

    Raises:
        DependencyError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise DependencyError(
            "--search tpe needs Optuna; run `pip install mer[tune]`, or search at random"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def proposed(
    space: Space, seed: int, earlier: Sequence[tuple[Settings, float | None]], *, lower: bool
) -> Settings:
    """Settings that TPE proposes after some trials.

    Args:
        space: What is searched.
        seed: Of the search; with the number of earlier trials it decides what is drawn.
        earlier: The settings and the figure of each trial so far, in order; one that failed (None)
            counts as the worst of the others.
        lower: Whether a lower figure is better.

    Returns:
        The settings of the next trial.
    """
    optuna = optuna_package()
    named = {key: space.drawn[key] for key in sorted(space.drawn)}
    kinds = {key: _distribution(optuna, drawn) for key, drawn in named.items()}
    entropy = np.random.SeedSequence([seed, len(earlier), *space.model.encode()])
    sampler = optuna.samplers.TPESampler(
        seed=int(entropy.generate_state(1)[0]), n_startup_trials=0, multivariate=False
    )
    direction = "minimize" if lower else "maximize"
    study = optuna.create_study(sampler=sampler, direction=direction)
    known = [score for _, score in earlier if score is not None]
    worst = 0.0
    if known:
        worst = max(known) if lower else min(known)
    for settings, score in earlier:
        params = {key: _encoded(drawn, settings[key]) for key, drawn in named.items()}
        value = worst if score is None else score
        made = optuna.trial.create_trial(params=params, distributions=kinds, value=value)
        study.add_trial(made)
    asked = study.ask(kinds).params
    return {key: _decoded(drawn, asked[key]) for key, drawn in named.items()}


def _distribution(optuna: Any, drawn: Choice | Between) -> Any:
    """What Optuna draws from. Values to choose from, which may be lists, are named by place."""
    if isinstance(drawn, Choice):
        return optuna.distributions.CategoricalDistribution(tuple(range(len(drawn.values))))
    if drawn.whole:
        return optuna.distributions.IntDistribution(int(drawn.low), int(drawn.high), log=drawn.log)
    return optuna.distributions.FloatDistribution(drawn.low, drawn.high, log=drawn.log)


def _encoded(drawn: Choice | Between, value: Any) -> Any:
    if isinstance(drawn, Choice):
        return [typed.tree(known) for known in drawn.values].index(typed.tree(value))
    return value


def _decoded(drawn: Choice | Between, value: Any) -> Any:
    return drawn.values[value] if isinstance(drawn, Choice) else drawn.rounded(value)
