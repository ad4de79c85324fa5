"""The ResNet recipe at a tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from fractal_streams.recipes import resnet
from fractal_streams.recipes.data import opened
from fractal_streams.recipes.journal import read_records
from fractal_streams.recipes.models.classifiers import load_classifier, load_features
from fractal_streams.recipes.resnet import ResNetSettings


def test_it_learns_and_leaves_its_model(tmp_path: Path) -> None:
    settings = ResNetSettings(
        image_size=8, num_samples_per_class=1, num_steps=8, batch_size=10, record_every=1, eval_steps=1,
        warmup_steps=2, final_samples=40, lr_base=0.02, lr_embedding=0.02, device="cpu", quiet=True, folder=tmp_path,
    )  # fmt: skip
    result = resnet.run(settings)
    rows = read_records(tmp_path)
    print([row["loss"] for row in rows])
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    images = opened(settings, "test", "cpu").generate(range(3)).torch().images
    network, found = load_classifier(tmp_path), load_features(tmp_path)(images)
    with torch.no_grad():
        assert torch.allclose(network.fc(found), network(images), atol=1e-5)  # type: ignore[operator]
    assert found.shape == (3, 512)
    assert sum(weight.numel() for weight in network.parameters()) == result.weights
