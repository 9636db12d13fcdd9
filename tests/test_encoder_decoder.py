"""T5 of `transformers`: its decoder and the gradient that its encoder hears are predicted, one from the other."""

from typing import Any

import pytest
from test_cross_attention import CrossedDecoder

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
transformers = pytest.importorskip("transformers", reason="transformers is absent: install the extra [text]")

torch.set_num_threads(1)
WIDTH, SEQUENCES, ASKED, TOLD = 128, 4, 6, 8
FFN = pg.FFN("relu", hidden=256, out_gain=0.5**0.5)  # every matrix with entries of variance 1 / fan_in


def t5(seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = {"d_model": WIDTH, "d_kv": 16, "d_ff": 256, "num_heads": 8, "num_layers": 2}
    return transformers.T5Model(transformers.T5Config(vocab_size=64, **sizes)).eval()


def inputs() -> dict[str, Any]:
    """Words of the decoder's that the encoder has not: they share their embeddings."""
    draw = torch.Generator().manual_seed(0)
    told, asked = (
        torch.stack([torch.randperm(32, generator=draw)[:count] for _ in range(SEQUENCES)]) for count in (TOLD, ASKED)
    )
    return {"input_ids": told, "decoder_input_ids": 32 + asked}


def test_t5s_decoder_and_encoder_agree_and_not_without_what_passes_between_them() -> None:
    draw = torch.Generator().manual_seed(1)

    def loss(output: Any) -> Any:  # another cotangent for every network
        return (output.last_hidden_state * torch.randn(SEQUENCES, ASKED, WIDTH, generator=draw)).sum()

    asking = pg.trace((t5(seed) for seed in range(10)), inputs(), blocks="decoder.block")
    told = pg.trace((t5(seed) for seed in range(10)), inputs(), blocks="encoder.block", loss=loss)
    assert asking.call.values.tolist() == ["attention1", "crossattention1", "ffn1"]
    embedded = {name: float(told[name][0]) for name in ("variance", "covariance")}
    encoder = pg.Model("prenorm", depth=2, width=WIDTH, tokens=TOLD, heads=8, ffn=FFN)

    def decoder(memory: pg.Memory) -> pg.Model:
        sizes = {"depth": 2, "width": WIDTH, "tokens": ASKED, "heads": 8, "causal": True, "ffn": FFN}
        return pg.Model(CrossedDecoder(pg.CrossAttention(memory)), **sizes)

    memory, start = pg.memory_of(encoder, pg.Start(**embedded)), pg.start_of(asking)
    assert pg.compare(pg.predict(decoder(memory), start), asking).attrs["verdict"] != "disagrees"
    for wrong in (pg.Memory.alike(TOLD), pg.Memory.alike(TOLD, covariance=1.0)):
        assert pg.compare(pg.predict(decoder(wrong), start), asking).attrs["verdict"] == "disagrees"

    begins = pg.Start(variance=start.variance, covariance=start.covariance)
    heard = pg.memory_gradient(decoder(memory), begins, through_readout=True)
    for factor, expected in ((1.0, True), (2.0, False)):
        said = pg.predict(encoder, pg.Start(**embedded, grad_gram=factor * heard), through_readout=True)
        assert (pg.compare(said, told).attrs["verdict"] != "disagrees") is expected


def test_what_describe_does_not_read_it_says() -> None:
    with pytest.raises(pg.ModelError, match="T5Block attends to another stream, which describe does not read"):
        pg.describe(t5(0), tokens=ASKED, inputs=inputs(), blocks="decoder.block")
