"""Torch modules are made of descriptions, block by block: sizes, gains by matrix, kinds of a user's own."""

from dataclasses import dataclass

import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")

torch.set_num_threads(1)
SIZE = {"depth": 2, "width": 64, "tokens": 6}
X = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Causal(pg.Sublayer):
    """A convolution over the token itself and those before it, one random matrix a lag."""

    taps: int = 2
    gain: float = 1.0

    def scaled(self, gains):
        return self.with_(gain=self.gain * gains.value)


@dataclass(frozen=True)
class Unheard(pg.Sublayer):
    """Nobody registers it."""


class Convolution(torch.nn.Module):
    def __init__(self, causal: Causal, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(causal.taps, width, width) * causal.gain / width**0.5)

    def forward(self, x):
        lags = [torch.nn.functional.pad(x, (0, 0, lag, 0))[..., : x.shape[-2], :] for lag in range(len(self.weight))]
        return sum(lag @ weight for lag, weight in zip(lags, self.weight, strict=True))


@pg.tracing.apply.register(Causal)
def _(causal, block):
    return Convolution(causal, block.width)


class Convolved(pg.Placement):
    def block(self, x, block):
        x = x + block.apply(Causal(3), block.norm(x))
        return x + block.ffn(block.norm(x))


class Beside(pg.Placement):
    """A dense FFN and a mixture of experts in one block."""

    def block(self, x, block):
        y = block.norm(x + block.attention(x))
        return y + block.ffn(y) + block.experts(y)


class Deaf(pg.Placement):
    def block(self, x, block):
        return x + block.apply(Unheard(), x)


def spread(weight) -> float:
    """Standard deviation of the entries times the square root of the fan-in."""
    return float(weight.detach().double().square().mean().sqrt() * weight.shape[1] ** 0.5)


def test_a_kind_of_ones_own_is_built_drawn_and_traced() -> None:
    model = pg.Model(Convolved(), value_gain=7.0, scaling=Halved(), **SIZE)
    first, again, other = (pg.build(model, seed=seed) for seed in (1, 1, 2))
    names = list(first.blocks[0].sublayers)
    assert names == ["norm1", "causal1", "norm2", "ffn1"]
    weight = first.blocks[0].sublayers["causal1"].weight
    assert float(weight.detach().std()) * 8 == pytest.approx(0.5, rel=0.03)  # the block's gain, not the attention's own
    assert torch.equal(first(X), again(X))
    assert not torch.equal(first(X), other(X))
    assert len({block.sublayers["causal1"].weight[0, 0, 0].item() for block in first.blocks}) == 2
    seen = pg.trace(first, X)
    assert seen.call.values.tolist() == names
    normed = torch.nn.functional.rms_norm(X, (64,), eps=0.0)
    wanted = float(first.blocks[0].sublayers["causal1"](normed).square().mean())
    assert float(seen.call_variance.sel(call="causal1")[1]) == pytest.approx(wanted, rel=1e-5)


class Halved:
    def gains(self, index, depth):
        return pg.Gains(value=0.5)


def test_what_is_not_registered_is_refused_by_name() -> None:
    with pytest.raises(pg.ModelError, match="torch modules do not cover Unheard"):
        pg.build(pg.Model(Deaf(), **SIZE))
    with pytest.raises(
        pg.ModelError, match=r"experts must be given where the placement calls block\.experts, got None"
    ):
        pg.build(pg.Model(Beside(), **SIZE))


def test_every_matrix_has_the_gain_of_its_description() -> None:
    attention = pg.Attention(heads=2, head_size=48, query_gain=2.0, key_gain=0.5, value_gain=1.5, out_gain=0.25)
    ffn = pg.FFN("swiglu", hidden=96, in_gain=0.5, gate_gain=3.0, out_gain=2.0)
    network = pg.build(pg.Model("prenorm", attention=attention, ffn=ffn, **SIZE), seed=1)
    own = network.blocks[1].sublayers
    query, key, value = own["attention1"].read.weight.split(own["attention1"].sizes)
    gate, linear = own["ffn1"].read.weight.chunk(2)
    wanted = [
        (query, 2.0),
        (key, 0.5),
        (value, 1.5),
        (own["attention1"].write.weight, 0.25),
        (gate, 1.5),
        (linear, 0.5),
    ]
    for weight, gain in wanted:
        assert spread(weight) == pytest.approx(gain, rel=0.06)
    assert own["attention1"].write.weight.shape == (64, 96)
    assert own["ffn1"].write.weight.shape == (64, 96)
    assert network(X).shape == X.shape


def test_blocks_may_differ() -> None:
    layers = {
        2: {
            "attention": pg.Attention(heads=4, causal=True, window=2),
            "ffn": pg.FFN("gelu", ratio=1.0),
            "norm": pg.Norm("layer", eps=0.5),
        }
    }
    network = pg.build(pg.Model("prenorm", layers=layers, **SIZE), seed=1)
    first, second = (block.sublayers for block in network.blocks)
    assert isinstance(first["norm1"], torch.nn.RMSNorm)
    assert (first["attention1"].seen, first["ffn1"].activation, first["ffn1"].write.in_features) == (None, "relu", 256)
    assert (second["norm1"].eps, second["ffn1"].activation, second["ffn1"].write.in_features) == (0.5, "gelu", 64)
    assert second["attention1"].seen.sum(1).tolist() == [1, 2, 2, 2, 2, 2]


def test_an_eps_is_that_of_the_description() -> None:
    model = pg.Model("postnorm", norm=pg.Norm("rms", eps=3.0), normed=("query",), **SIZE)
    norms = [part for part in pg.build(model).modules() if isinstance(part, torch.nn.RMSNorm)]
    assert {(norm.normalized_shape[0], norm.eps) for norm in norms} == {(64, 3.0), (8, 3.0)}
    found = norms[0](torch.ones(1, norms[0].normalized_shape[0]))
    assert float(found[0, 0]) == pytest.approx(0.5)


def test_experts_beside_the_dense_ffn_have_an_ffn_of_their_own() -> None:
    kind = pg.Experts(4, 2, ffn=pg.FFN("swiglu", hidden=32, gate_gain=2.0))
    model = pg.Model(Beside(), experts=kind, dropout=0.25, **SIZE)
    own = pg.build(model, seed=1).blocks[0].sublayers
    assert list(own) == ["attention1", "norm1", "ffn1", "experts1"]
    assert (own["ffn1"].activation, own["ffn1"].write.in_features) == ("relu", 256)
    expert = own["experts1"].routed[0]
    assert (expert.activation, expert.write.in_features, expert.dropout.p) == ("silu", 32, 0.0)
    assert spread(expert.read.weight[:32]) == pytest.approx(2.0, rel=0.1)
    assert own["experts1"].dropout.p == 0.25
    assert pg.trace(pg.build(model), X).call.values.tolist() == list(own)


@pytest.mark.parametrize("fields", [{"window": 3, "rope": 50.0}, {"logit_std": 0.0}, {"rope": 50.0}])
def test_tables_are_buffers_and_any_number_of_tokens_goes(fields: dict) -> None:
    """A network made for fewer or more tokens, with the same weights, is the same function; tables are no weights."""
    given, fewer, more = (
        pg.build(pg.Model("prenorm", depth=1, width=64, tokens=tokens, causal=True, **fields)) for tokens in (6, 4, 11)
    )
    names = {name for name, _ in given.named_buffers()}
    assert names
    assert not names & set(given.state_dict())
    for other in (fewer, more):
        other.load_state_dict(given.state_dict())
        assert torch.allclose(given(X), other(X), atol=1e-6)
    unlike = pg.build(pg.Model("prenorm", depth=1, width=64, tokens=6, **(fields | {"window": None, "rope": None})))
    unlike.load_state_dict(given.state_dict())
    assert not torch.allclose(given(X), unlike(X), atol=1e-3)


def test_a_mask_is_of_so_many_tokens() -> None:
    network = pg.build(pg.Model("prenorm", mask=torch.ones(6, 6).tril().bool().numpy(), **SIZE))
    assert network(X).shape == X.shape
    with pytest.raises(pg.ModelError, match="mask must have 4 rows"):
        network(X[:, :4])


def test_a_kind_that_inherits_needs_a_module_of_its_own() -> None:
    @dataclass(frozen=True)
    class Sparse(pg.FFN):
        """Which may mean another thing than an FFN."""

    class Sparsely(pg.Placement):
        def block(self, x, block):
            return x + block.apply(Sparse(), block.norm(x))

    with pytest.raises(pg.ModelError, match="torch modules do not cover Sparse"):
        pg.build(pg.Model("sparsely", depth=1, width=16, tokens=4, heads=2))
