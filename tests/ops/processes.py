"""Python processes of their own: for what happens at import and for what the environment decides."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent


def run_python(
    script: str, *arguments: str | Path, cwd: Path, package: Path | None = None, **environment: str | Path
) -> str:
    """Runs a script and returns what it prints; `package` is the folder from which it imports adderzoo.ops.

    Without `package` it imports the adderzoo that this process imported. The rest of adderzoo, which takes longer to
    import than PyTorch, is left out.
    """
    import adderzoo

    path = package or Path(adderzoo.__file__).parent.parent
    only_ops = f"""
import sys, types
sys.modules["adderzoo"] = types.ModuleType("adderzoo")
sys.modules["adderzoo"].__path__ = [{str(path / "adderzoo")!r}]
"""
    given = {"OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", only_ops + script, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {name: str(value) for name, value in given.items()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
