"""Publish weights of the package on the Hugging Face Hub: model.safetensors, config.json and the model card.

    python scripts/publish.py NAME.TAG --repo ORG/NAME.TAG [--dry-run]

The token is what `hf auth login` stored, or HF_TOKEN. The repository is made if there is none, and gets all files in
one commit, so that nobody sees some without the others. The command can be repeated, after an upload that broke off as
well: files that are there already are not sent again, and no change makes no commit. --dry-run builds and checks the
files and sends nothing.
"""

import argparse
import hashlib
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from timm.models import get_pretrained_cfg, save_for_hf

from adderzoo.hub import HUB_ORGANIZATION
from adderzoo.models import WEIGHTS
from adderzoo.publish.card import model_card


def write_files(name: str, folder: Path) -> list[Path]:
    """Write what a repository of the Hub has, and check that timm makes the published network of it.

    timm's `push_to_hf_hub` would do this, but leaves a model card alone that is there, and writes the weights anew:
    this takes the package's file, to the byte, whose SHA-256 the package knows.

    Args:
        name: Of the network, with the tag of weights that lie in the package.
        folder: An empty one.

    Returns:
        The files.

    Raises:
        ValueError: if there are no such weights, or nobody measured them.
        OSError: if the weights in the package are damaged, or a file cannot be written.
        RuntimeError: if another network comes out.
    """
    card = model_card(name)
    model = timm.create_model(name, pretrained=True)
    labels = get_pretrained_cfg(name).label_names
    save_for_hf(model, folder, {"label_names": list(labels)} if labels else None, safe_serialization=True)
    shutil.copyfile(WEIGHTS / f"{name}.safetensors", folder / "model.safetensors")
    (folder / "README.md").write_text(card, encoding="utf-8")

    expected, got = model.state_dict(), timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    if expected.keys() != got.keys() or not all(torch.equal(expected[key], got[key]) for key in got):
        raise RuntimeError(f"the files of {name} make another network than `timm.create_model({name!r})`")
    return sorted(folder.iterdir())


def upload(name: str, repo: str, files: list[Path]) -> str:
    """The URL of the commit that has these files, a new one if anything changed.

    Raises:
        OSError: if the Hub cannot be reached, or refuses; the message says why and what to do.
    """
    token = get_token()
    if token is None:
        raise OSError("there is no token: run `hf auth login`, or set HF_TOKEN to one that may write")
    api = HfApi(token=token, library_name="adderzoo")
    operations = [CommitOperationAdd(file.name, file) for file in files]
    try:
        api.create_repo(repo, exist_ok=True)
        # Not upload_folder, which may make several commits.
        return api.create_commit(repo, operations, commit_message=f"adderzoo: {name}").commit_url
    except Exception as error:  # those of the HTTP library are others in other versions of huggingface_hub
        raise OSError(
            f"{repo} was not published: {_reason(error)}. The Hub shows all files of a commit or none; repeat the "
            "command, which sends what is missing"
        ) from error


def _reason(error: BaseException | None) -> str:
    """What an error of huggingface_hub, or one behind it, says about the Hub, in a line."""
    last = error
    while error is not None:
        response: Any = getattr(error, "response", None)
        if response is not None:
            status = response.status_code
            known = {401: "the Hub does not know the token", 403: f"the token may not write there: {_line(error)}"}
            return f"{known.get(status, _line(error))} (HTTP {status})"
        last, error = error, error.__cause__ or error.__context__
    return f"{constants.ENDPOINT} cannot be reached, or broke off ({type(last).__name__}: {_line(last)})"


def _line(error: BaseException | None) -> str:
    return " ".join(str(getattr(error, "server_message", None) or error).split()).rstrip(".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME.TAG", help="of weights in the package, such as adder_lenet5.digits")
    parser.add_argument("--repo", metavar="ORG/NAME.TAG", required=True, help="of the Hub, named as the weights are")
    parser.add_argument("--dry-run", action="store_true", help="build and check the files, and send nothing")
    args = parser.parse_args()
    try:
        if not re.fullmatch(rf"[\w.-]+/{re.escape(args.name)}", args.repo):
            raise ValueError(f"--repo must be ORG/{args.name}, so that its name says what it is, got {args.repo!r}")
        with tempfile.TemporaryDirectory() as folder:
            files = write_files(args.name, Path(folder))
            for file in files:
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                print(f"{file.stat().st_size:>12,} bytes  {digest}  {file.name}")
            if args.dry_run:
                print(f"--dry-run: {args.repo} is as it was")
                return
            url = upload(args.name, args.repo, files)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"publish.py: error: {error}")
    print(f'{url}\ntimm.create_model("hf-hub:{args.repo}", pretrained=True)')
    organization = args.repo.partition("/")[0]
    if organization != HUB_ORGANIZATION:
        print(f'Once all weights are there: HUB_ORGANIZATION = "{organization}" in adderzoo/hub.py', file=sys.stderr)


if __name__ == "__main__":
    main()
