import gzip
import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import abc_toolkit
from abc_toolkit.errors import UserError
from abc_toolkit.models.base import Architecture
from abc_toolkit.models.patches import PatchConvolution
from abc_toolkit.models.transformer import EncoderOnly
from abc_toolkit.phases import measure
from abc_toolkit.positions import AlgebraicPE, Learned, NoPE, PositionMethod, RoPE, Sinusoidal2D
from abc_toolkit.runs.folder import Run, build_model
from abc_toolkit.tasks import ImageClassification
from abc_toolkit.tasks.base import TRAINING, Batch, Interface
from abc_toolkit.tasks.objective import ClassCrossEntropy
from abc_toolkit.tasks.structures.grid import grid_of, patches_of
from abc_toolkit.tasks.structures.image_files import read_images
from abc_toolkit.testing.task_contract import TaskContract
from abc_toolkit.training.data import Data, validation_problems
from abc_toolkit.training.loop import TrainerSettings
from abc_toolkit.training.module import Optimizer
from abc_toolkit.training.optimizers import layer_matrices

Abc = Callable[..., tuple[int, str, str]]
Image = list[list[int]]  # rows of grey values
TINY = (
    *("--model.backbone", "encoder-only", "--model.num_encoder_layers", "1", "--model.model_dim", "8"),
    *("--model.num_heads", "2", "--model.feedforward_dim", "8", "--trainer.max_steps", "2"),
    *("--trainer.validate_every", "2", "--trainer.accelerator", "cpu", "--data.validation_problems", "8"),
    *("--data.batch_size", "4"),
)


def drawn(count: int, height: int, width: int, seed: int) -> tuple[list[Image], list[int]]:
    """Images of random pixels, with random classes of three, as nested lists."""
    draw = random.Random(seed)
    images = [[[draw.randrange(256) for _ in range(width)] for _ in range(height)] for _ in range(count)]
    return images, [draw.randrange(3) for _ in range(count)]


def idx_of(content: Any) -> bytes:
    """An IDX file of nested lists of bytes, by the format's description: magic number, sizes, values in C order."""
    shape, level = [], content
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0]

    def values(part: Any) -> bytes:
        return b"".join(map(values, part)) if isinstance(part, list) else struct.pack("B", part)

    return struct.pack(">BBBB", 0, 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape) + values(content)


def write_idx(
    folder: Path, train: int = 90, test: int = 40, size: tuple[int, int] = (8, 11), zipped: bool = False
) -> Path:
    """A folder of IDX files with random images."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (start, count) in enumerate((("train", train), ("t10k", test))):
        images, labels = drawn(count, *size, seed)
        for name, content in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{start}-{name}-ubyte"
            if zipped:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx_of(content)))
            else:
                path.write_bytes(idx_of(content))
    return folder


def write_cifar(folder: Path, each: int = 12, test: int = 34) -> Path:
    """A folder of CIFAR-10's binary batches with random images."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        records = (bytes([draw.randrange(10)]) + draw.randbytes(3072) for _ in range(each if number < 5 else test))
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("images")
    return {
        "idx": write_idx(root / "idx"),
        "zipped": write_idx(root / "zipped", size=(5, 5), zipped=True),
        "cifar": write_cifar(root / "cifar"),
    }


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class TestImages(TaskContract):
    # Folders by name: a case is made before there are any.
    cases = {  # noqa: RUF012
        "grey, 8x11 pixels": ImageClassification(Path("idx"), classes=3, held_out=40),
        "of one token": ImageClassification(Path("zipped"), classes=3, held_out=40),
        "augmented": ImageClassification(Path("idx"), classes=3, held_out=40, crop_padding=2, flip=True),
        "colour": ImageClassification(Path("cifar"), held_out=34),
    }

    @pytest.fixture
    def task(self, case: ImageClassification, folders: dict[str, Path]) -> ImageClassification:
        settings = {name: getattr(case, name) for name in ("classes", "held_out", "crop_padding", "flip")}
        return ImageClassification(folders[str(case.path)], **settings)


# The files.


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("size", [(5, 5), (6, 9)])
def test_idx_files_are_read_back(zipped: bool, size: tuple[int, int], tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "a", 7, 3, size, zipped)
    for seed, part in enumerate(read_images(folder, 3)):
        images, labels = drawn(len(part), *size, seed)
        assert part.pixels[:, 0].tolist() == images
        assert part.labels.tolist() == labels


def test_cifars_batches_are_read_back(folders: dict[str, Path]) -> None:
    train, test = read_images(folders["cifar"], 10)
    assert (len(train), len(test)) == (60, 34)
    content = (folders["cifar"] / "data_batch_2.bin").read_bytes()
    for number in range(12):
        record = content[3073 * number : 3073 * (number + 1)]
        image = train.pixels[12 + number]
        assert train.labels[12 + number] == record[0]
        for channel, row, column in ((0, 0, 0), (0, 0, 31), (1, 4, 7), (2, 31, 30)):
            assert image[channel, row, column] == record[1 + 1024 * channel + 32 * row + column]


IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
BROKEN: dict[str, tuple[str, str, Callable[[bytes], bytes | None], str]] = {
    "no images": ("idx", IMAGES, lambda _: None, f"lacks {IMAGES}, or .*gz; for Fashion-MNIST, 'apt-get install "),
    "no labels": ("idx", LABELS, lambda _: None, f"lacks {LABELS}, or .*apt-get install dataset-fashion-mnist"),
    "empty": ("idx", IMAGES, lambda _: b"", f"{IMAGES} is empty: get the file again"),
    "a header alone": ("idx", IMAGES, lambda content: content[:9], f"{IMAGES} is truncated, 9 of "),
    "truncated": ("idx", IMAGES, lambda content: content[:-1], f"{IMAGES} is truncated, 7,935 of 7,936 bytes"),
    "too long": ("idx", LABELS, lambda content: content + b"0", f"{LABELS} is too long, 49 bytes in place of 48"),
    "labels for images": ("idx", IMAGES, lambda _: idx_of([1]), "begins with 0x00000801 in place of 0x00000803"),
    "text": ("idx", LABELS, lambda _: b"some text", "begins with 0x736f6d65 in place of 0x00000801"),
    "a great size": ("idx", IMAGES, lambda c: c[:4] + 3 * b"\xff\xff\xff\xff", f"{IMAGES} is truncated, 16 of "),
    "zero images": ("idx", LABELS, lambda c: c[:4] + bytes(4), f"{LABELS} holds no images"),
    "fewer labels": ("idx", LABELS, lambda _: idx_of([1, 2]), "t10k-.* hold 40 images and 2 labels: take both"),
    "a label too many": ("idx", LABELS, lambda c: c[:-1] + b"\x03", "a label 3, .*from 0 to 2: raise --task.classes"),
    "other sizes": ("idx", IMAGES, lambda _: idx_of(drawn(90, 7, 7, 0)[0]), "different sizes, 7x7 and 8x11 pixels"),
    "both formats": ("idx", "data_batch_1.bin", lambda _: b"", "holds both IDX files and CIFAR-10's batches"),
    "a truncated gzip": ("zipped", f"{IMAGES}.gz", lambda c: c[:-9], f"{IMAGES}.gz is truncated: get the file again"),
    "no gzip": ("zipped", f"{IMAGES}.gz", lambda _: b"some text", f"{IMAGES}.gz cannot be read .*ot a gzipped file"),
    "a damaged gzip": ("zipped", f"{IMAGES}.gz", lambda c: c[:20] + bytes(20) + c[40:], f"{IMAGES}.gz cannot be read"),
    "a batch missing": ("cifar", "data_batch_3.bin", lambda _: None, "lacks data_batch_3.bin; .*kriz/cifar.html"),
    "an empty batch": ("cifar", "test_batch.bin", lambda _: b"", "test_batch.bin is empty"),
    "a truncated batch": ("cifar", "data_batch_5.bin", lambda c: c[:-5], "is truncated, 36,871 of 36,876 bytes"),
    "a damaged batch": ("cifar", "test_batch.bin", lambda c: b"\x0a" + c[1:], "a label 10, .* from 0 to 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    kind, file, change, said = BROKEN[name]
    folder = tmp_path / "images"
    if kind == "cifar":
        write_cifar(folder)
    else:
        write_idx(folder, zipped=kind == "zipped")
    path = folder / file
    changed = change(path.read_bytes() if path.exists() else b"")
    path.unlink(missing_ok=True)
    if changed is not None:
        path.write_bytes(changed)
    with pytest.raises(UserError, match=said) as refused:
        read_images(folder, 10 if kind == "cifar" else 3)
    assert len(str(refused.value).splitlines()) == 1
    assert str(folder) in str(refused.value)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    for folder, said in (
        (tmp_path / "none", "there is no such folder; for Fashion-MNIST"),
        (tmp_path, "holds no images"),
    ):
        with pytest.raises(UserError, match=said) as refused:
            read_images(folder, 10)
        assert "apt-get install dataset-fashion-mnist" in str(refused.value)
        assert "https://www.cs.toronto.edu/~kriz/cifar.html" in str(refused.value)
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x04N.")  # a pickle
    with pytest.raises(UserError, match="version for Python, whose files could execute code: take the binary version"):
        read_images(tmp_path, 10)
    (tmp_path / "data_batch_1.bin").mkdir()
    with pytest.raises(UserError, match=r"data_batch_1.bin is not a file"):
        read_images(tmp_path, 10)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"classes": 1}, "--task.classes 1: give at least 2"),
        ({"held_out": 0}, "--task.held_out 0: give at least 1"),
        ({"crop_padding": -1}, "--task.crop_padding -1: give at least 0 and at most 100"),
        ({"label_smoothing": 1}, "--task.label_smoothing 1: give at least 0 and less than 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        ImageClassification(Path("nowhere"), **settings)


def test_what_does_not_go_with_the_images_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--task.held_out 90: .*has 90 training images: hold out fewer"):
        ImageClassification(folders["idx"], classes=3, held_out=90).training_shapes()
    small = write_idx(tmp_path / "small", size=(4, 9))
    with pytest.raises(UserError, match="images of 4x9 pixels are too small: give at least 5x5"):
        ImageClassification(small, classes=3, held_out=9).training_shapes()


# What is drawn.


@pytest.fixture
def images(folders: dict[str, Path]) -> ImageClassification:
    return ImageClassification(folders["idx"], classes=3, held_out=40)


def rows_of(inputs: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in inputs.flatten(1).tolist()}


def test_a_suite_is_drawn_without_repetition_and_kept_out_of_training(images: ImageClassification) -> None:
    generator = torch.Generator().manual_seed(3)
    test, held = (rows_of(images.sample(generator, 40, (3,), suite).inputs) for suite in images.suites)
    assert images.num_samples == len(test) == len(held) == 40
    trained = rows_of(images.sample(generator, 2000, (3,)).inputs)
    assert len(trained) == 50
    assert not trained & held
    assert not trained & test
    again = ImageClassification(images.path, classes=3, held_out=40)
    validated = validation_problems(again, 1, 40)
    assert rows_of(torch.cat([batch.inputs for batch in validated])) == held
    for suite in images.suites:
        with pytest.raises(UserError, match=f"there are 40 problems of length .* in {suite}: choose at most 40"):
            images.sample(generator, 41, (3,), suite)


def test_an_evaluation_in_pieces_meets_every_test_image_once(
    images: ImageClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_TOKENS_DRAWN", 45)
    batches = list(measure.evaluation_problems(images, 3, "test", 40, seed=0))
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 7, 5]
    assert len(rows_of(torch.cat([batch.inputs for batch in batches]))) == 40
    fewer = list(measure.evaluation_problems(images, 3, "test", 11, seed=1))
    assert len(rows_of(torch.cat([batch.inputs for batch in fewer]))) == 11


def test_pixels_are_standardised_by_what_is_trained_on(folders: dict[str, Path]) -> None:
    task = ImageClassification(folders["cifar"], held_out=10)
    store = task._store
    pixels = store.parts[TRAINING].pixels.double()
    assert len(pixels) == 50
    for channel in range(3):
        assert store.mean[channel].item() == pytest.approx(pixels[:, channel].mean().item(), rel=1e-6)
        deviation = pixels[:, channel].std(correction=0).item()
        assert store.deviation[channel].item() == pytest.approx(deviation, rel=1e-6)
    batch = task.sample(torch.Generator().manual_seed(0), 34, (10,), "test")
    row = torch.randperm(34, generator=torch.Generator().manual_seed(0))[0]
    first = store.parts["test"].pixels[row].double()
    expected = (first[:, :5, :5] - store.mean.double()) / store.deviation.double()  # the patch of the first token
    torch.testing.assert_close(batch.inputs[0, 0].double(), expected.flatten(), atol=1e-5, rtol=0)


def test_crops_and_mirror_images_are_of_the_training_images_alone(folders: dict[str, Path]) -> None:
    """Of each drawn image, the one that it was made of is found among all crops of all padded images."""
    plain = ImageClassification(folders["zipped"], classes=3, held_out=85)
    task = ImageClassification(folders["zipped"], classes=3, held_out=85, crop_padding=1, flip=True)
    store = task._store
    made: dict[tuple[float, ...], list[tuple[int, int, int, bool]]] = {}
    for number, image in enumerate(store.parts[TRAINING].pixels[:, 0].tolist()):
        padded = [[0] * 7, *([0, *row, 0] for row in image), [0] * 7]
        for down in range(3):
            for right in range(3):
                crop = [row[right : right + 5] for row in padded[down : down + 5]]
                for mirrored in (False, True):
                    pixels = tuple(value for row in crop for value in (reversed(row) if mirrored else row))
                    made.setdefault(pixels, []).append((number, down, right, mirrored))
    batch = task.sample(torch.Generator().manual_seed(0), 1500, (1,))
    pixels = (batch.inputs[:, 0] * store.deviation.item() + store.mean.item()).round().int().tolist()
    found = [made[tuple(row)] for row in pixels]
    assert all(len(origins) == 1 for origins in found)
    assert {origins[0] for origins in found} == {origin for origins in made.values() for origin in origins}
    labels = [store.parts[TRAINING].labels[origins[0][0]].item() for origins in found]
    assert batch.targets[:, 0].tolist() == labels
    for suite in task.suites:
        same = (own.sample(torch.Generator().manual_seed(0), 30, (1,), suite).inputs for own in (plain, task))
        assert torch.equal(*same)


def test_other_lengths_are_refused(images: ImageClassification) -> None:
    assert images.grid == (2, 3)
    assert images.lengths("1x") == images.lengths("3") == [3]
    for spec in ("2x", "1x,2x", "1"):
        with pytest.raises(UserError, match=r"are 2x3 tokens, and there are no others: give --length 1x"):
            images.lengths(spec)
    with pytest.raises(UserError, match="no problems of shape 3x3"):
        images.lengths("3x3")


def test_tokens_lie_on_a_grid(images: ImageClassification) -> None:
    source = images.layout((3,)).source
    assert source.names == ("image",)
    assert source.coordinate("x").tolist() == [0, 0, 0, 1, 1, 1]
    assert source.coordinate("y").tolist() == [0, 1, 2, 0, 1, 2]


# The model.


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 32), (2, 5, 5), (1, 12, 8)])
def test_patches_give_what_convolution_and_pooling_give(channels: int, height: int, width: int) -> None:
    read_in = PatchConvolution(channels, 7).double()
    images = torch.randn(3, channels, height, width, dtype=torch.float64)
    pooled = functional.max_pool2d(functional.conv2d(images, read_in.weight).relu(), 3)
    assert grid_of(height, width) == pooled.shape[2:]
    patches = patches_of(images)
    assert patches.shape == (3, pooled[0, 0].numel(), channels * 25)
    torch.testing.assert_close(read_in(patches), pooled.flatten(2).mT, atol=1e-12, rtol=0)


def test_gradients_are_those_of_convolution_and_pooling() -> None:
    read_in = PatchConvolution(3, 7).double()
    images, wanted = torch.randn(3, 3, 14, 11, dtype=torch.float64), torch.randn(3, 12, 7, dtype=torch.float64)
    pooled = functional.max_pool2d(functional.conv2d(images, read_in.weight).relu(), 3).flatten(2).mT
    ours, theirs = (
        torch.autograd.grad((stream * wanted).sum(), read_in.weight)[0]
        for stream in (read_in(patches_of(images)), pooled)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_a_pooled_encoder_begins_as_the_mean_and_can_choose_a_token() -> None:
    architecture = Architecture(num_encoder_layers=1, model_dim=8, num_heads=2, backbone="encoder-only")
    model = EncoderOnly(Interface(num_outputs=3, num_tokens=2, pooled=True), architecture)
    x = torch.randn(4, 6, 8)
    torch.testing.assert_close(model.pool(x), x.mean(dim=1, keepdim=True))
    with torch.no_grad():
        model.gate[0] = 1e4
    largest = x[..., 0].argmax(dim=1)
    torch.testing.assert_close(model.pool(x)[:, 0], x[torch.arange(4), largest])
    with torch.no_grad():
        model.gate.copy_(torch.randn(8))
    weights = torch.stack([torch.exp(x[:, token] @ model.gate) for token in range(6)], dim=1)
    expected = sum(weights[:, token, None] * x[:, token] for token in range(6)) / weights.sum(dim=1, keepdim=True)
    torch.testing.assert_close(model.pool(x)[:, 0], expected)


def test_muon_trains_neither_the_read_in_nor_the_gate(images: ImageClassification) -> None:
    architecture = Architecture(num_encoder_layers=1, model_dim=8, num_heads=2, backbone="encoder-only")
    model = build_model(images, architecture, None)
    assert isinstance(model, EncoderOnly)
    trained = {id(matrix) for matrix in layer_matrices(model)}
    assert trained
    assert not trained & {id(model.gate), id(model.embedding.weight), id(model.output.weight)}


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothed_labels_are_a_mixture_with_equal_ones(smoothing: float) -> None:
    outputs, targets = torch.randn(5, 1, 3, dtype=torch.float64), torch.tensor([[0], [2], [1], [1], [0]])
    wanted = torch.full((5, 3), smoothing / 3, dtype=torch.float64)
    wanted[torch.arange(5), targets[:, 0]] += 1 - smoothing
    expected = -(wanted * outputs[:, 0].log_softmax(dim=-1)).sum(dim=1).mean()
    batch = Batch((1,), outputs, targets)
    torch.testing.assert_close(ClassCrossEntropy(smoothing).loss(outputs, batch), expected)
    accuracy = ClassCrossEntropy(smoothing).measured(outputs, batch)["accuracy"]
    assert accuracy.tolist() == [row[0].argmax() == label[0] for row, label in zip(outputs, targets, strict=True)]


@pytest.mark.parametrize(
    "method", [AlgebraicPE("grid"), Sinusoidal2D(), Learned(), NoPE(), RoPE()], ids=lambda method: type(method).__name__
)
def test_a_colour_is_learned_with_every_method(method: PositionMethod, tmp_path: Path) -> None:
    """Images of two kinds, dark and bright: fitted, resumed by its record, evaluated on all test images."""
    for seed, (start, count) in enumerate((("train", 200), ("t10k", 50))):
        images, _ = drawn(count, 8, 8, seed)
        classes = [number % 2 for number in range(count)]
        shaded = [
            [[value // 2 + 128 * bright for value in row] for row in image]
            for image, bright in zip(images, classes, strict=True)
        ]
        (tmp_path / f"{start}-images-idx3-ubyte").write_bytes(idx_of(shaded))
        (tmp_path / f"{start}-labels-idx1-ubyte").write_bytes(idx_of(classes))
    fitted = abc_toolkit.fit(
        ImageClassification(tmp_path, classes=2, held_out=50),
        run=tmp_path / "run",
        model=Architecture(1, model_dim=16, num_heads=2, feedforward_dim=16, backbone="encoder-only", position=method),
        data=Data(batch_size=16, validation_problems=50),
        optimizer=Optimizer(learning_rate=0.01, warmup_steps=10, averaging=0.9),
        trainer=TrainerSettings(max_steps=60, validate_every=60, accelerator="cpu"),
    )
    assert fitted.trained.validated_on == 50
    assert fitted.trained.metrics == {"accuracy": 1.0}
    rows = abc_toolkit.evaluate(run=tmp_path / "run", length="1x").rows
    assert [(row.suite, row.metric, row.value, row.samples, row.length) for row in rows] == [
        ("test", "accuracy", 1.0, 50, 2)
    ]


# The command line.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--task.path", "nowhere"),
            "--task.path nowhere: there is no such folder; for Fashion-MNIST, 'apt-get install",
        ),
        ((), "path"),
        (("--task.path", "FOLDER", "--task.classes", "2"), "there is a label 2, .*raise --task.classes"),
        (
            ("--task.path", "FOLDER", "--model.position", "Learned", "--model.position.capacity", "4"),
            "position 5 is beyond the capacity of 4: raise capacity",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(
    words: tuple[str, ...], said: str, abc: Abc, folders: dict[str, Path]
) -> None:
    named = [str(folders["idx"]) if word == "FOLDER" else word for word in words]
    classes = () if "--task.classes" in words else ("--task.classes", "3")
    held_out = () if "--task.held_out" in words else ("--task.held_out", "40")
    status, out, err = abc("fit", "--task", "ImageClassification", *TINY, *named, *classes, *held_out)
    assert (status, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert re.search(said, err), err
    assert not list(Path().iterdir())


def test_a_run_is_fitted_resumed_and_evaluated(abc: Abc, folders: dict[str, Path]) -> None:
    words = ("--task", "ImageClassification", "--task.path", str(folders["idx"]), "--task.classes", "3")
    words += ("--task.held_out", "40", "--task.label_smoothing", "0.1", *TINY, "--model.position", "AlgebraicPE")
    words += ("--model.position.structure", "grid")
    status, _, err = abc("fit", *words)
    assert status == 0, err
    assert "evaluate --run runs/imageclassification --length 1x" in err
    folder = Path("runs", "imageclassification")
    assert Run(folder).task("fit") == ImageClassification(folders["idx"], classes=3, held_out=40, label_smoothing=0.1)
    status, _, err = abc("fit", *words, "--resume", "--trainer.max_steps", "4")
    assert status == 0, err
    for length, samples, said in (("2x", "9", "2x3 tokens"), ("1x", "41", "there are 40 problems of length 3 in test"),
                                  ("1x,10x", "9", "2x3 tokens")):  # fmt: skip
        status, out, err = abc("evaluate", "--length", length, "--samples", samples)
        assert (status, out, len(err.splitlines())) == (2, "", 1), err
        assert said in err
        assert [path.name for path in folder.iterdir()] == ["fit"]
    status, _, err = abc("evaluate", "--length", "1x", "--sets", "test,validation")
    assert status == 0, err
    rows = json.loads((folder / "evaluate" / "results.json").read_text())
    assert [(row["suite"], row["samples"], row["tokens"], row["metric"]) for row in rows] == [
        ("test", 40, 6, "accuracy"),
        ("validation", 40, 6, "accuracy"),
    ]
    assert (folder / "evaluate" / "accuracy.png").exists()
