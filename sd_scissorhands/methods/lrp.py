"""Layer-wise relevance: what units and connections of a network contributed to an output, and which recur over inputs.

Relevance propagation (LRP-0) equals gradient times activation on a network whose nonlinearities are held at their
present slopes. So nothing is propagated by hand: `Linearised` holds the slopes, autograd does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# ---------------------------------------------------------------- the linearised network


class Linearised(TorchFunctionMode):
    """Within it, forward passes give the same values, but what autograd sees of them is linear in every input and bias.

    With S an output, the sum of source * dS/dsource over all sources (inputs, biases, the shifts of norms) is then S,
    and activation * dS/dactivation is the activation's relevance. It intercepts torch's functions, by name, so it needs
    to know no library's modules (ours; after AttnLRP, Achtibat et al. 2024, and Ali et al. 2022). sg = stop gradient:

    - SiLU, GELU, tanh and others with f(0) = 0: x sg(f(x) / x);
    - softmax, sigmoid, exp and the like are gates: sg(f(x)). Attention keeps its pattern, queries and keys get nothing;
    - normalisation: (x - mean x) sg(1 / sigma) gamma + beta; a quotient holds its denominator;
    - a product of two activations: 1/2 (a sg(b) + sg(a) b). A parameter, or a view of one, is no activation; what else
      is computed from parameters alone, 1 + gamma say, is taken for one;
    - everything else keeps its own gradient: exact for convolution, linear, addition, ReLU, pooling, interpolation and
      batch norm in evaluation mode, whose running mean is one more source.

    Both factors of a product need a gradient to share the relevance: one that no source leads to is a constant, and the
    other has it all. The backward pass may be done outside; gradient checkpointing, which would repeat the forward pass
    there, must be off.

    Raises:
        ValueError: on entering a function that hides nonlinearities from this: nn.MultiheadAttention, nn.LSTM, nn.GRU.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        in_place = name.endswith("_") and not name.endswith("__")
        rule = FUNCTION_RULES.get(name.removesuffix("_") if in_place else name)
        if rule is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if not in_place:
            return rule(func, *args, **kwargs)
        if not any(_flows(arg) for arg in args):
            return func(*args, **kwargs)
        func = getattr(torch, name[:-1], None) or getattr(F, name[:-1])
        return args[0].copy_(rule(func, args[0].clone(), *args[1:], **kwargs))


def _ratio(func: Callable, input: Tensor, *args, **kwargs) -> Tensor:
    """f(0) = 0: the straight line from the origin. At 0 its slope is that next to 0."""
    if not _flows(input):
        return func(input, *args, **kwargs)
    in_place = any(arg is True for arg in (*args, *kwargs.values()))  # the one flag that these functions have
    args = tuple(False if arg is True else arg for arg in args)
    kwargs = {name: False if arg is True else arg for name, arg in kwargs.items()}
    with torch.no_grad():
        tiny = torch.finfo(input.dtype).eps
        point = torch.where(input.abs() < tiny, tiny, input)
        slope = func(point, *args, **kwargs) / point
    output = _valued(_held(func, input, *args, **kwargs), input * slope)
    return input.copy_(output) if in_place else output


def _power(func: Callable, input: Any, exponent: Any) -> Tensor:
    """x^n as x sg(x^(n - 1)); a negative power is a denominator."""
    return (_ratio if isinstance(exponent, int | float) and exponent > 0 else _gate)(func, input, exponent)


def _gate(func: Callable, *args, **kwargs) -> Tensor:
    """What only scales something else: held as it is."""
    return _held(func, *args, **kwargs) if any(map(_flows, (*args, *kwargs.values()))) else func(*args, **kwargs)


def _quotient(func: Callable, input: Tensor, other: Any, **kwargs) -> Tensor:
    return func(input, other.detach() if _flows(other) else other, **kwargs)


def _product(func: Callable, *args, **kwargs) -> Tensor:
    """Every factor that is an activation has an equal share."""
    return _shared(func, args, 0, kwargs)


def _added_product(func: Callable, *args, **kwargs) -> Tensor:
    """input + a b, with the input as it is: torch.baddbmm and its kin."""
    return _shared(func, args, 1, kwargs)


def _shared(func: Callable, args: Sequence[Any], first: int, kwargs: dict[str, Any]) -> Tensor:
    factors = [n for n, arg in enumerate(args) if n >= first and _flows(arg)]
    if len(factors) < 2:
        return func(*args, **kwargs)
    terms = [
        func(*(arg.detach() if n in factors and n != own else arg for n, arg in enumerate(args)), **kwargs)
        for own in factors
    ]
    return sum(terms[1:], terms[0]) / len(terms)


def _attention(func: Callable, query: Tensor, key: Tensor, value: Tensor, *args, **kwargs) -> Tensor:
    return func(query.detach(), key.detach(), value, *args, **kwargs)


def _group_norm(func: Callable, input: Tensor, num_groups: int, weight=None, bias=None, eps=1e-5, *_) -> Tensor:
    line = _normalised(input.reshape(len(input), num_groups, -1), (2,), eps).view(input.shape)
    shape = (-1, *[1] * (input.dim() - 2))  # of a channel's own number
    line = _affine(line, *(None if own is None else own.view(shape) for own in (weight, bias)))
    return _valued(_held(func, input, num_groups, weight, bias, eps), line)


def _layer_norm(func: Callable, input: Tensor, normalized_shape, weight=None, bias=None, eps=1e-5, *_) -> Tensor:
    line = _affine(_normalised(input, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)
    return _valued(_held(func, input, normalized_shape, weight, bias, eps), line)


def _rms_norm(func: Callable, input: Tensor, normalized_shape, weight=None, eps=None) -> Tensor:
    small = torch.finfo(input.dtype).eps if eps is None else eps
    squares = _full(input).square().mean(tuple(range(-len(normalized_shape), 0)), keepdim=True)
    line = _affine(input * (squares + small).rsqrt().to(input.dtype), weight, None)
    return _valued(_held(func, input, normalized_shape, weight, eps), line)


def _opaque(func: Callable, *args, **kwargs):
    raise ValueError(f"relevance cannot look into {func.__name__}: its nonlinearities must be calls of their own")


@torch.no_grad()
def _held(func: Callable, *args, **kwargs) -> Tensor:
    return func(*args, **kwargs)


def _flows(tensor: Any) -> bool:
    """Whether relevance flows into it: it has a gradient and is neither a parameter nor a view of one."""
    if not isinstance(tensor, Tensor) or not tensor.requires_grad:
        return False
    return not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter)


def _valued(value: Tensor, line: Tensor) -> Tensor:
    """The value of one, to the last bit, with the gradient of the other."""
    return value + (line - line.detach()).to(value.dtype)


def _normalised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    scale = _full(x).var(dims, correction=0, keepdim=True).add(eps).rsqrt()
    return (x - x.mean(dims, keepdim=True)) * scale.to(x.dtype)


def _full(x: Tensor) -> Tensor:
    """Without a gradient, in float32 at least: squares overflow half precision."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _table() -> dict[str, Callable]:
    """Rules by the names of torch's functions, those of F, of torch and of Tensor alike."""
    names: dict[Callable, str] = {
        _ratio: "silu gelu tanh elu selu celu mish hardswish hardtanh relu6 softsign tanhshrink hardshrink softshrink"
        " sqrt square normalize",
        _power: "pow __pow__",
        _gate: "softmax sigmoid hardsigmoid log_softmax logsigmoid softplus exp erf rsqrt reciprocal"
        " __rdiv__ __rtruediv__ __rpow__",
        _quotient: "div divide true_divide __truediv__",
        _product: "mul multiply __mul__ __rmul__ matmul __matmul__ __rmatmul__ bmm mm mv dot inner outer einsum",
        _added_product: "addcmul addmm addbmm baddbmm addmv",
        _attention: "scaled_dot_product_attention",
        _group_norm: "group_norm",
        _layer_norm: "layer_norm",
        _rms_norm: "rms_norm",
        _opaque: "multi_head_attention_forward lstm gru",
    }
    return {name: rule for rule, own in names.items() for name in own.split()}


FUNCTION_RULES = _table()


# ---------------------------------------------------------------- relevance


def of_units(explained: Tensor, outputs: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Relevance of every unit for every input: output times gradient, summed over space or tokens and over calls.

    Args:
        explained: a scalar of every input, (B,), inputs independent of each other.
        outputs: a layer's outputs within the graph of `explained`, one a call, (B, ..., units). Where the first
            dimension is a multiple of B, as with windows of a picture, the input's number is the slowest part of it.

    Returns:
        name -> (B, units), float32 at least, without those that lead nowhere.

    Raises:
        ValueError: nothing leads to `explained`, or a layer's answers cannot be separated by input.
    """
    _check(explained)
    calls = [(name, out) for name, own in outputs.items() for out in own]
    gradients = torch.autograd.grad(explained.sum(), [out for _, out in calls], allow_unused=True)
    found: dict[str, Tensor] = {}
    for (name, out), gradient in zip(calls, gradients, strict=True):
        if gradient is None:
            continue
        if len(out) % len(explained):
            raise ValueError(f"{name} answers {len(out)} inputs, not the {len(explained)} that are explained")
        own = (_full(out) * gradient).reshape(len(explained), -1, out.shape[-1]).sum(1)
        found[name] = found[name] + own if name in found else own
    return found


def of_connections(explained: Tensor, weights: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """Relevance of every connection for one input: w * dS/dw, which is what it carries from its input to its output.

    Args:
        explained: a scalar of every input, (B,); the graph is held.
        number: which of them.

    Returns:
        name -> shaped as the weight, float32 at least, without those that lead nowhere.

    Raises:
        ValueError: nothing leads to `explained`.
    """
    _check(explained)
    gradients = torch.autograd.grad(explained[number], list(weights.values()), retain_graph=True, allow_unused=True)
    return {
        name: _full(weight) * gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        if gradient is not None
    }


def _check(explained: Tensor) -> None:
    if not explained.requires_grad:
        raise ValueError("what is to be explained depends on no layer: is it a probability instead of a score?")
    if not torch.isfinite(explained).all():
        raise FloatingPointError("what is to be explained is not finite: this model overflows")


# ---------------------------------------------------------------- the path


class Path:
    """How often each unit of a layer is among an input's most relevant, LRA-NPP's path, counted as inputs come.

    Of every input the top K units count, K = `share` of the units, at least one; of these only those of positive
    relevance: where few are, the rest of K would speak against the output or not at all. Keeps counts and a sum, no
    input's relevance.
    """

    def __init__(self, units: int, share: float, device: torch.device | str = "cpu"):
        self.inputs, self.top = 0, min(units, max(1, round(share * units)))
        self.counts = torch.zeros(units, dtype=torch.int32, device=device)
        self.sum = torch.zeros(units, device=device)

    def add(self, relevance: Tensor) -> None:
        """Count some inputs: (B, units).

        Raises:
            FloatingPointError: a relevance is not finite.
        """
        if not torch.isfinite(relevance).all():
            raise FloatingPointError("a relevance is not finite: the gradients overflow on this model")
        values, units = relevance.topk(self.top, dim=1)
        chosen = units[values > 0].to(self.counts.device)
        self.counts.index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
        self.sum += relevance.sum(0).to(self.sum)
        self.inputs += len(relevance)

    def ranked(self, shares: Tensor, step: float) -> Tensor:
        """Shares of inputs, at least `step` apart where they differ, with ties broken by mean relevance: float32.

        A share grows by less than half a step, in proportion to itself, so that 0 stays 0 and no sign changes.
        """
        mean = self.sum.double().clamp_min(0)
        mean = mean / mean.max().clamp_min(torch.finfo(mean.dtype).tiny)
        return (shares * (1 + mean * step / 2)).float()

    def share(self) -> Tensor:
        """Share of the inputs on whose path each unit lies: (units,) float64."""
        return self.counts.double() / self.inputs


def contrast(forget: Path, retain: Path) -> Tensor:
    """Frequency on what is to be forgotten minus that on what is to be retained (ours): (units,) float32.

    A unit that every input uses scores 0; the paper would zero it for the class and for all others. Ties are broken by
    the mean relevance to what is to be forgotten.
    """
    return forget.ranked(forget.share() - retain.share(), 1 / (forget.inputs * retain.inputs))
