import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import Done
from pictures import random_images
from PIL import Image
from torch import nn

from adderzoo.checkpoints import save
from adderzoo.data import as_float, as_integers, downscale
from adderzoo.data.photos import Photo, read_photo, write_photo
from adderzoo.files.weights import save_weights
from adderzoo.inference import quantization
from adderzoo.layers.image import BicubicUpsample

Command = Callable[..., Done]

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"blocks": 1, "width": 4}
ADDER, CNN = "adder_edsr_baseline_x2", "cnn_edsr_baseline_x2"


def network(name: str) -> Any:
    """A random one that leaves the image recognizable."""
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL).train()
    nn.init.normal_(model.conv2.weight, std=0.02)
    for _ in range(4):
        model(torch.rand(4, 3, 16, 16))
    return model.eval()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in (ADDER, CNN):
        about = {"architecture": name, "model_args": json.dumps(SMALL)}
        save_weights(network(name), folder / f"{name}.safetensors", about)
    integer = quantization.quantize(quantization.calibrate(network(ADDER), [torch.rand(4, 3, 16, 16)]))
    save(integer, folder / "u8.safetensors", **SMALL)
    return {name: folder / f"{name}.safetensors" for name in (ADDER, CNN, "u8")}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    random_images(1, (37, 29))[0].save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def by_network(model: Any, color: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return as_integers(model(as_float(color)[None].expand(-1, 3, -1, -1))[0], color.dtype)


def near(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """But for rounding: a network that is fused adds up in another order."""
    return got.shape == expected.shape and bool((got.int() - expected.int()).abs().max() <= 1)


@pytest.mark.parametrize("tile", [8, 256])
def test_a_photograph_becomes_larger(
    adderzoo: Command, photo: Path, checkpoints: dict[str, Path], tmp_path: Path, tile: int
) -> None:
    out = tmp_path / "new" / "out.png"
    done = adderzoo("upscale", photo, "-o", out, "--model", ADDER, "--checkpoint", checkpoints[ADDER], "--tile", tile)
    assert (done.status, done.out) == (0, f"{out}: 74x58 pixels, by {ADDER}\n")
    assert near(read_photo(out).color, by_network(network(ADDER), read_photo(photo).color))
    assert "tile" in done.err  # the progress bar


def test_a_quantized_network_does_too(
    adderzoo: Command, photo: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    command = ("upscale", photo, "-o", tmp_path / "out.png", "--model", ADDER, "--checkpoint", checkpoints["u8"])
    assert adderzoo(*command, "--scale", 2).status == 0
    assert read_photo(tmp_path / "out.png").color.shape == (3, 58, 74)
    assert f"scale must be that of {ADDER}, 2, got 3" in adderzoo(*command, "--scale", 3).err


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("colors", [1, 3], ids=["gray", "color"])
def test_gray_alpha_and_sixteen_bits_are_kept(
    adderzoo: Command, tmp_path: Path, colors: int, alpha: bool, dtype: torch.dtype
) -> None:
    channels = as_integers(torch.rand(colors + alpha, 12, 9), dtype)
    photo = Photo(channels[:colors], channels[colors:] if alpha else None)
    write_photo(photo, tmp_path / "photo.png")
    done = adderzoo("upscale", tmp_path / "photo.png", "-o", tmp_path / "out.png", "--model", "bicubic", "--scale", 3)
    assert done.status == 0
    larger = read_photo(tmp_path / "out.png")
    expected = as_integers(BicubicUpsample(3)(as_float(channels)[None])[0], dtype)
    assert larger.color.dtype == dtype
    assert near(larger.color, expected[:colors])
    assert (larger.alpha is not None) == alpha
    assert larger.alpha is None or near(larger.alpha, expected[colors:])


def test_exif_orientation_is_applied_and_gone(adderzoo: Command, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    random_images(1, (20, 10))[0].save(tmp_path / "photo.jpg", exif=exif, quality=95)
    assert adderzoo("upscale", tmp_path / "photo.jpg", "-o", tmp_path / "out.jpg", "--model", "bicubic").status == 0
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.size == (20, 40)
        assert 0x0112 not in image.getexif()


def test_self_ensemble_is_an_option(
    adderzoo: Command, photo: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    outputs = []
    for options in ((), ("--self-ensemble",)):
        command = ("upscale", photo, "-o", tmp_path / "out.png", "--model", CNN, "--checkpoint", checkpoints[CNN])
        assert adderzoo(*command, *options).status == 0
        outputs.append(read_photo(tmp_path / "out.png").color)
    assert not torch.equal(*outputs)


def test_comparison_has_bicubic_network_twin_and_original(
    adderzoo: Command, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (131, 141, 3), dtype=np.uint8)
    pixels[:, :40] = 90  # nothing to be seen there
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    command = ("upscale", tmp_path / "photo.png", "-o", tmp_path / "out.png", "--compare", "--model", ADDER)
    options = ("--checkpoint", checkpoints[ADDER], "--twin-checkpoint", checkpoints[CNN])
    assert adderzoo(*command, *options, "--crop", 40, 30).status == 0
    picture = np.asarray(Image.open(tmp_path / "out.png"))
    assert picture.shape == (288 + 36, 4 * 296 - 8, 3)
    original = torch.from_numpy(pixels[:130, :140]).permute(2, 0, 1)
    small = downscale(original, 2)
    larger = [by_network(timm.create_model("bicubic"), small)]
    larger += [by_network(network(name), small) for name in (ADDER, CNN)]
    for index, expected in enumerate((*larger, original)):
        panel = picture[1:288:3, 296 * index + 1 : 296 * index + 288 : 3]
        assert near(torch.from_numpy(panel.copy()).permute(2, 0, 1), expected[:, 30:126, 40:136]), index
    assert (picture[290:, :288] != 255).any()  # a name below it
    assert adderzoo(*command, *options).status == 0
    shown = np.asarray(Image.open(tmp_path / "out.png"))[1:288:3, -287::3]
    assert any(np.array_equal(shown, pixels[top : top + 96, 40:136]) for top in range(0, 40, 8))
    done = adderzoo(*command, "--checkpoint", checkpoints[ADDER])
    assert f"adderzoo upscale: no weights for {CNN}: name them with --twin-checkpoint\n" in done.err
    assert Image.open(tmp_path / "out.png").size[0] == 3 * 296 - 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.png",), "image missing.png does not exist"),
        (("photo.png", "-o", "out.txt"), "OUT must end as an image file does that can be written, such as .png"),
        (("alpha.png", "-o", "out.jpg"), "OUT out.jpg cannot hold an image of 16x16 pixels in RGBA: "),
        (("photo.png", "--scale", 5), "no adder network has published weights that were measured at scale 5: "),
        (("photo.png", "--model", ADDER, "--scale", 3), f"scale must be 2 for {ADDER}, got 3"),
        (("photo.png", "--model", "bicubic", "--scale", 1), "scale must be an integer from 2, got 1"),
        (("photo.png", "--model", "adder_lenet5.digits"), "model must be a network for super-resolution, got "),
        (("photo.png", "--model", "no_such_net"), "model must be a registered network, got 'no_such_net'"),
        (("photo.png", "--checkpoint", "x.pth"), "there is no file x.pth"),
        (("photo.png", "--checkpoint", "empty.pth"), "empty.pth does not say of which network it is"),
        (("photo.png", "--model", "adder_vdsr_x9"), "model must be a registered network, got 'adder_vdsr_x9'"),
        (("photo.png", "--model", "adder_edsr_x2"), "model adder_edsr_x2 has no published weights"),
        (("photo.png", "--model", "bicubic", "--tile", 0), "tile must be at least 1, got 0"),
        (("photo.png", "--model", "bicubic", "--crop", 1, 1), "crop is for compare, which is not asked for"),
        (("photo.png", "--model", "bicubic", "--compare"), "must have at least 96 pixels a side to be compared"),
        (("large.png", "--model", "bicubic", "--compare", "--crop", 9, 0), "crop must be from 0 0 to 4 14, got 9 0"),
        (("photo.png", "--model", "bicubic", "--device", "xpu:9"), "device 'xpu:9' cannot be used: "),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    adderzoo: Command,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    random_images(1, (8, 8))[0].convert("RGBA").save("alpha.png")
    random_images(1, (100, 110))[0].save("large.png")
    torch.save({}, "empty.pth")
    before = sorted(tmp_path.rglob("*"))
    output = () if "-o" in arguments else ("-o", "out.png")
    if "alpha.png" in arguments:
        arguments = (*arguments, "--model", "bicubic")
    done = adderzoo("upscale", *arguments, *output)
    assert (done.status, done.out) == (1, "")
    assert done.err.splitlines()[-1].startswith("adderzoo upscale: error: ")
    assert message in done.err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_name_it_is_a_network_that_was_measured_at_the_scale(
    adderzoo: Command, photo: Path, tmp_path: Path
) -> None:
    done = adderzoo("upscale", photo, "--scale", 2, "-o", tmp_path / "larger.png")
    assert done.status == 0, done
    assert done.out.endswith("larger.png: 74x58 pixels, by adder_edsr_small_x2.bsds400\n")
    model = timm.create_model("adder_edsr_small_x2", pretrained=True).eval()
    expected = by_network(model, read_photo(photo).color)
    got = read_photo(tmp_path / "larger.png").color
    assert (got.int() - expected.int()).abs().max() <= 1  # fused, it rounds differently


def test_hidden_colors_do_not_bleed_into_the_edge(adderzoo: Command, tmp_path: Path) -> None:
    rows, columns = np.mgrid[:40, :40]
    shape = (rows - 20) ** 2 + (columns - 20) ** 2 < 144
    for name, hidden in (("own", (200, 150, 100)), ("green", (0, 255, 0))):
        pixels = np.zeros((40, 40, 4), np.uint8)
        pixels[..., :3] = np.where(shape[..., None], (200, 150, 100), hidden)
        pixels[..., 3] = 255 * shape
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        assert adderzoo("upscale", tmp_path / f"{name}.png", "-o", tmp_path / f"{name}_x2.png").status == 0
    own, green = (np.asarray(Image.open(tmp_path / f"{name}_x2.png")) for name in ("own", "green"))
    visible = own[..., 3] > 0
    assert 0 < visible.sum() < visible.size
    assert np.array_equal(own[visible], green[visible])


def test_all_frames_and_pages_become_larger(adderzoo: Command, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 5), color) for color in ("red", "lime", "blue")]
    for name in ("a.gif", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=[100, 200, 300], loop=0)
        out = tmp_path / f"out_{name}"
        done = adderzoo("upscale", tmp_path / name, "-o", out, "--model", "bicubic")
        kind = "frames" if name == "a.gif" else "pages"
        assert (done.status, done.out) == (0, f"{out}: 12x10 pixels in 3 {kind}, by bicubic\n")
        with Image.open(out) as larger:
            assert (larger.n_frames, larger.info.get("loop")) == (3, 0 if name == "a.gif" else None)  # type: ignore[attr-defined]
            for index, frame in enumerate(frames):
                larger.seek(index)
                assert np.array_equal(larger.convert("RGB"), frame.resize((12, 10)))
                assert name == "a.tif" or larger.info["duration"] == (index + 1) * 100
    options = {"save_all": True, "default_image": True, "duration": [100, 200]}  # the first is no part of the animation
    frames[0].save(tmp_path / "still.png", append_images=frames[1:], **options)
    for name, count in (("still_x2.png", 3), ("still_x2.gif", 2)):
        done = adderzoo("upscale", tmp_path / "still.png", "-o", tmp_path / name, "--model", "bicubic")
        assert done.out == f"{tmp_path / name}: 12x10 pixels in {count} frames, by bicubic\n"
        assert Image.open(tmp_path / name).n_frames == count  # type: ignore[attr-defined]
    refused = adderzoo("upscale", tmp_path / "a.gif", "-o", tmp_path / "out.jpg", "--model", "bicubic")
    assert "OUT must end in .png, .webp or .gif to keep the image's 3 frames" in refused.err
    assert not (tmp_path / "out.jpg").exists()


def test_a_format_of_eight_bits_is_said(adderzoo: Command, tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 6), 40000, np.uint16)).save(tmp_path / "a.png")
    for name, said in (("b.png", False), ("b.tif", False), ("b.jpg", True)):
        done = adderzoo("upscale", tmp_path / "a.png", "-o", tmp_path / name, "--model", "bicubic")
        assert done.status == 0
        assert (f"{tmp_path / name} has 8 bits; .png and .tif keep 16" in done.err) == said


def test_several_images_and_folders(adderzoo: Command, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "folder/a.png", "folder/below/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        random_images(1, (12, 9))[0].save(tmp_path / name)
    out, options = tmp_path / "out", ("--model", "bicubic", "--scale", 2)
    done = adderzoo("upscale", tmp_path / "b.jpg", tmp_path / "folder", "-o", out, *options)
    assert done.status == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == ["a.png", "b.jpg", "below/c.png"]
    assert len(done.out.splitlines()) == 3
    assert all(Image.open(path).size == (24, 18) for path in out.rglob("*.*"))
    (tmp_path / "folder" / "broken.png").write_bytes(b"no image")
    done = adderzoo("upscale", tmp_path / "folder", "-o", tmp_path / "second", *options)
    assert done.status == 1
    assert len(done.out.splitlines()) == len(list((tmp_path / "second").rglob("*.*"))) == 2
    assert done.err.splitlines()[-1].startswith(f"adderzoo upscale: error: image {tmp_path / 'folder' / 'broken.png'} ")


def test_names_beside_the_originals_replace_nothing(
    adderzoo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "folder/2.png", "folder/below/10.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        random_images(1, (12, 9))[0].save(name)
    random_images(1, (12, 9))[0].save("icon", "PNG")  # no ending that says a format
    options = ("-m", "bicubic", "--scale", 3)
    done = adderzoo("upscale", "a.png", "b.jpg", "icon", "folder", *options, "--json", "rows.json")
    written = ["a_x3.png", "b_x3.jpg", "icon_x3.png", "folder_x3/2.png", "folder_x3/below/10.png"]
    assert done.out.splitlines() == [f"{name}: 36x27 pixels, by bicubic" for name in written]
    assert all(Image.open(name).size == (36, 27) for name in written)
    rows = json.loads(Path("rows.json").read_text())
    assert [(row["output"], row["width"], row["height"]) for row in rows] == [(name, 36, 27) for name in written]
    before = {name: Path(name).read_bytes() for name in written}
    random_images(1, (12, 9), seed=7)[0].save("a.png")
    refused = adderzoo("upscale", "a.png", *options)
    assert "error: a_x3.png is there already, and is replaced by -o a_x3.png alone\n" in refused.err
    assert (
        "error: folder_x3/2.png is there already, and is replaced by -o folder_x3 alone\n"
        in adderzoo("upscale", "folder", *options).err
    )
    assert {name: Path(name).read_bytes() for name in written} == before
    assert adderzoo("upscale", "a.png", *options, "-o", "a_x3.png").status == 0
    assert Path("a_x3.png").read_bytes() != before["a_x3.png"]


def test_outputs_that_would_collide_are_refused(adderzoo: Command, tmp_path: Path) -> None:
    for name in ("a.png", "folder/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        random_images(1, (12, 9))[0].save(tmp_path / name)
    one, folder, new = tmp_path / "a.png", tmp_path / "folder", tmp_path / "new"
    for arguments, message in {
        (one, folder, "-o", new): f"{one} and {folder / 'a.png'} would both become {new / 'a.png'}",
        (folder, "-o", folder): "OUT must be another folder than that of the images: ",
        (folder, "-o", one): f"OUT must be a folder for the larger images, got the file {one}",
        (one, folder, "-o", "b.png"): "OUT must be a folder for the larger images, got a name that ends as a file's",
        (one, folder, "-o", new, "--compare"): "compare takes one PHOTO, got ",
    }.items():
        done = adderzoo("upscale", *arguments, "--model", "bicubic")
        assert (done.status, done.out) == (1, "")
        assert message in done.err.splitlines()[-1]
    assert not new.exists()
