"""The notebook's training loop, the yardstick: its settings are kept on purpose, the slow ones included.

    python benchmarks/notebook_loop.py --data DIR --teacher FILE --epochs 15      a line of JSON per epoch

Images are PIL objects augmented one at a time in the training process, batches are of 4, the teacher runs on every
batch of training and validation, AdamW at 1e-3 has no schedule, temperature 20 and alpha 0.5, and the C library's
allocator is as it comes. The network pools after the activation, as the notebook's does.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from toolkit.data.dataset import Images
from toolkit.data.sources import load_dataset
from toolkit.machine.devices import pick_device
from toolkit.machine.limits import available_cores
from toolkit.networks import registry
from toolkit.networks.depthwise import DepthwiseStudent
from toolkit.networks.tensor_files import read_tensors
from toolkit.networks.weights import load_into
from toolkit.recipe import Recipe

BATCH_SIZE = 4
LEARNING_RATE = 1e-3
TEMPERATURE = 20.0
ALPHA = 0.5
ROTATION_DEGREES = 15


@dataclass(frozen=True)
class Epoch:
    """`seconds` since training began, validation included; `train_img_s` is of the training pass alone."""

    epoch: int
    valid_accuracy: float
    train_img_s: float
    seconds: float


class PictureSet(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Images, transform: transforms.Compose, device: str) -> None:
        self._pictures: list[Image.Image] = [images.read(i).convert("RGB") for i in range(len(images))]
        self._labels = images.labels.tolist()
        self._transform, self._device = transform, device

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self._transform(self._pictures[i]).to(self._device), torch.tensor(self._labels[i], device=self._device)


class NotebookLoop:
    """Trains the student from `teacher`, a network of images in 0..1; `epochs()` yields after each epoch."""

    def __init__(
        self, train: Images, valid: Images, teacher: nn.Module, num_classes: int, size: int, device: str
    ) -> None:
        torch.manual_seed(0)
        crop = transforms.RandomCrop(size, pad_if_needed=True, padding_mode="symmetric")
        turn = transforms.RandomRotation(ROTATION_DEGREES)
        augment = transforms.Compose([crop, transforms.RandomHorizontalFlip(), turn, transforms.ToTensor()])
        centre = transforms.Compose([transforms.CenterCrop(size), transforms.ToTensor()])
        self._train = DataLoader(PictureSet(train, augment, device), batch_size=BATCH_SIZE, shuffle=True)
        self._valid = DataLoader(PictureSet(valid, centre, device), batch_size=BATCH_SIZE)
        self._teacher = teacher.eval().to(device)
        self._student = build_student(num_classes).to(device)
        self._optimizer = torch.optim.AdamW(self._student.parameters(), lr=LEARNING_RATE)

    def epochs(self, count: int) -> Iterator[Epoch]:
        start = time.perf_counter()
        for number in range(count):
            began = time.perf_counter()
            self._student.train()
            for images, labels in self._train:
                loss, _ = self._loss(images, labels)
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()
                loss.item()  # the notebook reads the loss of every batch
            training_s = time.perf_counter() - began
            self._student.eval()
            hits = 0
            with torch.no_grad():
                for images, labels in self._valid:
                    _, logits = self._loss(images, labels)
                    hits += int((logits.argmax(1) == labels).sum().item())
            images_s = len(self._train.dataset) / training_s
            yield Epoch(number, hits / len(self._valid.dataset), images_s, time.perf_counter() - start)

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            soft = F.softmax(self._teacher(images) / TEMPERATURE, dim=1)
        logits = self._student(images)
        divergence = F.kl_div(F.log_softmax(logits / TEMPERATURE, dim=1), soft, reduction="batchmean")
        return ALPHA * TEMPERATURE**2 * divergence + (1 - ALPHA) * F.cross_entropy(logits, labels), logits


def build_student(num_classes: int) -> DepthwiseStudent:
    """The toolkit's student with the first block in the notebook's order: the activation before the pooling."""
    student = DepthwiseStudent(num_classes)
    convolution, norm, pooling, activation = student.cnn[0]
    student.cnn[0] = nn.Sequential(convolution, norm, activation, pooling)
    return student


def subset(images: Images, count: int) -> Images:
    """`count` images spread evenly over the split."""
    step = len(images) / count
    return images.subset([int(i * step) for i in range(count)])


def main() -> None:
    options = _parse()
    torch.set_num_threads(available_cores())
    recipe = Recipe().with_overrides([f"data.source={json.dumps(str(options.data))}"])
    dataset = load_dataset(recipe.data)
    train = subset(dataset.train, min(options.images, len(dataset.train))) if options.images else dataset.train
    valid = subset(dataset.valid, 8) if options.images else dataset.valid
    teacher = registry.build("resnet18", len(dataset.classes))
    if options.teacher:
        load_into(teacher, read_tensors(options.teacher), options.teacher, len(dataset.classes))
    loop = NotebookLoop(train, valid, teacher, len(dataset.classes), options.size, pick_device(options.device))
    epochs = loop.epochs(options.epochs)
    while not options.wait or sys.stdin.readline():
        epoch = next(epochs, None)
        if epoch is None:
            return
        sys.stdout.write(json.dumps(asdict(epoch)) + "\n")
        sys.stdout.flush()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a directory of images that toolkit data can read")
    parser.add_argument("--teacher", type=Path, help="a resnet18 state dict for images in 0..1; absent: a random one")
    parser.add_argument("--size", type=int, default=256, help="px")
    parser.add_argument("--images", type=int, default=0, help="of the training split, and 8 for validation; 0: all")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--wait", action="store_true", help="for a line on standard input before each epoch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
