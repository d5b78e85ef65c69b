"""iBOT (arXiv:2111.07832), as VisionFM (arXiv:2310.04992) pretrains with it: a student, and a teacher that follows it.

The computation is that of github.com/ABILab-CUHK/VisionFM, re-implemented from its description and held by golden
tests to its losses, gradients, centers and two of its training steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from fundax import optim
from fundax.encoders.heads import IBOTHead
from fundax.encoders.vit import ViT, dino_vit
from fundax.losses import distillation
from fundax.types import Batch, Extra, Metrics, Params, UserError

Moments = tuple[tuple[float, float, float], ...]  # of RGB in [0, 1], a row for each modality


IMAGENET_MEAN: Moments = ((0.485, 0.456, 0.406),)


IMAGENET_STD: Moments = ((0.229, 0.224, 0.225),)


# Small sizes of the encoder: image size, patch, width, depth, heads; and the side of their local crops is half the image's.
SIZES = {"smoke": (32, 8, 32, 1, 4), "tiny": (64, 16, 128, 4, 4)}


def encoder(size: str, **fields: Any) -> ViT:
    """The student's ViT, of a row of SIZES or encoders.vit.SIZES; `fields` are ViT's. Raises UserError."""
    if size not in SIZES:
        return dino_vit(size, mask_token=True, scan=True, **fields)
    names = ("image_size", "patch", "width", "depth", "heads")
    return dino_vit("S/16", mask_token=True, **dict(zip(names, SIZES[size], strict=True)), **fields)


def head(size: str, prototypes: int, kind: Literal["shared", "unshared", "split"], dtype: str = "float32") -> IBOTHead:
    """The projection head for an encoder of that size; published: a hidden width of 2048 and a bottleneck of 256."""
    hidden, bottleneck = (256, 64) if size in SIZES else (2048, 256)
    return IBOTHead(prototypes, None, hidden, bottleneck, shared=kind == "shared", split=kind == "split", dtype=dtype)


@dataclass(frozen=True)
class Temperature:
    """By epoch: from `start` to `end` in `epochs` equal steps, the ends among them, then `end`; `wait` epochs before it."""

    start: float
    end: float
    epochs: int = 30
    wait: int = 0

    def at(self, epoch: jax.Array | int) -> jax.Array:
        """f32 (), the temperature of an epoch counted from 0."""
        done = jnp.clip((jnp.asarray(epoch) - self.wait) / max(self.epochs - 1, 1), 0.0, 1.0)
        return self.start + (self.end - self.start) * (done if self.epochs > 1 else jnp.float32(epoch >= self.wait))


@dataclass(frozen=True)
class IBOT:
    """Student (params) and teacher (extra) are each a ViT and a head; the teacher sees whole crops, the student masked ones.

    Defaults are VisionFM's. `mean` and `std` have a row for each modality that the batch's `modality` may name; a
    single row is everyone's. `centering="sinkhorn"`, `koleo` > 0 and a head with `split` are DINOv2's
    (arXiv:2304.07193, section 4). Epochs, which temperatures go by, are `epoch_steps` steps.
    """

    needs: ClassVar[tuple[str, ...]] = ("global", "masked")

    image: ViT
    head: IBOTHead
    steps: int
    epoch_steps: int
    global_crops: int = 2
    local_crops: int = 0
    local_size: int = 96
    mean: Moments = IMAGENET_MEAN
    std: Moments = IMAGENET_STD
    token_temperature: Temperature = Temperature(0.07, 0.04)
    patch_temperature: Temperature = Temperature(0.04, 0.07)
    student_temperature: float = 0.1
    momentum: tuple[float, float] = (0.996, 1.0)  # of the teacher, along half a cosine
    center_momentum: float = 0.9
    patch_center_momentum: float = 0.9
    token_weight: float = 1.0
    patch_weight: float = 1.0
    mask_start: int = 0  # the epoch from which patches are masked
    centering: Literal["mean", "sinkhorn"] = "mean"
    koleo: float = 0.0

    def __post_init__(self) -> None:
        if not self.image.mask_token or not self.image.class_token:
            raise UserError("IBOT needs a ViT with mask_token=True and a class token")
        if self.local_crops and not self.image.any_size:
            raise UserError("IBOT with local crops needs a ViT with any_size=True")
        if self.centering not in ("mean", "sinkhorn") or len(self.mean) != len(self.std):
            raise UserError("IBOT: centering is 'mean' or 'sinkhorn', mean and std have a row for each modality")
        if self.global_crops < 2:
            raise UserError(f"IBOT compares at least two global crops, got {self.global_crops}")

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """global u8 [B q h w 3], masked bool [B q rows columns]; local u8 [B n s s 3] and modality i32 [B] where used."""
        size, small = self.image.image_size, self.local_size
        grid = size // self.image.patch
        shapes: dict[str, Any] = {
            "global": ((self.global_crops, size, size, 3), jnp.uint8),
            "masked": ((self.global_crops, grid, grid), jnp.bool_),
        }
        if self.local_crops:
            shapes["local"] = ((self.local_crops, small, small, 3), jnp.uint8)
        if len(self.mean) > 1:
            shapes["modality"] = ((), jnp.int32)
        return {key: jax.ShapeDtypeStruct((batch, *shape), dtype) for key, (shape, dtype) in shapes.items()}

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """A fresh student, a teacher that is its copy (it has no mask token), and centers of 0."""
        keys = jax.random.split(rng)
        image = self._normalized(batch["global"][:1, 0], batch["modality"][:1] if "modality" in batch else None)
        tokens = jnp.zeros((1, 2, self.image.width), jnp.float32)
        params = {
            "image": self.image.init(keys[0], image)["params"],
            "head": self.head.init(keys[1], tokens)["params"],
        }
        patch = self.head.patch_prototypes if self.head.split or not self.head.shared else None
        center = {"token": jnp.zeros(self.head.prototypes), "patch": jnp.zeros(patch or self.head.prototypes)}
        return params, {"teacher": jax.tree.map(jnp.copy, teacher_part(params)), "center": center}

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """The teacher's pooled vector, f32 [B D] `image_raw`, and `tokens` [B N D], of `image` u8 [B h w 3].

        `features` f32 [B 2D], for probes: class token and mean of the patches. The teacher is that of the last step's
        loss: one update behind the student.
        """
        del params
        image = self._normalized(batch["image"], batch.get("modality"))
        out: Any = self.image.apply({"params": extra["teacher"]["image"] | self._no_token()}, image)
        tokens = out["tokens"].astype(jnp.float32)
        features = jnp.concatenate([tokens[:, 0], tokens[:, 1:].mean(1)], axis=-1)
        return {"image_raw": out["pooled"].astype(jnp.float32), "tokens": out["tokens"], "features": features}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """One step of both; first the teacher follows the student that the optimizer left, fully at step 0.

        That is the peer's update at the end of the step before, and it makes the teacher of a pretrained student its copy.
        """
        momentum = jnp.where(step == 0, 0.0, self.momentum_at(step - 1))
        teacher = ema_update(extra["teacher"], params, momentum)
        masked = batch["masked"] & (step // self.epoch_steps >= self.mask_start)
        seen = self._teacher(teacher, batch)
        made, features = self._student(params, batch, masked, rng)
        loss, center, metrics = self.compare(made, seen, extra["center"], masked, step // self.epoch_steps)
        if self.koleo:
            metrics["koleo"] = sum(distillation.koleo(features[:, q]) for q in range(self.global_crops))
            loss = loss + self.koleo * metrics["koleo"]
        metrics = {"loss": loss, **metrics, "teacher_momentum": self.momentum_at(step)}
        return loss, ({"teacher": teacher, "center": center}, metrics)

    def compare(
        self, student: Mapping[str, Any], teacher: Mapping[str, Any], center: Params, masked: jax.Array,
        epoch: jax.Array | int,
    ) -> tuple[jax.Array, Params, Metrics]:  # fmt: skip
        """Loss, next centers and metrics of logits: `token` [B v K] and [B q K], `patch` [B q N K]; masked [B q ...]."""
        teacher = jax.tree.map(jax.lax.stop_gradient, dict(teacher))
        masked = masked.reshape(*masked.shape[:2], -1)
        token, patch = self._targets(teacher, center, epoch)
        token_loss = distillation.token_loss(token, student["token"], self.student_temperature)
        patch_loss = distillation.patch_loss(patch, student["patch"], masked, self.student_temperature)
        moved = {
            "token": distillation.update_center(center["token"], teacher["token"], self.center_momentum),
            "patch": distillation.update_center(center["patch"], teacher["patch"], self.patch_center_momentum),
        }
        agree = teacher["token"][:, 0].argmax(-1) == student["token"][:, 1].argmax(-1)
        metrics = {
            "loss_token": self.token_weight * token_loss,
            "loss_patch": self.patch_weight * patch_loss,
            "teacher_entropy": distillation.entropy(token),
            "prototype_entropy": distillation.entropy(token.mean((0, 1))),  # 0: all images fell on one prototype
            "agreement": agree.astype(jnp.float32).mean(),
        }
        return metrics["loss_token"] + metrics["loss_patch"], moved, metrics

    def momentum_at(self, step: jax.Array | int) -> jax.Array:
        """f32 (), the momentum by which the teacher follows the student of this step."""
        return optim.cosine_schedule(*self.momentum, self.steps)(step)

    def _targets(
        self, teacher: Mapping[str, Any], center: Params, epoch: jax.Array | int
    ) -> tuple[jax.Array, jax.Array]:
        found = []
        for name, temperature in (("token", self.token_temperature), ("patch", self.patch_temperature)):
            logits, heat = teacher[name], temperature.at(epoch)
            if self.centering == "mean":
                found.append(distillation.centered(logits, center[name], heat))
            else:
                flat = logits.reshape(-1, logits.shape[-1])
                found.append(distillation.sinkhorn(flat, heat).reshape(logits.shape))
        return found[0], found[1]

    def _teacher(self, teacher: Params, batch: Batch) -> dict[str, jax.Array]:
        tower = self.image.clone(drop_path=0.0)
        variables = {"params": teacher["image"] | self._no_token()}
        tokens = _by_crop(tower, variables, self._crops(batch, "global"))["tokens"]
        return self._logits(teacher["head"], tokens)

    def _student(
        self, params: Params, batch: Batch, masked: jax.Array, rng: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Logits, `token` of global and local crops, and the global crops' class tokens [B q D]."""
        keys, variables = jax.random.split(rng), {"params": params["image"]}
        rngs = [{"drop_path": key} if self.image.drop_path else {} for key in keys]
        crops = self._crops(batch, "global")
        tokens = _by_crop(self.image, variables, crops, masked=masked.reshape(-1, *masked.shape[2:]), rngs=rngs[0])[
            "tokens"
        ]
        out = self._logits(params["head"], tokens)
        if self.local_crops:
            small = _by_crop(self.image, variables, self._crops(batch, "local"), rngs=rngs[1])["tokens"]
            more: Any = self.head.apply({"params": params["head"]}, small[:, :, 0], method="token")
            out["token"] = jnp.concatenate([out["token"], more], axis=1)
        return out, tokens[:, :, 0]

    def _logits(self, head: Params, tokens: jax.Array) -> dict[str, jax.Array]:
        """tokens [B q 1+N D] to `token` [B q K] and `patch` [B q N K']."""
        out: Any = self.head.apply({"params": head}, tokens.reshape(-1, *tokens.shape[2:]))
        return {name: x.reshape(*tokens.shape[:2], *x.shape[1:]) for name, x in out.items()}

    def _crops(self, batch: Batch, key: str) -> jax.Array:
        return self._normalized(batch[key], batch.get("modality"))

    def _normalized(self, image: Any, modality: Any) -> jax.Array:
        """u8 [B ... 3] by the mean and deviation of each image's modality, i32 [B]; floating images are normalised already."""
        if jnp.issubdtype(image.dtype, jnp.floating):
            return jnp.asarray(image, self.image.dtype)
        if modality is None and len(self.mean) > 1:
            raise UserError(
                f"the batch has no 'modality', and this IBOT normalises {len(self.mean)} of them differently"
            )
        row = jnp.zeros(len(image), jnp.int32) if len(self.mean) == 1 else modality
        shape = (len(image), *(1,) * (image.ndim - 2), 3)
        mean, std = (jnp.asarray(table, jnp.float32)[row].reshape(shape) for table in (self.mean, self.std))
        return ((image.astype(jnp.float32) / 255 - mean) / std).astype(self.image.dtype)

    def _no_token(self) -> Params:
        """A mask token for a teacher, which never uses it."""
        return {"mask_token": jnp.zeros(self.image.width)}


def teacher_part(params: Params) -> Params:
    """What of a student its teacher has too: all but the mask token."""
    return params | {"image": {name: leaf for name, leaf in params["image"].items() if name != "mask_token"}}


def ema_update(teacher: Params, params: Params, momentum: jax.Array | float) -> Params:
    """The teacher moved towards the student: m t + (1 - m) s (arXiv:2104.14294, section 3.1); equal values stay equal."""
    student = jax.tree.map(jax.lax.stop_gradient, teacher_part(params))
    return jax.tree.map(lambda t, s: s + momentum * (t - s), teacher, student)


def _by_crop(tower: ViT, variables: Params, crops: jax.Array, **given: Any) -> dict[str, jax.Array]:
    """The tower on [B q h w 3], crops side by side in their image's place, so that a sharded batch stays where it is."""
    out: Any = tower.apply(variables, crops.reshape(-1, *crops.shape[2:]), **given)
    return {name: x.reshape(*crops.shape[:2], *x.shape[1:]) for name, x in out.items()}
