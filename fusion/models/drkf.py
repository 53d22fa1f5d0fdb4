"""DRKF: decoupled representations with knowledge fusion (arXiv 2508.01644), on cached features.

    ORL   H_m = LN(Linear_m(X_m))                       adapter, (B, T_m, d)
          G_m = A_m(H_m)                                residual autoencoder, the augmented view
          u_m = P_m(mean H_m), v_m = P_m(mean G_m)      one projection for both views
          p_m, q_m = posteriors of W_m mean H_m, W_m mean G_m
    KF    z   = FE([cls; H_1; sep; H_2; sep])[0]        fusion encoder
          EC(z) the emotion, ED(z) whether the two modalities carry the same one

The corrected objective, the paper's figures and every difference from the authors' code are in
docs/papers/drkf.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mer.fusion.batch import Batch, DataSpec
from mer.fusion.losses import (
    Contrast,
    Impl,
    balanced_bce,
    contrastive_losses,
    kl_to_label,
    kl_to_posterior,
    masked_mse,
    mi_lower_bound,
    nt_xent_apart,
    same_emotion,
    same_label,
)
from mer.fusion.models import Prediction
from mer.fusion.models.base import FusionModel
from mer.fusion.modules.dropout import LockedDropout
from mer.fusion.modules.heads import mlp
from mer.fusion.modules.kf import FusionEncoder, LinearFusion, fusion_encoder, sample_pairs
from mer.fusion.modules.orl import (
    ResidualAutoencoder,
    Temperature,
    active_blocks,
    adapt,
    adapter_of,
    adapters,
    ramp,
    twice,
)
from mer.fusion.modules.pooling import Standardise, masked_mean
from mer.fusion.runtime.typed import added
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.terminal import did_you_mean


@dataclass(frozen=True)
class DRKFConfig:
    """Defaults are the `drkf` preset. A weight of 0 switches its term off and saves its cost."""

    d: int = 256  # model width (published: 1024)
    layers: int = 4  # of the fusion encoder (published: 6)
    heads: int = 4  # (published: 8)
    ffn: int = 512  # width of its feed-forward part (published: 4096)
    dropout: float = 0.1  # in the fusion encoder and the heads
    feature_dropout: float = 0.1  # on the frozen features, before the adapter
    positions: str = "sinusoidal"  # sinusoidal | learned (published), always restarted per modality
    max_positions: int = 2800  # rows of the learned table
    # adapter: FE reads H | raw: FE has an adapter of its own, so ORL cannot reach it (published
    # wiring)
    fe_input: str = "adapter"
    # attention: the fusion encoder | linear: the modalities' means through a linear layer, which is
    # KF without it (layers, heads, ffn and positions then mean nothing)
    fe: str = added("attention")

    ae_blocks: int = 3  # K autoencoders in cascade (published: 5)
    # widths of a block's encoder (published: 256, 128, 64)
    ae_layers: tuple[int, ...] = (64, 32, 16)
    # dropout on the autoencoder's input, so that the identity is no solution (published: 0)
    ae_noise: float = 0.1
    # off | ramp: weights of MI, rec, KL grow from 0 | blocks: active autoencoders grow from 1 to K
    progressive: str = "ramp"
    progressive_share: float = 0.15  # the share of training over which they grow

    d_p: int = 128  # width of the contrastive space (published: 1024)
    # both views through P_m | raw: only the raw view (published; needs d_p = d)
    mi_projection: str = "both"
    # of the cross-modal term: both | first, e.g. audio to text only (published)
    mi_direction: str = "both"
    # candidates of the self-MI: all rows of the batch | other: those of another emotion, so that
    # utterances of one emotion are not pushed apart
    mi_negatives: str = added("all")
    tau: float = 0.1  # first value of the learned temperature (published: 0.731)
    tau_low: float = 0.01  # its lower bound (published bounds: 0 and 1)
    tau_high: float = 1.0  # the upper one
    tau_lr_scale: float = 10.0  # on the learning rate of theta (published: 1)
    impl: Impl = "auto"  # of the contrastive losses: auto | eager | chunked | triton

    # no gradient of rec through: both input and target | target | none (published)
    rec_stop: str = "both"
    # label (the paper's figure) | posterior of the raw view (the code's intent) | off
    kl_target: str = "label"
    kl_smoothing: float = 0.1  # of the label in KL(label || q)
    # of single labels: the KL itself | classes: divided by their number C (published), which makes
    # w_kl weigh C times less
    kl_reduction: str = added("batch")

    ed_positives: int = 1  # same-emotion partners per anchor
    ed_negatives: int = 1  # other-emotion partners per anchor
    # share of the batch used as anchors; a pair costs one pass of the fusion encoder (published: 1)
    ed_anchors: float = 0.25
    # also show the true pairs, as positives (the label of ED is then known to be wrong for mixed
    # emotions)
    ed_natural: bool = False
    # what "the same emotion" of a pair goes by. common: the labels of its two utterances | own:
    # what the one modality and the other say by themselves (data.unimodal_labels)
    ed_labels: str = added("common")
    # multi-label: overlap of label sets from which two utterances carry the same emotion
    ed_jaccard: float = 1.0

    # with data.context
    context_dropout: float = added(0.5)  # on the features of neighbours
    turn_dropout: float = added(0.3)  # share of the neighbours that is hidden in training

    label_smoothing: float = 0.0  # of the classification terms
    regression_loss: str = "l1"  # l1 | mse | ccc
    # with several targets: shared: one EC answers all of them; per_target: one each
    target_heads: str = added("shared")

    w_ec: float = 1.0  # emotion classification on z
    w_uni: float = 0.2  # emotion classification from each modality alone (published: none)
    w_mi: float = 0.2  # contrastive MI between raw and augmented view, each modality
    w_cross: float = 0.2  # contrastive MI between modalities, mean over pairs
    w_rec: float = 0.2  # reconstruction, each modality
    w_kl: float = 1.0  # KL, each modality
    w_ed: float = 0.2  # emotion discrimination

    def __post_init__(self) -> None:
        known = {
            "fe_input": ("adapter", "raw"),
            "fe": ("attention", "linear"),
            "progressive": ("off", "ramp", "blocks"),
            "mi_projection": ("both", "raw"),
            "mi_direction": ("both", "first"),
            "rec_stop": ("both", "target", "none"),
            "kl_target": ("label", "posterior", "off"),
            "kl_reduction": ("batch", "classes"),
            "mi_negatives": ("all", "other"),
            "ed_labels": ("common", "own"),
            "regression_loss": ("l1", "mse", "ccc"),
            "target_heads": ("shared", "per_target"),
        }
        for field, values in known.items():
            if getattr(self, field) not in values:
                given = getattr(self, field)
                raise DataError(
                    f"model_args.{field}={given!r}: known are {', '.join(values)}"
                    f"{did_you_mean(given, values)}"
                )
        if self.mi_projection == "raw" and self.d_p != self.d:
            raise DataError(
                f"mi_projection='raw' compares d_p = {self.d_p} with d = {self.d} numbers; set "
                f"d_p to {self.d}"
            )
        if not self.tau_low < self.tau < self.tau_high:
            raise DataError(
                f"tau={self.tau} must lie between tau_low={self.tau_low} and "
                f"tau_high={self.tau_high}"
            )
        for field in ("layers", "ae_blocks", "ed_positives", "ed_negatives"):
            if getattr(self, field) < 1:
                raise DataError(f"{field}={getattr(self, field)}: at least one is needed")
        if not self.ae_layers:
            raise DataError("ae_layers is empty: name at least one width, such as 64,32,16")
        if self.tau_lr_scale < 0:
            raise DataError(f"tau_lr_scale={self.tau_lr_scale} must be at least 0 (0: tau stays)")
        if not 0 < self.ed_jaccard <= 1:
            raise DataError(f"ed_jaccard={self.ed_jaccard} must lie above 0 and be at most 1")
        if not 0 < self.ed_anchors <= 1:
            raise DataError(
                f"ed_anchors={self.ed_anchors} must lie above 0 and be at most 1; w_ed=0 switches "
                "ED off"
            )


@dataclass(frozen=True)
class Encoded:
    """A batch after the adapters, by modality: H_m, what the fusion encoder reads (the same, or its
    own adapters' output), mean H_m (B, d), masks (B, T_m), and which rows have the modality (B,).
    `turns`: tokens of the neighbours (B, W, d) and which are there (B, W).
    """

    h: dict[str, Tensor]
    x: dict[str, Tensor]
    mean: dict[str, Tensor]
    mask: dict[str, Tensor]
    present: dict[str, Tensor]
    turns: tuple[Tensor, Tensor] | None = None

    @cached_property
    def complete(self) -> bool:
        """Whether every row has every modality: the one wait for the device, in training only."""
        return bool(torch.stack(list(self.present.values())).all())

    def rows(self, *modalities: str) -> Tensor | slice:
        """Index of the rows that have all these modalities."""
        if self.complete or not modalities:
            return slice(None)
        return torch.stack([self.present[m] for m in modalities]).all(0).nonzero()[:, 0]


@dataclass(frozen=True)
class Augmented:
    """mean G_m (B, d), and A_m's output (B, T_m, d) that is held against H_m."""

    mean: Tensor
    restored: Tensor


class DRKF(FusionModel):
    def __init__(self, config: DRKFConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        names = tuple(spec.modalities)
        self.pairs = list(combinations(names, 2))

        make_adapters = partial(adapters, spec.modalities, config.d, dropout=config.feature_dropout)
        self.adapter = make_adapters()
        self.fe_adapter = make_adapters() if config.fe_input == "raw" else None
        self.unimodal = nn.ModuleDict({m: nn.Linear(config.d, spec.outputs) for m in names})
        self.fe: FusionEncoder | LinearFusion
        if config.fe == "linear":
            self.fe = LinearFusion(names, config.d, turns=spec.context is not None)
        else:
            self.fe = fusion_encoder(names, config)
        self.ec = self.answer_head(config.d, config.d, dropout=config.dropout)
        self.ed = mlp(config.d, config.d, 1, dropout=config.dropout) if self.pairs else None

        self.autoencoder = nn.ModuleDict(
            {m: ResidualAutoencoder(config.d, config.ae_layers, config.ae_blocks) for m in names}
        )
        self.noise = LockedDropout(config.ae_noise)
        self.projection = nn.ModuleDict(
            {
                m: nn.Sequential(
                    nn.Linear(config.d, config.d), nn.ReLU(), nn.Linear(config.d, config.d_p)
                )
                for m in names
            }
        )
        self.temperature = Temperature(config.tau, low=config.tau_low, high=config.tau_high)
        self.turns = self.turn_tokens(config.d)
        self.lr_scale = {"temperature.theta": config.tau_lr_scale}
        self.last: dict[str, Tensor | float] = {}
        # the version of class_weights that was looked at last, and whether they weigh anything
        self._weighs = ((0, -1), False)

    # Inference

    def forward(self, batch: Batch) -> Prediction:
        seen = self.encode(batch)
        z, share = self.fe(seen.x, seen.mask, attention=True, turns=seen.turns)
        alone = {m: self.unimodal[m](mean) for m, mean in seen.mean.items()}
        return Prediction(self.ec(z), alone, share, self.disagreement(z, seen))

    def disagreement(self, z: Tensor, seen: Encoded) -> Tensor | None:
        """(B,) 1 - P(same emotion), mean over the pairs of modalities that the row has; NaN for a
        row with fewer than two.
        """
        if not self.pairs:
            return None
        x, mask = seen.x, seen.mask
        values, valid = [], []
        for m, n in self.pairs:
            whole = len(x) == 2 and seen.turns is None  # ED learns from pairs, not from dialogues
            pair = z if whole else self.fe({m: x[m], n: x[n]}, {m: mask[m], n: mask[n]})[0]
            values.append(1 - self.same_emotion_logit(pair).float().sigmoid())
            valid.append(seen.present[m] & seen.present[n])
        value, known = torch.stack(values), torch.stack(valid)
        return value.where(known, 0).sum(0) / known.sum(0)  # 0 / 0 is the NaN

    # Training

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """ec, uni_m, rec_m, kl_m, mi_m, mi_m_n, ed: the terms of docs/papers/drkf.md, each defined
        by the method that is named after it.

        Rows that lack a modality take no part in its terms.
        """
        config = self.config
        self.last = {"ramp": self.ramp(progress), "ae_blocks": float(self.blocks(progress))}
        seen = self.encode(batch)
        z, _ = self.fe(seen.x, seen.mask, turns=seen.turns)
        terms = {"ec": self.task_loss(self.ec(z), batch.target, batch.soft)}
        augmented = self.augmented_views(seen, progress)
        for m in self.spec.modalities:
            rows = seen.rows(m)
            taught, shares = batch.taught(m)
            target = taught[rows]
            if len(target) == 0:
                continue
            if config.w_uni:
                soft = None if shares is None else shares[rows]
                alone = self.unimodal[m](seen.mean[m])[rows]
                terms[f"uni_{m}"] = self.task_loss(alone, target, soft)
            if config.w_rec:
                terms[f"rec_{m}"] = self.reconstruction(m, seen, augmented[m])
            if self.uses_kl:
                terms[f"kl_{m}"] = self.kl(m, seen.mean[m][rows], augmented[m].mean[rows], target)
        terms |= self.mutual_information(seen, augmented, batch.target)
        if config.w_ed and self.pairs:
            terms["ed"] = self.discrimination(seen, batch, z)
        return terms

    def encode(self, batch: Batch) -> Encoded:
        """H_m and its mean for every modality, and what the fusion encoder reads."""
        mask = {m: batch.mask(m) for m in self.spec.modalities}
        h = adapt(self.adapter, batch.x, mask)
        x = h if self.fe_adapter is None else adapt(self.fe_adapter, batch.x, mask)
        present = {m: mask[m].any(1) for m in mask}
        mean = {m: masked_mean(h[m], mask[m]) for m in h}
        return Encoded(h, x, mean, mask, present, self.seen_turns(batch))

    def augmented_views(self, seen: Encoded, progress: float) -> dict[str, Augmented]:
        """G_m of the modalities that a row has, as far as a term asks for it."""
        config = self.config
        if not (config.w_mi or config.w_rec or self.uses_kl):
            return {}
        views = {}
        for m, h in seen.h.items():
            if not seen.complete and not seen.present[m].any():
                continue
            if config.w_rec and config.rec_stop == "both":
                # so that reconstruction does not move what it reconstructs
                g, restored = twice(
                    partial(self.augment, m, progress=progress), h, self.autoencoder[m]
                )
            else:
                g = restored = self.augment(m, h, progress)
            views[m] = Augmented(masked_mean(g, seen.mask[m]), restored)
        return views

    def augment(self, m: str, h: Tensor, progress: float) -> Tensor:
        return self.autoencoder[m](self.noise(h), active=self.blocks(progress))[0]

    def reconstruction(self, m: str, seen: Encoded, augmented: Augmented) -> Tensor:
        """rec_m: sum_t mask |A_m(H_m) - H_m|^2 / (d sum mask)."""
        h = seen.h[m] if self.config.rec_stop == "none" else seen.h[m].detach()
        return masked_mse(augmented.restored, h, seen.mask[m])

    def kl(self, m: str, raw: Tensor, augmented: Tensor, target: Tensor) -> Tensor:
        """kl_m: KL(y~ || q_m), or KL(sg p_m || q_m); `raw` and `augmented` (B, d) the means of H_m
        and G_m.
        """
        config, q = self.config, self.unimodal[m](augmented)
        if config.kl_target == "label":
            found = kl_to_label(
                q,
                target,
                task=self.spec.task,
                smoothing=config.kl_smoothing,
                class_weights=self.class_weights if self.weighs else None,
            )
        else:
            found = kl_to_posterior(self.unimodal[m](raw), q, task=self.spec.task)
        classes = config.kl_reduction == "classes" and self.spec.task == "single"
        return found / self.spec.outputs if classes else found

    @property
    def weighs(self) -> bool:
        """Whether classes have weights of their own; asked of the device only when they change."""
        if self.class_weights is None:
            return False
        version = (self.class_weights.data_ptr(), self.class_weights._version)
        if self._weighs[0] != version:
            self._weighs = version, bool((self.class_weights != 1).any())
        return self._weighs[1]

    def mutual_information(
        self, seen: Encoded, augmented: dict[str, Augmented], target: Tensor
    ) -> dict[str, Tensor]:
        """mi_m: NT-Xent(u_m, v_m); mi_m_n: InfoNCE(u_m, u_n), in both directions or the first.

        All of them in one call where no row lacks a modality, else one by one.
        """
        views = self.projected_views(seen, augmented)
        tau = self.temperature()
        self.last["tau"] = tau.detach()
        found: dict[str, Tensor] = {}
        for names, contrasts in self.contrasts(seen, augmented):
            rows = seen.rows(*names)
            used = set().union(*(contrast.views for contrast in contrasts.values()))
            chosen = {name: view[rows] for name, view in views.items() if name in used}
            if all(len(view) for view in chosen.values()):
                losses = contrastive_losses(
                    chosen, contrasts, temperature=tau, impl=self.config.impl
                )
                self.watch(losses, contrasts, chosen)
                found |= losses
        if self.config.w_mi and self.config.mi_negatives == "other":
            found |= self.mi_apart(seen, augmented, views, target)
        return found

    def mi_apart(
        self,
        seen: Encoded,
        augmented: dict[str, Augmented],
        views: dict[str, Tensor],
        target: Tensor,
    ) -> dict[str, Tensor]:
        """mi_m against rows of other emotions."""
        same, labelled = same_emotion(target, task=self.spec.task, jaccard=self.config.ed_jaccard)
        same = same & labelled & labelled[:, None]
        found = {}
        for m in augmented:
            rows = seen.rows(m)
            u, v = views[f"u_{m}"][rows], views[f"v_{m}"][rows]
            if len(u):
                there = same[rows][:, rows]
                found[f"mi_{m}"] = nt_xent_apart(u, v, there, temperature=self.temperature())
                self.last[f"cosine_{m}"] = F.cosine_similarity(u, v).mean().detach()
        return found

    def projected_views(self, seen: Encoded, augmented: dict[str, Augmented]) -> dict[str, Tensor]:
        """u_m and v_m (B, d_p), v_m after u_m: NT-Xent of adjacent views computes each similarity
        once.
        """
        config, views = self.config, {}
        for m in self.spec.modalities:
            if config.w_mi or config.w_cross:
                views[f"u_{m}"] = self.projection[m](seen.mean[m])
            if config.w_mi and m in augmented:
                mean = augmented[m].mean
                views[f"v_{m}"] = (
                    self.projection[m](mean) if config.mi_projection == "both" else mean
                )
        return views

    def contrasts(
        self, seen: Encoded, augmented: dict[str, Augmented]
    ) -> Iterator[tuple[tuple[str, ...], dict[str, Contrast]]]:
        """(modalities that a row needs, the contrasts over such rows): all at once where every row
        has every modality.
        """
        config = self.config
        each: dict[str, tuple[tuple[str, ...], Contrast]] = {}
        if config.w_mi and config.mi_negatives == "all":
            for m in augmented:
                each[f"mi_{m}"] = (m,), Contrast(f"u_{m}", f"v_{m}", "nt_xent")
        if config.w_cross:
            both = config.mi_direction == "both"
            for m, n in self.pairs:
                each[f"mi_{m}_{n}"] = (m, n), Contrast(f"u_{m}", f"u_{n}", "info_nce", both)
        if seen.complete and each:
            yield (), {name: contrast for name, (_, contrast) in each.items()}
        elif each:
            for name, (modalities, contrast) in each.items():
                yield modalities, {name: contrast}

    @torch.no_grad()
    def watch(
        self,
        losses: dict[str, Tensor],
        contrasts: dict[str, Contrast],
        views: dict[str, Tensor],
    ) -> None:
        """Bounds of mutual information, and how alike raw and augmented view are."""
        for name, contrast in contrasts.items():
            x, y = views[contrast.x], views[contrast.y]
            bound = mi_lower_bound(losses[name].detach(), contrast.candidates(len(x)))
            self.last[name.replace("mi_", "mi_bound_", 1)] = bound
            self.last[f"mi_cap_{contrast.loss}"] = math.log(contrast.candidates(len(x)))
            if contrast.loss == "nt_xent":
                self.last[name.replace("mi_", "cosine_", 1)] = F.cosine_similarity(x, y).mean()

    def discrimination(self, seen: Encoded, batch: Batch, z: Tensor) -> Tensor:
        """ed: cross-entropy of ED(FE(H_m of i, H_n of j)) against "same emotion", i != j.

        The anchors i are dealt out over the pairs of modalities; partners are drawn by label, and
        both inputs gathered by index.
        """
        config, device, size = self.config, batch.target.device, len(batch)
        count = max(1, round(config.ed_anchors * size))
        anchors = torch.randperm(size, device=device)[:count]
        rows, truths = torch.arange(size, device=device), self.truths(batch)
        logits, truth, known = [], [], []
        for (m, n), i in zip(self.pairs, anchors.tensor_split(len(self.pairs)), strict=True):
            same, labelled = truths[m, n]
            usable = labelled[i] & seen.present[m][i, None] & seen.present[n]
            another = rows != i[:, None]
            j, is_same, valid = sample_pairs(
                same[i],
                usable & another,
                positives=config.ed_positives,
                negatives=config.ed_negatives,
            )
            logits.append(
                self.pair_logit(seen, m, n, i[:, None].expand_as(j).flatten(), j.flatten())
            )
            truth.append(is_same.flatten())
            known.append(valid.flatten())
        if config.ed_natural and len(self.pairs) == 1:
            same, labelled = truths[self.pairs[0]]
            pair = z if seen.turns is None else self.fe(seen.x, seen.mask)[0]
            logits.append(self.same_emotion_logit(pair))
            truth.append(same.diagonal())
            known.append(labelled.diagonal() & torch.stack(list(seen.present.values())).all(0))
        logit, same_pair, valid = torch.cat(logits), torch.cat(truth), torch.cat(known)
        self.last["ed_balanced_accuracy"] = balanced_accuracy(logit.detach() > 0, same_pair, valid)
        return balanced_bce(logit, same_pair, valid)

    def truths(self, batch: Batch) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
        """(m, n) -> (same, known), both (B, B) bool: whether modality m of row i carries the same
        emotion as modality n of row j, and of which pairs that is known.

        By the common labels, or by those of the modalities themselves; one that nobody has labelled
        says what the common label does.
        """
        config, task = self.config, self.spec.task
        if config.ed_labels == "own":
            own = {m: batch.taught(m)[0] for m in self.spec.modalities}
            return {(m, n): same_label(own[m], own[n], task=task) for m, n in self.pairs}
        same, labelled = same_emotion(batch.target, task=task, jaccard=config.ed_jaccard)
        return dict.fromkeys(self.pairs, (same, labelled[:, None] & labelled))

    def pair_logit(self, seen: Encoded, m: str, n: str, i: Tensor, j: Tensor) -> Tensor:
        """(N,) ED's logits for modality m of the rows i beside modality n of the rows j."""
        x, mask = seen.x, seen.mask
        z, _ = self.fe({m: x[m][i], n: x[n][j]}, {m: mask[m][i], n: mask[n][j]})
        return self.same_emotion_logit(z)

    def same_emotion_logit(self, z: Tensor) -> Tensor:
        """(B,) of z (B, d)."""
        if self.ed is None:
            raise RuntimeError("ED needs two modalities")
        return self.ed(z)[:, 0]

    def weights(self, progress: float) -> dict[str, float]:
        config, rho = self.config, self.ramp(progress)
        names = list(self.spec.modalities)
        weights = {"ec": config.w_ec}
        weights |= {f"uni_{m}": config.w_uni for m in names if config.w_uni}
        weights |= {f"mi_{m}": rho * config.w_mi for m in names if config.w_mi}
        weights |= {
            f"mi_{m}_{n}": rho * config.w_cross / len(self.pairs)
            for m, n in self.pairs
            if config.w_cross
        }
        weights |= {f"rec_{m}": rho * config.w_rec for m in names if config.w_rec}
        weights |= {f"kl_{m}": rho * config.w_kl for m in names if self.uses_kl}
        return weights | ({"ed": config.w_ed} if config.w_ed and self.pairs else {})

    @property
    def unimodal_heads(self) -> bool:
        return bool(self.config.w_uni) or (self.uses_kl and self.config.kl_target == "label")

    @property
    def pairs_by_own_labels(self) -> bool:
        config = self.config
        return config.ed_labels == "own" and bool(config.w_ed and self.pairs)

    def left_out(self, batch_size: int) -> list[str]:
        config, names = self.config, self.modalities
        found = []
        between = {"cross-modal terms (w_cross)": config.w_cross}
        between["emotion discrimination (w_ed)"] = config.w_ed
        if asked := [what for what, weight in between.items() if weight]:
            if not self.pairs:
                found.append(f"reads {names[0]} alone, so that it has no {' and no '.join(asked)}")
        if config.w_ed and config.ed_natural and len(self.pairs) > 1:
            found.append(
                f"model_args.ed_natural does nothing: it is for two modalities, not {len(names)}"
            )
        compared = {"w_mi": config.w_mi, "w_cross": config.w_cross, "w_ed": config.w_ed}
        if not self.pairs:
            compared = {"w_mi": config.w_mi}
        if batch_size == 1 and any(compared.values()):
            asked = [name for name, weight in compared.items() if weight]
            found.append(f"{' and '.join(asked)}: nothing is learnt in batches of one row")
        wrong_task = {
            "ed_jaccard": config.ed_jaccard != 1 and self.spec.task != "multi",
            "kl_reduction": config.kl_reduction == "classes" and self.spec.task != "single",
        }
        for name in filter(wrong_task.get, wrong_task):
            found.append(f"model_args.{name} does nothing: the task is {self.spec.task}")
        return found

    @property
    def uses_kl(self) -> bool:
        return bool(self.config.w_kl) and self.config.kl_target != "off"

    def ramp(self, progress: float) -> float:
        """rho: the factor on the auxiliary terms' weights."""
        config = self.config
        return ramp(progress, config.progressive_share) if config.progressive == "ramp" else 1.0

    def blocks(self, progress: float) -> int:
        """How many autoencoders of the cascade are in use."""
        config = self.config
        if config.progressive == "blocks":
            return active_blocks(progress, config.progressive_share, config.ae_blocks)
        return config.ae_blocks

    def diagnostics(self) -> dict[str, float]:
        """What the last `losses` call showed: tau; mi_bound_* in nats, and mi_cap_nt_xent and
        mi_cap_info_nce, the highest values that these bounds can have in a batch of that size;
        cosine_m of raw and augmented view (1: the augmentation is empty); ed_balanced_accuracy on
        the batch's pairs; ramp; ae_blocks.
        """
        return {name: float(value) for name, value in self.last.items()}

    def observed(self) -> dict[str, Tensor | float]:
        return dict(self.last)

    def standardisers(self) -> dict[str, list[Standardise]]:
        sets = [self.adapter] if self.fe_adapter is None else [self.adapter, self.fe_adapter]
        layers: dict[str, list[Standardise]] = {m: [] for m in self.spec.modalities}
        for layer_set in sets:
            for m, found in layers.items():
                found.append(adapter_of(layer_set, m).standardise)
        return layers


def balanced_accuracy(said: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean of the hit rates on positives and on negatives; NaN where one of them is missing."""
    hit, positive, negative = said == truth, truth & valid, ~truth & valid
    rates = [(hit & kind).sum() / kind.sum() for kind in (positive, negative)]
    return (rates[0] + rates[1]) / 2
