"""The networks: their size, what they take, what they return, and what they refuse."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from single_pulse_classifier_training.channels import CHANNELS
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.training_models import (
    OLD_NAMES,
    TWO_TOWERS,
    build_model,
    default_channels,
    fuse_for_inference,
    models_htable,
)

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "DM_time_binary_classificator_241002_"

# Counts of the original Keras networks
PARAMETERS = {
    "1": {256: 260_113_570, 128: 15_745_618, 64: 7_373_778, 32: 3_212_450},
    "2": {256: 121_938_098, 128: 6_896_690, 64: 1_391_666, 32: 827_570},
    "3": {256: 9_985_926, 128: 1_927_002, 64: 338_342, 32: 13_914},
    "3_dropout": {256: 9_985_926, 128: 1_927_002, 64: 338_342, 32: 13_914},
    # conv 1 -> 8 -> 8 -> 12 with 5x5 kernels and biases, then 12 -> 2
    "3_GAP": {256: 208 + 1608 + 2412 + 26},
}


def n_parameters(model_name: str, resolution: int) -> int:
    with torch.device("meta"):
        model = build_model(model_name, resolution)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("variant", "resolution", "expected"),
    [(variant, resolution, n) for variant, sizes in PARAMETERS.items() for resolution, n in sizes.items()],
)
def test_parameter_count_is_that_of_the_original(variant, resolution, expected):
    assert n_parameters(PREFIX + variant, resolution) == expected


def test_small_residual_weighs_less_than_2_mb():
    assert 100_000 < n_parameters("DM_time_small_residual", 256) < 200_000


@pytest.mark.parametrize("resolution", [256, 128, 64, 32])
@pytest.mark.parametrize("model_name", models_htable)
def test_every_network_gives_two_logits_a_page(model_name, resolution):
    with torch.device("meta"):
        for channels in {default_channels(model_name), CHANNELS, CHANNELS[:2]}:
            model = build_model(model_name, resolution, channels)
            assert model(torch.empty(3, len(channels), resolution, resolution)).shape == (3, 2)


@pytest.mark.parametrize("model_name", models_htable)
def test_output_is_logits_and_depends_on_the_page(model_name):
    torch.manual_seed(0)
    model = build_model(model_name, 32).eval()
    pages = torch.randint(0, 256, (8, len(default_channels(model_name)), 32, 32)).float()
    with torch.inference_mode():
        logits = model(pages)
        assert torch.allclose(model(pages[:1]), logits[:1], atol=1e-4)
    assert torch.isfinite(logits).all()
    assert not torch.allclose(logits.sum(dim=1), torch.ones(8), atol=1e-3)
    assert (logits.std(dim=0) > 0).all()


def textbook(model: torch.nn.Module, pages: torch.Tensor) -> torch.Tensor:
    """241002_3 by its layers: convolution, ReLU, pooling in the textbook order, from the network's own weights."""
    relu, pool = torch.relu, torch.nn.MaxPool2d(2)
    x = pool(relu(model.conv1(pages)))
    x = pool(relu(model.conv2(x)))
    x = relu(model.conv3(x)).reshape(len(pages), -1)
    return model.fc2(relu(model.fc1(x)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("resolution", [256, 128, 64, 32])
def test_241002_3_computes_what_its_layers_say(resolution, dtype, tolerance, memory_format):
    torch.manual_seed(1)
    model = build_model(PREFIX + "3", resolution).eval().to(dtype=dtype, memory_format=memory_format)
    pages = torch.rand(2, 1, resolution, resolution, dtype=dtype) * 255
    with torch.inference_mode():
        expected = textbook(model, pages)
        assert (model(pages) - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("resolution", [256, 128, 32])
def test_gradients_of_241002_3_are_those_of_its_layers(resolution):
    """In float64, where no two values of a pooling window are equal by rounding."""
    torch.manual_seed(4)
    model = build_model(PREFIX + "3", resolution).to(torch.float64, memory_format=torch.channels_last)
    pages = torch.rand(2, 1, resolution, resolution, dtype=torch.float64) * 255
    parameters = list(model.parameters())
    expected = torch.autograd.grad(textbook(model, pages).square().sum(), parameters)
    got = torch.autograd.grad(model(pages).square().sum(), parameters)
    for one, other in zip(got, expected):
        assert (one - other).abs().max() < 1e-9 * other.abs().max()


@pytest.mark.parametrize("resolution", [256, 64])
def test_bfloat16_training_step_is_reproducible_and_as_good_as_that_of_the_plain_layers(resolution):
    torch.manual_seed(5)
    model = build_model(PREFIX + "3", resolution).to(memory_format=torch.channels_last)
    pages = torch.randint(0, 256, (4, 1, resolution, resolution)).float()

    def gradients(forward, enabled: bool = True) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = forward(pages)
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 0, 1]))
        return [gradient.flatten() for gradient in torch.autograd.grad(loss, list(model.parameters()))]

    def plain(pages: torch.Tensor) -> torch.Tensor:
        return textbook(model, pages)

    first, second = gradients(model), gradients(model)
    assert all(torch.equal(one, other) for one, other in zip(first, second))
    for ours, theirs, exact in zip(first, gradients(plain), gradients(plain, enabled=False)):
        ours, theirs = (torch.nn.functional.cosine_similarity(one, exact, dim=0) for one in (ours, theirs))
        assert ours > theirs - 0.005


def test_dropout_acts_in_training_only():
    torch.manual_seed(2)
    model = build_model(PREFIX + "3_dropout", 32)
    page = torch.rand(1, 1, 32, 32) * 255
    assert not torch.equal(model.train()(page), model(page))
    assert torch.equal(model.eval()(page), model(page))


def test_small_residual_does_not_dilute_a_local_pulse():
    """The mean alone would make the same pulse count a sixteenth on a page of sixteen times the pixels."""
    torch.manual_seed(3)
    model = build_model("DM_time_small_residual", 256).eval()

    def effect(resolution: int) -> float:
        empty = torch.full((1, 1, resolution, resolution), 51.0)
        pulse = empty.clone()
        pulse[..., 64:80, 64:72] = 102.0
        return (model(pulse) - model(empty)).abs().max().item()

    with torch.inference_mode():
        assert effect(512) > 0.5 * effect(128) > 0


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(InputError, match=r"must be one of .*DM_time_small_residual.*resnet18.*, got '241002_4'"):
        build_model("241002_4", 256)


@pytest.mark.parametrize("old", OLD_NAMES)
def test_an_old_name_builds_the_same_network(old):
    one, other = (build_model(name, 64).state_dict() for name in (old, OLD_NAMES[old]))
    assert {name: w.shape for name, w in one.items()} == {name: w.shape for name, w in other.items()}


@pytest.mark.parametrize(
    ("model_name", "resolution"), [(PREFIX + "1", 512), ("resnet18", 100), ("resnet18", 0), ("resnet18", 10**9)]
)
def test_unknown_resolution_names_the_valid_ones(model_name, resolution):
    with pytest.raises(InputError, match=rf"resolution of {model_name} must be .*32.*, got {resolution}"):
        build_model(model_name, resolution)


def test_torchvision_is_imported_for_its_own_networks_only():
    code = (
        "import sys; from single_pulse_classifier_training.training_models import build_model; "
        "build_model('DM_time_small_residual', 32); assert 'torchvision' not in sys.modules; "
        "build_model('mobilenet_v3_small', 32); assert 'torchvision' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "model_name", ["DM_time_small_residual", TWO_TOWERS, "resnet18", "DM_time_binary_classificator_241002_3_GAP"]
)
def test_a_fused_network_is_the_same_function(model_name):
    torch.manual_seed(0)
    model = build_model(model_name, 64)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    images = 255 * torch.rand(4, len(default_channels(model_name)), 64, 64)
    fused = fuse_for_inference(model)
    with torch.inference_mode():
        torch.testing.assert_close(fused(images), model.eval()(images), rtol=1e-4, atol=1e-4)
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in each.modules()) for each in (fused, model)]
    assert norms[0] < norms[1] or norms[1] == 0


def test_the_two_towers_are_small_and_need_both_views():
    with torch.device("meta"):
        model = build_model(TWO_TOWERS, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 450_000
    with pytest.raises(InputError, match="must hold freq_time and dm_time, got dm_time"):
        build_model(TWO_TOWERS, 64, ("dm_time",))


@pytest.mark.parametrize("channels", [CHANNELS, CHANNELS[:2]])
def test_each_tower_sees_its_own_channels(channels):
    torch.manual_seed(0)
    model = build_model(TWO_TOWERS, 64, channels).eval()
    towers = {}
    for name in ("dm_time", "freq_time"):
        getattr(model, name).register_forward_hook(lambda _, inputs, __, name=name: towers.update({name: inputs[0]}))
    images = 1 + 254 * torch.rand(2, len(channels), 64, 64)
    images[:, 0, 5] = 0  # a sub-band without a good channel
    model(images)
    expected = (images - 51) / 10.2
    expected[:, 0, 5] = 0
    torch.testing.assert_close(towers["dm_time"], expected[:, 1:2])
    torch.testing.assert_close(towers["freq_time"], expected[:, ::2])
