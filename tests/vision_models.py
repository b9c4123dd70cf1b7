"""Tiny image encoders with random weights, saved as the files and folders that the encoder strings name."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
_LAYER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_TEXT = {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **_LAYER}
_TOWER = {"image_size": SIDE, "patch_size": 16, **_LAYER}


def register_open_clip(folder: Path) -> str:
    """Makes the model known to open_clip under the name that is returned."""
    import open_clip

    (folder / "recsys-tiny.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder)
    return "recsys-tiny"


def save_open_clip(folder: Path, *, preprocess: dict | None = None) -> Path:
    """A folder for open_clip:local-dir, and its weights file."""
    import torch
    from open_clip import CLIP
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    model = CLIP(**TINY_CLIP)
    config = {"model_cfg": TINY_CLIP, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    file = folder / "open_clip_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, file)
    return file


def save_transformers(folder: Path, kind: str) -> str:
    """clip, clip_tower, siglip, siglip2, dinov2 or dinov3 with its image processor; returns the encoder string."""
    import torch
    import transformers

    made = {
        "clip": lambda: transformers.CLIPModel(
            transformers.CLIPConfig(text_config=_TEXT, vision_config=_TOWER, projection_dim=8)
        ),
        "clip_tower": lambda: transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(projection_dim=8, **_TOWER)
        ),
        "siglip": lambda: transformers.SiglipModel(
            transformers.SiglipConfig(text_config=_TEXT, vision_config=_TOWER)
        ),
        "siglip2": lambda: transformers.Siglip2Model(
            transformers.Siglip2Config(
                text_config=_TEXT, vision_config={"patch_size": 16, "num_patches": 16, **_LAYER}
            )
        ),
        "dinov2": lambda: transformers.Dinov2Model(
            transformers.Dinov2Config(
                image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
            )
        ),
        "dinov3": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**_TOWER)),
    }
    torch.manual_seed(1)
    made[kind]().save_pretrained(folder)
    processor(kind).save_pretrained(folder)
    return f"transformers:{folder}"


def processor(kind: str):
    """The image processor of such a model, the one that Pillow and NumPy carry where there is one."""
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.dinov3_vit.image_processing_dinov3_vit import DINOv3ViTImageProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    square = {"height": SIDE, "width": SIDE}
    return {
        "clip": lambda: CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square),
        "clip_tower": lambda: CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square),
        "siglip": lambda: SiglipImageProcessorPil(size=square),
        "siglip2": lambda: Siglip2ImageProcessorPil(patch_size=16, max_num_patches=16),
        "dinov2": lambda: BitImageProcessorPil(
            size={"shortest_edge": 37}, crop_size={"height": 28, "width": 28}
        ),
        "dinov3": lambda: DINOv3ViTImageProcessor(size=square),
    }[kind]()


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Soft colours, as a photo has them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def save_pictures(folder: Path, count: int) -> list[Path]:
    """PNGs of many shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [(60, 40), (33, 71), (32, 32), (20, 17), (101, 55)]
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        picture(number, sizes[number % len(sizes)]).save(path)
    return paths
