"""Relevance: completeness on denoisers, LRP by hand, counted paths, and a planted unit that the scorer has to find."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sd_scissorhands.methods.lrp import Linearised, Path, contrast, of_connections, of_units
from sd_scissorhands.methods.method import score
from sd_scissorhands.methods.scorers import SCORERS
from sd_scissorhands.methods.scorers.relevance import RelevanceOptions
from sd_scissorhands.tiny import MODEL_DIR

DTYPES = pytest.mark.parametrize("dtype,within", [(torch.float32, 1e-4), (torch.float64, 1e-9)])


def complete(said: torch.Tensor, sources: list[torch.Tensor]) -> float:
    """Sum of source * gradient over all sources."""
    gradients = torch.autograd.grad(said, sources, allow_unused=True)
    return sum(
        float((s.detach().double() * g.double()).sum())
        for s, g in zip(sources, gradients, strict=True)
        if g is not None
    )


def biases(module: nn.Module) -> list[torch.Tensor]:
    """Parameters that are added: biases, and the shifts of norms."""
    return [p for name, p in module.named_parameters() if name.endswith("bias")]


# ---------------------------------------------------------------- denoisers


@pytest.fixture(scope="module", params=["embedded", "of SD 1's blocks"])
def unet(request):
    from diffusers import UNet2DConditionModel

    if request.param == "embedded":
        return UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet").eval()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=2, cross_attention_dim=12, norm_num_groups=4,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in unet.parameters():  # norms' shifts start at 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    return unet.eval()


class Denoising:
    """One noised sample under words, explained by how far other words would change the output."""

    def __init__(self, unet: nn.Module, dtype: torch.dtype, seed: int):
        self.unet, draw = unet.to(dtype), torch.Generator().manual_seed(seed)
        words = (1, 16, unet.config.cross_attention_dim)
        x, self.words, other = (torch.randn(s, generator=draw).to(dtype) for s in ((1, 4, 8, 8), words, words))
        self.x, self.time = x.requires_grad_(), torch.randint(1000, (1,), generator=draw)
        with torch.no_grad():
            self.plain = self(self.words)
            self.apart = self.plain - self(other)
        self.words.requires_grad_()

    def __call__(self, words: torch.Tensor) -> torch.Tensor:
        hook = self.unet.time_proj.register_forward_hook(self._source)
        try:
            return self.unet(self.x, self.time, words).sample
        finally:
            hook.remove()

    def _source(self, module, args, out):
        self.embedding = out.detach().to(self.x.dtype).requires_grad_()
        return self.embedding

    def explain(self) -> torch.Tensor:
        return (self(self.words) * self.apart).sum()

    def sources(self) -> list[torch.Tensor]:
        return [self.x, self.words, self.embedding, *biases(self.unet)]


@DTYPES
@pytest.mark.parametrize("seed", range(3))
def test_all_relevance_of_a_denoiser_adds_up_to_its_output(unet, dtype, within, seed):
    case = Denoising(unet, dtype, seed)
    with Linearised():
        said = case.explain()
    assert complete(said, case.sources()) == pytest.approx(said.item(), rel=within)


def test_plain_gradients_do_not_add_up(unet):
    off = []
    for seed in range(3):
        case = Denoising(unet, torch.float64, seed)
        said = case.explain()
        off.append(abs(complete(said, case.sources()) / said.item() - 1))
    assert min(off) > 0.1 and max(off) > 1


@DTYPES
def test_a_linearised_denoiser_says_the_same(unet, dtype, within):
    case = Denoising(unet, dtype, 0)
    with Linearised():
        said = case(case.words)
    assert torch.equal(said, case.plain)


def test_queries_and_keys_have_no_relevance_and_values_have(unet):
    case = Denoising(unet, torch.float32, 0)
    weights = {name: p for name, p in case.unet.named_parameters() if ".to_" in name and name.endswith("weight")}
    with Linearised():
        found = of_connections(case.explain()[None], weights, 0)
    patterns = [name for name in weights if ".to_q." in name or ".to_k." in name]
    assert len(patterns) >= 8 and not any(name in found and found[name].any() for name in patterns)
    assert all(found[name].any() for name in weights if name not in patterns)


def test_the_scorer_on_a_denoiser(unet):
    cases = {(side, n): Denoising(unet, torch.float32, 10 * n + (side == "forget")) for n in (0, 1) for side in SIDES}
    task = SimpleNamespace(module=unet, explain=lambda side, draw: cases[side, draw].explain()[None])
    parameters = {name: p for name, p in unet.named_parameters() if ".attn2." in name}
    found = score(task, parameters, "relevance", RelevanceOptions(draws=2, granularity="channel", path_share=0.3))
    assert all(found[name].shape == p.shape and found[name].dtype == torch.float32 for name, p in parameters.items())
    for name, values in found.items():
        assert bool(values.any()) == (".to_q." not in name and ".to_k." not in name), name
        assert (values.flatten(1) == values.flatten(1)[:, :1]).all() if values.dim() > 1 else True


# ---------------------------------------------------------------- functions


class Zoo(nn.Module):
    """What the denoisers lack: products, quotients, gates and attention by hand, other norms, writing in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 16)
        self.gain = nn.Parameter(torch.randn(8))
        self.one = torch.ones((), dtype=torch.float64, requires_grad=True)  # a constant that is added is a source

    def forward(self, x):  # (B, tokens, 6)
        h = self.first(x)
        h = h * torch.sigmoid(1.702 * h) + h.tanh()
        h = (h * self.gain) @ self.second.weight.t()
        pattern = torch.softmax(torch.baddbmm(h.new_zeros(1), h, h.transpose(1, 2), beta=0, alpha=0.3), -1)
        h = torch.bmm(pattern, h) + torch.einsum("btc,bsc->bts", h, h) @ h
        h = h / (h.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() + F.rms_norm(h, (8,), self.gain)
        scale, shift = self.scale(nn.functional.elu(h, 1.0, True)).chunk(2, -1)
        h = nn.ReLU(inplace=True)(self.second(F.layer_norm(h, (8,)))) * (self.one.to(x.dtype) + scale) + shift
        h *= F.silu(shift)
        h.tanh_()
        return (h + F.normalize(h, dim=-1) + F.hardtanh(h, -0.4, 0.4) + h**3 - 2 / (3 + h.square()) * h).sum((1, 2))


@DTYPES
def test_other_functions_add_up_too(dtype, within):
    torch.manual_seed(3)
    zoo, x = Zoo().to(dtype), torch.randn(1, 5, 6, dtype=dtype, requires_grad=True)
    with Linearised():
        said = zoo(x)
    plain, sources = zoo(x), [x, zoo.one, *biases(zoo)]
    assert torch.equal(said, plain)
    assert complete(said.sum(), sources) == pytest.approx(said.item(), rel=within)
    assert abs(complete(plain.sum(), sources) - plain.item()) > 0.1 * abs(plain.item())


def test_batch_norm_and_pooling_are_linear_as_they_are():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    norm.running_mean, norm.running_var = torch.randn(3), torch.rand(3) + 0.5
    module = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 1)).eval()
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    with Linearised():
        said = module.double()(x.double()).sum()
    shift = -norm.running_mean * norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    of_means = float(torch.autograd.grad(said, norm.bias, retain_graph=True)[0] @ shift)
    assert complete(said, [x, *biases(module)]) + of_means == pytest.approx(said.item(), rel=1e-6)


@pytest.mark.parametrize(
    "function", [F.silu, F.gelu, torch.tanh, F.mish, F.hardswish, F.elu, torch.square], ids=lambda f: f.__name__
)
def test_at_and_around_zero_an_activation_is_its_slope(function):
    x = torch.tensor([0.0, -0.0, 1e-12, -1e-30, 1e-5, -3.0, 2.0], dtype=torch.float64, requires_grad=True)
    with Linearised():
        said = function(x)
    assert torch.equal(said, function(x))
    gradient = torch.autograd.grad(said.sum(), x)[0]
    torch.testing.assert_close(gradient * x, said, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient[:2], torch.func.jvp(function, (x[:2],), (torch.ones(2).double(),))[1])


def test_a_parameter_is_no_activation():
    x, weight = torch.randn(3, 4, requires_grad=True), nn.Parameter(torch.randn(5, 4))
    with Linearised():
        said = (x @ weight.t() * weight[:, 0]).sum()
    assert complete(said, [x]) == pytest.approx(said.item(), rel=1e-5)


def test_what_hides_its_nonlinearities_is_refused():
    x = torch.randn(2, 3, 4, requires_grad=True)
    with Linearised(), pytest.raises(ValueError, match="multi_head_attention_forward"):
        nn.MultiheadAttention(4, 2)(x, x, x)


def test_without_gradients_and_afterwards_nothing_is_changed():
    x = torch.randn(4, requires_grad=True)
    with Linearised(), torch.no_grad():
        assert not F.silu(x).requires_grad
    torch.testing.assert_close(torch.autograd.grad(torch.sigmoid(x).sum(), x)[0], x.sigmoid() * (1 - x.sigmoid()))


# ---------------------------------------------------------------- LRP by hand


def dense(layer: nn.Module, shape: torch.Size) -> torch.Tensor:
    """A layer's weights as a matrix from every input number to every output number: (out, in)."""
    if isinstance(layer, nn.Linear):
        return layer.weight.detach()
    (channels, height, width), (stride, pad) = shape, (layer.stride[0], layer.padding[0])
    rows = []
    for kernel in layer.weight.detach():
        for top in range(-pad, height + pad - kernel.shape[1] + 1, stride):
            for left in range(-pad, width + pad - kernel.shape[2] + 1, stride):
                row = torch.zeros(channels, height, width, dtype=kernel.dtype)
                for c in range(channels):
                    for y in range(kernel.shape[1]):
                        for x in range(kernel.shape[2]):
                            if 0 <= top + y < height and 0 <= left + x < width:
                                row[c, top + y, left + x] = kernel[c, y, x]
                rows.append(row.flatten())
    return torch.stack(rows)


def lrp(layers: list[nn.Module], x: torch.Tensor, target: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """LRP-0 of one input: for every layer R_j of its outputs, and R_ji = a_i W_ji R_j / z_j, first layer first."""
    inputs, outputs = [], []
    for layer in layers:
        x = x.flatten() if isinstance(layer, nn.Linear) else x
        inputs.append(x)
        outputs.append(layer(x[None])[0].detach())
        x = outputs[-1].clamp_min(0)
    relevance = torch.zeros_like(outputs[-1])
    relevance[target] = outputs[-1][target]
    found = []
    for layer, a, z in reversed(list(zip(layers, inputs, outputs, strict=True))):
        weights, own = dense(layer, a.shape), relevance.flatten()
        messages = torch.zeros_like(weights)
        for j in range(len(weights)):
            for i in range(weights.shape[1]):
                messages[j, i] = a.flatten()[i] * weights[j, i] * own[j] / z.flatten()[j]
        found.append((relevance.view_as(z), messages))
        relevance = messages.sum(0).view(a.shape)
    return found[::-1]


@pytest.mark.parametrize("seed,stride,pad", [(0, 1, 1), (1, 2, 0), (2, 2, 1)])
def test_gradient_times_activation_is_lrp(seed, stride, pad):
    torch.manual_seed(seed)
    convolution = nn.Conv2d(2, 3, 3, stride, pad)
    width = convolution(torch.zeros(1, 2, 5, 5)).numel()
    layers = [convolution.double(), nn.Linear(width, 6).double(), nn.Linear(6, 4).double()]
    x, targets = torch.randn(3, 2, 5, 5, dtype=torch.float64), torch.tensor([1, 3, 1])
    outputs: dict[str, list[torch.Tensor]] = {}

    def explain() -> torch.Tensor:
        with Linearised():
            h = x
            for n, layer in enumerate(layers):
                h = layer(h.flatten(1) if n else h)
                kept = h.movedim(1, -1)  # units last
                outputs[str(n)] = [kept]
                h = kept.movedim(-1, 1) if n == 2 else kept.movedim(-1, 1).relu()
            return h.gather(1, targets[:, None])[:, 0]

    units = of_units(explain(), outputs)
    explained = explain()
    for b in range(3):
        expected = lrp(layers, x[b], int(targets[b]))
        connections = of_connections(explained, {str(n): layer.weight for n, layer in enumerate(layers)}, b)
        for n, (relevance, messages) in enumerate(expected):
            torch.testing.assert_close(units[str(n)][b], relevance.flatten(1).sum(1) if n == 0 else relevance)
            if n:
                torch.testing.assert_close(connections[str(n)], messages)
        torch.testing.assert_close(connections["0"].sum(), expected[0][1].sum())


# ---------------------------------------------------------------- paths


def frequency(relevance: torch.Tensor, share: float) -> torch.Tensor:
    """Share of inputs (n, units) that have a unit on their path, ties broken by mean relevance: (units,)."""
    path = Path(relevance.shape[1], share)
    path.add(relevance)
    return path.ranked(path.share(), 1 / path.inputs)


RELEVANCE = torch.tensor([[3.0, 2, 0, -1], [1, 5, 0, -2], [4, 0, 0, 9]])


def test_frequency_counts_each_inputs_top_units():
    found = frequency(RELEVANCE, 0.25)  # K = 1: unit 0, unit 1, unit 3
    torch.testing.assert_close(found, torch.tensor([1.0, 1, 0, 1]) / 3, rtol=0, atol=1 / 6)
    assert found[2] == 0 and found[0] > found[1] > found[3] >= torch.tensor(1 / 3)  # by mean relevance: 8/3, 7/3, 2
    assert torch.equal(frequency(RELEVANCE, 1e-9), found)


def test_units_that_speak_against_the_output_are_not_on_the_path():
    counts = frequency(RELEVANCE, 1.0) * 3
    assert counts[2] == 0 and counts.floor().tolist() == [3, 2, 0, 1]


def test_a_tie_never_outweighs_an_input():
    relevance = torch.tensor([[1e6, 1.0], [-1.0, 1.0]])
    assert frequency(relevance, 0.5).argmax() == 0 and frequency(relevance, 1.0).argmax() == 1


def test_paths_are_counted_as_inputs_come():
    torch.manual_seed(0)
    relevance = torch.randn(30, 20)
    path = Path(20, 0.2)
    for part in relevance.split(7):
        path.add(part)
    torch.testing.assert_close(path.ranked(path.share(), 1 / 30), frequency(relevance, 0.2))


def test_contrast_is_the_difference_of_frequencies():
    forget, retain = Path(4, 0.5), Path(4, 0.5)
    forget.add(torch.tensor([[9.0, 1, 0, 0], [9, 0, 1, 0]]))
    retain.add(torch.tensor([[9.0, 0, 0, 1], [9, 0, 0, 1], [9, 0, 2, 1]]))
    found = contrast(forget, retain)  # 1 - 1, 1/2 - 0, 1/2 - 1/3, 0 - 2/3
    torch.testing.assert_close(found, torch.tensor([0, 1 / 2, 1 / 6, -2 / 3]), rtol=0, atol=1 / 12)
    assert found[0] == 0


def test_relevance_that_overflows_is_refused():
    with pytest.raises(FloatingPointError, match="not finite"):
        frequency(torch.tensor([[1.0, float("inf")]]), 0.5)


# ---------------------------------------------------------------- the scorer

SIDES = ("forget", "retain")
DETECTOR, COMMON = 5, 2


class Planted:
    """Three classes; hidden unit 5 alone knows class 0, unit 2 answers to everything and speaks for every class."""

    def __init__(self, empty: tuple[int, ...] = (), convolution: bool = False):
        torch.manual_seed(0)
        first = nn.Conv2d(4, 8, 1) if convolution else nn.Linear(4, 8)
        self.module = nn.Sequential(first, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3))
        self.empty, self.convolution = empty, convolution
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.mul_(0.05)
            hidden, head = first.weight.view(8, 4), self.module[3]
            hidden[DETECTOR], hidden[COMMON] = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0, 0, 3.0])
            hidden[0, 1] = hidden[1, 2] = 1.0
            head.weight[0, DETECTOR] = head.weight[1, 0] = head.weight[2, 1] = 1.0
            head.weight[:, COMMON] = 1.0

    def explain(self, side: str, draw: int) -> torch.Tensor:
        count = 0 if draw in self.empty else 6
        generator = torch.Generator().manual_seed(2 * draw + SIDES.index(side))
        own = torch.randint(1, 3, (count,), generator=generator) if side == "retain" else torch.zeros(count).long()
        x = 0.1 * torch.rand(count, 4, generator=generator)
        x[:, 3] = 1.0
        x[torch.arange(count), own] += 1.0
        said = self.module(x[:, :, None, None] if self.convolution else x)
        return said.gather(1, own[:, None])[:, 0]

    def score(self, draws: int = 4, share: float = 0.25, granularity: str = "channel") -> dict[str, torch.Tensor]:
        options = RelevanceOptions(draws=draws, granularity=granularity, path_share=share)
        return score(self, dict(self.module.named_parameters()), "relevance", options)


@pytest.mark.parametrize("convolution", [False, True])
def test_the_scorer_finds_a_planted_unit(convolution):
    found = Planted(convolution=convolution).score()
    rows = found["0.weight"].flatten(1)
    assert (rows == rows[:, :1]).all() and torch.equal(rows[:, 0], found["0.bias"])
    assert rows[:, 0].argmax() == DETECTOR and rows[DETECTOR, 0] >= 1
    assert rows[COMMON, 0] == 0  # on every path of both sides
    assert rows[0, 0] < 0 or rows[1, 0] < 0


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_at_the_head_only_the_targets_row_is_for_forgetting(granularity):
    found = Planted().score(share=2 / 24, granularity=granularity)["3.weight"]  # K = 2 connections, or a row
    assert (found[0] > 0).any() and (found[1:] <= 0).all()
    if granularity == "weight":
        assert sorted(found[0].topk(2).indices.tolist()) == [COMMON, DETECTOR]
        assert (found[0] > 0).sum() == 2


def test_connections_of_the_planted_unit():
    found = Planted().score(granularity="weight", share=1 / 32)
    assert found["0.bias"].eq(0).all()
    assert Planted().score(granularity="weight", share=2 / 32)["0.weight"].argmax() == 4 * DETECTOR


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_draws_that_explain_nothing_do_not_count(granularity):
    whole, ticks = Planted().score(draws=3, granularity=granularity), []
    options = RelevanceOptions(draws=4, granularity=granularity, path_share=0.25, tick=lambda: ticks.append(1))
    task = Planted(empty=(3,))
    found = score(task, dict(task.module.named_parameters()), "relevance", options)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert len(ticks) == 4 * SCORERS["relevance"].passes


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_where_no_draw_explains_anything_it_says_so(granularity):
    with pytest.raises(ValueError, match="forget side"):
        Planted(empty=(0, 1)).score(draws=2, granularity=granularity)


class Again(nn.Module):
    """A layer called twice, its output changed in place, one never called, and one whose output leads nowhere."""

    def __init__(self, careful: bool):
        super().__init__()
        torch.manual_seed(1)
        self.twice, self.never, self.aside, self.careful = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2), careful

    def forward(self, x):
        h = self.twice(x)
        h = h + x if self.careful else h.add_(x)
        self.aside(h)
        return self.twice(h.relu() if self.careful else h.relu_()).sum(1)


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_layers_called_twice_or_never_and_in_place(granularity):
    found = []
    for careful in (True, False):
        module = Again(careful)
        data = {side: torch.randn(5, 6, generator=torch.Generator().manual_seed(n)) for n, side in enumerate(SIDES)}
        task = SimpleNamespace(module=module, explain=lambda side, draw, m=module, d=data: m(d[side]))
        parameters = dict(module.named_parameters())
        found.append(
            score(task, parameters, "relevance", RelevanceOptions(draws=1, granularity=granularity, path_share=0.3))
        )
    careful, careless = found
    assert all(torch.equal(careful[name], careless[name]) for name in careful)
    assert careful["twice.weight"].any()
    assert not any(careful[f"{own}.weight"].any() for own in ("never", "aside"))


def test_relevance_of_units_adds_up_over_calls():
    module, x = Again(True), torch.randn(5, 6)
    outputs: dict[str, list[torch.Tensor]] = {"twice": []}
    module.twice.register_forward_hook(lambda _, __, out: outputs["twice"].append(out))
    said = module(x)
    expected = sum(out * torch.autograd.grad(said.sum(), out, retain_graph=True)[0] for out in outputs["twice"])
    torch.testing.assert_close(of_units(said, outputs)["twice"], expected.detach())


def test_answers_that_belong_to_no_input_are_refused():
    layer = nn.Linear(3, 2)
    out = layer(torch.randn(3, 3))
    with pytest.raises(ValueError, match="layer answers 3 inputs, not the 2"):
        of_units(out.sum(0), {"layer": [out]})


def test_a_probability_cannot_be_explained():
    layer = nn.Linear(3, 2)
    with Linearised():
        said = layer(torch.randn(4, 3)).softmax(1)[:, 0]
    with pytest.raises(ValueError, match="probability"):
        of_connections(said, {"layer": layer.weight}, 0)


def test_only_unseen_data_is_asked_for():
    assert SCORERS["relevance"].needs == ("unseen",)
