"""DRKF's contrastive losses and residual autoencoder against the authors' numbers
(tests/golden/drkf.md), where the two are meant to be one function. Where they are not,
docs/papers/drkf.md says why.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mer.fusion.losses import info_nce, masked_mse, nt_xent
from mer.fusion.modules.orl import ResidualAutoencoder, Temperature

HERE = np.load(Path(__file__).parent / "drkf.npz", allow_pickle=False)
LIMIT = 1e-10
LOSSES = {"nt_xent": nt_xent, "modal_nt_xent": info_nce}


def check_contrastive(z, case: str, impl: str) -> None:
    for name, loss in LOSSES.items():
        for i, temperature in enumerate(z["temperatures"]):
            x, y = (
                torch.from_numpy(z[f"{case}/{view}"]).requires_grad_() for view in ("emb1", "emb2")
            )
            tau = torch.tensor(float(temperature), dtype=torch.float64, requires_grad=True)
            value = loss(x, y, temperature=tau, impl=impl)
            value.backward()
            at = f"{case}/{name}/t{i}"
            assert abs(value.item() - float(z[f"{at}/loss"])) < LIMIT
            for found, key in ((x, "grad_emb1"), (y, "grad_emb2"), (tau, "grad_temperature")):
                want = z[f"{at}/{key}"]
                # relative: the gradient of a row of length 1e-12 is of order 1e11
                assert np.abs(found.grad.numpy() - want).max() <= LIMIT * max(
                    1.0, np.abs(want).max()
                ), (at, key)


def autoencoder() -> ResidualAutoencoder:
    ours = ResidualAutoencoder(32, (16, 8, 4), 5).double()
    with torch.no_grad():
        for name, p in ours.named_parameters():
            r = np.random.RandomState(zlib.crc32(f"ae.{theirs(name)}".encode()))
            u = 2 * r.random_sample(tuple(p.shape)) - 1
            value = np.sqrt(6 / sum(p.shape)) * u if p.ndim == 2 else 0.1 * u
            p.copy_(torch.from_numpy(value.astype(np.float32)))
    return ours


def theirs(name: str) -> str:
    """encoders.0.2.weight -> encoder_0.2.weight"""
    return name.replace("encoders.", "encoder_").replace("decoders.", "decoder_")


@pytest.mark.parametrize("impl", ["eager", "auto", "chunked"])
@pytest.mark.parametrize("case", ["b1_d8", "b4_d8", "b7_d8", "identical_views", "collinear_rows"])
def test_contrastive(case, impl):
    check_contrastive(HERE, case, impl)


def test_published_temperature():
    """Theirs is ours with bounds 0 and 1."""
    tau = Temperature(float(HERE["theta/tau"]), low=0.0, high=1.0).double()
    with torch.no_grad():
        tau.theta.fill_(float(HERE["theta/theta"]))
    assert abs(tau().item() - float(HERE["theta/tau"])) < LIMIT
    x, y = (torch.from_numpy(HERE[f"b4_d8/{view}"]) for view in ("emb1", "emb2"))
    for name, loss in LOSSES.items():
        tau.zero_grad()
        value = loss(x, y, temperature=tau(), impl="eager")
        value.backward()
        assert abs(value.item() - float(HERE[f"theta/{name}/loss"])) < LIMIT
        assert abs(tau.theta.grad.item() - float(HERE[f"theta/{name}/grad_theta"])) < LIMIT


def test_residual_autoencoder():
    model, x = autoencoder(), torch.from_numpy(HERE["ae/in/x"]).double().requires_grad_()
    output, codes = model(x)
    assert np.abs(output.detach().numpy() - HERE["ae/out64/output"]).max() < LIMIT
    assert np.abs(codes.detach().numpy() - HERE["ae/out64/latents"]).max() < LIMIT
    everywhere = torch.ones(x.shape[:2], dtype=torch.bool)
    loss = masked_mse(output, x, everywhere)
    assert abs(loss.item() - float(HERE["ae/out64/mse"])) < LIMIT
    as_coded = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert np.abs(as_coded.numpy() - HERE["ae/out64/mse_grad_x_as_coded"]).max() < LIMIT
    target_stopped = torch.autograd.grad(
        masked_mse(output, x.detach(), everywhere), x, retain_graph=True
    )[0]
    assert (
        np.abs(target_stopped.numpy() - HERE["ae/out64/mse_grad_x_detached_target"]).max() < LIMIT
    )
    loss.backward()
    grads = {theirs(name): p.grad.numpy() for name, p in model.named_parameters()}
    stored = [k for k in HERE.files if k.startswith("ae/out64/mse_grad/")]
    assert len(stored) == 3
    for key in stored:
        assert np.abs(grads[key.removeprefix("ae/out64/mse_grad/")] - HERE[key]).max() < LIMIT


def test_all_contrastive_cases(test_data):
    z = np.load(test_data / "golden" / "drkf_contrastive.npz", allow_pickle=False)
    cases = sorted({k.split("/")[0] for k in z.files if k.endswith("/emb1")})
    assert len(cases) == 13
    for case in cases:
        check_contrastive(z, case, "eager")


def test_all_autoencoder_gradients(test_data):
    z = np.load(test_data / "golden" / "drkf_residual_ae.npz", allow_pickle=False)
    model, x = autoencoder(), torch.from_numpy(z["in/x"]).double()
    parameters = {theirs(name): p for name, p in model.named_parameters()}
    assert sorted(parameters) == sorted(
        k.removeprefix("param/") for k in z.files if k.startswith("param/")
    )
    assert all(
        np.array_equal(p.detach().numpy().astype(np.float32), z[f"param/{name}"])
        for name, p in parameters.items()
    )
    masked_mse(model(x)[0], x, torch.ones(x.shape[:2], dtype=torch.bool)).backward()
    for name, p in parameters.items():
        assert np.abs(p.grad.numpy() - z[f"out64/mse_grad/{name}"]).max() < LIMIT
