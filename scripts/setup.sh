# Sourced by the other scripts: makes .venv with the package and the extras that EXTRAS names, and says what it does.
# What is there already is neither installed nor compiled again: .venv/setup has what each part was made from.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() {
    printf '[%d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*" >&2
}

# Runs pip with these arguments; of what it prints, what takes time is shown, and all of it where it fails.
pip_install() {
    local line log=.venv/setup/log
    PYTHONUNBUFFERED=1 .venv/bin/python -m pip install --progress-bar off "$@" 2>&1 | tee "$log" | while IFS= read -r line; do
        if [[ $line =~ ^\ *(Downloading|Using\ cached)\ .*\([0-9.]+\ [MG]B\) ]] && [[ ! $line =~ \([0-9]\.[0-9]\ MB\) ]]; then
            say "  ${line#"${line%%[! ]*}"}"
        elif [[ $line =~ ^\ *Installing\ collected\ packages ]]; then
            say "  unpacking $(tr -cd , <<<"$line," | wc -c) packages"
        elif [[ $line =~ ^\ *adderzoo:\  ]]; then
            say "  ${line#*adderzoo: }"
        elif [[ $line =~ ^\ *\[([0-9]+)/([0-9]+)\]\  ]]; then
            say "  compiled ${BASH_REMATCH[1]} of ${BASH_REMATCH[2]} files"
        fi
    done || {
        cat "$log" >&2
        say "pip install $* has failed"
        return 1
    }
}

# What the package needs, and the extras that are named, one a line.
requirements() {
    .venv/bin/python - "$1" <<'PYTHON'
import re
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]


def lines(extras):
    for extra in extras.split(","):
        for line in project["optional-dependencies"][extra]:
            own = re.fullmatch(r"adderzoo\[(.+)\]", line)
            yield from lines(own[1]) if own else [line]


print(*project["dependencies"], *lines(sys.argv[1]), sep="\n")
PYTHON
}

libraries() {
    find adderzoo -maxdepth 1 -name '_C*.so' | sort
}

made_from() {
    [ -e ".venv/setup/$1" ] && [ "$2" = "$(cat ".venv/setup/$1")" ]
}

made() {
    printf '%s\n' "$2" >".venv/setup/$1"
}

set_up() {
    local wanted python started=$SECONDS

    # An environment is of one Python, and knows the folder that it was made in.
    python=$(.venv/bin/python -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null || true)
    if [ -n "$python" ] && [ ! -e .venv/setup ] && .venv/bin/python -c 'import pip' 2>/dev/null; then
        say "Using the .venv that is here"
        mkdir .venv/setup
        made environment "Python $python in $PWD/.venv"
    fi
    if [ -z "$python" ] || ! made_from environment "Python $python in $PWD/.venv"; then
        [ ! -e .venv ] || say "Making .venv anew: it is of another folder or another Python, or incomplete"
        rm -rf .venv
        if ! python3 -m venv .venv >/dev/null 2>&1; then
            # Debian's python3 lacks the module that installs pip.
            local sudo=""
            [ "$(id -u)" = 0 ] || sudo="sudo"
            say "Installing python3-venv, by apt-get"
            $sudo apt-get update -qq && $sudo apt-get install -qq -y python3-venv >/dev/null
            rm -rf .venv
            python3 -m venv .venv
        fi
        python=$(.venv/bin/python -c 'import sys; print(*sys.version_info[:2], sep=".")')
        mkdir -p .venv/setup
        made environment "Python $python in $PWD/.venv"
    fi

    # Compiling needs the headers of the PyTorch that the package will run on, so this comes first.
    wanted=$(requirements "$EXTRAS")
    if ! made_from "packages-$EXTRAS" "$wanted"; then
        if ls -d .venv/lib/python*/site-packages/torch >/dev/null 2>&1; then
            say "Installing what [$EXTRAS] needs and is not there: a minute or less"
        else
            say "Installing PyTorch and what else [$EXTRAS] needs: a download of a gigabyte or more, 2 to 4 minutes"
        fi
        pip_install "setuptools>=77" -r <(echo "$wanted")
        made "packages-$EXTRAS" "$wanted"
    fi

    # Without a compiler the package installs without the library.
    wanted="$(sha256sum csrc/*.* csrc/*/*.* csrc/*/*/*.* setup.py pyproject.toml adderzoo/ops/_build.py)
ADDERZOO_CUDA=${ADDERZOO_CUDA:-}"
    if ! made_from library "$wanted"$'\n'"$(libraries)"; then
        say "Compiling the operators and installing the package, in place: about a minute on two cores"
        pip_install -v --no-build-isolation --no-deps -e .
        made library "$wanted"$'\n'"$(libraries)"
    fi
    [ $((SECONDS - started)) -lt 2 ] || say "Set up in $((SECONDS - started)) s; the next time, what is there stays"
}

set_up
