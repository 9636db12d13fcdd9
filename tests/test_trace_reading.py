"""A trace reads axes, masks, streams and sublayers off what modules do, or refuses in words."""

import copy
from typing import Any

import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
from torch import nn  # noqa: E402

torch.set_num_threads(1)
PRENORM = "norm1 attention1 norm2 ffn1"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def layers(count: int = 2, hidden: int = 64, **fields: Any) -> Any:
    return nn.Sequential(*[nn.TransformerEncoderLayer(32, 4, hidden, **fields) for _ in range(count)])


def calls(seen: Any) -> str:
    return " ".join(seen.call.values)


def ffn(width: int, hidden: int) -> Any:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


# Axes


def test_tokens_first_is_read_as_it_is() -> None:
    first, x = layers(), torch.randn(1, 6, 32) + torch.randn(10, 6, 32)
    last = layers(batch_first=True)
    last.load_state_dict(first.state_dict())
    one, other = pg.trace(first, x), pg.trace(last, x.transpose(0, 1).contiguous())
    assert (one.attrs["axes"], other.attrs["axes"]) == ("token sequence width", "sequence token width")
    assert (one.attrs["tokens"], one.attrs["sequences"]) == (10, 6)
    for name in ("variance", "covariance", "deviation", "grad_variance", "grad_covariance", "call_covariance"):
        assert one[name].values == pytest.approx(other[name].values, rel=1e-4, abs=1e-6, nan_ok=True)
    transposed = pg.trace(first, x, axes="sequence token width")  # said by hand, and wrong
    assert transposed.covariance.values != pytest.approx(one.covariance.values, rel=0.1)


class Conv(nn.Module):
    """ConvNeXt's block: a stream of images with its width before height and breadth."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.mlp = nn.LayerNorm(width), ffn(width, 4 * width)

    def forward(self, x: Any) -> Any:
        return x + self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def test_images_are_flattened_where_the_width_is_known_and_refused_where_not() -> None:
    x = torch.randn(2, 24, 6, 5) + torch.randn(2, 24, 1, 1)
    seen = pg.trace(nn.Sequential(Conv(24), Conv(24)), x)
    assert (seen.attrs["axes"], seen.attrs["tokens"], seen.attrs["width"]) == ("sequence width token token", 30, 24)
    flat = x.flatten(2).double()
    pairs = (flat.sum(2) ** 2).sum(1) - (flat**2).sum((1, 2))
    assert float(seen.covariance[0]) == pytest.approx(float((pairs / (24 * 30 * 29)).mean()), rel=1e-5)
    square = nn.Sequential(Conv(8), Conv(8)), torch.randn(2, 8, 8, 8)
    with pytest.raises(pg.ModelError, match="say it with axes="):
        pg.trace(*square)
    assert pg.trace(*square, axes="sequence width token token").attrs["tokens"] == 64


@pytest.mark.parametrize(
    "axes", ["token width", "sequence token depth", "width token width", ("sequence", "width", "sequence")]
)
def test_axes_that_name_no_stream_are_refused(axes: Any) -> None:
    with pytest.raises(pg.ModelError, match="axes must name each of the stream's 3 axes"):
        pg.trace(layers(batch_first=True), torch.randn(2, 5, 32), axes=axes)


# Masks


def test_torch_s_padding_mask_is_true_where_there_is_padding() -> None:
    encoder = nn.TransformerEncoder(layers(1, batch_first=True)[0], 2, enable_nested_tensor=False)
    x, padding = torch.randn(3, 8, 32), torch.arange(8).expand(3, 8) >= 5
    inputs = {"src": x, "src_key_padding_mask": padding}
    seen = pg.trace(encoder, inputs)
    assert (seen.attrs["tokens_counted"], seen.attrs["tokens_left_out"]) == (15, 9)
    alone = pg.trace(encoder, x[:, :5])
    assert seen.variance.values == pytest.approx(alone.variance.values, rel=1e-5)
    wrong = pg.trace(encoder, inputs, mask=padding)
    assert wrong.variance.values != pytest.approx(alone.variance.values, rel=1e-3)


def test_masks_of_transformers_belong_to_their_stack() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "d_kv": 8, "vocab_size": 50}
    both = transformers.T5Model(transformers.T5Config(**sizes)).eval()
    ids, keep = torch.randint(0, 50, (3, 8)), (torch.arange(8) < 6).long().expand(3, 8)
    inputs = {"input_ids": ids, "attention_mask": keep, "decoder_input_ids": ids[:, :5]}
    assert pg.trace(both, inputs, blocks="decoder.block").attrs["tokens_left_out"] == 0
    assert pg.trace(both, inputs, blocks="encoder.block").attrs["tokens_left_out"] == 6
    own = inputs | {"decoder_attention_mask": (torch.arange(5) < 4).long().expand(3, 5)}
    assert pg.trace(both, own, blocks="decoder.block").attrs["tokens_left_out"] == 3


@pytest.mark.parametrize("additive", [True, False])
def test_a_mask_over_pairs_counts_the_tokens_that_any_attends_to(additive: bool) -> None:
    from propagate.tracing.masks import counted_tokens

    sees = torch.ones(6, 6, dtype=torch.bool).tril() & (torch.arange(6) < 4)
    given = torch.where(sees, 0.0, torch.finfo(torch.float32).min) if additive else sees
    keep = counted_tokens({"attention_mask": given.expand(2, 1, 6, 6)}, nn.Identity(), nn.Identity())
    assert keep.tolist() == [[True] * 4 + [False] * 2] * 2


# Sublayers


class Parts(nn.Module):
    """Sublayers beside modules without matrices, as timm's blocks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mixer = nn.LayerNorm(32), nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(32), ffn(32, 64)
        self.drop1, self.drop2, self.scale = nn.Identity(), nn.Dropout(0.1), LayerScale()

    def forward(self, x: Any) -> Any:
        h = self.norm1(x)
        x = x + self.drop1(self.mixer(h, h, h, need_weights=False)[0])
        return x + self.drop2(self.scale(self.mlp(self.norm2(x))))


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((32,), 0.1))

    def forward(self, x: Any) -> Any:
        return x * self.gamma


class Projections(nn.Module):
    """Queries, keys and values as children of the block, the last two narrower; a square FFN beside."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.q, self.k, self.v = nn.RMSNorm(32), nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.o, self.n2, self.up, self.down = nn.Linear(16, 32), nn.RMSNorm(32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Any) -> Any:
        h = self.n1(x)
        q, k, v = self.q(h)[..., :16], self.k(h), self.v(h)
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.down(torch.relu(self.up(self.n2(x))))


class Added(nn.Module):
    """A sublayer that adds its own skip."""

    def __init__(self, branch: Any) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Any) -> Any:
        return x + self.branch(x)


class MHSA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Any) -> Any:
        return self.out(nn.functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))


class Flattened(nn.Module):
    """An FFN that runs on all tokens in one axis, as OPT's does, under a name that says attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn_free = nn.LayerNorm(32), ffn(32, 64)

    def forward(self, x: Any) -> Any:
        return x + self.attn_free(self.norm(x).reshape(-1, 32)).reshape(x.shape)


@pytest.mark.parametrize(
    ("block", "wanted"),
    [
        (Parts, PRENORM),
        (Projections, PRENORM),
        (lambda: nn.Sequential(Added(MHSA()), Added(ffn(32, 32))), "attention1 ffn1"),
        (Flattened, "norm1 ffn1"),
    ],
)
def test_sublayers_are_named_by_what_they_compute(block: Any, wanted: str) -> None:
    stack = Stack([block(), block()])
    assert calls(pg.trace(stack, torch.randn(2, 6, 32), blocks=stack.blocks)) == wanted


class Stack(nn.Module):
    def __init__(self, blocks: list[Any]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def test_what_a_sublayer_gives_is_before_its_own_skip() -> None:
    stack, x = Stack([nn.Sequential(Added(MHSA()), Added(ffn(32, 64)))]), torch.randn(2, 6, 32)
    seen = pg.trace(stack, x, blocks=stack.blocks)
    attention, mlp = (part.branch for part in stack.blocks[0])
    given = attention(x).detach()
    assert float(seen.call_variance.sel(call="attention1")[1]) == pytest.approx(float(given.square().mean()), rel=1e-5)
    wanted = float(mlp(x + given).detach().square().mean())
    assert float(seen.call_variance.sel(call="ffn1")[1]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("hidden", [32, 33])
def test_a_square_ffn_is_one_call(hidden: int) -> None:
    module, x = layers(2, hidden, batch_first=True, norm_first=True, bias=False), torch.randn(8, 8, 32)
    seen = pg.trace(module, x)
    assert calls(seen) == PRENORM
    caught: list[Any] = []
    hook = module[0].linear2.register_forward_hook(
        lambda m, args, out: caught.append(float(out.detach().square().mean()))
    )
    module.eval()(x.requires_grad_())
    hook.remove()
    assert float(seen.call_variance.sel(call="ffn1")[1]) == pytest.approx(caught[0], rel=1e-4)


@pytest.mark.parametrize("how", ["checkpointed", pytest.param("compiled", marks=pytest.mark.slow)])
def test_compiled_and_checkpointed_blocks_are_the_same_blocks(how: str) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    plain, x = layers(batch_first=True, norm_first=True), torch.randn(2, 6, 32)
    wanted = pg.trace(plain, x)
    wrap = torch.compile if how == "compiled" else checkpoint_wrapper
    wrapped = nn.Sequential(*[wrap(block) for block in copy.deepcopy(plain)])
    seen = pg.trace(wrapped, x)
    assert calls(seen) == PRENORM
    for name in ("variance", "grad_variance", "call_variance"):
        assert seen[name].values == pytest.approx(wanted[name].values, rel=1e-5, nan_ok=True)
    assert pg.describe(wrapped).model == pg.describe(plain).model


# Streams


class Pair(nn.Module):
    """Returns its branch apart from the residual, which the next block adds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(32), nn.Linear(32, 32)

    def forward(self, x: Any, residual: Any = None) -> Any:
        residual = x if residual is None else residual + x
        return self.mixer(self.norm(residual)), residual


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Pair() for _ in range(3)])

    def forward(self, x: Any) -> Any:
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return x + residual


def test_a_branch_and_a_residual_are_one_stream() -> None:
    module, x = Pairs(), torch.randn(2, 6, 32)
    seen = pg.trace(module, x, loss=lambda out: out.square().sum())
    stream = x.clone().requires_grad_()
    streams = [stream]
    for layer in module.layers:
        streams.append(streams[-1] + layer.mixer(layer.norm(streams[-1])))
    wanted = [float(s.detach().square().mean()) for s in streams]
    assert seen.variance.values == pytest.approx(wanted, rel=1e-5)
    gradients = torch.autograd.grad(streams[-1].square().sum(), streams)
    assert seen.grad_variance.values == pytest.approx([float(g.square().mean()) for g in gradients], rel=1e-5)
    branch = [float(module.layers[0].mixer(module.layers[0].norm(x)).detach().square().mean())]
    assert seen.variance.values[1] != pytest.approx(branch[0], rel=0.1)


class Two(nn.Module):
    """Two tensors of the stream's shape, and no word which is the stream; the first is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Any) -> Any:
        return {"stream": x + self.linear(x), "other": torch.zeros_like(x)}


class OfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Two(), Two()])

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)["stream"]
        return x


def test_of_two_tensors_none_is_guessed() -> None:
    module, x = OfTwo(), torch.randn(2, 6, 32)
    with pytest.raises(pg.ModelError, match="returns 2 tensors of the stream's shape; say which"):
        pg.trace(module, x)
    with pytest.raises(pg.ModelError, match="what enters block 2 is not what left block 1"):
        pg.trace(module, x, stream=1)
    assert float(pg.trace(module, x, stream=0).variance[2]) == pytest.approx(float(module(x).detach().square().mean()))
    with pytest.raises(pg.ModelError, match="stream must be 'sum' or a whole number below 2, got 2"):
        pg.trace(module, x, stream=2)


def test_a_block_may_change_its_input_in_place() -> None:
    class Within(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x: Any) -> Any:
            x += 1.0
            return x + self.linear(x)

    module, x = nn.Sequential(Within(), Within()), torch.randn(2, 6, 32)
    first = x + 1 + module[0].linear(x + 1)
    seen = pg.trace(module, x.clone())
    wanted = [float(x.square().mean()), float(first.detach().square().mean())]
    assert seen.variance.values[:2] == pytest.approx(wanted, rel=1e-5)


def test_what_the_gradient_needs_must_stay() -> None:
    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(32), nn.Linear(32, 32)

        def forward(self, x: Any) -> Any:
            x += self.linear(self.norm(x))
            return x

    with pytest.raises(pg.ModelError, match="changes in place what its own gradient needs") as caught:
        pg.trace(nn.Sequential(Overwritten(), Overwritten()), torch.randn(2, 6, 32))
    assert "\n" not in str(caught.value)
