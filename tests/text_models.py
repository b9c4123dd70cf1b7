"""Tiny text models with random weights, saved as folders that the encoder strings name."""

import json
from collections.abc import Iterable
from pathlib import Path

WORDS = tuple(f"w{number}" for number in range(200))
"""The vocabulary: every word is one token, whatever stands beside it."""


def save_tokenizer(
    folder: Path,
    *,
    start: str | None = None,
    end: str | None = None,
    pad: str | None = "[PAD]",
    side: str = "right",
    words: Iterable[str] = WORDS,
) -> int:
    """A tokenizer of whole words with these special tokens around a text; returns its size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [token for token in ("[UNK]", pad, start, end) if token]
    special = list(dict.fromkeys(special))
    vocabulary = {token: number for number, token in enumerate([*special, *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = [f"{token}:0" for token in (start, "$A", end) if token]
    around = " ".join(around).replace("$A:0", "$A")
    if start or end:
        ends = [(token, vocabulary[token]) for token in dict.fromkeys((start, end)) if token]
        inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        padding_side=side,
    )
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def save_bert(folder: Path, *, positions: int = 64, seed: int = 0, **tokenizer) -> str:
    from transformers import BertConfig, BertModel

    size = save_tokenizer(folder, **{"start": "[CLS]", "end": "[SEP]"} | tokenizer)
    config = BertConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions,
    )  # fmt: skip
    return _save(BertModel, config, folder, seed)


def save_roberta(folder: Path, *, positions: int = 34) -> str:
    """Its positions count from behind the padding index; and its checkpoint has no pooling layer."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    size = save_tokenizer(folder, start="[CLS]", end="[SEP]")
    config = RobertaConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions, pad_token_id=1, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return _save(RobertaForMaskedLM, config, folder, 0)


def save_gpt2(folder: Path, *, side: str = "right") -> str:
    """A decoder with learnt positions and no padding token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = save_tokenizer(folder, end="[EOS]", pad=None, side=side)
    config = GPT2Config(
        vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1
    )
    return _save(GPT2LMHeadModel, config, folder, 0)


def save_llama(folder: Path, *, side: str = "left") -> str:
    """A decoder with rotary positions; texts begin with a token and end with none."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = save_tokenizer(folder, start="[BOS]", pad="[PAD]", side=side)
    config = LlamaConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=4096, pad_token_id=1, bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    return _save(LlamaForCausalLM, config, folder, 0)


def save_t5(folder: Path) -> str:
    from transformers import T5Config, T5Model

    size = save_tokenizer(folder, end="[EOS]")
    config = T5Config(
        vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return _save(T5Model, config, folder, 0)


def save_clip(folder: Path, *, family: str = "CLIP") -> str:
    """The whole model, both towers: family CLIP or Siglip. Text vectors have 8 values."""
    import transformers

    size = save_tokenizer(folder, start="[BOS]", end="[EOS]")
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = tower | {
        "vocab_size": size, "max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    vision = tower | {"image_size": 32, "patch_size": 16}
    wide = {"projection_dim": 8} if family == "CLIP" else {}
    config = getattr(transformers, f"{family}Config")(
        text_config=text | wide, vision_config=vision | wide, **wide
    )
    return _save(getattr(transformers, f"{family}Model"), config, folder, 0)


def open_clip_config() -> dict:
    """Vectors of 8 values, texts of 12 tokens with CLIP's own tokenizer."""
    layers = {"width": 16, "layers": 1}
    model = {
        "embed_dim": 8,
        "vision_cfg": layers | {"image_size": 32, "patch_size": 16, "head_width": 8},
        "text_cfg": layers | {"context_length": 12, "vocab_size": 49408, "heads": 2},
    }
    return {"model_cfg": model, "preprocess_cfg": {}}


def save_open_clip(folder: Path, *, seed: int = 1) -> str:
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    write_json(folder / "open_clip_config.json", open_clip_config())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"open_clip:local-dir:{folder}"


def save_blip(folder: Path) -> str:
    """A captioning model; its processor knows no chat."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = tower | {
        "vocab_size": len(words), "encoder_hidden_size": 16, "projection_dim": 8, "max_position_embeddings": 64,
        "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "is_decoder": True,
    }  # fmt: skip
    vision = tower | {"image_size": 32, "patch_size": 16}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
    return _save(BlipForConditionalGeneration, config, folder, 0)


def save_llava(folder: Path) -> str:
    """A chat model: its processor writes the talk, and a picture takes several tokens."""
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    save_tokenizer(folder, start="[BOS]", end="[EOS]")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    parts = "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}"
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=f"{{% for m in messages %}}{{% for c in m['content'] %}}{parts}{{% endfor %}}{{% endfor %}}",
    ).save_pretrained(folder)
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower, image_size=32, patch_size=16, projection_dim=8),
        text_config=LlamaConfig(
            **tower, vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=128,
            bos_token_id=2, eos_token_id=3, pad_token_id=1,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    return _save(LlavaForConditionalGeneration, config, folder, 0)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _save(kind, config, folder: Path, seed: int) -> str:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind(config).save_pretrained(folder)
    return f"transformers:{folder}"
