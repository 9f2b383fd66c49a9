"""GenQ: calls of pipelines, their images, resumption, and the errors for bad inputs."""

import ast
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_pipelines
import torch
from torch import Tensor, nn

from dghlib import models
from dghlib.choices import UnknownName
from dghlib.generators import filters, genq, pipelines, textual_inversion
from dghlib.generators.genq import ADJECTIVES, Config
from dghlib.images import to_pixels
from dghlib.models import FloatModel, embedded
from dghlib.storage.checkpoints import Checkpoint
from dghlib.storage.records import fingerprint, plain

NAMES = ("cat", "dog", "owl", "elk", "ant")


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pipelines") / "classes"
    tiny_pipelines.save_class_conditional(folder, NAMES)
    return str(folder)


@pytest.fixture(scope="module")
def of_prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pipelines") / "prompts"
    tiny_pipelines.save_text_to_image(folder, [*NAMES, "photo"])
    return str(folder)


def small(pipeline: str, **settings: Any) -> Config:
    return Config(pipeline=pipeline, **{"num_images": 6, "batch_size": 4, "denoising_steps": 2} | settings)


def generate(model: FloatModel, config: Config, checkpoint: Path | None = None) -> Tensor:
    return genq.generate(model, config, progress=False, checkpoint=checkpoint)


@pytest.mark.parametrize("kind", ["of_classes", "of_prompts"])
def test_images_are_pixels_of_the_pipeline_in_normalised_space(kind, request, tiny_model):
    config = small(request.getfixturevalue(kind), class_names=NAMES)
    images = generate(tiny_model, config)
    assert images.shape == (6, 3, 8, 8)
    assert images.dtype == torch.float32
    pixels = (images * 0.25 + 0.5) * 255
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-3, rtol=0)
    assert pixels.std() > 10
    assert len(images.flatten(1).unique(dim=0)) == 6


def test_other_filters_use_the_kept_candidates_and_their_seconds(of_classes, tiny_model, tmp_path, monkeypatch):
    config = small(of_classes)
    images = genq.generate(tiny_model, config, progress=False, candidates=genq.Candidates(tmp_path))
    assert torch.equal(images, generate(tiny_model, config))
    others = small(of_classes, oversampling=4 / 3, energy_share=1)  # 2 of the 3 batches
    wanted = generate(tiny_model, others)
    monkeypatch.setattr(genq, "make_images", None)
    kept = genq.Candidates(tmp_path)
    assert torch.equal(genq.generate(tiny_model, others, progress=False, candidates=kept), wanted)
    assert kept.seconds > 0
    for changed in ({"seed": 1}, {"denoising_steps": 3}, {"guidance": 1.5}):
        with pytest.raises(TypeError):
            genq.generate(tiny_model, small(of_classes, **changed), progress=False, candidates=kept)


def test_damaged_candidates_are_generated_again(of_classes, tiny_model, tmp_path):
    images = genq.generate(tiny_model, small(of_classes), progress=False, candidates=genq.Candidates(tmp_path))
    damaged = next(tmp_path.iterdir())
    damaged.write_bytes(b"damaged")
    again = genq.generate(tiny_model, small(of_classes), progress=False, candidates=genq.Candidates(tmp_path))
    assert torch.equal(images, again)
    assert damaged.with_name(f"{damaged.name}.corrupt").exists()


def test_the_images_are_those_that_the_filters_select(of_classes, tiny_model, monkeypatch):
    seen: dict[str, Any] = {}

    def select(model: FloatModel, images: Tensor, keep: int, **settings: Any) -> Tensor:
        seen.update(settings, candidates=images)
        return filters.select(model, images, keep, **settings)

    monkeypatch.setattr(genq, "select", select)
    images = generate(tiny_model, small(of_classes, oversampling=3, energy_share=0.25, temperature=2.0))
    assert len(seen["candidates"]) == 18
    assert (seen["energy_share"], seen["second_stage"], seen["temperature"]) == (0.25, "auto", 2.0)
    kept = filters.select(tiny_model, seen["candidates"], 6, energy_share=0.25, temperature=2.0)
    assert torch.equal(images, seen["candidates"][kept])


def test_without_oversampling_all_images_are_kept_in_order(of_classes, tiny_model):
    images = generate(tiny_model, small(of_classes, oversampling=1))
    pipeline = pipelines.load_pipeline(of_classes)
    labels = genq.subjects_of(small(of_classes, oversampling=1), pipeline, 5)
    first = pipelines.make_images(
        pipeline, labels[:4], steps=2, guidance=2.0, seed=genq.derived_seed(0, "genq", "batch", 0)
    )
    expected = (first * 255).round().to(torch.uint8)
    assert torch.equal(to_pixels(images[:4], tiny_model.mean, tiny_model.std), expected)


def test_every_batch_has_its_own_noise(of_classes, tiny_model, monkeypatch):
    monkeypatch.setattr(genq, "subjects_of", lambda *_: [0] * 8)
    images = generate(tiny_model, small(of_classes, num_images=8, oversampling=1))
    assert len(images.flatten(1).unique(dim=0)) == 8


def test_prompts_by_hand(monkeypatch):
    monkeypatch.setattr(genq, "takes_prompts", lambda pipeline: True)
    config = small("nowhere", num_images=500, class_names=NAMES)
    prompts = [str(subject) for subject in genq.subjects_of(config, None, 5)]
    assert len(prompts) == 1000
    assert set(prompts) <= {f"A photo of a {adjective} {name}" for adjective in ADJECTIVES for name in NAMES}
    assert len(set(prompts)) > 0.99 * len(ADJECTIVES) * len(NAMES)
    assert all(150 < sum(prompt.endswith(name) for prompt in prompts) < 250 for name in NAMES)
    styled = dataclasses.replace(config, prompt="{name}, {token}", token="style.safetensors")
    assert set(genq.subjects_of(styled, None, 5)) == {f"{name}, <learned-style>" for name in NAMES}


def test_classes_of_network_and_pipeline_are_matched_by_name(of_classes):
    pipeline = pipelines.load_pipeline(of_classes)
    assert pipelines.class_ids(pipeline, 5, None) == [0, 1, 2, 3, 4]
    assert pipelines.class_ids(pipeline, 2, ("owl", "cat")) == [2, 0]
    labels, ids = (genq.subjects_of(small(of_classes, class_names=each), pipeline, 5) for each in (None, NAMES[::-1]))
    assert ids == [4 - int(label) for label in labels]
    with pytest.raises(UnknownName, match=r"unknown class of the pipeline 'owls' \(did you mean 'owl'\?\)"):
        pipelines.class_ids(pipeline, 2, ("owls", "cat"))
    with pytest.raises(ValueError, match="class_names must name each of the network's 3 classes, got 2"):
        pipelines.class_ids(pipeline, 3, ("owl", "cat"))
    with pytest.raises(ValueError, match="the pipeline makes images of 5 classes, the network tells 10 apart"):
        pipelines.class_ids(pipeline, 10, None)


def test_prompts_need_a_name_for_every_class(of_prompts, tiny_model):
    with pytest.raises(ValueError, match="class_names must name each of the network's 5 classes, got none"):
        generate(tiny_model, small(of_prompts))
    with pytest.raises(ValueError, match="each of the network's 5 classes, got 4"):
        generate(tiny_model, small(of_prompts, class_names=NAMES[:4]))


def stopped_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Write checkpoints after every batch, and stop after `batches` of them; return the sizes of their contents."""
    sizes: list[int] = []

    def save_and_stop(self: Checkpoint, state: Callable[[], dict[str, Any]]) -> None:
        self.save(state())
        sizes.append(len(torch.cat(state()["batches"])))
        if len(sizes) == batches:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save_when_due", save_and_stop)
    return sizes


def test_a_run_that_was_stopped_continues_to_the_same_images(of_classes, tiny_model, tmp_path, monkeypatch):
    whole = generate(tiny_model, small(of_classes))
    sizes = stopped_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        generate(tiny_model, small(of_classes), tmp_path / "run.checkpoint")
    resumed = generate(tiny_model, small(of_classes), tmp_path / "run.checkpoint")
    assert sizes == [4, 8, 12], "a batch was generated again"
    assert torch.equal(resumed, whole)


def test_schedulers_with_the_global_random_state_are_seeded(of_classes, tiny_model):
    """`DiTPipeline` gives its generator to no scheduler, so one that adds noise uses torch's global random state."""
    config = small(of_classes, scheduler="DDPMScheduler")
    first = generate(tiny_model, config)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(generate(tiny_model, config), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(generate(tiny_model, small(of_classes)), first)


def test_a_checkpoint_of_other_weights_is_not_used(of_classes, tiny_model, tmp_path):
    other = tmp_path / "other"
    tiny_pipelines.save_class_conditional(other, NAMES, seed=1)
    configs = [small(of_classes), small(str(other))]
    assert configs[0].weights != configs[1].weights
    moved = dataclasses.replace(configs[1], pipeline=of_classes)
    assert moved == configs[0], "the hash follows the folder"
    assert fingerprint(configs[0]) != fingerprint(dataclasses.replace(configs[1]))
    assert plain(configs[0])["weights"] == configs[0].weights


def test_the_hash_depends_on_names_and_contents(tmp_path):
    (tmp_path / "a" / "unet").mkdir(parents=True)
    weights = tmp_path / "a" / "unet" / "weights"
    weights.write_text("1")
    assert pipelines.content_sha256(tmp_path / "a") == "", "a user's folder may be large"
    (tmp_path / "a" / "model_index.json").write_text("{}")
    first = pipelines.content_sha256(tmp_path / "a")
    (tmp_path / "a" / ".cache").mkdir()
    (tmp_path / "a" / ".cache" / "file").write_text("of a tool")
    assert pipelines.content_sha256(tmp_path / "a") == first
    assert (tmp_path / "a").rename(tmp_path / "b").exists()
    assert pipelines.content_sha256(tmp_path / "b") == first, "where a folder lies does not matter"
    (tmp_path / "b" / "unet" / "weights").write_text("22")
    second = pipelines.content_sha256(tmp_path / "b")
    assert pipelines.content_sha256(tmp_path / "b", tmp_path / "b" / "unet" / "weights") != second
    assert len({first, second, pipelines.content_sha256(None), ""}) == 3


def test_resizing_and_cropping_by_hand():
    image = torch.tensor([[0.0, 1.0, 0.2, 0.2], [1.0, 0.0, 0.2, 0.2]]).view(1, 1, 2, 4)
    assert pipelines.fit(image, (2, 4))[0, 0].tolist() == [[0, 255, 51, 51], [255, 0, 51, 51]]
    assert pipelines.fit(image, (2, 2))[0, 0].tolist() == [[255, 51], [0, 51]], "the sides are cropped"
    halved = pipelines.fit(torch.full((1, 3, 6, 8), 0.5), (3, 3))
    assert halved.shape == (1, 3, 3, 3)
    assert halved.unique().tolist() == [128]
    assert pipelines.fit(torch.rand(1, 3, 5, 7), (9, 4)).shape == (1, 3, 9, 4)


def test_images_that_a_safety_checker_blackened_are_left_out():
    class Checked:
        device = torch.device("cpu")

        def __call__(self, prompt: list[str], **_: Any) -> Any:
            images = torch.rand(len(prompt), 4, 4, 3).numpy()
            return SimpleNamespace(images=images, nsfw_content_detected=[text == "bad" for text in prompt])

    images = pipelines.make_images(Checked(), ["good", "bad", "good"], steps=1, guidance=1, seed=0)
    assert images.shape == (2, 3, 4, 4)


def test_too_large_a_batch_is_reported(of_classes, monkeypatch):
    pipeline = pipelines.load_pipeline(of_classes)

    def fail(*args: Any, **settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipeline.vae, "decode", fail)
    with pytest.raises(torch.OutOfMemoryError, match="3 images at once do not fit: lower batch_size, or"):
        pipelines.make_images(pipeline, [0, 1, 2], steps=1, guidance=1, seed=0)


def test_guidance_needs_a_class_for_no_class(of_classes):
    pipeline = pipelines.load_pipeline(of_classes)
    pipeline.transformer.register_to_config(num_embeds_ada_norm=5)
    with pytest.raises(ValueError, match=r"guides away from class 1000.*guidance=1"):
        pipelines.make_images(pipeline, [0], steps=1, guidance=2, seed=0)
    assert len(pipelines.make_images(pipeline, [0], steps=1, guidance=1, seed=0)) == 1


def test_guidance_and_steps_reach_the_pipeline(of_prompts):
    pipeline = pipelines.load_pipeline(of_prompts, scheduler="DDPMScheduler")
    assert type(pipeline.scheduler).__name__ == "DDPMScheduler"
    images = [
        pipelines.make_images(pipeline, ["a cat"], steps=steps, guidance=guidance, seed=0, size=size)
        for steps, guidance, size in [(2, 1, None), (3, 1, None), (2, 4, None), (2, 1, 16)]
    ]
    assert not any(torch.equal(images[0], other) for other in images[1:])
    assert images[3].shape == (1, 3, 16, 16)


def test_pipelines_run_in_half_precision(of_classes):
    pipeline = pipelines.load_pipeline(of_classes, precision="bfloat16")
    assert pipeline.transformer.dtype == torch.bfloat16
    assert pipelines.make_images(pipeline, [0], steps=1, guidance=1, seed=0).dtype == torch.float32


def test_a_folder_without_a_pipeline_is_refused(tmp_path, of_classes):
    with pytest.raises(pipelines.NotAPipeline, match=f"{tmp_path} is not the folder of a diffusers pipeline"):
        pipelines.load_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(pipelines.NotAPipeline, match=f"'{tmp_path}' is not a whole pipeline"):
        pipelines.load_pipeline(str(tmp_path))
    with pytest.raises(UnknownName, match="unknown scheduler 'DDIM'"):
        pipelines.load_pipeline(of_classes, scheduler="DDIM")
    with pytest.raises(ValueError, match="offload=model keeps parts of a pipeline off a GPU; the device is the CPU"):
        pipelines.load_pipeline(of_classes, offload="model")
    with pytest.raises(ValueError, match="precision=float16 needs a GPU; on the CPU take float32 or bfloat16"):
        pipelines.load_pipeline(of_classes, precision="float16")


def test_a_pipeline_of_another_kind_is_refused():
    class Upscaler:
        def __call__(self, image: Tensor) -> None: ...

    with pytest.raises(pipelines.NotAPipeline, match="Upscaler makes images neither from prompts nor from classes"):
        pipelines.takes_prompts(Upscaler())


def test_without_diffusers_the_extra_is_named(of_classes, monkeypatch):
    def fail(name: str, *_: Any) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(pipelines.importlib, "import_module", fail)
    with pytest.raises(pipelines.MissingExtra, match=r"diffusers is missing: pip install 'dghlib\[diffusion\]'"):
        pipelines.load_pipeline(of_classes)


@pytest.mark.parametrize("module", [genq, pipelines, textual_inversion])
def test_diffusers_is_imported_only_when_a_pipeline_is_loaded(module):
    for node in ast.parse(Path(module.__file__).read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert "diffusers" not in [*names, getattr(node, "module", "")]


def test_unusable_networks_are_refused_before_generation(tiny_model, monkeypatch):
    monkeypatch.setattr(genq, "load_pipeline", lambda *_, **__: pytest.fail("too late"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    model = FloatModel(name="plain", net=net, image_shape=(3, 8, 8), mean=(0,) * 3, std=(1,) * 3)
    with pytest.raises(filters.NoPatches, match="plain has neither batch norm nor"):
        generate(model, small("nowhere"))


def test_grey_networks_are_refused(of_classes):
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 5))
    model = FloatModel(name="grey", net=net.eval(), image_shape=(1, 8, 8), mean=(0,), std=(1,))
    with pytest.raises(ValueError, match="images of the pipeline have 3 channels, grey takes 1"):
        generate(model, small(of_classes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": -1}, "guidance must be from 0 to inf, got -1"),
        ({"oversampling": 0.5}, "oversampling must be from 1 to inf, got 0.5"),
        ({"precision": "int8"}, "precision must be one of 'float32', 'float16', 'bfloat16', got 'int8'"),
        ({"offload": "disk"}, "offload must be one of"),
        ({"second_stage": "fid"}, "second_stage must be one of"),
        ({"prompt": "a {thing}"}, "what stands in braces in the prompt must be one of .* got 'thing'"),
        ({"prompt": "a photo"}, r"the prompt must have \{name\}"),
        ({"prompt": "{name} {token}"}, r"a prompt with \{token\} needs a learned token"),
        ({"token": "style.safetensors"}, r"a prompt with \{token\} needs a learned token and the other way round"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


@pytest.mark.skipif(not pipelines.EMBEDDED["shapes"].is_dir(), reason="the embedded pipeline is not trained yet")
@pytest.mark.parametrize("name", embedded.NETS)
def test_the_embedded_pipeline_makes_images_for_the_embedded_networks(name):
    config = dataclasses.replace(genq.PRESETS["default"], num_images=4, denoising_steps=2)
    assert generate(models.load(name), config).shape == (4, 3, 32, 32)


def test_the_papers_settings_are_presets():
    paper = genq.PRESETS["paper"]
    assert (paper.pipeline.partition("/")[2], paper.guidance, paper.oversampling) == ("stable-diffusion-v1-5", 3.5, 2)
    assert paper.prompt == "A photo of a {adjective} {name}"
