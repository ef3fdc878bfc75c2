"""The contract of a position method: what tells attention the order of the tokens.

A *position method* (`PositionMethod`) is a setting of a model. Built for a model it is a `ModelPosition`, which holds
the parameters that layers share and adds to the embeddings. For each attention of the model it gives *hooks*
(`AttentionPosition`), which rotate queries and keys or change logits. All of them read `Positions`: where tokens stand.
"""

from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from typing import Literal, cast, get_args

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
        """Number of layers that have a site."""
        return self.num_encoder_layers if site == "encoder" else self.num_decoder_layers


@dataclass(frozen=True, eq=False)
class OpenKeys:
    """A table of the keys that are open to each query, for attention that gathers its keys.

    Attributes:
        index: Number of the key in each slot, int64 `[head, query, slot]`; any key's number in an empty slot.
        bias: Added to the logit of that key, `[head, query, slot]`; minus infinity in an empty slot.
    """

    index: Tensor
    bias: Tensor


class AttentionPosition:
    """The hooks of a position method in one attention: one site and layer. Without an override they do nothing.

    Hooks with parameters of their own are also an `nn.Module`; hooks that read the model's shared parameters are not.

    Keys come whole, `[batch, head, key, dim]`, or gathered, `[batch, head, query, slot, dim]`. Each query then has keys
    of its own, and the coordinates of keys are `[head, query, slot]`. Hooks of a pointwise method must work for both.
    Hooks that broadcast, such as `q_coordinate[:, None] - k_coordinate`, do; a `transform` that reads `k` needs care.

    Attributes:
        pointwise: Whether a logit depends only on its own query and key, so that keys may be gathered.
        transforms: Whether `transform` has an effect; without one, attention takes the fused path.
        takes_batches: Whether the hooks take positions of which coordinates differ from problem to problem, with the
            batch first, and biases may have it first too. Other hooks are called problem by problem for these.
        numbers_a_pair: Numbers that `transform` holds for each pair of a query and a key, beside the logits.
    """

    pointwise: bool = True
    transforms: bool = False
    takes_batches: bool = False
    numbers_a_pair: int = 0

    @property
    def does_nothing(self) -> bool:
        """Whether no hook is overridden, so that attention is as it is without a position method."""
        return type(self) is AttentionPosition

    @property
    def rotates(self) -> bool:
        """Whether `rotate` has an effect; hooks that pass it on to other hooks return theirs."""
        return type(self).rotate is not AttentionPosition.rotate

    def rotate(self, q: Tensor, k: Tensor, q_positions: Positions, k_positions: Positions) -> tuple[Tensor, Tensor]:
        """Queries `[batch, head, query, dim]` and keys, rotated by their positions."""
        return q, k

    def bias(self, q_positions: Positions, k_positions: Positions) -> Tensor | None:
        """The bias that is added to the logits, `[head, query, key]`; it depends on positions alone.

        It is minus infinity where a key is closed, and `None` if there is no bias.
        """
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
        """The logits, changed before any bias is added.

        Args:
            scores: The scaled logits, `[batch, head, query, key or slot]`.
            q: Rotated queries.
            k: Rotated keys.
            q_positions: Positions of the queries.
            k_positions: Positions of the keys.
            mask: True where a query may attend, `[head or 1, query, key]`, with the batch first where problems are
                padded; `None` if it may everywhere. A method that is not pointwise needs the mask; gathered keys come
                without one.
        """
        return scores

    def open_keys(self, q_positions: Positions, k_positions: Positions, most: float) -> OpenKeys | None:
        """The keys that are open to each query; in the decoder, without the keys after it.

        Args:
            q_positions: Positions of the queries.
            k_positions: Positions of the keys.
            most: The most slots a query that are wanted.

        Returns:
            The table; `None` if every key is open, or if the table would have more slots.
        """
        return None

    def among_open_keys(self) -> "AttentionPosition":
        """The hooks for gathered keys: those without the window, which the table of `open_keys` already holds."""
        return self

    def not_pointwise(self) -> str:
        """The sentence that says that the method is not pointwise."""
        return f"{type(self).__name__} is not pointwise: a logit depends on more than its query and key"

    def why_not_gathered(self) -> str | None:
        """Why attention cannot gather its open keys; `None` if it can."""
        return "it has no window, so that every key is open to every query"


class ModelPosition(nn.Module):
    """A position method built for one model, with the parameters that layers share.

    Args:
        method: The position method.
        sizes: Sizes of the model.

    Attributes:
        draws: Whether `prepare` draws at random in evaluation too.
        makes: Coordinates that `prepare` adds to the layout. No two methods of a model may add the same coordinate.
        takes_batches: Whether `embed` takes positions of which coordinates differ from problem to problem.

    Raises:
        UserError: If a run could not record the method.
    """

    draws: bool = False
    makes: tuple[str, ...] = ()
    takes_batches: bool = False

    def __init__(self, method: "PositionMethod", sizes: ModelSizes) -> None:
        super().__init__()
        if not is_dataclass(method):
            raise UserError(
                f"{type(method).__name__} is not a dataclass, and a run records a method by its fields: put "
                "@dataclass(frozen=True) before the class"
            )
        self.method = method
        self.sizes = sizes

    def check_apart(self) -> None:
        """Checks the methods that this method contains.

        Raises:
            UserError: If two of them add the same coordinate.
        """
        makers: dict[str, str] = {}
        for part in self.modules():
            for name in part.makes if isinstance(part, ModelPosition) else ():
                own = type(part.method).__name__
                if name in makers:
                    raise UserError(
                        f"{makers[name]} and {own} in one model would overwrite each other's positions: keep one of "
                        "them"
                    )
                makers[name] = own

    def prepare(self, layout: Layout) -> Layout:
        """The layout on which the model runs; a method may add coordinates, or draw them at random."""
        return layout

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Embeddings `[batch, length, dim]` plus what the method adds; in the decoder `positions` are the queries'."""
        return self.method.embed(x, positions)

    def at(self, site: Site, layer: int) -> AttentionPosition:
        """The hooks of the attention of one site and layer."""
        return self.method.at(site, layer, self.sizes.num_heads, self.sizes.head_dim)


class PositionMethod:
    """A position method: settings, and what is built of them for a model. Without an override it is NoPE.

    A method is an immutable value (a frozen dataclass) that makes hooks, not a module that holds them. So a run folder
    records a method by its fields, and parameters exist only inside a model. A method overrides `embed` and `at` if it
    has no parameters, or only parameters of each layer. It overrides `build` if it has parameters for embeddings or
    parameters that layers share, or if it changes the layout.
    """

    def build(self, sizes: ModelSizes) -> ModelPosition:
        """The method built for a model.

        Raises:
            UserError: If the method does not fit the sizes of the model.
        """
        return ModelPosition(self, sizes)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Embeddings `[batch, length, dim]` plus what the method adds; in the decoder `positions` are the queries'."""
        return x

    def at(self, site: Site, layer: int, num_heads: int, head_dim: int) -> AttentionPosition:
        """The hooks of the attention of one site and layer.

        Raises:
            UserError: If the method has no meaning there, or does not fit these sizes.
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
    names = cast("tuple[object, ...]", value) if several and isinstance(value, tuple) else (value,)
    are_names = names and all(isinstance(name, str) and name.isidentifier() for name in names)
    if several != isinstance(value, tuple) or not are_names:
        give = "a tuple of names of coordinates" if several else "the name of a coordinate"
        raise UserError(f"{type(method).__name__}: {field} cannot be {value!r}: give {give}, such as raw or place")


def check_methods(owner: PositionMethod, methods: Iterable[object]) -> None:
    """Checks the methods that another method contains.

    Raises:
        UserError: If one of them is not a position method.
    """
    for method in methods:
        if not isinstance(method, PositionMethod):
            raise UserError(f"{type(owner).__name__}: {method!r} is not a position method: give position methods")
