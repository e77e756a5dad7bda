import getpass
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, run_hub, use_hub
from pictures import SHARED


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="where the operators are tested: cpu (the default), cuda, cuda:1 ...; elsewhere than on the CPU only the "
        "tests that take the device are run",
    )
    parser.addoption("--library", help="compiled kernels that are tested in the place of the CPU's own")


def pytest_configure(config: pytest.Config) -> None:
    # PyTorch's cache gives code that was compiled for one instruction set to another, whose vectors then write past the
    # ends of tensors: a cache for each. Importing torchvision has named the default already.
    default = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default) == default:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{default}_{torch.backends.cpu.get_cpu_capability()}"
    if config.getoption("--device") != "cpu":
        torch.backends.cudnn.allow_tf32 = False  # in which PyTorch's convolutions would compute the weight gradient
    if library := config.getoption("--library"):
        import adderzoo.ops  # the schemas

        assert adderzoo.ops.backend() != "PyTorch reference"
        with warnings.catch_warnings(action="ignore"):  # about kernels that are replaced
            torch.ops.load_library(library)


# What takes minutes comes first: at the end it would leave the other processes without work.
FIRST = ("test_cuda_on_cpu.py", "test_documentation.py", "test_cuda_code.py", "test_library.py", "test_loops.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
    if config.getoption("--device") != "cpu":
        others = [item for item in items if "device" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine a thread that is not running keeps the others waiting, far longer than small tensors take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """The path of a file or folder of ../shared; a test that asks for one that is absent is skipped."""

    def path(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"../shared/{name} is absent: it lies beside the checkout, not in it")
        return SHARED / name

    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub on loopback, which huggingface_hub talks to, with the cache tmp_path / "hub"."""
    with run_hub() as server:
        use_hub(server, tmp_path / "hub", monkeypatch)
        yield server
