"""`python -m tests.bench ablation`: what its settings switch off, and a line of its table."""

from __future__ import annotations

import pytest

from mer.fusion import config
from mer.fusion.models import build

from tests.bench.ablation import COLUMNS, PARTS, cells
from tests.fusion.models import make_spec

TERMS = {
    "ORL": {"mi_audio", "mi_text", "mi_audio_text", "rec_audio", "rec_text", "kl_audio", "kl_text"},
    "MI": {"mi_audio", "mi_text"},
    "cross-MI": {"mi_audio_text"},
    "KL": {"kl_audio", "kl_text"},
    "rec": {"rec_audio", "rec_text"},
    "ED": {"ed"},
    "FE": set(),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_takes_its_terms_along_and_no_others(part):
    small = ("d=16", "layers=1", "heads=1", "ffn=16", "ae_layers=8", "d_p=8")
    models = []
    for sets in ((), PARTS[part]):
        chosen = config.load(model="drkf", sets=[f"model_args.{one}" for one in (*small, *sets)])
        models.append(build("drkf", chosen.model_args, make_spec()))
    whole, left = models
    assert whole.weights(1.0).keys() - left.weights(1.0).keys() == TERMS[part]
    assert left.weights(1.0).items() <= whole.weights(1.0).items()
    assert (type(whole.fe) is type(left.fe)) == (part != "FE")


def test_a_line_has_the_difference_in_points_and_its_corrected_p():
    worth = {"difference": -0.0125, "interval": [-0.04, 0.015], "p_holm": 0.8}
    one = {"corpus": "mosi", "seeds": 5, "without": "KL", "ed_auc": {"audio-text": 0.604}}
    one |= {"wf1": {"mean": 0.75, "sd": 0.01}, "worth": {"wf1": worth}}
    told = ["mosi", "5", "KL", "75.0 ± 1.0", "-1.2 [-4.0, +1.5]", "0.80", "0.60"]
    assert cells(one) == told
    assert len(told) == len(COLUMNS)
