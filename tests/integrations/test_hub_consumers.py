"""Real consumers of datasets, each in a process of its own and without a network: the loss must fall below chance.

The scripts do what timm's, transformers' and diffusers' own training scripts do with a dataset's path, and
import nothing of this package; the last ones take what `fractal_streams.load_dataset` gives.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

pytest.importorskip("datasets")
pytest.importorskip("torch")

from fractal_streams.integrations.stub import write_stub

CHANCE = math.log(10)
NETWORK = """
import json, statistics, sys
import torch

def network():
    torch.manual_seed(0)
    def block(inner, outer):
        convolution = torch.nn.Conv2d(inner, outer, 3, 2, 1)
        return torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(outer), torch.nn.ReLU())
    return torch.nn.Sequential(block(3, 32), block(32, 64), torch.nn.Flatten(), torch.nn.Linear(64 * 16, 10))

def train(loader, model, losses):
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for images, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        losses.append(loss.item())

def report(losses, **more):
    print(json.dumps({"first": statistics.mean(losses[:5]), "last": statistics.mean(losses[-10:]),
                      "steps": len(losses), **more}))
"""

TIMM = """
from timm.data import create_dataset, create_loader
for name, workers in (("hfds", 0), ("hfids", 4)):
    dataset = create_dataset(f"{name}/{sys.argv[1]}", root=None, split="train", is_training=True, batch_size=32)
    loader = create_loader(dataset, input_size=(3, 16, 16), batch_size=32, is_training=True, use_prefetcher=False,
                           num_workers=workers, no_aug=True, mean=(0.5,) * 3, std=(0.5,) * 3,
                           persistent_workers=False)
    losses = []
    train(loader, network(), losses)
    report(losses, samples=len(dataset))
"""

IMAGE_CLASSIFICATION = """
from datasets import load_dataset
from torchvision.transforms import Compose, Normalize, ToTensor
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
dataset = load_dataset(sys.argv[1])
columns = dataset["train"].column_names
assert "image" in columns and "label" in columns, columns
labels = dataset["train"].features["label"].names
split = dataset["train"].train_test_split(0.15, seed=0)
transforms = Compose([ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])

def transformed(batch):
    return {"pixel_values": [transforms(image.convert("RGB")) for image in batch["image"]], "label": batch["label"]}

for part in split.values():
    part.set_transform(transformed)

def collated(rows):
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["label"] for row in rows])}

torch.manual_seed(0)
model = ViTForImageClassification(ViTConfig(
    image_size=16, patch_size=4, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
    num_labels=len(labels), id2label=dict(enumerate(labels)), label2id={name: k for k, name in enumerate(labels)}))
arguments = TrainingArguments(output_dir=sys.argv[2], num_train_epochs=2, per_device_train_batch_size=32, use_cpu=True,
    learning_rate=3e-3, logging_steps=1, report_to=[], save_strategy="no", remove_unused_columns=False, seed=0)
trainer = Trainer(model=model, args=arguments, train_dataset=split["train"].shuffle(seed=0),
                  eval_dataset=split["test"], data_collator=collated)
trainer.train()
losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
report(losses, samples=len(split["train"]) + len(split["test"]), eval=trainer.evaluate()["eval_loss"])
"""

UNCONDITIONAL = """
from datasets import load_dataset
from diffusers import DDPMScheduler, UNet2DModel
from torchvision import transforms
dataset = load_dataset(sys.argv[1], None, cache_dir=sys.argv[2], split="train")
augmentations = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(16), transforms.RandomHorizontalFlip(),
                                    transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])

def transform_images(examples):
    return {"input": [augmentations(image.convert("RGB")) for image in examples["image"]]}

dataset.set_transform(transform_images)
loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True, num_workers=0)
torch.manual_seed(0)
model = UNet2DModel(sample_size=16, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
                    down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"))
schedule = DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
losses = []
for batch in loader:
    clean = batch["input"]
    noise, steps = torch.randn(clean.shape), torch.randint(0, 1000, (len(clean),))
    loss = torch.nn.functional.mse_loss(model(schedule.add_noise(clean, noise, steps), steps).sample, noise)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(loss.item())
assert len(losses) == len(loader)
report(losses, samples=len(dataset))
"""

TRAINER = """
from fractal_streams import load_dataset
from transformers import Trainer, TrainingArguments

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()
    def forward(self, images, labels):
        logits = self.inner(images.float() / 127.5 - 1)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

def only(batches):
    return {"images": batches[0]["images"], "labels": batches[0]["labels"]}

def stacked(rows):
    return {"images": torch.stack([row["image"] for row in rows]),
            "labels": torch.stack([row["label"] for row in rows])}

def learn(dataset, size, collated):
    arguments = TrainingArguments(output_dir=sys.argv[1], max_steps=50, per_device_train_batch_size=size,
        learning_rate=3e-3, logging_steps=1, report_to=[], save_strategy="no", remove_unused_columns=False,
        use_cpu=True)
    trainer = Trainer(model=Model(), args=arguments, data_collator=collated, train_dataset=dataset)
    trainer.train()
    report([line["loss"] for line in trainer.state.log_history if "loss" in line])

asked = dict(split="train", device="cpu", height=16, width=16)
learn(load_dataset("fractal-10", format="tensor", batch_size=32, **asked), 1, only)
learn(load_dataset("fractal-10", **asked).with_format("torch"), 32, stacked)
"""


def run(warm: Warm, script: str, *arguments: str, folder: Path) -> list[dict[str, Any]]:
    """A script's reports, run in an empty folder with caches of its own and every connection refused."""
    place = folder / "empty"
    place.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "RANK", "WORLD_SIZE"))}
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    caches = {"HF_HOME": str(folder / "hf"), "TORCH_HOME": str(folder / "torch"), "OMP_NUM_THREADS": "1"}
    assert script is TRAINER or "fractal_streams" not in script
    command = ["-c", NETWORK + script, *arguments]
    done = warm.run(command, cwd=place, env={**kept, **nowhere, **caches}, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"first"')]
    print(found)
    return found


def stub(folder: Path, samples: int) -> str:
    splits = {"train": samples, "validation": 64, "test": 64}
    return str(write_stub(folder / "stub", "fractal-10", splits=splits, height=16, width=16).parent)


def test_timm(tmp_path: Path, warm: Warm) -> None:
    pytest.importorskip("timm")
    whole, in_workers = run(warm, TIMM, stub(tmp_path, 1600), folder=tmp_path)
    assert (whole["steps"], whole["samples"]) == (50, 1600)
    assert (in_workers["steps"], in_workers["samples"]) == (52, 32 * 52)  # each of 4 workers has 13 batches
    for found in (whole, in_workers):
        assert found["last"] < 0.85 * CHANCE < found["first"]


def test_image_classification_with_transformers(tmp_path: Path, warm: Warm) -> None:
    pytest.importorskip("transformers")
    (found,) = run(warm, IMAGE_CLASSIFICATION, stub(tmp_path, 1200), str(tmp_path / "out"), folder=tmp_path)
    assert found["samples"] == 1200 and found["steps"] == 64
    assert found["last"] < 0.9 * CHANCE and found["eval"] < 0.95 * CHANCE


@pytest.mark.slow
def test_unconditional_generation_with_diffusers(tmp_path: Path, warm: Warm) -> None:
    pytest.importorskip("diffusers")
    (found,) = run(warm, UNCONDITIONAL, stub(tmp_path, 1600), str(tmp_path / "cache"), folder=tmp_path)
    assert found["steps"] == 50 and found["samples"] == 1600
    assert found["last"] < 0.5 < 0.7 < found["first"]


def test_trainer_on_an_endless_stream_of_ready_batches_and_of_images(tmp_path: Path, warm: Warm) -> None:
    pytest.importorskip("transformers")
    batches, images = run(warm, TRAINER, str(tmp_path / "out"), folder=tmp_path)
    for found in (batches, images):
        assert found["steps"] == 50 and found["last"] < 0.85 * CHANCE
