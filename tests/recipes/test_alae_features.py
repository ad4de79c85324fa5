"""Features that pictures are compared by: random ones that stay, trained ones that know the stream's classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from fractal_streams.recipes.alae.features import (
    ClassifierFeatures,
    FeatureSettings,
    RandomFeatures,
    exact_products,
    features_of,
    opened_features,
    own_features,
    random_features,
)
from fractal_streams.recipes.alae.reconstruction import box, mean_colour
from fractal_streams.recipes.distance import frechet_distance
from fractal_streams.recipes.models.classifiers import features, save_classifier, vision_transformer
from torch.nn import functional

from fractal_streams import Batch, Stream, open_stream
from fractal_streams.errors import InvalidValueError
from fractal_streams.normalisation import channel_statistics

FORM: dict[str, Any] = {"device": "cpu", "height": 16, "width": 16, "dtype": "float32", "mean": 0.5, "std": 0.5}
TINY = FeatureSettings(
    embed_dim=16, depth=1, num_heads=2, num_steps=40, batch_size=32, warmup_steps=5, learning_rate=3e-3,
    record_every=20, checkpoint_every=20, device="cpu", quiet=True,
)  # fmt: skip


def normal(*shape: int, name: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(name))


class Lights(Stream):
    """Noise of two classes: dark and light."""

    seed, split, device, num_classes = 0, "train", "cpu", 2

    def generate(self, indices: Any) -> Batch:
        index = torch.tensor(list(indices), dtype=torch.int64)
        labels = index * 7 % 5 % 2
        noise = torch.stack([normal(3, 8, 8, name=int(i)) for i in index]) if len(index) else torch.zeros(0, 3, 8, 8)
        return Batch(index, (0.3 * noise + (labels - 0.5)[:, None, None, None]).clamp(-1, 1), labels, {})

    def digest(self) -> str:
        return "lights"


def test_random_features_are_those_of_their_seed_whatever_torch_draws() -> None:
    pictures = normal(3, 3, 16, 16).clamp(-1, 1)
    torch.manual_seed(0)
    one = random_features(0)(pictures)
    torch.manual_seed(1)
    assert torch.equal(one, random_features(0)(pictures)) and one.shape == (3, 448)
    assert not torch.allclose(one, random_features(1)(pictures))
    torch.testing.assert_close(one[1:2], random_features(0)(pictures[1:2]), rtol=1e-4, atol=1e-5)


def test_random_features_are_means_and_deviations_of_maps() -> None:
    network, pictures = random_features(3), normal(2, 3, 16, 16, name=1)
    maps, expected = pictures.double(), []
    for place in range(3):
        maps = maps if not place else maps.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
        weight, bias = (getattr(network, f"{name}_{place}").double() for name in ("weight", "bias"))
        rows = torch.cat([maps[:, :, :1], maps, maps[:, :, -1:]], dim=2)
        whole = torch.cat([rows[..., :1], rows, rows[..., -1:]], dim=3)
        maps = (functional.conv2d(whole, weight) + bias[:, None, None]).relu()
        expected += [maps.mean((2, 3)), maps.std((2, 3), correction=0)]
    torch.testing.assert_close(network(pictures).double(), torch.cat(expected, 1), rtol=1e-3, atol=2e-4)


def test_random_features_take_any_size_and_let_gradients_through() -> None:
    for edge in (1, 2, 8):
        pictures = normal(2, 3, edge, edge).requires_grad_()
        RandomFeatures()(pictures).square().sum().backward()
        assert pictures.grad is not None and bool(pictures.grad.isfinite().all()) and bool(pictures.grad.any())


def test_random_features_see_coarser_pictures_and_other_colours_more_than_fresh_ones() -> None:
    pictures = open_stream("fractal-10", **FORM).generate(range(400)).torch().images
    first, fresh = pictures[:200], pictures[200:]

    def apart(others: torch.Tensor) -> float:
        return frechet_distance(*(features_of(each, random_features()) for each in (first, others)))

    floor = apart(fresh)
    assert apart(box(fresh, 4)) > 2 * floor  # 4 x 4 boxes
    assert apart(fresh.flip(1)) > 1.5 * floor  # blue for red
    assert apart(mean_colour(fresh)) > 10 * floor


def test_pictures_are_clipped_before_they_are_compared() -> None:
    pictures = 3.0 * normal(5, 3, 8, 8)
    assert torch.equal(
        features_of(pictures, lambda each: each.flatten(1), batch_size=2), pictures.clamp(-1, 1).flatten(1).double()
    )


def test_the_precision_of_products_comes_back() -> None:
    was = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), exact_products(torch.device("cpu")):
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest")
        1 / 0
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == was


def test_a_classifier_gets_pictures_in_the_form_that_it_was_trained_on() -> None:
    """Pictures in [-1, 1] come to it as the stream of its own form makes them."""
    mean, std = channel_statistics("fractal-10")
    form = {**FORM, "mean": mean, "std": std}
    asked = open_stream("fractal-10", **form)[:4].torch().images
    signed = open_stream("fractal-10", **FORM)[:4].torch().images
    torch.manual_seed(0)
    network = vision_transformer(num_classes=3, image_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2).eval()
    found = ClassifierFeatures(network=network, mean=mean, std=std)(signed)
    torch.testing.assert_close(found, features(network, asked), rtol=1e-4, atol=1e-4)


def test_own_features_are_trained_once_and_tell_classes_apart(tmp_path: Path) -> None:
    found = own_features(Lights(), tmp_path, TINY)
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["steps"] == 40 and told["accuracy"] > 0.9
    batch = Lights().generate(range(1000, 1200))
    coded = found(batch.images)
    centres = torch.stack([coded[batch.labels == label].mean(0) for label in (0, 1)])
    assert float((torch.cdist(coded, centres).argmin(1) == batch.labels).float().mean()) > 0.9
    assert not any(weight.requires_grad for weight in found.network.parameters())
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    again = own_features(Lights(), tmp_path, TINY)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written
    assert torch.equal(again(batch.images), coded)
    other = Lights()
    other.digest = lambda: "others"  # type: ignore[method-assign]
    with pytest.raises(InvalidValueError, match="stream lights, not of others"):
        own_features(other, tmp_path, TINY)


def test_own_features_of_clips_are_of_their_first_frames(tmp_path: Path) -> None:
    stream = open_stream("fractal-video", **{**FORM, "height": 8, "width": 8}, frames=2, num_classes=2)
    settings = FeatureSettings(
        embed_dim=8, depth=1, num_heads=2, num_steps=2, batch_size=4, record_every=2, device="cpu", quiet=True
    )
    assert own_features(stream, tmp_path, settings)(torch.zeros(5, 3, 8, 8)).shape == (5, 8)


def test_a_classifier_of_other_pictures_is_refused(tmp_path: Path) -> None:
    form = {"num_classes": 2, "image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    network = vision_transformer(**form)
    save_classifier(tmp_path, network, "vision_transformer", form)
    assert opened_features(tmp_path, 8).mean == (0.5, 0.5, 0.5)
    (tmp_path / "result.json").write_text(json.dumps({"settings": {"preset": "fractal-10"}}))
    assert opened_features(tmp_path, 8).mean == channel_statistics("fractal-10")[0]
    with pytest.raises(InvalidValueError, match="of 8 pixels, these have 16"):
        opened_features(tmp_path, 16)
    with pytest.raises(InvalidValueError, match="holds no trained classifier"):
        opened_features(tmp_path / "none", 8)
    one_class = Lights()
    one_class.num_classes = 1
    with pytest.raises(InvalidValueError, match="one class"):
        own_features(one_class, tmp_path / "new", TINY)
