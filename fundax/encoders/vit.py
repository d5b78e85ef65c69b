"""Vision Transformer (arXiv:2010.11929), with the options of CLIP, SigLIP, RET-CLIP, DINO, iBOT, VisionFM and RETFound.

Also functions of a ViT and its parameters (stacked or not): intermediate outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders import layers
from fundax.encoders.positions import Rotary, scaled
from fundax.types import Params, UserError


@dataclass(frozen=True)
class Size:
    """Sizes of a CLIP model: its image encoder, the width of the embedding, its text encoder."""

    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    embed: int
    text_width: int
    text_depth: int
    text_heads: int


# Sizes with a patch in their name are open_clip's model configurations; H/14-378 is also apple/DFN5B-CLIP-ViT-H-14-378,
# S/8 also Chinese-CLIP's, and L/16 has RETFound's image encoder. The others are ours: two CPU cores train tiny and small
# in minutes, and smoke only shows that a run starts and ends. Patches of 8 suit segmentation at few pixels.
SIZES = {
    "smoke": Size(32, 8, 16, 4, 1, 16, 16, 1, 1),
    "tiny": Size(64, 16, 128, 4, 4, 128, 128, 4, 4),
    "tiny/8": Size(64, 8, 64, 4, 2, 64, 64, 4, 2),
    "tiny/16": Size(64, 16, 96, 4, 3, 96, 96, 4, 3),
    "small": Size(96, 16, 192, 6, 6, 192, 192, 6, 6),
    "small/8": Size(64, 8, 128, 6, 4, 128, 128, 6, 4),
    "Ti/16": Size(224, 16, 192, 12, 3, 192, 192, 12, 3),
    "S/16": Size(224, 16, 384, 12, 6, 384, 384, 12, 6),
    "S/8": Size(224, 8, 384, 12, 6, 384, 384, 12, 6),
    "B/32": Size(224, 32, 768, 12, 12, 512, 512, 12, 8),
    "B/16": Size(224, 16, 768, 12, 12, 512, 512, 12, 8),
    "L/16": Size(224, 16, 1024, 24, 16, 768, 768, 12, 12),
    "L/14": Size(224, 14, 1024, 24, 16, 768, 768, 12, 12),
    "L/14-336": Size(336, 14, 1024, 24, 16, 768, 768, 12, 12),
    "H/14": Size(224, 14, 1280, 32, 16, 1024, 1024, 24, 16),
    "H/14-378": Size(378, 14, 1280, 32, 16, 1024, 1024, 24, 16),
}


def size_named(name: str) -> Size:
    """The row of SIZES with this name. Raises UserError for an unknown size."""
    if name not in SIZES:
        raise UserError(f"size is {name!r}; expected one of {', '.join(SIZES)}")
    return SIZES[name]


def patches(image: jax.Array, patch: int) -> jax.Array:
    """Cut images [B h w C] into patches [B N p*p*C], row by row; pixels beyond the last whole patch are left out."""
    b, h, w, c = image.shape
    rows, columns = h // patch, w // patch
    image = image[:, : rows * patch, : columns * patch]
    image = image.reshape(b, rows, patch, columns, patch, c).swapaxes(2, 3)
    return image.reshape(b, rows * columns, patch * patch * c)


def kept_patches(noise: jax.Array, ratio: float) -> jax.Array:
    """FLIP's random subset of patches, i32 [B n] with n = int(N * (1 - ratio)) (arXiv:2212.00794, section 3).

    noise [B N]: the patches with the n smallest values are kept, in ascending order of the noise.
    """
    return jnp.argsort(noise, axis=1)[:, : int(noise.shape[1] * (1 - ratio))]


class PatchEmbedding(nn.Module):
    """Patch embedding [B h w 3] to [B N D]: a convolution with stride p, computed as one matrix product.

    kernel [p p 3 D], with PyTorch's initial values. With several `kinds` of images (modalities), [kinds p p 3 D] and i32 [B].
    """

    patch: int
    width: int
    bias: bool
    dtype: str = "float32"
    kinds: int = 1

    @nn.compact
    def __call__(self, image: jax.Array, kind: jax.Array | None = None) -> jax.Array:
        initial = layers.uniform((self.patch * self.patch * 3) ** -0.5)
        shape, several = (self.patch, self.patch, 3, self.width), (self.kinds,) * (self.kinds > 1)
        kernel = self.param("kernel", initial, (*several, *shape), jnp.float32)
        kernel = (
            jnp.moveaxis(kernel, 0, -2) if several else kernel
        )  # a product with the kernels of all kinds is one product
        x = layers.product(patches(image.astype(self.dtype), self.patch), kernel.reshape(-1, self.kinds * self.width))
        if self.bias:
            bias = self.param("bias", initial, (*several, self.width), jnp.float32).astype(self.dtype)
            x = x + bias.reshape(1, 1, -1)
        if kind is None or not several:
            return x[:, :, : self.width]
        x = x.reshape(*x.shape[:2], self.kinds, self.width)
        return jnp.take_along_axis(x, kind[:, None, None, None], axis=2)[:, :, 0]


class AttentionPool(nn.Module):
    """Attention pooling of SigLIP: a learned query attends to tokens [B N D], then an MLP with a residual; [B D].

    Source: arXiv:2303.15343 and arXiv:2106.04560.
    """

    width: int
    heads: int
    hidden: int
    activation: layers.Activation
    initial: layers.BlockInit
    epsilon: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, self.width), jnp.float32)
        attention = _CrossAttention(self.width, self.heads, self.initial, self.dtype, name="attention")
        x = attention(probe.astype(tokens.dtype), tokens)  # [B 1 D]
        y = layers.LayerNorm(self.epsilon, name="norm")(x)
        mlp = layers.MLP(self.width, self.hidden, self.activation, self.initial, self.dtype, name="mlp")
        return (x + mlp(y))[:, 0]


class _CrossAttention(nn.Module):
    """Cross-attention of queries [1 D], shared by the batch, to tokens [B N D], with self-attention's packed kernel."""

    width: int
    heads: int
    initial: layers.BlockInit
    dtype: str

    @nn.compact
    def __call__(self, queries: jax.Array, tokens: jax.Array) -> jax.Array:
        qkv = layers.PackedProjection(self.width, True, self.initial.qkv, self.dtype, name="qkv")
        q = jnp.broadcast_to(qkv(queries[None], 0, 1)[:, :, 0], (len(tokens), 1, self.width))
        k, v = jnp.moveaxis(qkv(tokens, 1, 3), 2, 0)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, v))
        y = layers.attend(q, k, v).reshape(len(tokens), 1, self.width)
        return layers.Dense(self.width, self.initial.out, dtype=self.dtype, name="out")(y)


class ViT(nn.Module):
    """Normalised images [B h w 3] to tokens [B N D] and a pooled vector [B D].

    The class token, if there is one, is row 0 of the tokens and of `position`.

    patch_bias, qkv_bias: whether these projections have a bias.
    pre_norm: a norm before the blocks, as in CLIP.
    pool: the class token, the mean of the patch tokens, or an attention pooling head (SigLIP).
    norm_after_pool: apply the final norm to the pooled vector instead of the tokens.
    layer_scale: initial value of a learned scale of each branch; None: no scale.
    mask_ratio: part of the patches that FLIP drops, given `noise` or a "mask" rng; without either none is dropped.
    mask_token: have a learned token that replaces masked patches (iBOT).
    registers: tokens without a place that the blocks see and that are left out of the outputs (arXiv:2309.16588).
    rotary: base of the rotary positions of the patches (DINOv3, arXiv:2508.10104), in place of a position table.
    kinds: kinds of images that have a patch embedding each, such as modalities.
    any_size: accept images of other sizes and interpolate the positions (positions.scaled).
    drop_path: stochastic depth of the last block, rising linearly from 0; active with a "drop_path" rng.
    init_std: deviation of the initial positions and class token; None: width ** -0.5. init_blocks: initialisers of the blocks.
    scan: one scan over stacked layers, which compiles faster; otherwise unrolled. remat: see layers.Stack.
    dtype: dtype of matrix products. attention: implementation, see encoders/attention.py.
    """

    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    activation: layers.Activation = layers.quick_gelu
    epsilon: float = 1e-5
    class_token: bool = True
    patch_bias: bool = False
    qkv_bias: bool = True
    pre_norm: bool = True
    pool: Literal["token", "mean", "attention"] = "token"
    norm_after_pool: bool = False
    layer_scale: float | None = None
    mask_ratio: float = 0.0
    mask_token: bool = False
    registers: int = 0
    rotary: float | None = None
    kinds: int = 1
    any_size: bool = False
    drop_path: float = 0.0
    init_std: float | None = None
    init_blocks: Callable[[int, int, int], layers.BlockInit] = layers.init_clip_vision
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"
    attention: layers.Path = "plain"

    @property
    def patches(self) -> int:
        """Number of patches of an image, without the class token."""
        return (self.image_size // self.patch) ** 2

    def _check(self, image: jax.Array) -> None:
        if self.any_size and min(image.shape[1:3]) >= self.patch and image.shape[3] == 3:
            pass
        elif image.shape[1:] != (self.image_size, self.image_size, 3):
            raise UserError(f"image is {image.shape[1:]}; this ViT takes {(self.image_size, self.image_size, 3)}")
        if self.pool not in ("token", "mean", "attention"):
            raise UserError(f"pool is {self.pool!r}; expected token, mean or attention")
        if self.rotary is not None and (self.mask_ratio or self.width // self.heads % 4):
            raise UserError("rotary positions need heads of a multiple of 4 channels, and no masking of patches")
        if self.pool == "token" and not self.class_token:
            raise UserError("pool='token' needs class_token=True")
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of heads {self.heads}")

    @nn.compact
    def __call__(
        self, image: jax.Array, noise: jax.Array | None = None, hidden: bool = False, masked: jax.Array | None = None,
        kind: jax.Array | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """tokens [B N D] (after the final norm, unless it applies to the pooled vector) and pooled [B D].

        Args:
            image: [B h w 3], normalised.
            noise: f32 [B patches], see kept_patches.
            hidden: also return patches [B N D], embedded [B N D] (the input of the blocks), hidden, a tuple of the
                outputs of the blocks, and inputs, a tuple of their inputs [B N+R D] with the R registers at the end.
            masked: bool [B rows columns], patches that the mask token replaces.
            kind: i32 [B], the kind of each image; None is the first.

        Raises UserError if the image is not `image_size` square (with `any_size`: smaller than a patch).
        """
        self._check(image)
        fields = (self.patch, self.width, self.patch_bias, self.dtype, self.kinds)
        embedded = PatchEmbedding(*fields, name="patch")(image, kind)
        grid = (image.shape[1] // self.patch, image.shape[2] // self.patch)
        # Order matters: a masked patch keeps its position (iBOT), and a dropped one takes it along (FLIP).
        x = self._dropped(self._positioned(self._replaced(embedded, masked), grid), noise)
        count = x.shape[1]
        x = self._with_registers(x)
        x = layers.LayerNorm(self.epsilon, name="pre_norm")(x) if self.pre_norm else x
        stack = layers.Stack(self.depth, self.scan, self.remat, self.drop_path)
        out = stack(self._block(grid), x, None, 0, hidden)
        kept = {}
        if hidden:
            inputs = (x, *out["hidden"][:-1])
            states = tuple(each[:, :count] for each in (x, *out["hidden"])) if self.registers else (x, *out["hidden"])
            kept = {"patches": embedded, "embedded": states[0], "hidden": states[1:], "inputs": inputs}
        tokens = out["tokens"][:, :count] if self.registers else out["tokens"]
        return self._pooled(tokens, out["row"]) | kept

    def rotation(self, grid: tuple[int, int]) -> Rotary | None:
        """The rotary positions of a grid of patches, or None."""
        return None if self.rotary is None else Rotary(self.rotary, *grid, int(self.class_token))

    def _block(self, grid: tuple[int, int]) -> Callable[..., layers.Block]:
        hidden, rotary = int(self.width * self.mlp_ratio), self.rotation(grid)
        initial = self.init_blocks(self.width, hidden, self.depth)
        return lambda name: layers.Block(
            self.width, self.heads, hidden, self.activation, initial, self.qkv_bias,
            self.epsilon, self.layer_scale, dtype=self.dtype, kind=self.attention, rotary=rotary, name=name,
        )  # fmt: skip

    def _with_registers(self, x: jax.Array) -> jax.Array:
        if not self.registers:
            return x
        normal = nn.initializers.normal(0.02)
        registers = self.param("registers", normal, (self.registers, self.width), jnp.float32).astype(x.dtype)
        return jnp.concatenate([x, jnp.broadcast_to(registers[None], (len(x), *registers.shape))], axis=1)

    def _replaced(self, x: jax.Array, masked: jax.Array | None) -> jax.Array:
        """Replace masked patches by the mask token, before positions are added (iBOT: arXiv:2111.07832, section 3.1)."""
        if not self.mask_token:
            return x
        # created even if nothing is masked, so that the parameters do not depend on the batch
        token = self.param("mask_token", nn.initializers.zeros, (self.width,), jnp.float32).astype(x.dtype)
        return x if masked is None else jnp.where(masked.reshape(*x.shape[:2], 1), token[None, None], x)

    def _interpolated(self, position: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """The position table [rows D] for another grid; the class token's row stays as it is."""
        side, skip = self.image_size // self.patch, int(self.class_token)
        if grid == (side, side):
            return position
        rows, columns = (jnp.asarray(scaled(side, new), jnp.float32) for new in grid)
        table = position[skip:].reshape(side, side, -1)
        # full fp32: the golden tests compare positions to 1e-6, which a TPU's default precision would miss
        table = jnp.einsum("ia,jb,abd->ijd", rows, columns, table, precision=jax.lax.Precision.HIGHEST)
        return jnp.concatenate([position[:skip], table.reshape(-1, self.width)])

    def _positioned(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        normal = nn.initializers.normal(self.width**-0.5 if self.init_std is None else self.init_std)
        if self.rotary is not None:
            return self._after_class_token(x, normal, None)
        rows = self.patches + self.class_token
        position = self.param("position", normal, (rows, self.width), jnp.float32)
        position = self._interpolated(position, grid).astype(x.dtype)
        if not self.class_token:
            return x + position[None]
        return self._after_class_token(x + position[None, 1:], normal, position[0])

    def _after_class_token(self, x: jax.Array, normal: layers.Initializer, position: jax.Array | None) -> jax.Array:
        if not self.class_token:
            return x
        token = self.param("class_token", normal, (self.width,), jnp.float32).astype(x.dtype)
        token = token if position is None else token + position
        token = jnp.broadcast_to(token[None, None], (len(x), 1, self.width))
        return jnp.concatenate([token, x], axis=1)

    def _dropped(self, x: jax.Array, noise: jax.Array | None) -> jax.Array:
        """FLIP masking: only the kept patches go through the blocks, which is where the time is saved."""
        if self.mask_ratio == 0:
            return x
        if noise is None and self.has_rng("mask"):
            noise = jax.random.uniform(self.make_rng("mask"), (len(x), self.patches))
        if noise is None:
            return x
        skip = int(self.class_token)
        kept = kept_patches(noise, self.mask_ratio)[:, :, None] + skip
        return jnp.concatenate([x[:, :skip], jnp.take_along_axis(x, kept, axis=1)], axis=1)

    def _pooled(self, x: jax.Array, row: jax.Array) -> dict[str, jax.Array]:
        norm = layers.LayerNorm(self.epsilon, name="norm")
        tokens = x if self.norm_after_pool else norm(x)
        if self.pool == "token":
            return {"tokens": tokens, "pooled": norm(row)}
        if self.pool == "mean":
            pooled = tokens[:, int(self.class_token) :].mean(1)
        else:
            hidden = int(self.width * self.mlp_ratio)
            initial = self.init_blocks(self.width, hidden, self.depth)
            fields = (self.width, self.heads, hidden, self.activation, initial, self.epsilon, self.dtype)
            pooled = AttentionPool(*fields, name="pool")(tokens)
        return {"tokens": tokens, "pooled": norm(pooled) if self.norm_after_pool else pooled}


def init_dino(width: int, hidden: int, depth: int) -> layers.BlockInit:
    """Initialisers of DINO's, iBOT's and VisionFM's blocks: N(0, 0.02), biases 0."""
    return layers.BlockInit(*(nn.initializers.normal(0.02),) * 4)


def dino_vit(size: str, **fields: Any) -> ViT:
    """A ViT as in timm, DINO, iBOT, VisionFM and RETFound, of one of SIZES; `fields` override ViT's. Raises UserError."""
    plain = {"activation": layers.gelu_exact, "epsilon": 1e-6, "patch_bias": True, "pre_norm": False}
    return vit(size, **(plain | {"init_std": 0.02, "init_blocks": init_dino, "any_size": True} | fields))


def vit(size: str, **fields: Any) -> ViT:
    """The image encoder of one of SIZES; `fields` override ViT's. Raises UserError for an unknown size."""
    row = size_named(size)
    sizes: dict[str, Any] = {name: getattr(row, name) for name in ("image_size", "patch", "width", "depth", "heads")}
    return ViT(**sizes | fields)


def intermediate_layers(tower: ViT, params: Params, image: jax.Array, last: int) -> tuple[jax.Array, ...]:
    """Outputs [B N D] of the last blocks, earliest first, each through the final norm: DINO's get_intermediate_layers.

    If the final norm applies to the pooled vector, the outputs are not normalised. Raises UserError for more blocks
    than the ViT has.
    """
    if not 0 < last <= tower.depth:
        raise UserError(f"the last {last} blocks of a ViT that has {tower.depth}")
    return chosen_layers(tower, params, image, tuple(range(tower.depth - last, tower.depth)))


def chosen_layers(
    tower: ViT, params: Params, image: jax.Array, blocks: tuple[int, ...], rngs: Mapping[str, jax.Array] | None = None
) -> tuple[jax.Array, ...]:
    """Outputs [B N D] of the given blocks, counted from 0, normalised as by intermediate_layers.

    rngs: "drop_path" for stochastic depth. Raises UserError for a block that does not exist.
    """
    if wrong := [block for block in blocks if not 0 <= block < tower.depth]:
        raise UserError(f"block {wrong[0]} of a ViT that has {tower.depth}, 0 to {tower.depth - 1}")
    hidden = layers.apply(tower, params, image, hidden=True, rngs=rngs)["hidden"]
    if tower.norm_after_pool:
        return tuple(hidden[block] for block in blocks)
    return tuple(layers.apply(layers.LayerNorm(tower.epsilon), params["norm"], hidden[block]) for block in blocks)
