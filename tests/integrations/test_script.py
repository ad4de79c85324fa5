"""Running others' scripts: no edit, the same classes in every process, everything put back."""

from __future__ import annotations

import doctest
import multiprocessing
import os
import runpy
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
from warm import Warm

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from fractal_streams.integrations import script
from fractal_streams.integrations.script import run_script

from fractal_streams import open_stream
from fractal_streams.errors import DeviceError, InvalidValueError

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # a test process has threads

NAMES = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "ImageNet")

CIFAR_SCRIPT = """
import argparse, json, sys
import torch, torch.nn as nn, torch.optim as optim
import torchvision
import torchvision.transforms as transforms

parser = argparse.ArgumentParser(description="CIFAR10 training")
parser.add_argument("--lr", default=0.1, type=float)
parser.add_argument("--log")
args = parser.parse_args()
torch.manual_seed(0)

transform_train = transforms.Compose([
    transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
    transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
])
transform_test = transforms.Compose([
    transforms.ToTensor(), transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
])
trainset = torchvision.datasets.CIFAR10(root="./data", train=True, download=True, transform=transform_train)
trainloader = torch.utils.data.DataLoader(trainset, batch_size=32, shuffle=True, num_workers=2)
testset = torchvision.datasets.CIFAR10(root="./data", train=False, download=True, transform=transform_test)
testloader = torch.utils.data.DataLoader(testset, batch_size=100, shuffle=False, num_workers=0)

net = nn.Sequential(
    nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32),
    nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, len(trainset.classes)),
)
criterion = nn.CrossEntropyLoss()
optimizer = optim.SGD(net.parameters(), lr=args.lr, momentum=0.9, weight_decay=5e-4)
losses = []
net.train()
for batch_idx, (inputs, targets) in enumerate(trainloader):
    optimizer.zero_grad()
    loss = criterion(net(inputs), targets)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
net.eval()
with torch.no_grad():
    shown = [(inputs.shape, int(targets.max())) for inputs, targets in testloader]
with open(args.log, "w") as file:
    json.dump({"losses": losses, "train": len(trainset), "test": len(testset), "shown": str(shown[0])}, file)
sys.exit(4)
"""

ARRAY_SCRIPT = """
import json, sys
import numpy as np, torch, torch.nn.functional as F
from torchvision.datasets import CIFAR10

train, test = CIFAR10("cifar10", download=True, train=True), CIFAR10("cifar10", download=True, train=False)
images, labels = torch.tensor(train.data), torch.tensor(train.targets)
assert images.dtype == torch.uint8 and images.shape == (len(train), 32, 32, 3) and len(train.classes) == 10
images = (images.float() / 255).permute(0, 3, 1, 2)
mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
images = (images - mean) / std
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
optimizer = torch.optim.SGD(net.parameters(), lr=0.002, momentum=0.9, nesterov=True)
losses = []
for step in torch.randperm(len(images)).split(16) * 2:
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(net(images[step]), labels[step], label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
with open(sys.argv[1], "w") as file:
    json.dump({"losses": losses, "train": len(train), "sum": int(train.data.astype(np.int64).sum())}, file)
"""

MNIST_SCRIPT = """
import json, sys
import torch, torch.nn as nn, torch.nn.functional as F
from torchvision import datasets, transforms

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 2)
        self.fc = nn.Linear(8 * 13 * 13, 10)
    def forward(self, x):
        return F.log_softmax(self.fc(torch.flatten(F.relu(self.conv1(x)), 1)), dim=1)

def main():
    torch.manual_seed(1)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    dataset1 = datasets.MNIST("../data", train=True, download=True, transform=transform)
    dataset2 = datasets.MNIST("../data", train=False, transform=transform)
    loader = torch.utils.data.DataLoader(dataset1, batch_size=32, shuffle=True, num_workers=2)
    model, losses = Net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for data, target in loader:
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with open(sys.argv[1], "w") as file:
        json.dump({"losses": losses, "train": len(dataset1), "test": len(dataset2), "shape": list(data.shape)}, file)

if __name__ == "__main__":
    main()
"""

PROCESSES_SCRIPT = """
import sys
import torch, torchvision
from torchvision.datasets import CIFAR10

class Numbered(torchvision.datasets.CIFAR10):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return index, sum(image.getdata(0)), target

def main():
    dataset = Numbered("./data", train=True)
    torch.multiprocessing.set_start_method(sys.argv[1])
    rows = []
    for part in torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=int(sys.argv[3]), shuffle=True):
        rows += zip(*(column.tolist() for column in part))
    with open(sys.argv[2], "w") as file:
        file.write(repr(sorted(rows)))

if __name__ == "__main__":
    main()
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "main.py"
    path.write_text(text)
    return path


def log_of(path: Path) -> dict:
    return __import__("json").loads(path.read_text())


def falls(losses: list[float]) -> bool:
    third = len(losses) // 3
    return bool(np.mean(losses[-third:]) < 0.93 * np.mean(losses[:third]))


@pytest.fixture(autouse=True)
def everything_is_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    found = [(getattr(torchvision.datasets, name), sys.modules[getattr(torchvision.datasets, name).__module__])
             for name in NAMES]  # fmt: skip
    state = (sys.argv, list(sys.path), sys.modules["__main__"], multiprocessing.spawn.get_preparation_data)
    method, environment = multiprocessing.get_start_method(allow_none=True), dict(os.environ)
    yield
    for name, (original, home) in zip(NAMES, found, strict=True):
        assert getattr(torchvision.datasets, name) is getattr(home, name) is original
        assert original.__module__.startswith("torchvision.")
    assert (sys.argv, sys.path, sys.modules["__main__"], multiprocessing.spawn.get_preparation_data) == state
    assert multiprocessing.get_start_method(allow_none=True) == method
    assert {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"} == {
        name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"
    }
    assert not script._asked
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("edited", [False, True], ids=["by run", "by one changed import"])
def test_a_cifar_script_learns(edited: bool, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    if edited:
        text = CIFAR_SCRIPT.replace("import torchvision\n", "import torchvision\nfrom fractal_streams.integrations "
                                    "import torchvision as ours\n")  # fmt: skip
        text = text.replace("torchvision.datasets.CIFAR10(", "ours.FractalCIFAR10(length=960, ")
        with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit) as end:
            patched.setattr(sys, "argv", ["main.py", "--lr", "0.05", "--log", str(log)])
            method = multiprocessing.get_start_method(allow_none=True)
            runpy.run_path(str(written(tmp_path, text)), run_name="__main__")
        multiprocessing.set_start_method(method, force=True)
        assert end.value.code == 4
    else:
        path = written(tmp_path, CIFAR_SCRIPT)
        assert run_script(path, ["--lr", "0.05", "--log", str(log)], length=960, device="cpu") == 4
    found = log_of(log)
    assert falls(found["losses"]) and len(found["losses"]) == 30
    assert found["train"] == found["test"] == 960 and "torch.Size([100, 3, 32, 32])" in found["shown"]


def test_a_script_that_reads_the_arrays_learns_on_the_streams_pictures(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    assert run_script(written(tmp_path, ARRAY_SCRIPT), [str(log)], length=640, seed=3, device="cpu") == 0
    found = log_of(log)
    pictures = open_stream("fractal-10", seed=3, device="cpu").generate(range(640)).images
    assert found["sum"] == pictures.astype(np.int64).sum() and found["train"] == 640
    assert falls(found["losses"])


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_an_mnist_script_learns_from_one_channel(name: str, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    text = MNIST_SCRIPT.replace("datasets.MNIST", f"datasets.{name}")
    assert run_script(written(tmp_path, text), [str(log)], length=960, device="cpu") == 0
    found = log_of(log)
    assert falls(found["losses"]) and found["shape"] == [32, 1, 28, 28] and found["train"] == found["test"] == 960


@pytest.mark.parametrize("method, workers", [("fork", 2), ("spawn", 1)])  # which imports all anew, each by itself
def test_workers_of_any_kind_read_the_same_samples(method: str, workers: int, tmp_path: Path, warm: Warm) -> None:
    """Run where no threads are: the test's own process may have some, which a fork would not carry over."""
    log, path = tmp_path / "log.txt", written(tmp_path, PROCESSES_SCRIPT)
    asked = [method, str(log), str(workers)]
    program = (
        "from fractal_streams.integrations.script import run_script\n"
        f"if __name__ == '__main__':\n    run_script({str(path)!r}, {asked}, length=12, seed=5)\n"
    )
    starter = tmp_path / "start.py"
    starter.write_text(program)
    done = warm.run([str(starter)], cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    batch = open_stream("fractal-10", seed=5, device="cpu").generate(range(12))
    reds = batch.images[:, 0].astype(int).sum((1, 2)).tolist()
    assert eval(log.read_text()) == list(zip(range(12), reds, batch.labels.tolist(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_spelling_of_a_class_is_swapped(name: str, tmp_path: Path) -> None:
    home = getattr(torchvision.datasets, name).__module__
    text = (
        f"import sys, torchvision, torchvision.datasets as D, {home} as home\n"
        f"from torchvision.datasets import {name}\nfrom {home} import {name} as Again\n"
        f"original = getattr(D, '{name}')\n"
        f"assert torchvision.datasets.{name} is D.{name} is home.{name} is {name} is Again\n"
        f"dataset = {name}('data')\n"
        f"assert isinstance(dataset, {name}) and type(dataset).__name__ == '{name}'\n"
        f"assert (len(dataset), dataset.seed, dataset.device) == (9, 11, 'cpu'), len(dataset)\n"
        f"assert len({name}('data', length=5)) == 5 and {name}('data', seed=2).seed == 2\n"
    )
    original = getattr(torchvision.datasets, name)
    assert run_script(written(tmp_path, text), seed=11, length=9, device="cpu") == 0
    assert issubclass(getattr(script, name), original)


def test_without_a_length_a_dataset_is_as_long_as_the_original(tmp_path: Path) -> None:
    text = "from torchvision.datasets import CIFAR10 as C\nassert (len(C('d')), len(C('d', False))) == ({}, 10_000)"
    assert run_script(written(tmp_path, text.format(50_000))) == 0
    assert run_script(written(tmp_path, text.format(30_000)), length=30_000) == 0


def test_a_script_finds_its_neighbours_and_leaves_none_behind(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("VALUE = 7\n")
    path = written(tmp_path, "import sys, models\nassert __name__ == '__main__' and __file__ == sys.argv[0]\n"
                             "sys.exit(models.VALUE + len(sys.argv))")  # fmt: skip
    assert run_script(path, ["a", "b"]) == 10
    assert "models" not in sys.modules


@pytest.mark.parametrize("said, code", [("", 0), ("None", 0), ("0", 0), ("3", 3), ("'no data'", 1)])
def test_the_exit_code_is_the_scripts(said: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_script(written(tmp_path, f"import sys\nsys.exit({said})")) == code
    assert ("no data\n" in capsys.readouterr().err) == (said == "'no data'")


def test_a_script_finds_its_own_folder_wherever_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(
        tmp_path,
        "import os, pathlib, sys\nos.chdir('/')\n"
        "sys.exit(int((pathlib.Path(__file__).resolve().parent / 'code.txt').read_text()))\n",
    )
    (tmp_path / "code.txt").write_text("5")
    monkeypatch.chdir(tmp_path)
    assert run_script("main.py") == 5
    assert Path.cwd() == Path("/")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.txt").write_text("many")
    with pytest.raises(ValueError, match="many") as caught:
        run_script("main.py")
    own = script.own_traceback(caught.value, tmp_path / "main.py")
    assert own is not None and own.tb_lineno == 3


def test_a_failing_scripts_traceback_is_its_own(tmp_path: Path) -> None:
    text = "def inner():\n try:\n  {}['a']\n except KeyError:\n  raise ZeroDivisionError('mine')\ninner()\n"
    path = written(tmp_path, text)
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        run_script(path)
    shown = script.own_traceback(caught.value, path)
    assert [(frame.filename, frame.name) for frame in traceback.extract_tb(shown)] == [
        (str(path), "<module>"), (str(path), "inner"),
    ]  # fmt: skip
    assert isinstance(caught.value.__context__, KeyError) and not caught.value.__suppress_context__
    assert "runpy" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(SyntaxError):
        run_script(written(tmp_path, "def"))


def test_what_is_no_script_or_setting_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "raise SystemExit(9)")
    for wrong in (tmp_path / "none.py", tmp_path):
        with pytest.raises(InvalidValueError, match="no script at .*give the path"):
            run_script(wrong)
    with pytest.raises(InvalidValueError, match="list of words"):
        run_script(path, "--lr 1")
    for settings in ({"seed": -1}, {"length": 0}, {"length": 1.5}, {"device": "gpu"}):
        with pytest.raises(InvalidValueError, match=next(iter(settings))):
            run_script(path, **settings)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError):
            run_script(path, device="cuda")


def test_the_example_runs() -> None:
    assert doctest.testmod(script).failed == 0 < doctest.testmod(script).attempted
