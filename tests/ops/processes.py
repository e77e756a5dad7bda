"""Python processes of their own: for what happens at import and for what the environment decides."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent


def run_python(
    script: str, *arguments: str | Path, cwd: Path, package: Path | None = None, **environment: str | Path
) -> str:
    """Runs a script and returns what it prints; `package` is the folder from which it imports adderzoo.

    Without `package` it imports the adderzoo that this process imported.
    """
    import adderzoo

    path = package or Path(adderzoo.__file__).parent.parent
    given = {"PYTHONPATH": path, **environment}
    environ = os.environ | {name: str(value) for name, value in given.items()}
    guard = f"import pathlib, adderzoo; assert pathlib.Path(adderzoo.__file__).is_relative_to({str(path)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", script + "\n" + guard, *map(str, arguments)],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
