"""Diffusion pipelines with random weights, small enough to run at once, as folders that diffusers wrote."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz<>-"


def save_class_conditional(folder: Path, classes: Sequence[str], seed: int = 0) -> None:
    """Write a pipeline that makes images (3, 8, 8) of the 1000 classes of ImageNet."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            num_layers=1,
            sample_size=4,
            norm_num_groups=4,
            out_channels=4,
            num_embeds_ada_norm=1000,
        )
        pipeline: Any = DiTPipeline(transformer, _autoencoder(), DDIMScheduler())
        pipeline.save_pretrained(folder)
    index = folder / "model_index.json"
    facts = json.loads(index.read_text()) | {"id2label": {str(k): name for k, name in enumerate(classes)}}
    index.write_text(json.dumps(facts))


def save_text_to_image(folder: Path, words: Sequence[str], seed: int = 0) -> None:
    """Write a pipeline like Stable Diffusion for images (3, 8, 8); its tokenizer spells all but `words`."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = _tokenizer(words)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=24,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        unet: Any = UNet2DConditionModel(
            sample_size=4,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            block_out_channels=(8,),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=16,
            norm_num_groups=4,
        )
        with torch.no_grad():
            for name, weight in unet.named_parameters():
                if "attn2.to_" in name:
                    weight *= 6  # untrained, it would hardly depend on the prompt
        pipeline: Any = StableDiffusionPipeline(
            vae=_autoencoder(),
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder)


def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 4),
        norm_num_groups=2,
        sample_size=8,
    )


def _tokenizer(words: Sequence[str]) -> Any:
    """Return CLIP's tokenizer for a vocabulary of letters and a few whole words."""
    from transformers import CLIPTokenizer

    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    merges: dict[Any, None] = {}  # the merges, in order
    for word in words:
        left = word[0]
        for position, letter in enumerate(word[1:], start=2):
            right = f"{letter}</w>" if position == len(word) else letter
            merges[left, right] = None
            left += right
            pieces.append(left)
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *special]))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=24)
