"""Loads Hugging Face models from files on disk, by safe formats only, and texts as token ids for them."""

from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from propagate.checks import ModelError, integer
from propagate.files import is_folder, read_whole

MOST, MOST_SETTINGS = 2**20, 2**26
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def load(path: str | Path, *, seed: int | None = None) -> nn.Module:
    """A model of the library `transformers`, in evaluation mode.

    Args:
        path: a `config.json`, or a folder with one and with `model.safetensors` or `pytorch_model.bin`. Nothing is
            fetched. The latter is read with `weights_only=True`: a pickle that holds code is refused.
        seed: draw the architecture's initial weights with this seed, whatever weights there are. Must be given where
            there are none.

    Raises:
        ModelError: where there is no configuration, an unknown one, no weights and no seed, weights of another model,
            or weights that are more than numbers.

    Example: a configuration alone.
        >>> import tempfile
        >>> small = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50}
        >>> file = Path(tempfile.mkdtemp()) / "config.json"
        >>> _ = file.write_text(json.dumps(small))
        >>> type(load(file, seed=0)).__name__
        'GPT2Model'
    """
    import transformers

    folder, settings = _settings(path)
    try:
        config = transformers.AutoConfig.for_model(**settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            models: Any = transformers.AutoModel
            module: nn.Module = models.from_config(config)
    except Exception as error:  # whatever the library raises of a configuration that is none
        raise ModelError(f"the configuration in {folder} makes no model of transformers: {_line(error)}") from None
    if seed is None:
        state = _weights(folder)
        prefix = f"{module.base_model_prefix}."
        own = module.state_dict()
        bare = {key.removeprefix(prefix): value for key, value in state.items()}
        missing = [key for key in own if key not in bare and not key.startswith("pooler.")]
        if missing:
            raise ModelError(f"the weights in {folder} are of another model: {missing[0]} is not among them")
        for key, value in own.items():
            if key in bare and bare[key].shape != value.shape:
                shapes = f"{tuple(bare[key].shape)} and not {tuple(value.shape)}"
                raise ModelError(f"the weights in {folder} are of another model: {key} has shape {shapes}")
        module.load_state_dict({key: value for key, value in bare.items() if key in own}, strict=False)
    return module.eval()


def token_ids(path: str | Path, text: str, *, tokens: int = 32, sequences: int = 16) -> Tensor:
    """Consecutive pieces of a text as token ids of a model, (sequences, tokens), without special tokens.

    The tokenizer is the model's own `tokenizer.json`, if it lies beside the configuration. Without one, the text's
    bytes are taken as ids, modulo the vocabulary: then the ids mean nothing to a trained model.

    Args:
        path: as for `load`.
        text: long enough for one sequence; fewer sequences are made than asked for if it is not long enough for all.
        tokens, sequences: how many.

    Raises:
        ModelError: for a text that is too short.
    """
    tokens, sequences = integer("tokens", tokens, at_most=MOST), integer("sequences", sequences, at_most=MOST)
    folder, settings = _settings(path)
    file = folder / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    else:
        ids = [byte % int(settings.get("vocab_size", 256)) for byte in text.encode()]
    count = min(sequences, len(ids) // tokens)
    if count < 1:
        raise ModelError(f"the text must hold at least {tokens} tokens, got {len(ids)}")
    return torch.tensor(ids[: count * tokens]).reshape(count, tokens)


def inputs_for(
    path: str | Path, module: nn.Module, text: str, *, tokens: int = 32, sequences: int = 16
) -> dict[str, Tensor]:
    """What a model is called with: pieces of the text, for both of its stacks; noise where it takes images."""
    taken = inspect.signature(module.forward).parameters
    config: Any = module.config
    if "pixel_values" in taken and "input_ids" not in taken:
        size, count = config.image_size, integer("sequences", sequences, at_most=MOST)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        noise = torch.randn(count, config.num_channels, *sides, generator=torch.Generator().manual_seed(0))
        return {"pixel_values": noise}
    ids = token_ids(path, text, tokens=tokens, sequences=sequences)
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if "decoder_input_ids" in taken else {})


def tensors_in(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors, by name."""
    from safetensors.torch import load_file

    return dict(load_file(file))


def _line(error: Exception) -> str:
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(said)[:300] or type(error).__name__


def _settings(path: str | Path) -> tuple[Path, dict[str, Any]]:
    file = Path(path) / "config.json" if is_folder(Path(path)) else Path(path)
    try:
        settings = json.loads(read_whole(file, "config", MOST_SETTINGS).decode())
    except ValueError as error:
        raise ModelError(f"{file} is no configuration of transformers: {error}") from None
    if not isinstance(settings, dict) or "model_type" not in settings:
        # configurations older than `model_type` are of BERT, whose names no other has
        if isinstance(settings, dict) and "type_vocab_size" in settings:
            return file.parent, settings | {"model_type": "bert"}
        raise ModelError(f"{file} must name a model_type")
    return file.parent, settings


def _weights(folder: Path) -> dict[str, Tensor]:
    for name in WEIGHTS:
        file = folder / name
        if not file.is_file():
            continue
        if file.suffix == ".safetensors":
            from safetensors import SafetensorError

            try:
                return tensors_in(file)
            except SafetensorError as error:
                raise ModelError(f"{file} is no file of safetensors: {_line(error)}") from None
        try:
            return dict(torch.load(file, map_location="cpu", weights_only=True))
        except pickle.UnpicklingError:
            raise ModelError(f"{file} is refused: it holds more than weights, and reading it could run code") from None
        except Exception as error:
            raise ModelError(f"{file} is no file of weights: {_line(error)}") from None
    raise ModelError(f"there are no weights ({' or '.join(WEIGHTS)}) in {folder}; give a seed to draw initial ones")
