"""Pictures, layers, encoder, decoder and heads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rounding import agree
from torch import nn

from dreamfleet.common.errors import UserError
from dreamfleet.common.experience.spaces import ActionSpec, ObservationSpec, Spaces
from dreamfleet.common.model.decoder import (
    Decoder,
    DoublingConv2d,
    DreamerImageDecoder,
    PlanetImageDecoder,
    StridedImageDecoder,
)
from dreamfleet.common.model.distributions import LOG_VARIANCE_BOUND
from dreamfleet.common.model.encoder import (
    DreamerImageEncoder,
    Encoder,
    ImageInput,
    PlanetImageEncoder,
    StridedImageEncoder,
    normalise_image,
    to_display,
)
from dreamfleet.common.model.heads import ContinueHead, RewardHead
from dreamfleet.common.settings.model import ModelSettings

pytestmark = pytest.mark.numeric

BYTES = torch.arange(256, dtype=torch.uint8)


def spaces(**shapes: tuple[int, ...]) -> Spaces:
    """Return the spaces of named observations: three numbers make a picture, one a vector."""
    specs = [ObservationSpec(name, shape, "uint8" if len(shape) == 3 else "float32") for name, shape in shapes.items()]
    return Spaces(tuple(specs), ActionSpec("discrete", (5,)))


def small(**changes: object) -> ModelSettings:
    """Return settings of a model that is quick to build."""
    sizes = {"depth": 4, "embedding": 24, "vector_units": 16, "reward_units": 16}
    return ModelSettings.model_validate({**sizes, **changes})


def random_inputs(of: Spaces, count: int) -> dict[str, torch.Tensor]:
    """Return normalised observations for `of`."""
    return {spec.name: torch.rand(count, *spec.shape) for spec in of.observations}


@pytest.mark.parametrize("kind", ["unit", "centred"])
def test_bytes_come_back_from_the_networks_numbers(kind: ImageInput) -> None:
    """Every byte survives the way to the network and back."""
    assert torch.equal(to_display(normalise_image(BYTES, kind), kind), BYTES)


def test_units_are_what_their_names_say() -> None:
    """Unit pictures lie in [0, 1], centred ones in [-0.5, 0.5]."""
    ends = torch.tensor([0, 255], dtype=torch.uint8)
    assert normalise_image(ends, "unit").tolist() == [0.0, 1.0]
    assert normalise_image(ends, "centred").tolist() == [-0.5, 0.5]


def test_five_bit_keeps_five_bits_and_fills_the_rest_with_noise() -> None:
    """Every byte lands in [k/32, (k+1)/32) - 0.5 of its level k = floor(x/8), at its middle on average."""
    torch.manual_seed(0)
    noisy = normalise_image(BYTES.expand(500, -1), "five_bit", noise=True)
    level = torch.tensor([x // 8 for x in range(256)]) / 32 - 0.5
    assert (noisy >= level).all()
    assert (noisy < level + 1 / 32).all()
    assert torch.allclose(noisy.mean(0), level + 1 / 64, atol=3e-3)
    assert agree(normalise_image(BYTES, "five_bit"), level + 1 / 64)
    assert torch.equal(to_display(normalise_image(BYTES, "five_bit"), "five_bit"), BYTES // 8 * 8 + 4)


@pytest.mark.parametrize("kind", ["unit", "centred", "five_bit"])
def test_a_prediction_out_of_range_is_cut_off(kind: ImageInput) -> None:
    """What a decoder overshoots is shown black or white, not wrapped round."""
    assert to_display(torch.tensor([-3.0, 3.0]), kind).tolist() == [0, 255]


def test_planet_networks_have_the_published_sizes() -> None:
    """At depth 32: 1024 numbers out of the encoder; 1024 into the decoder's convolutions; 64×64×3 out."""
    settings = ModelSettings(encoder="planet", depth=32)
    encoder, decoder = PlanetImageEncoder(3, settings), PlanetImageDecoder(230, 3, settings)
    kernels = [
        (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
        for layer in encoder.convolutions
        if isinstance(layer, nn.Conv2d)
    ]
    assert kernels == [(3, 32, 4, 2), (32, 64, 4, 2), (64, 128, 4, 2), (128, 256, 4, 2)]
    kernels = [
        (layer.in_channels, layer.out_channels, layer.kernel_size[0])
        for layer in [decoder.first, *decoder.convolutions]
        if isinstance(layer, nn.ConvTranspose2d)
    ]
    assert kernels == [(1024, 128, 5), (128, 64, 5), (64, 32, 6), (32, 3, 6)]
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, 1024)
    assert decoder(torch.rand(2, 230)).shape == (2, 3, 64, 64)


def test_the_first_transposed_convolution_as_a_product_is_the_same() -> None:
    """The decoder's short cut for a single pixel changes nothing but the time."""
    torch.manual_seed(0)
    decoder = PlanetImageDecoder(10, 3, small())
    feature = torch.randn(5, 10)
    plain = decoder.convolutions(
        F.conv_transpose2d(decoder.input(feature)[:, :, None, None], decoder.first.weight, decoder.first.bias, stride=2)
    )
    assert agree(decoder(feature), plain)


def test_strided_networks_have_the_seeds_layers() -> None:
    """Convolution, ReLU, batch norm three times, then convolution and batch norm; 128×128 becomes 256×8×8."""
    encoder = StridedImageEncoder((128, 128), 1, ModelSettings(encoder="strided", batch_norm=True))
    names = [type(layer).__name__ for layer in encoder.convolutions]
    assert names == ["Conv2d", "ReLU", "BatchNorm2d"] * 3 + ["Conv2d", "BatchNorm2d"]
    assert encoder.convolutions(torch.rand(2, 1, 128, 128)).shape == (2, 256, 8, 8)
    assert encoder.output.weight.shape == (1024, 256 * 8 * 8)


def test_the_seeds_decoder_has_its_layers() -> None:
    """Transposed convolution, batch norm, ReLU three times, then one alone; 8×8 becomes 128×128."""
    decoder = StridedImageDecoder(9, (128, 128), 1, ModelSettings(encoder="strided", batch_norm=True, depth=2))
    names = [type(layer).__name__ for layer in decoder.convolutions]
    assert names == ["ConvTranspose2d", "BatchNorm2d", "ReLU"] * 3 + ["ConvTranspose2d"]
    assert [type(layer).__name__ for layer in decoder.input] == ["Linear", "ReLU", "Linear"]
    assert decoder(torch.rand(2, 9)).shape == (2, 1, 128, 128)


def test_dreamers_networks_have_the_published_stages() -> None:
    """Four stages of 5×5 to 2, 3, 4 and 4 times the depth; 64×64 becomes 4×4; the decoder's go back the same way."""
    settings = ModelSettings(encoder="dreamer", depth=6, norm="rms", deterministic=16)
    encoder = DreamerImageEncoder((64, 64), 3, settings)
    decoder = DreamerImageDecoder(16, 9, (64, 64), 3, settings)
    for network, expected in (
        (encoder, [(3, 12), (12, 18), (18, 24), (24, 24)]),
        (decoder, [(24, 24), (24, 18), (18, 12), (12, 3)]),
    ):
        kernels = [
            (*layer.weight.shape[1::-1], *layer.weight.shape[2:])
            for layer in network.convolutions
            if isinstance(layer, nn.Conv2d)
        ]
        assert kernels == [(*channels, 5, 5) for channels in expected]
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, 4 * 4 * 24)
    assert encoder.width == 4 * 4 * 24
    picture = decoder(torch.randn(2, 25))
    assert picture.shape == (2, 3, 64, 64)
    assert -0.5 < picture.min() < picture.max() < 0.5


def test_dreamers_encoder_is_the_published_one() -> None:
    """Convolution, max-pool, RMS norm over channels and SiLU four times over, written out."""
    torch.manual_seed(0)
    settings = ModelSettings(encoder="dreamer", depth=2, norm="rms", convolution_activation="silu", blocks=4)
    encoder = DreamerImageEncoder((32, 48), 3, settings)
    image = torch.rand(2, 3, 32, 48)
    pattern = image
    for convolution in encoder.convolutions:
        assert isinstance(convolution, nn.Conv2d)
        pattern = F.max_pool2d(F.conv2d(pattern, convolution.weight, convolution.bias, padding=2), 2)
        pattern = F.silu(pattern / (pattern.square().mean(1, keepdim=True) + 1e-4).sqrt())
    assert agree(encoder(image), pattern.permute(0, 2, 3, 1).flatten(1))


def test_doubling_then_convolving_in_one_is_the_same() -> None:
    """The 3×3 kernels of the four doubles give what 5×5 gives on the doubled picture, edges and gradients included."""
    torch.manual_seed(0)
    layer = DoublingConv2d(3, 5)
    image = torch.randn(2, 3, 6, 7)
    doubled = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
    plain = F.conv2d(doubled, layer.weight, layer.bias, padding=2).permute(0, 2, 3, 1)
    quick = layer(image)
    assert agree(quick, plain)
    weights = torch.randn_like(plain)
    gradients = [torch.autograd.grad((out * weights).sum(), layer.weight)[0] for out in (quick, plain)]
    assert agree(*gradients)
    layer.keep_kernels()
    assert agree(layer(image), plain)


def test_dreamers_decoder_reads_h_in_blocks_and_z_whole() -> None:
    """A block of h reaches its own channels of the smallest pattern alone; z reaches all."""
    torch.manual_seed(0)
    settings = ModelSettings(encoder="dreamer", depth=2, blocks=4, deterministic=16)
    decoder = DreamerImageDecoder(16, 5, (64, 64), 3, settings)
    seen: list[torch.Tensor] = []
    decoder.activations[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    feature = torch.randn(1, 21)
    other_h, other_z = feature.clone(), feature.clone()
    other_h[:, 4:8] += 1.0  # the second of four blocks
    other_z[:, 16:] += 1.0
    for inputs in (feature, other_h, other_z):
        decoder(inputs)
    assert seen[0].shape == (1, 4, 4, 8)
    assert (seen[0] != seen[1]).flatten(0, 2).any(0).tolist() == [False] * 2 + [True] * 2 + [False] * 4
    assert (seen[0] != seen[2]).flatten(0, 2).any(0).all()


@pytest.mark.parametrize("kind", ["unit", "centred", "five_bit"])
def test_dreamers_pictures_lie_between_black_and_white(kind: ImageInput) -> None:
    """The sigmoid's 0 and 1 are black and white in the network's units."""
    settings = ModelSettings(encoder="dreamer", depth=2, deterministic=8, image_input=kind)
    decoder = DreamerImageDecoder(8, 2, (64, 64), 1, settings)
    last = decoder.convolutions[-1]
    for bias, byte in ((-50.0, 0), (50.0, 255)):
        nn.init.constant_(last.bias, bias)
        assert (to_display(decoder(torch.randn(1, 10)), kind) == byte).all()


@pytest.mark.parametrize(
    ("of", "changes"),
    [
        (spaces(image=(64, 64, 1)), {"encoder": "planet"}),
        (spaces(left=(64, 48, 3), right=(64, 48, 1), joints=(4,)), {"encoder": "dreamer", "norm": "rms"}),
        (spaces(joints=(4,), speed=(2,)), {"norm": "layer", "activation": "silu"}),
        (spaces(image=(64, 64, 3)), {"encoder": "planet", "activation": "elu"}),
        (spaces(image=(128, 96, 3)), {"encoder": "strided"}),
        (spaces(image=(32, 16, 1)), {"encoder": "strided", "batch_norm": True}),
        (spaces(left=(64, 64, 3), right=(64, 64, 1)), {"encoder": "planet"}),
        (spaces(state=(7,)), {}),
        (spaces(camera=(32, 32, 3), joints=(4,), speed=(2,)), {"encoder": "strided"}),
    ],
)
def test_every_kind_of_observation_is_encoded_and_decoded(of: Spaces, changes: dict[str, object]) -> None:
    """One embedding of the announced width, and a mean of its own shape for every entry."""
    settings = small(**changes)
    encoder, decoder = Encoder(of, settings), Decoder(8, 3, of, settings)
    assert encoder(random_inputs(of, 3)).shape == (3, encoder.width)
    means = decoder(torch.randn(3, 11))
    assert {name: tuple(mean.shape) for name, mean in means.items()} == {
        spec.name: (3, *spec.shape) for spec in of.observations
    }


def test_every_entry_reaches_the_embedding() -> None:
    """A change of any one entry changes the embedding."""
    torch.manual_seed(0)
    of = spaces(left=(32, 32, 3), right=(32, 32, 1), joints=(4,), speed=(2,))
    encoder = Encoder(of, small(encoder="strided"))
    inputs = random_inputs(of, 1)
    before = encoder(inputs)
    for name in inputs:
        assert not torch.allclose(before, encoder({**inputs, name: inputs[name] + 1.0})), name


def test_decoded_entries_are_not_mixed_up() -> None:
    """Each entry gets its own channels, in the order of the names."""
    of = spaces(left=(32, 32, 1), right=(32, 32, 2), joints=(2,), speed=(1,))
    decoder = Decoder(3, 2, of, small(encoder="strided"))
    assert decoder.image is not None
    assert decoder.vector is not None
    for last, values in ((decoder.image.convolutions[-1], [1.0, 2.0, 3.0]), (decoder.vector[-1], [4.0, 5.0, 6.0])):
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor(values)
    means = decoder(torch.randn(1, 5))
    assert {name: mean.flatten(0, -2)[0].tolist() for name, mean in means.items()} == {
        "left": [1.0],
        "right": [2.0, 3.0],
        "joints": [4.0, 5.0],
        "speed": [6.0],
    }


@pytest.mark.parametrize(
    ("of", "encoder", "words"),
    [
        (spaces(image=(128, 96, 3)), "planet", ["model.encoder planet", "'image' is 128×96", "64×64"]),
        (spaces(image=(100, 96, 3)), "strided", ["model.encoder strided", "'image' is 100×96", "16"]),
        (spaces(image=(64, 84, 3)), "dreamer", ["model.encoder dreamer", "'image' is 64×84", "16"]),
        (spaces(a=(64, 64, 3), b=(32, 64, 3)), "strided", ["'b' is 32×64", "'a' is 64×64", "env.image_size"]),
    ],
)
def test_pictures_that_do_not_fit_are_refused(of: Spaces, encoder: str, words: list[str]) -> None:
    """One sentence names the setting, the observation, its size and what would be right."""
    with pytest.raises(UserError) as refusal:
        Encoder(of, small(encoder=encoder))
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_batch_norm_learns_its_statistics_and_acts_on_them() -> None:
    """Training takes the batch's statistics; in eval mode a picture's embedding does not depend on its neighbours."""
    torch.manual_seed(0)
    of = spaces(image=(32, 32, 1))
    encoder = Encoder(of, small(encoder="strided", batch_norm=True))
    inputs = random_inputs(of, 30)
    alone = {"image": inputs["image"][:2]}
    assert not torch.allclose(encoder(inputs)[:2], encoder(alone))
    for _ in range(250):
        trained = encoder(inputs)
    encoder.eval()
    assert agree(encoder(inputs)[:2], encoder(alone))
    assert torch.allclose(encoder(inputs), trained, atol=0.1)


def test_a_learned_reward_deviation_stays_within_bounds() -> None:
    """Even an absurd feature gives a finite, positive deviation."""
    torch.manual_seed(0)
    head = RewardHead(6, small(reward_distribution="normal"))
    std = head(torch.randn(50, 6) * 1e6).std
    assert std.min() >= torch.tensor(-LOG_VARIANCE_BOUND / 2).exp() * 0.999
    assert std.max() <= torch.tensor(LOG_VARIANCE_BOUND / 2).exp() * 1.001
    assert std.std() > 0


def test_a_unit_normal_reward_has_deviation_one() -> None:
    """The deviation is 1 and the head has one output."""
    head = RewardHead(6, small(reward_distribution="unit_normal"))
    prediction = head(torch.randn(4, 3, 6))
    assert prediction.mean.shape == (4, 3)
    assert torch.equal(prediction.std, torch.ones(4, 3))
    assert head.output.out_features == 1


def test_the_continue_head_gives_probabilities() -> None:
    """The mean is a probability, and the log-probability of both outcomes sums to one."""
    prediction = ContinueHead(6, small())(torch.randn(4, 3, 6))
    yes, no = prediction.log_prob(torch.ones(4, 3)).exp(), prediction.log_prob(torch.zeros(4, 3)).exp()
    assert prediction.mean.shape == (4, 3)
    assert agree(yes, prediction.mean)
    assert agree(yes + no, torch.ones(4, 3))
