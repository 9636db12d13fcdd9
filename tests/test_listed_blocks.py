"""Models that step through lists of sublayers themselves, as x-transformers and vit-pytorch do, are read and traced."""

from typing import Any

import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
from propagate.tracing.layout import Layout  # noqa: E402
from propagate.tracing.sublayers import Call  # noqa: E402
from propagate.tracing.sums import Solver  # noqa: E402

nn, functional = torch.nn, torch.nn.functional
torch.set_num_threads(1)
WIDTH, HEADS, TOKENS = 64, 4, 8


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: Any) -> Any:
        shape = (*x.shape[:2], HEADS, -1)
        q, k, v = (make(x).reshape(shape).transpose(1, 2) for make in (self.to_q, self.to_k, self.to_v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.to_out(mixed.transpose(1, 2).flatten(2)), {"values": v}


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.GELU(), nn.Dropout(0.1))
        self.ff = nn.Sequential(*layers, nn.Linear(4 * WIDTH, WIDTH, bias=False))

    def forward(self, x: Any) -> Any:
        return self.ff(x)


class RMSNorm(nn.Module):
    """Whose gain is 1 and what it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Any) -> Any:
        return functional.normalize(x, dim=-1) * WIDTH**0.5 * (self.g + 1)


class Residual(nn.Module):
    def forward(self, x: Any, residual: Any) -> Any:
        return x + residual


class Scale(nn.Module):
    def __init__(self, scale: float, fn: Any) -> None:
        super().__init__()
        self.scale, self.fn = scale, fn

    def forward(self, x: Any) -> Any:
        found = self.fn(x)
        if isinstance(found, tuple):
            return found[0] * self.scale, *found[1:]
        return found * self.scale


class AttentionLayers(nn.Module):
    """As x-transformers' `Decoder`: norms before a branch, behind it and behind the sum, the branch, its sum."""

    def __init__(
        self, depth: int = 2, norms: str = "before", kinds: str = "af", scale: float = 1.0, inject: bool = False
    ) -> None:
        super().__init__()
        self.inject, self.layers = inject, nn.ModuleList()
        for kind in kinds * depth:
            own = [RMSNorm() if place in norms.split() else None for place in ("before", "behind", "last")]
            branch = Attention() if kind == "a" else FeedForward()
            branch = branch if scale == 1 else Scale(scale, branch)
            self.layers.append(nn.ModuleList([nn.ModuleList(own), branch, Residual()]))
        self.final_norm = RMSNorm() if "before" in norms else nn.Identity()
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.9 * weight.shape[1] ** -0.5)

    def forward(self, x: Any) -> Any:
        first = x
        for (before, behind, last), branch, residual in self.layers:
            own, x = x, x + first if self.inject else x
            x = x if before is None else before(x)
            out = branch(x)
            out = out[0] if isinstance(out, tuple) else out
            x = residual(out if behind is None else behind(out), own)
            x = x if last is None else last(x)
        return self.final_norm(x)


def layers(seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    return AttentionLayers(**fields)


def stream() -> Any:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.few(1)
@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("norms", "placement", "wrong"),
    [
        ("before", "PreNorm", "postnorm"),
        ("last", "PostNorm", "prenorm"),
        ("before behind", "SandwichNorm", "prenorm"),
        ("before last", "AsRead", "prenorm"),
    ],
)
def test_what_is_read_predicts_what_is_traced_and_another_placement_does_not(
    norms: str, placement: str, wrong: str
) -> None:
    seen = pg.trace((layers(seed, norms=norms) for seed in range(16)), stream())
    model, said = pg.describe(layers(norms=norms), tokens=TOKENS)
    assert (type(model.equations).__name__, model.norm, model.causal, model.depth, said) == (
        placement,
        "rms",
        True,
        2,
        (),
    )
    assert model.at(2).attention.value_gain == pytest.approx(0.9, rel=0.05)
    assert pg.compare(pg.predict(model, pg.start_of(seen)), seen).attrs["verdict"] != "disagrees"
    assert float(seen.variance_se[2]) < 0.02 * float(seen.variance[2])
    other = pg.describe(layers(norms=norms), tokens=TOKENS, placement=wrong).model
    assert pg.compare(pg.predict(other, pg.start_of(seen)), seen).attrs["verdict"] == "disagrees"


def test_a_stream_between_modules_is_traced_as_it_is_and_nothing_is_left_behind() -> None:
    """vit-pytorch has the sums in the model's own forward, and its norms inside of its sublayers."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pair = lambda: [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)]  # noqa: E731
            self.layers = nn.ModuleList([nn.ModuleList(pair() + pair()) for _ in range(3)])

        def forward(self, x: Any) -> Any:
            for n1, f1, n2, f2 in self.layers:
                x = x + f1(n1(x))
                x = f2(n2(x)) + x
            return x

    torch.manual_seed(0)
    net, x, states = Net(), stream(), []
    before, y = x.clone(), x.clone().requires_grad_()
    for n1, f1, n2, f2 in net.layers:
        states.append(y)
        y = y + f1(n1(y))
        y = y + f2(n2(y))
    states.append(y)
    wanted = torch.autograd.grad(y.square().sum(), states)
    seen = pg.trace(net, x, loss=lambda out: out.square().sum())
    assert seen.variance.values == pytest.approx([float(one.detach().square().mean()) for one in states], rel=1e-5)
    assert seen.grad_variance.values == pytest.approx([float(one.square().mean()) for one in wanted], rel=1e-5)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) == 0
    with pytest.raises(pg.ModelError, match="what enters block 3 is not what left block 2"):
        pg.trace(net, x, blocks=net.layers[0])


def test_a_number_that_a_wrapper_multiplies_by_is_read() -> None:
    model, said = pg.describe(layers(scale=0.5), tokens=TOKENS)
    assert said == ()
    assert repr(model.placement) == (
        "AsRead(x + 0.5 attention1(norm(x)) + 0.5 ffn1(norm(x + 0.5 attention1(norm(x)))))"
    )


def test_lists_in_another_order_are_blocks_each_by_itself() -> None:
    assert pg.trace(layers(kinds="faf"), stream()).sizes["block"] == 3
    assert pg.trace(layers(depth=1, kinds="aafaff"), stream()).sizes["block"] == 7


def test_layers_that_are_called_again_and_again_are_said_to_be() -> None:
    module = layers(depth=1)
    module.layers = nn.ModuleList([*module.layers, *module.layers])
    model, said = pg.describe(module, tokens=TOKENS)
    assert model.depth == 2
    assert said == ("the same weights in 2 of 2 blocks, where a Model's are independent",)


def test_what_no_hook_sees_is_refused_in_words() -> None:
    for verb in (lambda m: pg.trace(m, stream()), lambda m: pg.describe(m, inputs=stream())):
        with pytest.raises(pg.ModelError, match=r"what left block 1, of the lists .* is not what its last module gave"):
            verb(layers(inject=True))
    silent = layers()
    nn.init.zeros_(silent.layers[0][1].to_out.weight)
    with pytest.raises(pg.ModelError, match="the attention of block 1 writes zeros"):
        pg.describe(silent, tokens=TOKENS)


def test_a_sum_beside_streams_of_zeros_is_the_same_whatever_memory_held() -> None:
    """torch's pivoted QR starts from memory that it does not set, and misses sums of vectors without full rank."""
    draw = torch.Generator().manual_seed(0)
    source, one, other = (torch.randn(1, TOKENS, WIDTH, generator=draw) for _ in range(3))
    written = {"attention": torch.zeros_like(one), "ffn": one, "experts": other}
    calls = [(kind, Call(kind, nn.Identity(), source, output)) for kind, output in written.items()]
    solver = Solver(nn.Identity(), source, calls, [], Layout(("sequence", "token", "width")))
    for used in range(50):
        left = [torch.randint(-9, 9, (5,), dtype=torch.int32) for _ in range(used % 7)]
        del left
        assert solver._factors(source + 2 * other) == {0: 1.0, 3: 2.0}


def test_lists_that_are_never_called_are_no_blocks() -> None:
    class Idle(AttentionLayers):
        def forward(self, x: Any) -> Any:
            return x + 1

    with pytest.raises(pg.ModelError, match="called none of its blocks"):
        pg.trace(Idle(), stream())
