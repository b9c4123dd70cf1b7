"""A tiny Qwen3-VL with random weights: pictures of any shape, a chat template, multimodal positions."""

from pathlib import Path

from text_models import WORDS, save_tokenizer

_MARKS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
_ITEM = f"{{% if c['type'] == 'image' %}} {_PICTURE} {{% else %}}{{{{ c['text'] }}}} {{% endif %}}"
_TALK = f"{{% for m in messages %}}{{% for c in m['content'] %}}{_ITEM}{{% endfor %}}{{% endfor %}}"


def save_qwen3_vl(folder: Path) -> str:
    """Vectors of 32 values."""
    import torch
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    save_tokenizer(folder, end="[EOS]", words=WORDS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(_MARKS)})
    pad, video, start, end = (tokenizer.convert_tokens_to_ids(mark) for mark in _MARKS)
    text = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "intermediate_size": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "patch_size": 16, "out_hidden_size": 32,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = transformers.Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=pad, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    pixels = {"shortest_edge": 64 * 64, "longest_edge": 128 * 128}
    transformers.Qwen3VLProcessor(
        Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, size=pixels), tokenizer,
        transformers.Qwen3VLVideoProcessor(), chat_template=_TALK,
    ).save_pretrained(folder)  # fmt: skip
    return f"transformers:{folder}"
