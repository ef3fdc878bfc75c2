"""The contract of a position method: anything that tells attention about order."""

from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from abc_toolkit.errors import UserError
from abc_toolkit.layout import Layout, Positions

Site = Literal["encoder", "decoder", "cross"]
SITES: tuple[Site, ...] = get_args(Site)


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of the model that a position method is built for.

    Attributes:
        model_dim: Width of the streams.
        num_heads: Attention heads a layer.
        num_encoder_layers: Encoder depth.
        num_decoder_layers: Decoder depth.
    """

    model_dim: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.model_dim // self.num_heads

    def layers(self, site: Site) -> int:
        """Layers that have a site."""
        return self.num_encoder_layers if site == "encoder" else self.num_decoder_layers


@dataclass(frozen=True, eq=False)
class OpenKeys:
    """The keys that are open to each query, by number: what a window lowers to where attention gathers its keys.

    Attributes:
        index: Number of the key in each slot, int64 `[head, query, slot]`; of an empty slot any number of a key.
        bias: What is added to its logit, `[head, query, slot]`; minus infinity where the slot is empty.
    """

    index: Tensor
    bias: Tensor


class AttentionPosition:
    """What one attention module of one layer knows of positions. Overriding nothing is NoPE.

    One with parameters of its own is also an `nn.Module`; one that only reads what the model shares is not. Keys come
    whole, `[batch, head, key, dim]`, or gathered, each query with its own, `[batch, head, query, slot, dim]`; their
    coordinates are then `[head, query, slot]`. A pointwise method's hooks must hold for both. Written to broadcast,
    `q_coordinate[:, None] - k_coordinate`, they do, but for a `transform` that reads `k`.

    Attributes:
        pointwise: Whether a logit needs only its own query and key, so that keys may be gathered.
        transforms: Whether `transform` does anything; the fused path is for methods where it does not.
    """

    pointwise: bool = True
    transforms: bool = False

    @property
    def does_nothing(self) -> bool:
        """Whether no hook is overridden, so that attention is as it is without a position method."""
        return type(self) is AttentionPosition

    @property
    def rotates(self) -> bool:
        """Whether `rotate` does anything; one that hands it on to another says what that says."""
        return type(self).rotate is not AttentionPosition.rotate

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        """Queries `[batch, head, query, dim]` and keys turned by their positions."""
        return q, k

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor | None:
        """Added to the logits, a function of positions alone: `[head, query, key]`, minus infinity where closed."""
        return None

    def transform(
        self,
        scores: Tensor,
        q: Tensor,
        k: Tensor,
        q_positions: Positions,
        k_positions: Positions,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Scaled logits turned into others, before any bias is added.

        Args:
            scores: The logits, `[batch, head, query, key or slot]`.
            q: Rotated queries.
            k: Rotated keys.
            q_positions: Positions of the queries.
            k_positions: Positions of the keys.
            mask: True where a query may look, `[head or 1, query, key]`; everywhere, if not given. A method that is
                not pointwise needs it; gathered keys come without.
        """
        return scores

    def open_keys(self, q_positions: Positions, k_positions: Positions, most: float) -> OpenKeys | None:
        """The keys that are open to each query, those after it left out in the decoder.

        Args:
            q_positions: Positions of the queries.
            k_positions: Positions of the keys.
            most: Most slots a query that are wanted.

        Returns:
            Them; `None` if every key is open, or if there are more slots.
        """
        return None

    def among_open_keys(self) -> "AttentionPosition":
        """What tells order among gathered keys: the method without the window, which `open_keys` says already."""
        return self

    def not_pointwise(self) -> str:
        """That it is not pointwise, in words."""
        return f"{type(self).__name__} is not pointwise: a logit of it depends on more than its query and key"

    def why_not_gathered(self) -> str | None:
        """Why attention cannot gather its open keys, or `None` if it can."""
        return "it has no window, so that every key is open to every query"


class ModelPosition(nn.Module):
    """What one model knows of positions, made once for it: it holds the parameters that layers share.

    Args:
        method: The method.
        sizes: The model's sizes.

    Attributes:
        draws: Whether `prepare` draws at random in evaluation too.
        makes: Coordinates that `prepare` writes for the method alone. No two methods of a model may write the same.

    Raises:
        UserError: If a run could not record the method.
    """

    draws: bool = False
    makes: tuple[str, ...] = ()

    def __init__(self, method: "PositionMethod", sizes: ModelSizes) -> None:
        super().__init__()
        if not is_dataclass(method):
            raise UserError(
                f"{type(method).__name__} is no dataclass, and a run records a method by its fields: put "
                "@dataclass(frozen=True) before the class"
            )
        self.method = method
        self.sizes = sizes

    def check_apart(self) -> None:
        """Checks the methods that this one is made of.

        Raises:
            UserError: If two of them write the same coordinate.
        """
        makers: dict[str, str] = {}
        for part in self.modules():
            for name in part.makes if isinstance(part, ModelPosition) else ():
                own = type(part.method).__name__
                if name in makers:
                    raise UserError(
                        f"{makers[name]} and {own} in one model would overwrite each other's positions: leave one of "
                        "them"
                    )
                makers[name] = own

    def prepare(self, layout: Layout) -> Layout:
        """The layout that the model runs on: with positions drawn at random, for a method that draws them."""
        return layout

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Adds to a stream of token embeddings `[batch, length, dim]`; queries' positions in the decoder."""
        return self.method.embed(x, positions)

    def at(self, site: Site, layer: int) -> AttentionPosition:
        """What the attention of one site and layer runs."""
        return self.method.at(site, layer, self.sizes.num_heads, self.sizes.head_dim)


class PositionMethod:
    """Settings of a position method, and the maker of what a model runs. Overriding nothing is NoPE.

    A method is an immutable value (a frozen dataclass) that makes its hooks, rather than a module that holds them,
    so that a run folder records it by its fields and parameters exist only inside a model. One without parameters, or
    with parameters of each layer alone, says `embed` and `at`; one that embeds by parameters, shares some over layers
    or draws positions says `build`.
    """

    def build(self, sizes: ModelSizes) -> ModelPosition:
        """What a model of these sizes runs.

        Raises:
            UserError: If the method and the sizes do not go together.
        """
        return ModelPosition(self, sizes)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Adds to a stream of token embeddings `[batch, length, dim]`; queries' positions in the decoder."""
        return x

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        """What the attention of one site and layer runs.

        Raises:
            UserError: If the method has no meaning there, or does not go with these sizes.
        """
        return AttentionPosition()


def check_coordinates(method: PositionMethod, field: str, several: bool = False) -> None:
    """Checks a setting that names a coordinate; whether a task's layout has it is known when the method reads it.

    Args:
        method: The position method.
        field: The setting.
        several: Whether it is a tuple of one or more coordinates.

    Raises:
        UserError: If it does not name a coordinate.
    """
    value = getattr(method, field)
    names = value if several and isinstance(value, tuple) else (value,)
    are_names = names and all(isinstance(name, str) and name.isidentifier() for name in names)
    if several != isinstance(value, tuple) or not are_names:
        give = "a tuple of names of coordinates" if several else "the name of a coordinate"
        raise UserError(f"{type(method).__name__}: {field} cannot be {value!r}: give {give}, such as raw or place")


def check_methods(owner: PositionMethod, methods: Iterable[object]) -> None:
    """Checks the methods that another one is made of.

    Raises:
        UserError: If one is no position method.
    """
    for method in methods:
        if not isinstance(method, PositionMethod):
            raise UserError(f"{type(owner).__name__}: {method!r} is no position method: give only such")
