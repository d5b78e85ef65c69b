"""iBOT self-distillation (arXiv:2111.07832), as in VisionFM's pretraining (arXiv:2310.04992).

Implemented from a description of github.com/ABILab-CUHK/VisionFM; golden tests compare losses, gradients, centers and
two training steps with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fundax.encoders.backbone import image_features
from fundax.encoders.heads import IBOTHead
from fundax.encoders.layers import apply
from fundax.encoders.pixels import IMAGENET_MEAN, IMAGENET_STD, RGB, normalize
from fundax.encoders.vit import ViT, dino_vit
from fundax.losses import distillation
from fundax.optim import adamw, clip_leaves, cosine_schedule, decay_visionfm, ema_update, freeze
from fundax.types import Batch, Extra, Metrics, Params, UserError

# Small sizes of the encoder: image size, patch, width, depth, heads; and the side of their local crops is half the image's.
SIZES = {"smoke": (32, 8, 32, 1, 4), "tiny": (64, 16, 128, 4, 4)}


class Schedules(NamedTuple):
    """Final learning rate, EMA momentum, start and end of both temperatures; epochs of warm-up, of the temperatures' ramps
    and of the frozen last layer."""

    last_lr: float
    momentum: float
    token: tuple[float, float]
    patch: tuple[float, float]
    warmup: float
    ramp: int
    frozen: float


SCHEDULES = {
    "published": Schedules(2e-6, 0.996, (0.07, 0.04), (0.04, 0.07), warmup=50, ramp=30, frozen=3),
    "laptop": Schedules(1e-5, 0.99, (0.04, 0.04), (0.04, 0.04), warmup=0.5, ramp=3, frozen=0.5),
}


def encoder(size: str, **fields: Any) -> ViT:
    """The student's ViT, of a row of SIZES or encoders.vit.SIZES; `fields` are ViT's. Raises UserError."""
    if size not in SIZES:
        return dino_vit(size, mask_token=True, scan=True, **fields)
    names = ("image_size", "patch", "width", "depth", "heads")
    return dino_vit("S/16", mask_token=True, **dict(zip(names, SIZES[size], strict=True)), **fields)


@dataclass(frozen=True)
class Temperature:
    """Temperature by epoch: `start` for `wait` epochs, then linear to `end` over `epochs` epochs, ends included."""

    start: float
    end: float
    epochs: int = 30
    wait: int = 0

    def at(self, epoch: jax.Array | int) -> jax.Array:
        """Temperature f32 () of an epoch, counted from 0."""
        done = jnp.clip((jnp.asarray(epoch) - self.wait) / max(self.epochs - 1, 1), 0.0, 1.0)
        return self.start + (self.end - self.start) * (done if self.epochs > 1 else jnp.float32(epoch >= self.wait))


@dataclass(frozen=True)
class Distillation:
    """The arguments of a config for the heads of student and teacher and what compares them.

    Args:
        prototypes: Number of outputs of the self-distillation head.
        heads: Heads for class token and patches: shared, with separate last layers, or separate.
        centering: How the teacher's outputs are centered: by running means, or by Sinkhorn-Knopp.
        koleo: Weight of the KoLeo loss, which spreads the class tokens.
    """

    prototypes: int = 8192
    heads: Literal["shared", "unshared", "split"] = "shared"
    centering: Literal["mean", "sinkhorn"] = "mean"
    koleo: float = 0.0

    def fields(self, size: str, by: Schedules, dtype: str = "float32") -> dict[str, Any]:
        """The fields of IBOT that these settings and the schedules decide.

        The projection head has a hidden width of 2048 and a bottleneck of 256, as published, or is smaller for SIZES.
        """
        hidden, bottleneck = (256, 64) if size in SIZES else (2048, 256)
        kinds = {"shared": self.heads == "shared", "split": self.heads == "split", "dtype": dtype}
        head = IBOTHead(self.prototypes, None, hidden, bottleneck, **kinds)
        token, patch = Temperature(*by.token, by.ramp), Temperature(*by.patch, by.ramp)
        found = {"head": head, "token_temperature": token, "patch_temperature": patch, "momentum": (by.momentum, 1.0)}
        return found | {"centering": self.centering, "koleo": self.koleo}


@dataclass(frozen=True)
class IBOT:
    """Self-distillation: a student with masked crops predicts the prototypes of a teacher, its moving average.

    Student (params) and teacher (extra) are each a ViT and a head. The defaults are VisionFM's. `centering="sinkhorn"`,
    `koleo` > 0 and a head with `split` are DINOv2's options (arXiv:2304.07193, section 4).

    steps, epoch_steps: length of the training and of an epoch; the temperatures change by epoch.
    global_crops, local_crops, local_size: number of crops of each kind, and pixels of a local crop.
    mean, std: mean and deviation of RGB in [0, 1], one row or a row for each `modality` of a batch.
    momentum: momentum of the teacher at the first and the last step, along a cosine.
    token_weight, patch_weight, koleo: weights of the terms of the loss.
    mask_start: first epoch with masked patches.
    """

    image: ViT
    head: IBOTHead
    steps: int
    epoch_steps: int
    global_crops: int = 2
    local_crops: int = 0
    local_size: int = 96
    mean: tuple[RGB, ...] = (IMAGENET_MEAN,)
    std: tuple[RGB, ...] = (IMAGENET_STD,)
    token_temperature: Temperature = Temperature(0.07, 0.04)
    patch_temperature: Temperature = Temperature(0.04, 0.07)
    student_temperature: float = 0.1
    momentum: tuple[float, float] = (0.996, 1.0)
    center_momentum: float = 0.9
    patch_center_momentum: float = 0.9
    token_weight: float = 1.0
    patch_weight: float = 1.0
    mask_start: int = 0
    centering: Literal["mean", "sinkhorn"] = "mean"
    koleo: float = 0.0

    def __post_init__(self) -> None:
        if not self.image.mask_token or not self.image.class_token:
            raise UserError("IBOT needs a ViT with mask_token=True and a class token")
        if self.local_crops and not self.image.any_size:
            raise UserError("IBOT with local crops needs a ViT with any_size=True")
        if self.centering not in ("mean", "sinkhorn") or len(self.mean) != len(self.std):
            raise UserError("IBOT: centering is 'mean' or 'sinkhorn'; mean and std have a row for each modality")
        if self.global_crops < 2:
            raise UserError(f"IBOT needs at least two global crops, got {self.global_crops}")

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """global u8 [B q h w 3], masked bool [B q rows columns]; local u8 [B n s s 3] and modality i32 [B] if used."""
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
        """Initial student, a copy of it without the mask token as the teacher, and centers of 0."""
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
        """The teacher's image_raw f32 [B D] (pooled), tokens [B N D] and features f32 [B 2D] of `image` u8 [B h w 3].

        The teacher is the one of the last step's loss: one update behind the student.
        """
        image = self._normalized(batch["image"], batch.get("modality"))
        return image_features(apply(self.image, extra["teacher"]["image"] | self._no_token(), image))

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Loss of a step. First the teacher is updated with the student that the last optimizer step produced.

        VisionFM's code does this update at the end of the step before. At step 0 the teacher becomes a copy of the
        student, which may have been loaded from a checkpoint.
        """
        momentum = jnp.where(step == 0, 0.0, self.momentum_at(step - 1))
        teacher = ema_update(extra["teacher"], teacher_part(params), momentum)
        masked = batch["masked"] & (step // self.epoch_steps >= self.mask_start)
        targets = self._teacher(teacher, batch)
        predictions, features = self._student(params, batch, masked, rng)
        loss, center, metrics = self.compare(predictions, targets, extra["center"], masked, step // self.epoch_steps)
        if self.koleo:
            metrics["koleo"] = sum(distillation.koleo(features[:, q]) for q in range(self.global_crops))
            loss = loss + self.koleo * metrics["koleo"]
        metrics = {"loss": loss, **metrics, "teacher_momentum": self.momentum_at(step)}
        return loss, ({"teacher": teacher, "center": center}, metrics)

    def compare(
        self, student: Mapping[str, Any], teacher: Mapping[str, Any], center: Params, masked: jax.Array,
        epoch: jax.Array | int,
    ) -> tuple[jax.Array, Params, Metrics]:  # fmt: skip
        """Loss, next centers and metrics. The student's and the teacher's logits are `token` [B v K] and [B q K], and
        `patch` [B q N K]; masked is [B q ...].
        """
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
            "prototype_entropy": distillation.entropy(token.mean((0, 1))),  # 0: collapse to one prototype
            "agreement": agree.astype(jnp.float32).mean(),
        }
        return metrics["loss_token"] + metrics["loss_patch"], moved, metrics

    def momentum_at(self, step: jax.Array | int) -> jax.Array:
        """Momentum f32 () of the teacher's update with the student of this step."""
        return cosine_schedule(*self.momentum, self.steps)(step)

    def _targets(
        self, teacher: Mapping[str, Any], center: Params, epoch: jax.Array | int
    ) -> tuple[jax.Array, jax.Array]:
        targets = []
        for name, temperature in (("token", self.token_temperature), ("patch", self.patch_temperature)):
            logits, heat = teacher[name], temperature.at(epoch)
            if self.centering == "mean":
                targets.append(distillation.centered(logits, center[name], heat))
            else:
                flat = logits.reshape(-1, logits.shape[-1])
                targets.append(distillation.sinkhorn(flat, heat).reshape(logits.shape))
        return targets[0], targets[1]

    def _teacher(self, teacher: Params, batch: Batch) -> dict[str, jax.Array]:
        tower = self.image.clone(drop_path=0.0)
        tokens = _by_crop(tower, teacher["image"] | self._no_token(), self._crops(batch, "global"))["tokens"]
        return self._logits(teacher["head"], tokens)

    def _student(
        self, params: Params, batch: Batch, masked: jax.Array, rng: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Logits, with `token` of global and local crops, and the class tokens of the global crops [B q D]."""
        rngs = [{"drop_path": key} if self.image.drop_path else {} for key in jax.random.split(rng)]
        crops, flat = self._crops(batch, "global"), masked.reshape(-1, *masked.shape[2:])
        tokens = _by_crop(self.image, params["image"], crops, masked=flat, rngs=rngs[0])["tokens"]
        out = self._logits(params["head"], tokens)
        if self.local_crops:
            small = _by_crop(self.image, params["image"], self._crops(batch, "local"), rngs=rngs[1])["tokens"]
            more = apply(self.head, params["head"], small[:, :, 0], method="token")
            out["token"] = jnp.concatenate([out["token"], more], axis=1)
        return out, tokens[:, :, 0]

    def _logits(self, head: Params, tokens: jax.Array) -> dict[str, jax.Array]:
        """Logits `token` [B q K] and `patch` [B q N K'] of tokens [B q 1+N D]."""
        out = apply(self.head, head, tokens.reshape(-1, *tokens.shape[2:]))
        return {name: x.reshape(*tokens.shape[:2], *x.shape[1:]) for name, x in out.items()}

    def _crops(self, batch: Batch, key: str) -> jax.Array:
        return self._normalized(batch[key], batch.get("modality"))

    def _normalized(self, image: Any, modality: Any) -> jax.Array:
        return normalize(image, self.mean, self.std, self.image.dtype, modality)

    def _no_token(self) -> Params:
        """A mask token for the teacher, which never uses it."""
        return {"mask_token": jnp.zeros(self.image.width)}


def teacher_part(params: Params) -> Params:
    """The student's parameters that the teacher has too: all but the mask token."""
    return params | {"image": {name: leaf for name, leaf in params["image"].items() if name != "mask_token"}}


def _by_crop(tower: ViT, params: Params, crops: jax.Array, **given: Any) -> dict[str, jax.Array]:
    """Outputs [B q ...] of the ViT for crops [B q h w 3]."""
    # the crops of an image stay neighbours, so that a sharded batch need not move between devices
    out = apply(tower, params, crops.reshape(-1, *crops.shape[2:]), **given)
    return {name: x.reshape(*crops.shape[:2], *x.shape[1:]) for name, x in out.items()}


def optimizer(by: Schedules, lr: float, steps: int, epoch_steps: int) -> optax.GradientTransformation:
    """AdamW with the schedules of `by`: each gradient clipped at 3, decay from 0.04 to 0.4, a last layer that starts late."""
    rate = cosine_schedule(lr, by.last_lr, steps, min(round(by.warmup * epoch_steps), steps // 2))
    late = ("head/last_layer", max(round(by.frozen * epoch_steps), 1))
    decay = {"weight_decay": cosine_schedule(0.04, 0.4, steps), "decay": decay_visionfm}
    return freeze(optax.chain(clip_leaves(3.0), adamw(rate, late=late, **decay)), "head/last_layer2?/scale")
