"""A bound of the rounding error of logits, for float32 arithmetic in any order of summation.

Every stream is computed in float64. Beside each vector stands its *error*: a bound of the 2-norm of the difference
between the vector in float32 and in exact arithmetic. With `u = 2^-24` and `g(n) = n u / (1 - n u)`, a rounded sum of
`n` products is off by at most `g(n)` times the sum of the products' absolute values, in any order, with or without
fused multiply-add (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).

A layer adds its own rounding to the error of its input times a Lipschitz constant. The constant holds on the whole
segment between the exact and the rounded input, so no second-order term is left out.

Assumptions on single operations:

* products, sums, quotients and square roots are rounded to nearest;
* reciprocal square roots are off by at most 4 units in the last place, and `exp` by at most 32;
* variances are computed in two passes, by updates, or as the mean of squares less the square of the mean, and are never
  negative;
* a softmax is rescaled at most once for each open key.

TF32, bfloat16 and float16 are not covered. The float64 arithmetic is itself off by some `10^-13` of a number, which
`SLACK` covers.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from abc_toolkit.layout import Positions
from abc_toolkit.models.attention import Attention
from abc_toolkit.models.savings import ArcEmbedding, TiedOutput
from abc_toolkit.models.transformer import Block, EncoderDecoder, FeedForward, TransformerModel
from abc_toolkit.positions import Cyclic, OpenKeys, Site
from abc_toolkit.proof.enumeration import Kind
from abc_toolkit.proof.forward import Stream, distinct
from abc_toolkit.proof.receptive_field import CannotDecideError, ReceptiveField
from abc_toolkit.windows.attention import Windowed

PRECISION = "float32, every product and sum rounded to nearest, in any order of summation"
UNIT = 2.0**-24
EXP = 32 * 2.0**-23  # relative error of `exp`
LARGEST = 1e18  # squares of numbers below it do not overflow
SMALLEST = 1e-30  # more than underflow takes from a vector
SLACK = 1 + 1e-6
_AT_ONCE = 2**14


def growth(n: int) -> float:
    """`g(n)`: the relative error of a sum of `n` products."""
    return n * UNIT / (1 - n * UNIT)


@dataclass(frozen=True, eq=False)
class Bounded:
    """Vectors, and bounds of their rounding errors.

    Attributes:
        value: The vectors in float64, `[row, dim]`.
        error: Bound of the 2-norm of the rounding error of each, `[row]`.
    """

    value: Tensor
    error: Tensor

    @property
    def size(self) -> Tensor:
        """Bound of the 2-norm of the vector in float32, `[row]`."""
        return self.value.norm(dim=-1) + self.error

    def __getitem__(self, rows: Tensor) -> "Bounded":
        return Bounded(self.value[rows], self.error[rows])

    def plus(self, other: "Bounded") -> "Bounded":
        """The sum of two vectors."""
        value, error = self.value + other.value, self.error + other.error
        return Bounded(value, error + UNIT * (value.norm(dim=-1) + error))


class BoundedLinear:
    """A linear layer, `W x + b`.

    Args:
        weight: `W`, in float64, `[out, in]`.
        bias: `b`, `[out]`; 0 if not given.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, weight.new_zeros(len(weight)) if bias is None else bias
        self.norm = float(torch.linalg.matrix_norm(weight, 2)) * SLACK
        self.absolute = float(torch.linalg.matrix_norm(weight.abs(), 2)) * SLACK
        self.offset = float(self.bias.norm())
        self.rows = weight.norm(dim=1)

    def largest_of(self, size: float) -> float:
        """Bound of all partial sums, and of the output, for inputs up to a norm."""
        return self.absolute * size + self.offset

    def local(self, x: Bounded) -> Tensor:
        """The rounding error that the layer itself adds: `g(n + 2) (||abs W|| (||x|| + e) + ||b||)`, `[row]`.

        A weight may itself be a rounded product, of another layer's weight and a scale.
        """
        return growth(self.weight.shape[1] + 2) * (self.absolute * x.size + self.offset) + SMALLEST

    def local_each(self, x: Bounded) -> Tensor:
        """The error of each output: the input's error and the layer's own rounding, `[row, out]`."""
        own = growth(self.weight.shape[1] + 2) * (self.rows * x.size[:, None] + self.bias.abs())
        return self.rows * x.error[:, None] + own

    def __call__(self, x: Bounded) -> Bounded:
        """The layer: it turns the error `e` into `||W|| e` and its own rounding."""
        return Bounded(functional.linear(x.value, self.weight, self.bias), self.norm * x.error + self.local(x))


class _Nothing:
    """The queries or the keys of an attention that has none: they are 0."""

    def largest_of(self, size: float) -> float:
        """Bound of the output."""
        return 0.0

    def __call__(self, x: Bounded) -> Bounded:
        """Vectors of 0, without an error."""
        return Bounded(torch.zeros_like(x.value), torch.zeros_like(x.error))


class BoundedNorm:
    """A layer normalisation, `w (x - mean) / sqrt(variance + eps) + b`.

    Args:
        layer: The layer, in float64; an identity is left as it is.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer if isinstance(layer, nn.LayerNorm) else None
        self.largest = float(layer.weight.abs().max()) if isinstance(layer, nn.LayerNorm) else 1.0
        self.bias = torch.zeros((), dtype=torch.float64)
        if isinstance(layer, nn.LayerNorm) and getattr(layer, "bias", None) is not None:
            self.bias = layer.bias

    def _scale(self, x: Bounded) -> tuple[Tensor, Tensor, Tensor]:
        """The centred vector, its `s = sqrt(variance + eps)`, and the least `s` of all vectors within the error."""
        assert self.layer is not None
        dim, eps = x.value.shape[-1], self.layer.eps
        centred = x.value - x.value.mean(dim=-1, keepdim=True)
        length = centred.norm(dim=-1)
        return centred, (length**2 / dim + eps).sqrt(), ((length - x.error).clamp(min=0) ** 2 / dim + eps).sqrt()

    def largest_of(self, size: float) -> float:
        """Bound of the norm of the output, for inputs up to a norm.

        A vector that is nearly constant may be nothing but rounding once it is centred: `g(d) size` over `sqrt eps`.
        """
        layer = self.layer
        if layer is None:
            return size
        dim = len(layer.weight)
        normal = dim**0.5 + 4 * growth(dim + 8) * size / layer.eps**0.5
        return self.largest * normal + float(self.bias.norm())

    def lipschitz(self, x: Bounded) -> Tensor:
        """A Lipschitz constant on the segment between `x` and its rounded value, `[row]`."""
        if self.layer is None:
            return torch.ones_like(x.error)
        return self.largest / self._scale(x)[2]

    def back(self, x: Bounded, outer: Tensor) -> Tensor:
        """The transposed derivative at `x`, times vectors `[row, dim]`."""
        if self.layer is None:
            return outer
        centred, deviation, _ = self._scale(x)
        normal, scaled = centred / deviation[:, None], self.layer.weight * outer
        turned = scaled - normal * (normal * scaled).mean(dim=-1, keepdim=True)
        turned = turned / deviation[:, None]
        return turned - turned.mean(dim=-1, keepdim=True)

    def turn(self, x: Bounded, length: Tensor) -> Tensor:
        """By how much `back`, of vectors of a length, can change between `x` and its rounded value, `[row]`.

        `c / s` is `sqrt d c' / ||c'||`, without the last coordinate, where `c'` is `c` with a constant coordinate more.
        The second derivative of this has the norm `2 / sqrt 3 sqrt d / ||c'||^2`.
        """
        if self.layer is None:
            return torch.zeros_like(x.error)
        least = self._scale(x)[2]
        return 2 / 3**0.5 * self.largest * length * x.error / (x.value.shape[-1] ** 0.5 * least**2)

    def __call__(self, x: Bounded) -> Bounded:
        """The layer.

        The derivative of `c / s` by the centred `c`, with `s = sqrt(||c||^2 / d + eps)`, has a norm of at most `1 / s`.
        On a segment of length `e` that is at most one over the `s` of `||c|| - e`.
        """
        layer = self.layer
        if layer is None:
            return x
        dim = x.value.shape[-1]
        centred, deviation, least = self._scale(x)
        normal = centred / deviation[:, None]
        variance = 4 * growth(dim + 8) * (x.size / least) ** 2 / dim + 8 * UNIT
        variance = variance.where(variance <= 0.25, torch.inf)  # a root of it is then within this share as well
        error = (x.error + (variance + growth(dim + 4) + 4 * UNIT) * x.size) / least
        error = self.largest * error + 3 * UNIT * (self.largest * (normal.norm(dim=-1) + error) + self.bias.norm())
        return Bounded(normal * layer.weight + self.bias, error)


class _BoundedAttention:
    """An attention, with each query's open keys."""

    def __init__(self, attention: Attention) -> None:
        self.heads, self.head_dim = attention.num_heads, attention.head_dim
        self.query, self.key = _Nothing(), _Nothing()
        if attention.scored:
            query, both = attention.query, attention.key_value
            keys, values = both.weight.chunk(2)
            biases = (None, None) if both.bias is None else both.bias.chunk(2)
            self.query, self.key = BoundedLinear(query.weight, query.bias), BoundedLinear(keys, biases[0])
            self.value = BoundedLinear(values, biases[1])
        else:
            self.value = BoundedLinear(attention.value.weight, attention.value.bias)
        self.scales: Tensor | None = None
        if attention.shared:
            self.scales = torch.cat([attention.scales.new_ones(1), attention.scales])
        else:
            self.output = BoundedLinear(attention.output.weight, attention.output.bias)

    def _part(self, head: int) -> slice:
        """The columns of a head in queries, keys and values."""
        return slice(None) if self.scales is not None else slice(head * self.head_dim, (head + 1) * self.head_dim)

    def _joined(self, values: Sequence[Tensor], errors: Sequence[Tensor]) -> Bounded:
        """The output of what the heads attended to."""
        if self.scales is None:
            total = torch.zeros_like(errors[0])
            for error in errors:
                total = total + error**2
            return self.output(Bounded(torch.cat(list(values), dim=-1), total.sqrt()))
        sizes = [value.norm(dim=-1) + error for value, error in zip(values, errors, strict=True)]
        value, error = torch.zeros_like(values[0]), torch.zeros_like(errors[0])
        for scale, head, own, size in zip(self.scales, values, errors, sizes, strict=True):
            value = value + scale * head
            error = error + scale.abs() * (own + growth(self.heads + 1) * size)
        return Bounded(value, error + SMALLEST)

    def largest_of(self, queries: float, keys: float) -> list[float]:
        """Bounds of all numbers on the way, the output's last, for queries and keys up to a norm each."""
        query, key, value = (
            layer.largest_of(size) for layer, size in ((self.query, queries), (self.key, keys), (self.value, keys))
        )
        if self.scales is not None:
            return [query * key, query, key, value, float(self.scales.abs().sum()) * value]
        return [query * key, query, key, value, self.output.largest_of(self.heads**0.5 * value)]

    def __call__(self, x: Bounded, keys: Sequence[tuple[Bounded, Bounded]], table: OpenKeys, row: int) -> Bounded:
        """The output of attention for one query.

        Args:
            x: The query's stream, normalised.
            keys: Key and value of each token, in the rows of `x`.
            table: The open keys.
            row: The query's row of the table.
        """
        query = self.query(x)
        values: list[Tensor] = []
        errors: list[Tensor] = []
        for head in range(self.heads):
            part = self._part(head)
            opened = _open_of(table, head, row)
            if not opened:
                values.append(torch.zeros_like(query.value[:, part]))
                errors.append(torch.zeros_like(query.error))
                continue
            value, error = self._head(query, [keys[key] for key, _ in opened], [bias for _, bias in opened], part)
            values.append(value)
            errors.append(error)
        return self._joined(values, errors)

    def _head(
        self, query: Bounded, keys: Sequence[tuple[Bounded, Bounded]], biases: Sequence[float], part: slice
    ) -> tuple[Tensor, Tensor]:
        """The output of one head, and the bound of its error.

        If the logits of a softmax change by at most `E`, its weights change by at most `E` in sum: by its derivative
        the weight `a_k` changes by `a_k (E_k - mean)`, and the absolute values of these add up to at most `E`.
        """
        count, own = len(keys), query.value[:, part]
        sizes = torch.stack([value.value[:, part].norm(dim=-1) + value.error for _, value in keys], dim=1)
        largest = sizes.amax(dim=1)
        values = torch.stack([value.value[:, part] for _, value in keys], dim=1)
        error_of_values = torch.stack([value.error for _, value in keys], dim=1)
        if count == 1:
            moved = 4 * UNIT * torch.ones_like(largest)
            weights = torch.ones_like(sizes)
        else:
            scale, q = own.shape[-1] ** -0.5, own.norm(dim=-1) + query.error
            logits: list[Tensor] = []
            errors: list[Tensor] = []
            for (key, _), bias in zip(keys, biases, strict=True):
                k = key.value[:, part].norm(dim=-1) + key.error
                logit = (own * key.value[:, part]).sum(dim=-1) * scale + bias
                error = scale * (q * key.error + k * query.error + growth(own.shape[-1] + 4) * q * k)
                errors.append(error + 4 * UNIT * (logit.abs() + abs(bias)))
                logits.append(logit)
            logit, error = torch.stack(logits, dim=1), torch.stack(errors, dim=1).amax(dim=1)
            weights = logit.softmax(dim=1)
            spread = logit.amax(dim=1) - logit.amin(dim=1) + 2 * error
            moved = error + (count + 2) * (EXP + 2 * UNIT * (spread + 2)) + 3 * growth(count + 3)
        error = (weights * error_of_values).sum(dim=1) + (moved + growth(count + 2)) * largest
        return (weights.unsqueeze(-1) * values).sum(dim=1), error


def _open_of(table: OpenKeys, head: int, row: int) -> list[tuple[int, float]]:
    """The open keys of a query in a head, with their biases."""
    keys: list[int] = table.index[head, row].tolist()
    biases: list[float] = table.bias[head, row].tolist()
    return [(key, bias) for key, bias in zip(keys, biases, strict=True) if bias > -torch.inf]


class _BoundedBlock:
    """A layer of the encoder or the decoder."""

    def __init__(self, block: Block) -> None:
        self.pre, self.side = block.pre, block.side
        self.self_attention, self.self_norm = _BoundedAttention(block.self_attention), BoundedNorm(block.self_norm)
        self.cross_attention = _BoundedAttention(block.cross_attention) if block.cross else None
        self.cross_norm = BoundedNorm(block.cross_norm) if block.cross else None
        assert isinstance(block.feedforward, FeedForward)  # `basis_of` refuses every other block
        first, last = block.feedforward.first, block.feedforward.last
        self.first, self.last = BoundedLinear(first.weight, first.bias), BoundedLinear(last.weight, last.bias)
        self.feedforward_norm = BoundedNorm(block.feedforward_norm)

    def largest_of(self, stream: float, encoded: float) -> list[float]:
        """Bounds of all numbers on the way, the output's last, for streams up to a norm each."""
        found: list[float] = []

        def add(norm: BoundedNorm, update: Callable[[float], Sequence[float]]) -> None:
            nonlocal stream
            found.extend(update(norm.largest_of(stream) if self.pre else stream))
            found.append(stream + found[-1])
            stream = found[-1] if self.pre else norm.largest_of(found[-1])

        cross = self.cross_attention
        add(self.self_norm, lambda x: self.self_attention.largest_of(x, x))
        if cross is not None and self.cross_norm is not None:
            add(self.cross_norm, lambda x: cross.largest_of(x, encoded))
        add(self.feedforward_norm, lambda x: (hidden := self.first.largest_of(x), self.last.largest_of(hidden)))
        return [*found, stream]

    def normed(self, x: Bounded, norm: BoundedNorm) -> Bounded:
        """The input of a part of the layer: normalised before it in pre-norm."""
        return norm(x) if self.pre else x

    def add(self, x: Bounded, norm: BoundedNorm, update: Bounded) -> Bounded:
        """The residual connection: normalised after it in post-norm."""
        x = x.plus(update)
        return x if self.pre else norm(x)

    def feedforward(self, x: Bounded) -> Bounded:
        """`W2 relu(W1 x)`; the rectifier's Lipschitz constant is 1."""
        hidden = self.first(x)
        return self.last(Bounded(hidden.value.relu(), hidden.error))

    def finish(self, x: Bounded) -> Bounded:
        """The stream after the layer, given the stream after its attentions."""
        return self.add(x, self.feedforward_norm, self.feedforward(self.normed(x, self.feedforward_norm)))


BoundedStream = Stream[Bounded]


@dataclass(frozen=True, eq=False)
class Margins:
    """Margins of all assignments of a kind, `[assignment]` each.

    Attributes:
        margin: The required token's logit minus the largest other one.
        rounding: The largest error of a difference between the required token's logit and another.
        slack: The least such difference minus its error: above 0, the required token leads in float32.
    """

    margin: Tensor
    rounding: Tensor
    slack: Tensor


class BoundedModel:
    """A model that computes its logits with bounds of their rounding errors.

    Args:
        model: The model, of float32 weights, inside a window.
        cyclic: The position methods beside the window.

    Raises:
        CannotDecideError: If a weight is no finite number of single precision, or numbers may overflow.
    """

    def __init__(self, model: TransformerModel, cyclic: Sequence[Cyclic] = ()) -> None:
        weights = model.state_dict()
        for name, parameter in weights.items():
            if parameter.dtype != torch.float32 or not parameter.isfinite().all():
                raise CannotDecideError(f"the weights {name} are no finite numbers in single precision")
        # Sines and cosines of angles up to the period, each off by a few units, for each channel and coordinate.
        units = sum((8 + 4 * method.period) * len(method.coordinates) for method in cyclic)
        self.of_positions = UNIT * model.architecture.model_dim**0.5 * units
        with torch.no_grad():
            self.model = copy.deepcopy(model).double().eval()
            self.encoder = [_BoundedBlock(block) for block in self.model.encoder_blocks]
            self.decoder = [_BoundedBlock(block) for block in self.model.decoder]
            encoder_norm = self.model.encoder_norm if isinstance(self.model, EncoderDecoder) else nn.Identity()
            self.encoder_norm, self.decoder_norm = map(BoundedNorm, (encoder_norm, self.model.decoder_norm))
            self.output = BoundedLinear(self.model.output.weight, self.model.output.bias)
        # An embedding on an arc is rounded itself, and with it an output that is tied to it.
        tied = isinstance(self.model.output, TiedOutput) and isinstance(self.model.embedding, ArcEmbedding)
        self.of_output = growth(self.output.weight.shape[1] + 3 + tied)
        assert isinstance(model.position, Windowed)
        largest = max([self._largest(cyclic), *(abs(rule.bias) for rule in model.position.window.rules)])
        if not largest <= LARGEST:
            raise CannotDecideError(
                f"weights or biases are so large that numbers up to {largest:.2g} may arise: their squares may "
                "overflow single precision"
            )

    @torch.no_grad()
    def _largest(self, cyclic: Sequence[Cyclic]) -> float:
        """Twice a bound of all numbers and partial sums on the way to the logits, for any tokens."""
        embedding, dim = self.model.embedding.weight, self.model.architecture.model_dim
        assert isinstance(embedding, Tensor)
        waves = dim**0.5 * sum(len(method.coordinates) for method in cyclic)
        embedded = float(embedding.norm(dim=1).max()) * dim**0.5 + waves
        found, encoded = [embedded], embedded
        for blocks, norm in ((self.encoder, self.encoder_norm), (self.decoder, self.decoder_norm)):
            found.append(embedded)
            for block in blocks:
                found += block.largest_of(found[-1], encoded)
            found.append(norm.largest_of(found[-1]))
            encoded = found[-1]
        found.append(found[-1] * float(self.output.weight.norm(dim=1).max()) + float(self.output.bias.abs().max()))
        return 2 * max(found)

    @torch.no_grad()
    def margins(self, kind: Kind) -> "Margins":
        """Margins of all assignments of a kind, with the bounds of their rounding errors."""
        enumeration = kind.enumeration
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for part in kind.assignments.split(_AT_ONCE):
            tokens, required = enumeration.tokens(part)
            found.append(self._margins(*self._last(enumeration.field, tokens), required))
        return Margins(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    @torch.no_grad()
    def logits(self, field: ReceptiveField, tokens: Tensor) -> Tensor:
        """Logits `[assignment, num_tokens]` of a receptive field's prediction, in float64.

        Args:
            field: The receptive field.
            tokens: Token ids of its leaves, `[assignment, leaf]`.
        """
        _, last = self._last(field, tokens)
        x = self.decoder_norm(last.values).value
        return functional.linear(x, self.output.weight, self.output.bias)[last.which]

    def _margins(self, before: BoundedStream, last: BoundedStream, required: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Margin, rounding and slack of each assignment."""
        weight, bias = self.output.weight, self.output.bias
        x, largest = self.decoder_norm(last.values)[last.which], weight.norm(dim=1)
        logits = functional.linear(x.value, weight, bias)
        margins = logits.gather(1, required[:, None]) - logits
        apart = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")[required] * SLACK
        local = (largest[required][:, None] + largest) * x.size[:, None]
        local = local + bias.abs()[required][:, None] + bias.abs()
        rounding = apart * x.error[:, None] + self.of_output * local
        own = functional.one_hot(required, len(weight)).bool()
        rounding = rounding.masked_fill(own, 0)
        row, other = (~own & ~(margins > 2 * rounding)).nonzero(as_tuple=True)
        if len(row):
            finer = self._refined(before.values[before.which[row]], required[row], other)
            finer = finer + self.of_output * local[row, other]
            rounding[row, other] = torch.minimum(rounding[row, other], finer.where(~finer.isnan(), torch.inf))
        slack = (margins - rounding).masked_fill(own, torch.inf).amin(dim=1)
        return margins.masked_fill(own, torch.inf).amin(dim=1), rounding.amax(dim=1), slack

    def _refined(self, x: Bounded, required: Tensor, other: Tensor) -> Tensor:
        """A finer bound of the error of a difference of two logits, by its gradient, `[pair]`.

        It covers the errors up to the last normalisation. By the mean value theorem the difference changes by an
        averaged derivative times the error. The derivative is taken at the exact vectors. Its change on the way to the
        rounded vectors is bounded: that of the normalisations by their second derivative, that of the rectifier by the
        units that may switch on or off.

        Args:
            x: The stream before the last feed-forward block, `[pair]`.
            required: One token of each pair.
            other: The other.
        """
        block, last = self.decoder[-1], self.decoder_norm
        if not block.pre:
            return torch.full_like(x.error, torch.inf)
        h = block.feedforward_norm(x)
        p = block.first(h)
        a = Bounded(p.value.relu(), p.error)
        f = block.last(a)
        y = x.plus(f)
        own_h = h.error - block.feedforward_norm.lipschitz(x) * x.error
        own_y = block.last.local(a) + UNIT * (y.value.norm(dim=-1) + x.error + f.error)
        own_z = last(y).error - last.lipschitz(y) * y.error
        outer = self.output.weight[required] - self.output.weight[other]
        gradient, turned = last.back(y, outer), last.turn(y, outer.norm(dim=-1))
        hidden = gradient @ block.last.weight
        kept = hidden * (p.value > 0)
        open_or_closed = p.value.abs() <= block.first.local_each(h)
        turned_hidden = block.last.norm * turned + (hidden * open_or_closed).norm(dim=-1)
        inner = kept @ block.first.weight
        whole = gradient + block.feedforward_norm.back(x, inner)
        length, turned_inner = inner.norm(dim=-1), block.first.norm * turned_hidden
        turned_whole = turned + block.feedforward_norm.lipschitz(x) * turned_inner
        turned_whole = turned_whole + block.feedforward_norm.turn(x, length)
        return (
            (whole.norm(dim=-1) + turned_whole) * x.error
            + (length + turned_inner) * own_h
            + (kept.norm(dim=-1) + turned_hidden) * block.first.local(h)
            + (gradient.norm(dim=-1) + turned) * own_y
            + outer.norm(dim=-1) * own_z
        )

    def _last(self, field: ReceptiveField, tokens: Tensor) -> tuple[BoundedStream, BoundedStream]:
        """The stream of the prediction, before the last feed-forward block and after it."""
        layout, num_sources = field.layout, len(field.sources[0])
        encoded = self._embedded(layout.source, field.sources[0], tokens, 0)
        for layer, block in enumerate(self.encoder):
            attended = self._through(block, "encoder", layer, field, tokens, encoded, field.sources, ())
            encoded = [stream.mapped(block.finish) for stream in attended]
        if self.encoder:
            encoded = [stream.mapped(self.encoder_norm) for stream in encoded]
        streams = self._embedded(layout.target, field.streams[0], tokens, num_sources)
        attended = streams
        for layer, block in enumerate(self.decoder):
            attended = self._through(block, "decoder", layer, field, tokens, streams, field.streams, encoded)
            streams = [stream.mapped(block.finish) for stream in attended]
        return attended[0], streams[0]

    def _embedded(
        self, positions: Positions, numbers: Sequence[int], tokens: Tensor, start: int
    ) -> list[BoundedStream]:
        """The embeddings of some leaves.

        Args:
            positions: Positions of the leaves' string.
            numbers: Numbers of the leaves in that string.
            tokens: Token ids of all leaves, `[assignment, leaf]`.
            start: Column of the first of these leaves.
        """
        streams: list[BoundedStream] = []
        for column, number in enumerate(numbers, start):
            ids, which = tokens[:, column].unique(return_inverse=True)
            value = self.model.embed(ids[:, None], positions[torch.tensor([number])])[:, 0]
            error = 4 * UNIT * value.norm(dim=-1) + self.of_positions
            streams.append(Stream(frozenset({column}), Bounded(value, error), which))
        return streams

    def _through(
        self,
        block: _BoundedBlock,
        side: Site,
        layer: int,
        field: ReceptiveField,
        tokens: Tensor,
        streams: Sequence[BoundedStream],
        needed: Sequence[Sequence[int]],
        encoded: Sequence[BoundedStream],
    ) -> list[BoundedStream]:
        """The streams that are needed after a layer, before its feed-forward block."""
        attention = block.self_attention
        reads: dict[Site, tuple[OpenKeys, list[tuple[BoundedStream, BoundedStream]]]] = {}
        normed = [stream.mapped(lambda x: block.normed(x, block.self_norm)) for stream in streams]
        own_keys = [(s.mapped(attention.key), s.mapped(attention.value)) for s in normed]
        reads[side] = field.tables[side, layer], own_keys
        cross = block.cross_attention
        if cross is not None:
            other_keys = [(s.mapped(cross.key), s.mapped(cross.value)) for s in encoded]
            reads["cross"] = field.tables["cross", layer], other_keys
        after: list[BoundedStream] = []
        for row, token in enumerate(needed[layer + 1]):
            own = streams[needed[layer].index(token)]
            columns = own.columns
            for table, keys in reads.values():
                opened = {k for head in range(len(table.index)) for k, _ in _open_of(table, head, row)}
                columns = columns.union(*(keys[k][0].columns for k in opened))
            first, which = distinct(tokens, columns, self.model.interface.num_tokens)

            def fetched(site: Site, first: Tensor = first) -> list[tuple[Bounded, Bounded]]:
                return [(key.rows(first), value.rows(first)) for key, value in reads[site][1]]

            x = own.rows(first)
            update = attention(block.normed(x, block.self_norm), fetched(side), reads[side][0], row)
            x = block.add(x, block.self_norm, update)
            if cross is not None and block.cross_norm is not None:
                update = cross(block.normed(x, block.cross_norm), fetched("cross"), reads["cross"][0], row)
                x = block.add(x, block.cross_norm, update)
            after.append(Stream(columns, x, which))
        return after
